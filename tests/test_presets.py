"""Every preset can be planned as it is, with its paths changed, and the published studies run when shrunk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import warm
import yaml
from PIL import Image
from safetensors.torch import save_file

from kt import stages
from kt.data.strict_yaml import Loader
from kt.figures import published
from kt.layout import Layout
from kt.stages import policies
from kt.study import load
from kt.study.study import Study
from kt.tables import schema
from kt.transfer.method import registry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PRESETS = {path.stem: path for path in sorted((ROOT / "presets").glob("*.yaml"))}
STUDIES = ("bikd", "fantastic-gains")


def images(folder: Path, each: int) -> Path:
    """Folders `train` and `val` of four classes, with a few tiny images in each."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in range(4):
            (folder / part / f"n{name}").mkdir(parents=True)
            for i in range(each):
                picture = generator.integers(0, 60, (24, 20, 3)) + 45 * name
                Image.fromarray(picture.astype(np.uint8)).save(folder / part / f"n{name}" / f"{i}.png")
    return folder


def masks(folder: Path, each: int, side: tuple[int, int] = (24, 32)) -> Path:
    """Images and masks as ADE20K has them: ids 1 to 150, and 0 for all else."""
    generator = np.random.default_rng(0)
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(each):
            ids = generator.integers(0, 151, side, dtype=np.uint8)
            ids[:4] = 1 + i % 2
            Image.fromarray(ids).save(folder / "annotations" / part / f"{i}.png")
            picture = np.stack([ids, 255 - ids, ids // 2], -1)
            Image.fromarray(picture).save(folder / "images" / part / f"{i}.jpg")
    return folder


TRANSFORMERS = """
from types import SimpleNamespace

import torch
from torch import nn


class AutoConfig:
    @staticmethod
    def from_pretrained(folder, num_labels):
        return SimpleNamespace(num_labels=num_labels)


class Mask2FormerForUniversalSegmentation(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = nn.ModuleDict({"pixel_level_module": nn.ModuleDict({"encoder": nn.Conv2d(3, 6, 4, 4)})})
        self.class_predictor = nn.Linear(6, config.num_labels + 1)

    def forward(self, pixel_values):
        maps = self.model["pixel_level_module"]["encoder"](pixel_values)
        classes = self.class_predictor(maps.mean((2, 3)))[:, None].expand(-1, 6, -1) + torch.arange(6.0)[:, None]
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=maps)
"""
"""Stands for the library `transformers`, which the preset needs: six queries on one convolution."""


def with_queries(raw: dict[str, Any], folder: Path) -> None:
    """Give the preset of Mask2Former its module, a stand-in of its library, and checkpoints of 150 classes and none."""
    shutil.copy(ROOT / "presets/mask2former.py", folder)
    (folder / "transformers.py").write_text(TRANSFORMERS)
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.pixel_level_module.encoder": (6, 3, 4, 4), "class_predictor": (151, 6)}
    for i, member in enumerate(raw["zoo"]["models"].values()):
        path = folder / f"published{i}"
        path.mkdir()
        weights = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
        save_file(weights, path / "model.safetensors")
        member["args"]["config"], member["checkpoint"] = str(path), str(path / "model.safetensors")


def videos(folder: Path, each: int, side: tuple[int, int] = (18, 32)) -> Path:
    """Frames, maps and fixations as DHF1K has them, of videos from 600 on in the part `val`."""
    generator = np.random.default_rng(0)
    for number in [*range(1, each + 1), *range(601, 601 + each)]:
        places = [
            folder / "frames" / f"{number:04}",
            *(folder / f"annotation/{number:04}/{k}" for k in ("maps", "fixation")),
        ]
        for place in places:
            place.mkdir(parents=True)
        for k in range(1, 5):
            y, x = generator.integers(0, side[0]), generator.integers(0, side[1])
            rows, columns = np.mgrid[: side[0], : side[1]]
            bell = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)
            points = np.zeros(side, np.uint8)
            points[y, x] = 255
            picture = np.stack([255 * bell] * 3, -1)
            for place, pixels in zip(places, (picture, 255 * bell, points), strict=True):
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{k:04}.png")
    return folder


VIDEO_NETWORK = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, args=None):
        super().__init__()
        self.backbone = nn.Conv3d(3, 4, (1, 5, 5), (1, 4, 4))
        self.decoder = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        features = self.backbone(x).relu()
        return self.decoder(features[:, :, -1] - features.mean(2)).sigmoid()
