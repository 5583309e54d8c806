"""One model under two names teaches itself nothing: refused where it is known at once, else a row with its reason."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from studies import small_zoo

from kt import stages, status
from kt.errors import KtError
from kt.layout import Layout
from kt.study import load as config
from kt.study.check import check
from kt.study.study import Study
from kt.tables import schema
from kt.transfer.ledger import Ledger
from kt.zoo import models, weights


def study_of(folder: Path, **members: str) -> dict[str, Any]:
    return {
        "results": str(folder / "results"),
        "device": "cpu",
        "data": {"source": "digits", "splits": {"transfer": 60, "validation": 50, "test": 70}},
        "zoo": small_zoo(
            **{name: {"arch": "tiny_mixer", "checkpoint": str(folder / file)} for name, file in members.items()}
        ),
        "pairs": {"select": "all"},
        "transfer": {
            "methods": {"kl": {}, "bikd": {}, "self": {}},
            "seeds": [0],
            "training": {"epochs": 1, "batch_size": 30, "lr": 1e-3},
        },
        "groups": {
            "choose": {"select": "explicit", "sets": [{"student": "a", "teachers": ["other", "copy"]}]},
            "methods": {"parallel": {}},
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, a copy of one, and a link to it."""
    models.import_modules(["kt.zoo.digits"])
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        weights.save(timm.create_model("tiny_mixer", num_classes=10, in_chans=1), tmp_path / f"{name}.safetensors")
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "copy.safetensors")
    os.symlink(tmp_path / "one.safetensors", tmp_path / "link.safetensors")
    return tmp_path


def load(study: dict[str, Any]) -> Study:
    return check(config.parse(yaml.safe_load(yaml.safe_dump(study)), "study.yaml"))


def test_one_file_under_two_names_is_refused_before_anything_runs(folder):
    study = study_of(folder, a="one.safetensors", other="two.safetensors", copy="link.safetensors")
    with pytest.raises(KtError, match=r"zoo.models.copy: the same checkpoint, input and arguments as 'a': .*leave one"):
        load(study)
    study["zoo"]["models"]["copy"]["input"] = {"size": 16, "mean": [0.5], "std": [0.33]}
    load(study)  # another input makes it another model


def test_published_weights_under_two_names_are_refused_before_anything_runs(folder):
    study = study_of(folder, a="one.safetensors", other="two.safetensors", copy="copy.safetensors")
    tag = {"arch": "resnet18", "pretrained": True}
    study["zoo"]["models"] |= {"x": tag, "y": {**tag, "arch": "resnet18.a1_in1k"}}
    with pytest.raises(KtError, match=r"zoo.models.y: the same published weights, input and arguments as 'x'"):
        load(study)


def test_a_copy_of_a_file_gives_rows_with_a_reason_and_no_training(folder):
    study = load(study_of(folder, a="one.safetensors", other="two.safetensors", copy="copy.safetensors"))
    layout = Layout(Path(study.results))
    stages.data(study, layout, 1)
    for name in study.names:
        stages.weights(study, layout, name, 1)
        stages.predict(study, layout, name, 1)
    stages.transfer(study, layout, "a", 0, None, layout.transfer("a", 0), 1)
    stages.groups(study, layout, "a", layout.transfer("a", "groups"), 1)
    rows = schema.read_frame(layout.transfer("a", 0), "transfers")
    twins = rows[(rows["teacher"] == "copy") & ~rows["control"]]
    assert set(twins["method"]) == {"kl", "bikd"}
    assert twins["status"].eq("failed").all()
    assert twins["reason"].str.startswith("same_model: a teacher has the student's architecture, input and").all()
    assert twins["seconds"].isna().all()
    assert rows.drop(twins.index)["status"].eq("ok").all()
    group = schema.read_frame(layout.transfer("a", "groups"), "transfers")
    assert group["status"].tolist() == ["failed"]
    state = status.survey(study, layout)
    # the two directions of the twins share their records: kl and bikd, and the group
    assert state.failed == {"same_model": 5}
    assert state.retriable == []
    before = {path.name for path in Ledger(layout.ledger).folder.glob("??/*.json")}
    stages.transfer(study, layout, "a", 0, None, layout.transfer("a", 0), 1)
    assert {path.name for path in Ledger(layout.ledger).folder.glob("??/*.json")} == before
