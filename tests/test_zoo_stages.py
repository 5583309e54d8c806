"""From published weights, checkpoint files and own models to the table of models, end to end, without a network."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from kt import store
from kt.cli import main
from kt.zoo import weights

CLASSES = 4
COMMON = {
    "device": "cpu",
    "data": {"source": "images.npz", "splits": {"zoo": 24, "transfer": 16, "validation": 8, "test": 24}},
    "pairs": {"select": "random", "n": 2},
    "transfer": {
        "methods": {"kl": {}},
        "seeds": [0],
        "training": {"epochs": 1, "batch_size": 8, "lr": 1e-4},
        "checkpoint_seconds": 0,
    },
}
KINDS = {
    "test_resnet.r160_in1k": ("cnn", 160, "in1k"),
    "test_vit.r160_in1k": ("transformer", 160, "in1k"),
    "resmlp_12_224.fb_in1k": ("mlp", 224, "in1k"),
    "mobilevit_xxs.cvnets_in1k": ("hybrid", 256, "in1k"),
}
OWN = """
from timm.models import register_model
from torch import nn


class Own(nn.Module):
    num_features = 3

    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 3, 4, stride=4)
        self.head = nn.Linear(3, num_classes)

    def get_classifier(self):
        return self.head

    def reset_classifier(self, classes):
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


@register_model
def kt_tests_own(pretrained=False, num_classes=4, in_chans=3, **kwargs):
    return Own(num_classes, in_chans)
"""


def publish(hub: Path, tag: str) -> None:
    """Put fresh weights into a Hugging Face cache, where a download would put timm's."""
    repository = hub / f"models--timm--{tag}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    weights.save(timm.create_model(tag), repository / "snapshots" / ("0" * 40) / "model.safetensors")