"""
"""Stands for the code of the published networks."""


def with_clones(raw: dict[str, Any], folder: Path) -> None:
    """Give the preset of published networks for videos its module, stand-ins of their code, and checkpoints."""
    shutil.copy(ROOT / "presets/vinet.py", folder)
    for i, member in enumerate(raw["zoo"]["models"].values()):
        code = folder / f"code{i}"
        code.mkdir()
        (code / "model.py").write_text(VIDEO_NETWORK)
        torch.manual_seed(i)
        weights = {"backbone.weight": torch.randn(4, 3, 1, 5, 5), "backbone.bias": torch.zeros(4)}
        weights |= {"decoder.weight": torch.randn(1, 4, 1, 1), "decoder.bias": torch.zeros(1)}
        torch.save(weights, folder / f"published{i}.pth")
        member["args"] |= {"code": str(code), "network": "model.Network"}
        member["checkpoint"] = str(folder / f"published{i}.pth")


def with_paths(name: str, folder: Path) -> dict[str, Any]:
    """A preset with its paths changed."""
    raw: dict[str, Any] = yaml.load(PRESETS[name].read_text("utf-8"), Loader)
    if raw["data"].get("task") == "control":
        return raw | {"results": str(folder / "results")}
    if raw["data"]["source"].endswith(".npz"):
        source = folder / "images.npz"
        np.savez_compressed(source, images=np.zeros((47_000, 28, 28), np.uint8), labels=np.arange(47_000) % 10)
    elif raw["data"]["source"] in ("digits", "scenes", "moving-digits"):
        source = raw["data"]["source"]
    elif raw["data"].get("task") == "segmentation":
        source = masks(folder / "images", 1)
        with_queries(raw, folder)
    elif raw["data"].get("task") == "saliency":
        source = videos(folder / "videos", 31)
        with_clones(raw, folder)
    else:
        source = images(folder / "images", 1)
    raw["data"]["source"], raw["results"] = str(source), str(folder / "results")
    return raw


# the trainings: pairs by methods and seeds, controls, groups, and trials of experiments
PLANNED = {
    "control": "3 models, 45 trainings",
    "knowledge-flow-atari": "3 models, 360 trainings",
    "digits-all": "8 models, 56 pairs (0 done), 2368 trainings",
    "digits-more": "2 models, 1 pairs (0 done), 201 trainings",
    "fashion-mnist-more": "2 models, 1 pairs (0 done), ",
    "bikd-ade20k": "2 models, 2 pairs (0 done), 8 trainings",
    "bikd-dhf1k": "3 models, 2 pairs (0 done), 11 trainings",
    "moving-digits": "3 models, 6 pairs (0 done), 90 trainings",
    "digit-scenes": "5 models, 20 pairs (0 done), 270 trainings",
    "bikd": "7 models, 42 pairs (0 done), 143 trainings",
    "fantastic-gains": "28 models, 400 pairs (0 done), 2868 trainings",
    "fashion-mnist": "13 models, 64 pairs (0 done), 282 trainings",
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_planned(name, tmp_path):
    raw = with_paths(name, tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [warm.python(), "-m", "snakemake", "-n", "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), "--configfile", "study.yaml"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert PLANNED[name] in done.stderr
    assert not (tmp_path / "results").exists()


def test_the_study_of_every_method_has_the_data_and_zoo_of_the_default_study():
    default, every = (yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "config.yaml", PRESETS["digits-all"]))
    assert every["zoo"] == default["zoo"]
    assert every["data"] == default["data"]
    assert every["transfer"]["training"] == default["transfer"]["training"]
    assert every["transfer"]["seeds"] == default["transfer"]["seeds"]


def test_the_study_of_every_method_has_every_method():
    chosen = load.load(PRESETS["digits-all"]).transfer.methods.chosen()
    assert set(chosen) == {name for name, method in registry().items() if method.takes != "group"}


def test_the_published_studies_have_the_published_parameters(tmp_path):
    for name in STUDIES:
        methods = with_paths(name, tmp_path / name)["transfer"]["methods"]
        for method, parameters in methods.items():
            if method in published.PARAMETERS:
                ours = registry()[method].model_validate(parameters).parameters()
                assert ours == published.PARAMETERS[method], f"{name}: {method}"


def shrunk(name: str, folder: Path) -> Study:
    """A published study with its methods and optimiser, on three tiny models and a few images."""
    raw = with_paths(name, folder)
    raw["data"] |= {"source": str(images(folder / "more", 12)), "size": 24, "num_classes": 10}
    raw["data"]["splits"] |= {"zoo": 16, "validation": {"part": "val", "images": 12}}
    raw["zoo"] = {
        "modules": ["kt.zoo.digits"],
        "input": {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "models": {
            arch: {"arch": arch, "train": {"epochs": 1, "batch_size": 8}}
            for arch in ("test_byobnet", "test_efficientnet", "tiny_mixer")
        },
    }
    raw["transfer"]["training"] |= {"epochs": 1, "batch_size": 4}
    if raw["groups"]["choose"]["select"] == "explicit":
        student, *teachers = raw["zoo"]["models"]
        raw["groups"]["choose"]["sets"] = [{"student": student, "teachers": teachers}]
    else:
        raw["groups"]["choose"] |= {"k": 2, "students": ["tiny_mixer"]}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load.load(folder / "study.yaml")


def transferred(study: Study, grouped: Sequence[str] = ()) -> pd.DataFrame:
    """The table `transfers` after all stages of a study, in this process; every training must have finished."""
    layout = Layout(Path(study.results))
    stages.data(study, layout, 1)
    for model in study.names:
        stages.weights(study, layout, model, 1)
        stages.predict(study, layout, model, 1)
    stages.zoo(study, layout, layout.table("zoo"))
    stages.complementarity(study, layout, "test", layout.complementarity("test"), 1)
    stages.pairs(study, layout, None, None, layout.table("pairs"))
    for model in study.names:
        stages.transfer(study, layout, model, 0, None, layout.transfer(model, 0), 1)
    for model in grouped:
        stages.groups(study, layout, model, layout.transfer(model, "groups"), 1)
    stages.gather(study, layout, layout.tables)
    rows = schema.read_frame(layout.table("transfers"), "transfers")
    assert rows["status"].eq("ok").all(), rows["reason"].dropna().tolist()
    return rows


@pytest.mark.parametrize("name", STUDIES)
def test_a_published_study_runs_when_shrunk(name, tmp_path):
    study = shrunk(name, tmp_path)
    rows = transferred(study, ["test_byobnet"] if name == "bikd" else ["tiny_mixer"])
    of_pairs = rows[rows["teacher"].notna()]
    assert of_pairs.groupby("method").size().to_dict() == dict.fromkeys(study.transfer.methods.chosen(), 6)
    assert set(rows.loc[rows["teacher"].isna(), "method"]) == set(study.groups.methods.chosen())


def test_the_published_segmentation_runs_when_shrunk(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    raw = with_paths("bikd-ade20k", tmp_path)
    raw["data"] |= {"source": str(masks(tmp_path / "more", 12)), "size": [24, 32]}
    raw["data"]["splits"]["validation"] = {"part": "validation", "images": 4}
    raw["zoo"]["input"]["size"] = [24, 32]
    raw["transfer"]["training"] |= {"epochs": 1, "batch_size": 4}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    study = load.load(tmp_path / "study.yaml")
    rows = transferred(study)
    assert rows.groupby("method").size().to_dict() == dict.fromkeys(study.transfer.methods.chosen(), 2)


def test_the_published_saliency_runs_when_shrunk(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    raw = with_paths("bikd-dhf1k", tmp_path)
    raw["data"] |= {"source": str(videos(tmp_path / "more", 6)), "size": [18, 32]}
    raw["data"]["splits"]["validation"]["images"] = 2
    for given in (raw["zoo"]["input"], raw["zoo"]["models"]["vinet_a"]["input"]):
        given["size"] = [18, 32]
        given["clip"]["frames"] = 4
    raw["transfer"]["training"] |= {"epochs": 1, "batch_size": 3}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    study = load.load(tmp_path / "study.yaml")
    rows = transferred(study, study.names)
    of_pairs = rows[rows["teacher"].notna()]
    assert of_pairs.groupby("method").size().to_dict() == dict.fromkeys(study.transfer.methods.chosen(), 2)
    assert rows.loc[rows["teacher"].isna(), "teachers"].map(len).tolist() == [2, 2, 2]


def test_the_published_games_are_played_when_shrunk(tmp_path):
    raw = with_paths("knowledge-flow-atari", tmp_path)
    short = {"steps": 20, "envs": 2, "rollout": 5, "evaluations": 1, "episodes": 2}
    raw["data"] |= {"episodes": 2, "validation": 2}
    raw["transfer"]["processes"] = 1
    raw["flow"] = {"boxing": raw["flow"]["boxing"] | {"seeds": [0], "training": short, "teachers": ["pong"]}}
    raw["zoo"]["models"] = {"pong": raw["zoo"]["models"]["pong"] | {"train": short}}
    raw["flow"]["boxing"]["methods"] = {"flow": {}, "scratch": {}}
    for player in (raw["flow"]["boxing"], raw["zoo"]["models"]["pong"]):
        player["env"] = {"id": player["env"], "args": {"max_num_frames_per_episode": 100}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    study = load.load_any(tmp_path / "study.yaml")
    layout = Layout(Path(study.results))
    policies.data(study, layout, 1)
    policies.member(study, layout, "pong", 1)
    policies.experiment(study, layout, "flow", "boxing", 1)
    rows = schema.read_frame(layout.experiment("flow", "boxing"), "transfers")
    assert rows["status"].eq("ok").all(), rows["reason"].dropna().tolist()
    assert sorted(rows["method"]) == ["flow", "scratch"]
