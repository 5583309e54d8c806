"""Exported students: loaded back by timm they answer as the ledger says, and their card says what they are."""

from __future__ import annotations

import base64
import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from answers import logits
from test_pipeline import STUDY

from kt import status, store
from kt.cli import main
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.stages.jobs import OfImages
from kt.study.load import load
from kt.tasks.classification import Classification
from kt.tasks.segmentation import Segmentation
from kt.transfer import export
from kt.transfer.ledger import Ledger, unpack
from kt.transfer.method import registry
from kt.transfer.session import Left
from kt.transfer.unit import Plan, Unit
from kt.zoo import models
from kt.zoo.spec import Member, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study up to its transfers, with groups, none of whose students is kept."""
    folder = tmp_path_factory.mktemp("export")
    study = copy.deepcopy(STUDY)
    study["zoo"]["models"]["pool"] = {"arch": "tiny_poolformer", "kind": "hybrid", "train": {"epochs": 3}}
    study["transfer"] |= {"methods": {"bikd": {}, "kl": {}, "finetune": {}, "ensemble_mean": {}}, "seeds": [0]}
    study["groups"] = {"choose": {"select": "ranked", "k": 2}, "methods": {"soup": {}}}
    for name in ("none", "all", "improved"):
        study["transfer"]["export"] = name
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = [["data"]]
        commands += [
            [stage, "--model", model] for model in study["zoo"]["models"] for stage in ("weights", "predictions")
        ]
        commands += [["zoo"], ["transfer", "--student", "byob"], ["groups", "--student", "byob"]]
        for command in commands:
            assert main([*command, "--config", "none.yaml"]) == 0
    return folder


def run(folder: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(folder)
    for command in ("transfer", "groups"):
        assert main([command, "--config", f"{config}.yaml", "--student", "byob"]) == 0
    return pd.concat(pd.read_parquet(f"results/transfer/byob/{name}.parquet") for name in ("0", "groups"))


def students(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``config.json`` tells under ``kt`` of every exported student, by name."""
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("results/students/*/config.json")}
    return {name: config["kt"] for name, config in found.items()}


def left_of_byob(folder: Path, config: str) -> int:
    """Trainings of one student that a plan promises."""
    study = load(folder / f"{config}.yaml")
    return status.survey(study, study.layout).waiting["byob"]


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "results/ledger").glob("??/*.json")}


def answers_of(folder: Path, model: torch.nn.Module) -> np.ndarray:
    dataset = Dataset.open(folder / "results/data")
    spec = InputSpec(size=16, mean=(0.3,), std=(0.33,))
    inputs = Inputs(dataset.images, dataset.rows("test"), spec, torch.device("cpu"))
    return logits(model.to(memory_format=torch.channels_last), inputs).argmax(1)


@pytest.fixture
def empty(folder: Path) -> Path:
    """The study without exported students."""
    shutil.rmtree(folder / "results/students", ignore_errors=True)
    return folder


def test_students_are_kept_on_request_and_timm_loads_them(empty, monkeypatch, capsys):
    folder, before = empty, records(empty)
    promised = left_of_byob(folder, "all")
    capsys.readouterr()
    table = run(folder, "all", monkeypatch)
    done = sum(map(int, re.findall(r"(\d+) to do", capsys.readouterr().err)))
    rows = table[table["trains"]].drop_duplicates("key").set_index("key")
    assert promised == done == len(rows)  # what is promised is what runs
    assert records(folder) == before
    kept = students(folder)
    assert {of["key"] for of in kept.values()} == set(rows.index)
    assert {"byob.from-mixer.kl.seed0", "byob.finetune.seed0", "byob.from-mixer+pool.soup.seed0"} <= set(kept)
    for name, of in kept.items():
        row, text = rows.loc[of["key"]], (folder / f"results/students/{name}/README.md").read_text()
        model = timm.create_model(f"local-dir:{folder}/results/students/{name}", pretrained=True)
        record = Ledger(folder / "results/ledger").get(of["key"])
        said = [record["last"]] if "last" in record else [part["last"] for part in record["models"].values()]
        answers = answers_of(folder, model)
        assert any(np.array_equal(answers, unpack(packed)) for packed in said)
        dataset = Dataset.open(folder / "results/data")
        accuracy = 100 * (answers == dataset.labels[dataset.rows("test")]).mean()
        assert f"| accuracy after | {accuracy:.2f} % |" in text
        assert f"{row['delta']:+.2f} ± {row['delta_se']:.2f} percentage points, on 150 test images" in text
        assert f"after `{row['method']}` from" in text
        assert f"timm.create_model('local-dir:{name}', pretrained=True)" in text
        assert "Input: 16 pixels, 1 channels" in text
        if not row["control"]:
            assert " and ".join(row["teachers"]) in text
            assert "| control `finetune` without a teacher, same seed |" in text
    capsys.readouterr()
    run(folder, "all", monkeypatch)
    assert capsys.readouterr().err.count(" 0 to do") == 2  # what is kept is not trained again
    assert left_of_byob(folder, "all") == 0
    shutil.rmtree(folder / "results/students/byob.from-mixer.kl.seed0")
    assert left_of_byob(folder, "all") == 1


