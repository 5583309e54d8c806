"""Exported students: loaded back by timm they answer as the ledger says, and their card says what they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from answers import logits
from test_pipeline import STUDY

from kt.cli import main
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.spec import InputSpec
from kt.transfer.ledger import Ledger, unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study up to its transfers, with groups, none of whose students is kept."""
    folder = tmp_path_factory.mktemp("export")
    study = copy.deepcopy(STUDY)
    study["zoo"]["models"]["pool"] = {"arch": "tiny_poolformer", "kind": "hybrid", "train": {"epochs": 3}}
    study["transfer"] |= {"methods": {"bikd": {}, "finetune": {}, "ensemble_mean": {}}, "seeds": [0]}
    study["groups"] = {"choose": {"select": "ranked", "k": 2}, "methods": {"soup": {}}}
    for name, export in (("none", "none"), ("all", "all"), ("improved", "improved")):
        study["transfer"]["export"] = export
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = [["data"]]
        commands += [
            [stage, "--model", model] for model in study["zoo"]["models"] for stage in ("weights", "predictions")
        ]
        commands += [["transfer", "--student", "byob"], ["groups", "--student", "byob"]]
        for command in commands:
            assert main([*command, "--config", "none.yaml"]) == 0
    return folder


def run(folder: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.chdir(folder)
    for command in ("transfer", "groups"):
        assert main([command, "--config", f"{config}.yaml", "--student", "byob"]) == 0
    return pd.concat(pd.read_parquet(f"results/transfer/byob/{name}.parquet") for name in ("0", "groups"))


def test_students_are_kept_on_request_and_timm_loads_them(folder, monkeypatch, capsys):
    assert not (folder / "results/students").exists()
    table = run(folder, "all", monkeypatch)
    kept = sorted((folder / "results/students/byob").glob("*.safetensors"))
    keys = set(table.loc[table["trains"], "key"])
    assert {path.stem for path in kept} == {key[:16] for key in keys}
    dataset = Dataset.open(folder / "results/data")
    inputs = Inputs(
        dataset.images, dataset.rows("test"), InputSpec(size=16, mean=(0.3,), std=(0.33,)), torch.device("cpu")
    )
    for key in keys:
        path = folder / f"results/students/byob/{key[:16]}.safetensors"
        model = timm.create_model("test_byobnet", num_classes=10, in_chans=1, checkpoint_path=str(path))
        record = Ledger(folder / "results/ledger").get(key)
        said = [record["last"]] if "last" in record else [part["last"] for part in record["models"].values()]
        answers = logits(model.to(memory_format=torch.channels_last), inputs).argmax(1)
        assert any(np.array_equal(answers, unpack(text)) for text in said)
        row, text = table[table["key"] == key].iloc[0], path.with_suffix(".md").read_text()
        assert f"{row['delta']:+.2f} ± {row['delta_se']:.2f} percentage points" in text
        assert f"after `{row['method']}` from" in text
        assert f"checkpoint_path='{path.name}'" in text
        if not row["control"]:
            assert " and ".join(row["teachers"]) in text
    capsys.readouterr()
    run(folder, "all", monkeypatch)
    assert capsys.readouterr().err.count(" 0 to do") == 2  # what is kept is not trained again


def test_only_students_with_a_positive_delta_count_as_improved(folder, monkeypatch):
    for path in (folder / "results").glob("students/byob/*"):
        path.unlink()
    table = run(folder, "improved", monkeypatch)
    kept = {path.stem for path in (folder / "results/students/byob").glob("*.safetensors")}
    assert kept == {key[:16] for key in table.loc[table["trains"] & (table["delta"] > 0), "key"]}