def study(folder: Path, name: str, zoo: dict[str, Any]) -> None:
    (folder / name).write_text(yaml.safe_dump({**COMMON, "results": Path(name).stem, "zoo": zoo}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Coloured images of four classes, a hub in a folder, an own model and its checkpoints; the working directory."""
    folder = tmp_path_factory.mktemp("zoo")
    generator = np.random.default_rng(0)
    labels = np.arange(72) % CLASSES
    images = generator.integers(0, 120, (72, 40, 40, 3)) + 30 * labels[:, None, None, None]
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels)
    for tag in KINDS:
        publish(folder / "hub", tag)
    (folder / "kt_tests_own_models.py").write_text(OWN)
    patch, here = pytest.MonkeyPatch(), Path.cwd()
    patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.syspath_prepend(folder)
    os.chdir(folder)
    yield folder
    os.chdir(here)
    patch.undo()


def run(config: str, *command: str) -> None:
    assert main([*command, "--config", config]) == 0


def members(config: str, names: list[str]) -> None:
    for name in names:
        run(config, "weights", "--model", name)
        run(config, "predictions", "--model", name)


def test_published_models_of_four_kinds_run_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probing = {"mode": "linear", "epochs": 20, "batch_size": 8, "lr": 0.02}
    (folder / "own.csv").write_text("name,licence,robust\ntest_vit.r160_in1k,MIT,true\n")
    select = [{"match": list(KINDS), "finetune": probing}]
    study(folder, "hub.yaml", {"select": select, "overrides": "own.csv"})
    run("hub.yaml", "zoo", "--preview")
    assert "4 models" in capsys.readouterr().out
    run("hub.yaml", "data")
    members("hub.yaml", sorted(KINDS))
    for command in ("zoo", "complementarity", "pairs"):
        run("hub.yaml", command)
    pairs = pd.read_parquet("hub/tables/pairs.parquet")
    for student, chunk in pairs[["student", "chunk"]].drop_duplicates().itertuples(index=False):
        run("hub.yaml", "transfer", "--student", student, "--chunk", str(chunk))
    run("hub.yaml", "tables")
    table = pd.read_parquet("hub/tables/zoo.parquet").set_index("name")
    for name, (kind, size, pretraining) in KINDS.items():
        row = table.loc[name]
        assert (row["kind"], row["input_size"], row["pretraining"]) == (kind, size, pretraining)
        assert (row["finetuning"], row["train_images"]) == ("images.npz", 24)
        assert f"{row['arch']}.{row['tag']}" == name
        assert row["macs"] > 10_000_000
        assert {"finetune=linear", "epochs=20"} < set(row["recipe"])
    assert table.loc["test_vit.r160_in1k", ["licence", "robust"]].tolist() == ["MIT", True]
    assert table["robust"].isna().sum() == 3
    assert table["acc"].max() > 50  # brightness tells the class: even features of random weights see it
    assert (pd.read_parquet("hub/tables/transfers.parquet")["status"] == "ok").all()
    assert "robust" in pd.read_csv("hub/tables/zoo.csv").columns


def test_probing_leaves_the_published_weights_as_they_are(folder: Path) -> None:
    published = load_file(folder / "hub/models--timm--test_vit.r160_in1k/snapshots" / ("0" * 40) / "model.safetensors")
    probed = load_file("hub/zoo/test_vit.r160_in1k.safetensors")
    assert {name for name in published if not torch.equal(published[name], probed[name])} == {
        "head.weight",
        "head.bias",
    }


def test_own_models_bring_their_weights_in_a_pth_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import kt_tests_own_models as own

    torch.manual_seed(1)
    given, other = own.Own(CLASSES, 3), own.Own(7, 3)
    wrapped = {"model": {f"module.{name}": t for name, t in given.state_dict().items()}, "epoch": 9}
    torch.save(wrapped, "given.pth")
    torch.save(other.state_dict(), "other.pth")
    common = {"arch": "kt_tests_own", "input": {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}}
    tuned = {"mode": "full", "epochs": 3, "batch_size": 8}
    models = {
        "given": {**common, "checkpoint": "given.pth", "kind": "cnn", "licence": "MIT", "pretraining": "mine"},
        "tuned": {**common, "checkpoint": "other.pth", "finetune": tuned},
    }
    study(folder, "own.yaml", {"modules": ["kt_tests_own_models"], "models": models})
    run("own.yaml", "data")
    members("own.yaml", ["given", "tuned"])
    loaded = load_file("own/zoo/given.safetensors")
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in loaded.items())
    facts = store.read_json("own/zoo/given.json")
    assert (facts["kind"], facts["pretraining"], facts["year"], facts["tag"]) == ("cnn", "mine", None, None)
    assert load_file("own/zoo/tuned.safetensors")["head.weight"].shape == (CLASSES, 3)
    models["refused"] = {**common, "checkpoint": "other.pth"}
    study(folder, "own.yaml", {"modules": ["kt_tests_own_models"], "models": models})
    for command in (["data"], ["weights", "--model", "refused"]):
        capsys.readouterr()
        assert main([*command, "--config", "own.yaml"]) == 1
        assert "zoo.models.refused" in (said := capsys.readouterr().err.strip().splitlines()[-1])
        assert "other.pth: its head has 7 outputs, but 4 are needed; give `finetune`" in said


@pytest.mark.parametrize(
    ("member", "line"),
    [
        (
            {"arch": "kt_tests_own", "checkpoint": "other.pth"},
            "other.pth: its head has 7 outputs, but 4 are needed; give",
        ),
        ({"arch": "test_resnet", "checkpoint": "given.pth"}, "given.pth: not this model's weights: missing bn1.bias, "),
        (
            {"arch": "test_vit.r160_in1k", "pretrained": True},
            "its head has 1000 outputs, but 4 are needed; give",
        ),
        (
            {"arch": "vit_tiny_patch16_224", "train": {"epochs": 1}},
            r"the model does not take an image of \[3, 32, 32\]: AssertionError: Input height",
        ),
        (
            {"arch": "test_vit2.r160_in1k", "pretrained": True, "finetune": {"mode": "linear", "epochs": 1}},
            "test_vit2.r160_in1k: its weights are not in .* where there is a network: hf download timm/test_vit2",
        ),
    ],
)
def test_weights_that_cannot_be_had_end_the_stage_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], member: dict[str, Any], line: str
) -> None:
    own = {"arch": "kt_tests_own", "train": {"epochs": 1}}
    given = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    zoo = {
        "modules": ["kt_tests_own_models"],
        "input": given,
        "models": {"bad": {"input": given, **member}, "own": own},
    }
    study(folder, "own.yaml", zoo)
    capsys.readouterr()
    assert main(["weights", "--model", "bad", "--config", "own.yaml"]) == 1
    (text,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(rf"(own\.yaml: )?zoo\.models\.bad(\.checkpoint)?: .*{line}", text), text


def test_a_signal_ends_a_training_with_a_checkpoint_and_the_rerun_goes_on(folder: Path) -> None:
    common = {"arch": "kt_tests_own", "input": {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}}
    models = {"long": {**common, "train": {"epochs": 400, "batch_size": 8}}, "own": {**common, "train": {"epochs": 1}}}
    study(folder, "long.yaml", {"modules": ["kt_tests_own_models"], "models": models})
    run("long.yaml", "data")
    run("long.yaml", "weights", "--model", "long")
    expected = store.digest_file("long/zoo/long.safetensors")
    assert not list(Path("long/checkpoints").glob("*.pt"))
    command = [sys.executable, "-m", "kt", "weights", "--config", "long.yaml", "--model", "long"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    stopped = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not Path("long/checkpoints/weights-long.pt").exists():
        assert stopped.poll() is None, "ended before it could be stopped"
        time.sleep(0.005)
    stopped.send_signal(signal.SIGUSR2)
    _, message = stopped.communicate()
    assert stopped.returncode == 143, message
    assert Path("long/checkpoints/weights-long.pt").exists()
    Path("long/zoo/long.safetensors").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on from its checkpoint" in done.stderr
    assert store.digest_file("long/zoo/long.safetensors") == expected