def test_improved_means_better_on_validation_whatever_the_test_images_say(empty, monkeypatch):
    folder = empty
    shutil.copytree(folder / "results/ledger", folder / "ledger")
    for path in (folder / "results/ledger").glob("??/*.json"):
        record = json.loads(path.read_text())
        if "last" in record["outcome"] and record["outcome"]["validation"]:
            record["outcome"]["validation"][-1] = 100.0 * (record["unit"]["method"]["name"] == "kl")
            record["hash"] = store.digest([record["unit"], record["outcome"]])
            path.write_text(json.dumps(record))
    for _ in range(2):
        promised = left_of_byob(folder, "improved")
        run(folder, "improved", monkeypatch)
        assert {name.split(".")[2] for name in students(folder)} == {"kl"}
    assert promised == 0
    shutil.rmtree(folder / "results/ledger")
    (folder / "ledger").rename(folder / "results/ledger")


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    return main(["export", "--config", "none.yaml", *arguments])


def test_the_best_on_validation_is_exported_alone_and_once(empty, monkeypatch, capsys):
    folder, before = empty, records(empty)
    capsys.readouterr()
    assert command(folder, monkeypatch, "--student", "byob", "--dry-run") == 0
    told = capsys.readouterr().out
    assert not (folder / "results/students").exists()
    assert "1 training to do again; the first time took" in told
    assert "left out of the choice, without a value of their own on validation: bikd, soup" in told
    assert command(folder, monkeypatch, "--student", "byob", "--best") == 0
    assert capsys.readouterr().out == told
    ((name, of),) = students(folder).items()
    outcomes = {path: json.loads(text)["outcome"] for path, text in before.items()}
    values = [o["validation"][-1] for o in outcomes.values() if o["steps"] and "models" not in o and o["best_epoch"]]
    assert f"-> results/students/{name}" in told
    assert of["validation_after"] == outcomes[f"{of['key']}.json"]["validation"][-1] == max(values)
    assert records(folder) == before
    index = pd.read_csv(folder / "results/students/index.csv")
    assert index["name"].tolist() == [name]
    assert index["delta"].tolist() == pytest.approx([of["delta"]])
    assert command(folder, monkeypatch, "--student", "byob") == 0
    told = capsys.readouterr().out
    assert f"is there: {of['method']} to byob" in told
    assert "to do again" not in told


