"""A new user's walk, by the README's commands: own pictures, five models, a sixth, a pair, a student for others."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from studies import small_zoo
from test_pipeline import ROOT, Checkout

from kt.cli import main

pytestmark = pytest.mark.slow

SIDE, CLASSES = 16, ["full moon", "half moon", "new moon", "shooting star"]
TRAINED = {"epochs": 6, "lr": 2e-3}
BOTH = ("--cores", "2")
VIT = {"img_size": SIDE, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
RESNET = {"channels": [16, 16, 32, 32], "stem_width": 16}
ZOO = small_zoo(
    resnet={"arch": "resnet10t", "args": RESNET, "train": TRAINED},
    byob={"arch": "test_byobnet", "train": TRAINED | {"thin": {"classes": [0]}}},
    effnet={"arch": "test_efficientnet", "train": TRAINED | {"thin": {"classes": [1]}}},
    mixer={"arch": "tiny_mixer", "kind": "mlp", "train": TRAINED | {"thin": {"classes": [2]}}},
    pool={"arch": "tiny_poolformer", "kind": "hybrid", "train": TRAINED | {"thin": {"classes": [3]}}},
)
STUDY = {
    "title": "The night sky",
    "results": "results",
    "device": "cpu",
    "data": {
        "source": "sky",
        "size": SIDE,
        "splits": {"zoo": 96, "transfer": 60, "validation": {"part": "val", "images": 40}, "test": {"part": "val"}},
    },
    "zoo": ZOO | {"input": {"size": SIDE, "mean": [0.2, 0.2, 0.2], "std": [0.3, 0.3, 0.3], "crop_pct": 1.0}},
    "pairs": {"select": "explicit", "pairs": [{"student": "resnet"}, {"student": "byob"}]},
    "transfer": {
        "methods": {"kl_dp": {}, "self": {}, "finetune": {}},
        "seeds": [0],
        "training": {"epochs": 2, "batch_size": 30, "lr": 1e-3},
    },
}


def picture(kind: int, seed: int) -> Image.Image:
    """One of four shapes at a random place, in the colours of a noisy night."""
    rng = np.random.default_rng([kind, seed])
    image = Image.fromarray(rng.integers(0, 110, (SIDE, SIDE, 3), dtype=np.uint8))
    draw, (x, y), r = ImageDraw.Draw(image), rng.integers(1, 6, 2).tolist(), int(rng.integers(7, 11))
    light, box = tuple(rng.integers(130, 256, 3).tolist()), (x, y, x + r, y + r)
    if kind == 0:
        draw.ellipse(box, fill=light)
    elif kind == 1:
        draw.pieslice(box, -90, 90, fill=light)
    elif kind == 2:
        draw.ellipse(box, outline=light)
    else:
        draw.line(box, fill=light, width=2)
    return image


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A folder of pictures and a configuration beside it."""
    checkout = Checkout(tmp_path_factory.mktemp("walk"))
    for (part, count), (kind, name) in itertools.product((("train", 40), ("val", 30)), enumerate(CLASSES)):
        (checkout.folder / "sky" / part / name).mkdir(parents=True)
        for i in range(count):
            picture(kind, 1000 * (part == "val") + i).save(checkout.folder / f"sky/{part}/{name}/{i:02}.png")
    checkout.study = copy.deepcopy(STUDY)
    return checkout


def records(walk: Checkout) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (walk.folder / "results/ledger").glob("??/*.json")}


def test_the_readme_leads_from_own_pictures_to_a_student_that_timm_loads(walk, monkeypatch, capsys):
    monkeypatch.chdir(walk.folder)
    walked = set()

    def kt(*command: str) -> str:
        walked.add(command[0])
        capsys.readouterr()
        assert main([*command]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "5 models, 8 pairs" in walk.succeed("-n")
    assert "5 models" in kt("config", "check")
    preview = kt("zoo", "--preview")
    assert all(name in preview for name in ZOO["models"])
    walk.succeed(*BOTH, "results/tables/transfers.parquet")
    first, weights = records(walk), walk.weights()
    assert len(first) == 8 + 2 * 2  # a training for every pair, and two controls for every student

    walk.study["zoo"]["models"]["vit"] = {"arch": "vit_tiny_patch16_224", "args": VIT, "train": TRAINED}
    walk.study["pairs"]["pairs"] += [{"student": "vit"}]
    assert "12 done, 9 to do" in walk.succeed(*BOTH)
    both, transfers = records(walk), walk.table("transfers")
    assert {key: both[key] for key in first} == first
    assert {name: walk.weights()[name] for name in weights} == weights
    added = transfers[transfers["key"].isin(set(both) - set(first))]
    of_vit = added["student"].eq("vit") | added["teachers"].map(lambda names: "vit" in names)
    assert of_vit.all()
    assert added["key"].nunique() == 2 + 5 + 2
    assert transfers["status"].eq("ok").all()
    assert re.search(r"\b21 done\b", kt("status"))
    report, explore = (Path(f"results/{page}.html").read_text("utf-8") for page in ("report", "explore"))
    assert any(name in report for name in CLASSES)
    assert json.dumps(CLASSES) in explore
    kt("retry")
    kt("transfer", "--student", "vit")
    assert records(walk) == both

    told, scores = kt("pair", "mixer", "byob"), walk.table("complementarity")
    named = dict(re.findall(rf"^({'|'.join(CLASSES)}) +20 +\d+ +\d+ +(\d+) ", told, re.MULTILINE))
    assert set(named) == set(CLASSES)
    (flips,) = scores.query("teacher == 'mixer' and student == 'byob' and split == 'test'")["pos_flips"]
    assert 100 * sum(map(int, named.values())) / 80 == pytest.approx(flips)

    deltas = transfers.query("student == 'vit' and method == 'kl_dp'").set_index("teacher")["delta"]
    (first_of_ranked,) = re.findall(r"measured: .*\n.*\n(\w+) +kl_dp", kt("recommend", "--student", "vit"))
    assert deltas[first_of_ranked] == deltas.max()
    kt("next", "--budget", "1")

    said = kt("export", "--student", "vit", "--best")
    (name,) = re.findall(r"results/students/(\S+)", said)
    assert records(walk) == both
    assert pd.read_csv("results/students/index.csv")["name"].tolist() == [name]
    assert "tensorboard: 21 trainings added" in kt("track", "--to", "tensorboard")
    assert "nothing was pushed" in kt("publish", "--student", name, "--repo", "me/vit")
    card = Path(f"results/students/{name}/README.md").read_text("utf-8")
    (accuracy,) = re.findall(r"\| accuracy after \| ([\d.]+) % \|", card)
    assert accuracy == f"{measured(card):.2f}"
    assert set(re.findall(r"bin/kt ([a-z]+)", (ROOT / "README.md").read_text("utf-8"))) <= walked


def measured(card: str) -> float:
    """Accuracy in percent, on the pictures themselves, of what a card's code loads; classes are those it names."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (listed,) = re.findall(r"`label_names` in `config.json`\): (.*)\.$", card, re.MULTILINE)
    loaded: dict[str, torch.nn.Module] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("results/students")
        exec(code, loaded)
    model, names = loaded["model"], listed.split(", ")
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    splits = pd.read_parquet("results/data/splits.parquet").query("split == 'test'")
    pictures = torch.stack([prepare(Image.open(Path("sky", name))) for name in splits["name"]])
    with torch.no_grad():
        answers = model(pictures).argmax(1).tolist()
    return 100 * np.mean([names[a] == Path(name).parent.name for a, name in zip(answers, splits["name"], strict=True)])