def test_a_pair_is_exported_by_its_names(empty, monkeypatch):
    assert command(empty, monkeypatch, "--pair", "pool", "byob", "--method", "kl") == 0
    assert list(students(empty)) == ["byob.from-pool.kl.seed0"]
    assert command(empty, monkeypatch, "--student", "byob", "--method", "soup", "--best") == 0  # there is but one
    shutil.rmtree(empty / "results/students/byob.from-mixer+pool.soup.seed0")
    assert command(empty, monkeypatch, "--student", "byob", "--pair", "mixer", "--all") == 0
    assert sorted(students(empty)) == [
        "byob.from-mixer.bikd.seed0",
        "byob.from-mixer.kl.seed0",
        "byob.from-pool.kl.seed0",
    ]
    assert pd.read_csv(empty / "results/students/index.csv")["name"].tolist() == sorted(students(empty))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--student", "bob"], "unknown student 'bob'; allowed: byob, mixer, pool; did you mean 'byob'?"),
        (["--student", "byob", "--pair", "mxer"], "unknown teacher 'mxer'; allowed: mixer, pool"),
        (["--student", "byob", "--method", "kll"], "unknown method 'kll'; allowed: finetune, bikd, kl, soup"),
        (["--student", "byob", "--seed", "7"], "unknown seed '7'; allowed: 0"),
        (
            ["--student", "byob", "--method", "bikd"],
            "the ledger has no value on validation of these; name one, or export them with --all",
        ),
        (["--student", "mixer", "--method", "kl"], "none of 2 trainings to export: not finished yet; run: snakemake"),
        (["--student", "mixer", "--pair", "pool", "byob"], "name one student"),
        ([], "name one student"),
    ],
)
def test_what_cannot_be_exported_is_one_line(empty, arguments, said, monkeypatch, capsys):
    assert command(empty, monkeypatch, *arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


UNET = {"encoder": "resnet10t", "encoder_weights": True, "encoder_depth": 3, "decoder_channels": [16, 8, 8]}


@pytest.mark.parametrize(
    ("arch", "args", "module"),
    [("tiny_mixer", {"num_blocks": 2}, "kt.zoo.digits"), ("smp_unet", UNET, "kt.zoo.models")],
)
def test_a_student_that_timm_cannot_load_by_its_folder_is_loaded_as_its_card_says(
    arch, args, module, tmp_path, monkeypatch
):
    importlib.import_module(module)
    model = models.build(arch, args, 4, 1)
    row = dict.fromkeys(export.INDEXED) | {"student": "m", "method": "kl", "teachers": ["a"], "control": False}
    row |= {"acc_after": 50.0, "n": 9, "budget": 1, "key": "k"}
    about = export.About(Classification().words, "set", [*"abcd"], 4, (None, 40.0), [], {"m": "apache-2.0", "a": "mit"})
    folder = tmp_path / "m.from-a.kl.seed0"
    export.write(
        folder, Left(model, (arch, args), 1, InputSpec(size=16, mean=(0.5,), std=(0.5,))), row, {"seed": 0}, about
    )
    text = (folder / "README.md").read_text()
    assert f"import {module}\n" in text
    assert "license: other" in text
    assert "| licence of a | mit |" in text
    assert "`label_names` in `config.json`): a, b, c, d." in text
    call = re.search(r"model = (timm\.create_model\(.*\))\.eval\(\)", text)[1]
    monkeypatch.chdir(tmp_path)
    made = eval(call, {"timm": timm}).state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in model.state_dict().items())


SEGMENTER = {
    "encoder": "resnet10t.c3_in1k",
    "encoder_weights": True,
    "encoder_depth": 3,
    "channels": [8, 8, 16, 16],
    "stem_width": 8,
    "decoder_channels": [8, 8, 8],
}


def test_a_segmentation_network_is_loaded_whole_by_another_process_as_its_card_says(tmp_path):
    """Not the encoder's published weights below a random decoder."""
    model = models.build("smp_unet", SEGMENTER, 5, 3)
    row = dict.fromkeys(export.INDEXED) | {"student": "m", "method": "kl", "teachers": ["a"], "control": False}
    row |= {"acc_after": 50.0, "n": 9, "budget": 1, "key": "k"}
    spec = InputSpec(size=(16, 24), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1)
    about = export.About(Segmentation().words, "set", [*"abcde"], 5, (None, 40.0), [], {})
    folder = tmp_path / "m.from-a.kl.seed0"
    export.write(folder, Left(model, ("smp_unet", SEGMENTER), 3, spec), row, {"seed": 0}, about)
    text = (folder / "README.md").read_text()
    assert "timm.create_model('local-dir:m.from-a.kl.seed0', pretrained=True)" in text
    assert "| mean IoU after | 50.00 % of 9 test images |" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    code += f"import torch\ntorch.save(model.state_dict(), {str(tmp_path / 'found.pt')!r})\n"
    path = os.pathsep.join(filter(None, [str(Path(export.__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    found, own = torch.load(tmp_path / "found.pt"), model.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_the_licence_of_an_encoders_published_weights_is_told(tmp_path):
    members = {
        "fresh": Member(arch="smp_unet", args={"encoder": "resnet10t"}, train=Recipe(epochs=1)),
        "begun": Member(arch="smp_unet", args=SEGMENTER, train=Recipe(epochs=1)),
    }
    for name in members:
        store.write_json(tmp_path / name, {"licence": "cc-by-nd-4.0" if name == "begun" else None})
    study = SimpleNamespace(zoo=SimpleNamespace(models=members))
    job = SimpleNamespace(study=study, layout=SimpleNamespace(member=lambda name: tmp_path / name))
    unit = Unit(registry()["kl"](), Plan({}), "fresh", ("begun",), 0)
    found = OfImages._licences(job, unit)
    assert found == {"begun": "cc-by-nd-4.0"}
    assert "allows no derivatives" in export.refusal(found)


def test_names_are_readable_and_never_too_long():
    def named(teachers, student="vit"):
        return export.name_of(Unit(registry()["kl"](), Plan({}), student, tuple(teachers), 3))

    assert named(["r10t"]) == "vit.from-r10t.kl.seed3"
    assert named([]) == "vit.kl.seed3"
    assert named(["a", "b"]) == "vit.from-a+b.kl.seed3"
    long = named(["x" * 80, "y" * 80])
    assert len(long) <= 120
    assert long != named(["x" * 80, "z" * 80])


def test_a_folder_counts_as_whole_with_its_card_alone(tmp_path):
    assert export.key_in(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"kt": {"key": "k"}}))
    assert export.key_in(tmp_path) is None
    (tmp_path / "README.md").write_text("card")
    assert export.key_in(tmp_path) == "k"
    (tmp_path / "config.json").write_text("{}")
    assert export.key_in(tmp_path) is None


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: takes a commit and remembers its files."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        url = f"http://{self.headers['Host']}/me/x"
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{url}/commit/1", "commitOid": "1", "success": True})
        return self.answer({"url": url, "errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/x", "sha": "0", "siblings": []})

    def answer(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of the stand-in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


PUSH = """
import sys
from pathlib import Path
from kt.transfer.export import publish
print("\\n".join(publish(Path(sys.argv[1]), "s", "me/x", push=True)))
"""


def exported(folder: Path, **licences: str | None) -> Path:
    made = folder / "students/s"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({"kt": {"key": "k", "licences": licences}}))
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "README.md").write_text("---\nlicense: mit\n---\n# s\n")
    (made / "other.txt").write_text("not part of it")
    return made.parent


def test_a_student_is_pushed_on_request_alone(tmp_path, hub):
    root = exported(tmp_path, a="mit", b="apache-2.0")
    assert "dry run: nothing was pushed" in export.publish(root, "s", "me/x", push=False)[-1]
    assert Hub.asked == []
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_stand_in", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", PUSH, root], env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "hf-hub:me/x" in done.stdout
    assert Hub.files == {path.name: path.read_bytes() for path in (root / "s").iterdir() if path.name != "other.txt"}


@pytest.mark.parametrize(
    ("licences", "student", "repository", "said"),
    [
        ({"a": "mit", "b": "cc-by-nc-nd-4.0"}, "s", "me/x", "b is under cc-by-nc-nd-4.0, which allows no derivatives"),
        ({"a": None}, "s", "me/x", "the licence of a is unknown; give it as `licence` in zoo.models.a"),
        ({}, "t", "me/x", "unknown exported student 't'; allowed: s"),
        ({}, "s", "x", "--repo: 'x'; allowed is owner/name"),
    ],
)
def test_what_may_not_be_published_is_refused_with_the_reason(tmp_path, licences, student, repository, said):
    with pytest.raises(KtError, match=re.escape(said)):
        export.publish(exported(tmp_path, **licences), student, repository, push=True)


@pytest.mark.parametrize("licence", ["mit", "apache-2.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"])
def test_other_licences_allow_derivatives(licence):
    assert export.refusal({"a": licence}) is None
