"""One pair: flips by class name, images, measures, and deltas beside their controls; ``kt pair``."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tables
import yaml
from PIL import Image
from test_pipeline import STUDY

from kt.analysis.recommend import measured
from kt.cli import main
from kt.cli.results import pair_text
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.stages import one_pair as stage
from kt.tasks.segmentation import Segmentation
from kt.tasks.task import Words

CLASSES = ["nought", "one", "two", "three/drei", *"456789"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study up to its predictions."""
    folder = tmp_path_factory.mktemp("pair")
    study = copy.deepcopy(STUDY)
    study["transfer"] |= {"methods": {"kl": {}, "self": {}, "ensemble_mean": {}}, "seeds": [0, 1]}
    study["zoo"]["models"]["other"] = {"arch": "test_byobnet", "train": {"epochs": 1}}
    study["zoo"]["models"]["half"] = {"arch": "test_byobnet", "classes": ["0", "1", "2"], "train": {"epochs": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = [[stage, "--model", model] for model in ("byob", "mixer") for stage in ("weights", "predictions")]
        for command in (["data"], *commands):
            assert main(command) == 0
    return folder


def found(capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    capsys.readouterr()
    assert main(["pair", "byob", "mixer", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pair_is_told_before_anything_is_transferred_and_after(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = found(capsys)
    assert (before["measures"], before["measured"]) == ({}, [])
    assert [line.partition(":")[0] for line in before["missing"]] == ["measures of the pair", "deltas"]
    dataset = Dataset.open(folder / "results/data")
    labels = dataset.labels[dataset.rows("test")]
    by_name = {row["class"]: row for row in before["classes"]}
    assert {name: row["n"] for name, row in by_name.items()} == {str(i): int((labels == i).sum()) for i in range(10)}
    counted = pd.DataFrame(before["classes"])
    assert counted["pos_flips"].is_monotonic_decreasing
    assert (counted["teacher_right"] - counted["student_right"] == counted["pos_flips"] - counted["neg_flips"]).all()
    assert counted["pos_flips"].sum() / 1.5 == pytest.approx(before["pos_flips"]["value"])
    assert counted["neg_flips"].sum() / 1.5 == pytest.approx(before["neg_flips"]["value"])
    for name in ("other", "half"):  # the scores of all pairs need all predictions
        for command in ("weights", "predictions"):
            assert main([command, "--model", name]) == 0
    assert main(["complementarity"]) == 0
    assert main(["transfer", "--student", "mixer"]) == 0
    after = found(capsys)
    assert after["missing"] == []
    table = pd.read_parquet("results/complementarity/test.parquet").set_index(["teacher", "student"])
    row = table.loc[("byob", "mixer")]
    assert after["pos_flips"] == pytest.approx({"value": row["pos_flips"], "se": row["pos_flips_se"]})
    assert [of["pos_flips"] for of in sorted(after["classes"], key=lambda of: of["class"])] == list(
        row["flips_by_class"]
    )
    assert after["measures"]["agreement"] == row["agreement"]
    transfers = pd.read_parquet("results/transfer/mixer/0.parquet")
    mine = transfers[transfers["teacher"] == "byob"]
    deltas = {of["method"]: of for of in after["measured"]}
    assert list(deltas) == [*sorted(("kl", "ensemble_mean"), key=lambda m: -deltas[m]["delta"]), "self"]
    assert deltas["kl"]["delta"] == pytest.approx(mine.loc[mine["method"] == "kl", "delta"].mean())
    assert (deltas["kl"]["against"], deltas["kl"]["common_seeds"], deltas["ensemble_mean"]["against"]) == (
        "self",
        2,
        None,
    )


def test_the_text_names_classes_and_puts_methods_beside_their_controls(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    meta = json.loads(Path("results/data/meta.json").read_text())
    Path("results/data/meta.json").write_text(json.dumps({**meta, "classes": CLASSES}))
    assert main(["pair", "byob", "mixer", "--top", "8", "--images", "seen"]) == 0
    text = capsys.readouterr().out
    assert "teacher byob, student mixer: 150 test images of digits" in text
    assert sum(line.startswith(tuple(CLASSES)) for line in text.splitlines()) == 8
    assert "… and 2 more classes;" in text
    assert "nan" not in text
    rows = pd.read_csv("seen/byob-to-mixer.csv")
    assert {path.name for path in Path("seen").iterdir()} == {*rows["file"], "byob-to-mixer.csv"}
    assert set(rows["class"]) <= set(CLASSES)
    positive = rows["direction"] == "pos_flips"
    assert (rows["class"] == rows["teacher_says"].where(positive, rows["student_says"])).all()
    assert (rows["class"] != rows["student_says"].where(positive, rows["teacher_says"])).all()
    dataset = Dataset.open(Path("results/data"))
    stored = dataset.splits.set_index("name")["row"]
    for name, file in zip(rows["name"].astype(str), rows["file"], strict=True):
        shown = np.asarray(Image.open(f"seen/{file}"))
        assert (shown[::16, ::16] == dataset.images[stored[name], ..., 0]).all()
    Path("results/data/meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("byobb", "mixer"), "unknown model 'byobb'; allowed: byob, mixer, other; did you mean 'byob'?"),
        (("byob", "half"), "'half' knows some classes only"),
        (("byob", "byob"), "'byob' is both teacher and student"),
    ],
)
def test_wrong_names_are_one_line(folder, names, said, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["pair", *names]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_model_without_predictions_is_named_with_the_command_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    study = yaml.safe_load(Path("config.yaml").read_text())
    study["zoo"]["models"]["new"] = {"arch": "test_byobnet", "train": {"epochs": 1}}
    Path("more.yaml").write_text(yaml.safe_dump(study))
    assert main(["pair", "new", "mixer", "--config", "more.yaml"]) == 1
    assert "'new' has no predictions yet; `kt predictions --model new`" in capsys.readouterr().err


def test_scores_of_other_predictions_are_not_shown(folder):
    frame = tables.study(models=3, seeds=1)["complementarity"]
    path = tables.write(folder / "made", {"complementarity": frame}) / "complementarity.parquet"
    row = frame.iloc[1]
    values = [(row["acc_teacher"], 0.0), (row["acc_student"], 0.0)]
    assert stage._scored(path, (row["teacher"], row["student"]), values)["pos_flips"] == row["pos_flips"]
    assert stage._scored(path, (row["teacher"], row["student"]), [(50.0, 0.0), values[1]]) is None
    assert stage._scored(path, ("model_0", "model_9"), values) is None
    assert stage._scored(folder / "none.parquet", ("model_0", "model_1"), values) is None


def told(words: Words, classes: pd.DataFrame | None) -> stage.Found:
    empty = measured(tables.study(models=3, seeds=1)["transfers"], "model_0", "model_7")
    acc = {"teacher": (0.5, 0.1), "student": (0.25, 0.1)}
    return stage.Found("a", "b", words, "set", 8, acc, (0.3, 0.1), (0.05, 0.02), classes, {}, empty, ["deltas: none"])


def test_a_task_without_classes_has_none_and_its_own_words():
    answers = SimpleNamespace()
    assert stage._classes(answers, tables.DEPTH, None, None) is None
    text = pair_text(told(tables.DEPTH, None), 5)
    assert "correlation of the teacher: 0.500 ± 0.100 (−1 to 1)" in text
    assert "positive flips: 0.300 ± 0.100 points of correlation (the teacher’s lead where it does better)" in text
    assert "8 test frames" in text
    assert "class" not in text
    assert json.loads(json.dumps(told(tables.DEPTH, None).plain()))["classes"] is None


def test_classes_of_a_dense_task_are_counted_in_pixels_from_the_table():
    kept = np.array([[[3, 5, 4], [2, 3, 6]], [[1, 2, 2], [6, 8, 6]]], np.int32)
    answers = SimpleNamespace(dataset=SimpleNamespace(class_names=("sky", "road")), kept=(kept, kept // 2))
    words = Segmentation().words
    made = stage._classes(answers, words, {"flips_by_class": [1, 4]}, {"flips_by_class": [2, 0]})
    assert made.to_dict("list") == {
        "class": ["road", "sky"],
        "n": [12, 6],
        "teacher_right": [8, 4],
        "student_right": [4, 1],
        "pos_flips": [4, 1],
        "neg_flips": [0, 2],
    }
    unknown = stage._classes(answers, words, None, None)
    assert unknown["pos_flips"].isna().all()
    text = pair_text(told(words, unknown), 5)
    assert "numbers of test pixels" in text
    scored = pair_text(replace(told(words, unknown), measures={"agreement": 82.0, "pixel_flips_se": 0.3}), 5)
    assert re.search(r"agreement +82 +percent of pixels +pixels for which both predict the same class", scored)
    assert "nan" not in text


def test_images_take_turns_by_class_and_the_largest_lead_comes_first_without_classes():
    lead = np.array([1, 1, 0, 1, 1, -1, 1.0])
    assert stage.chosen(lead, np.array([2, 2, 2, 0, 2, 1, 0])) == [0, 3, 1, 6, 4]
    assert stage.chosen(lead, np.array([2, 2, 2, 0, 2, 1, 0]), most=2) == [0, 3]
    assert stage.chosen(np.array([0.1, -0.2, 0.5]), np.zeros(3, int)) == [2, 0]
    assert stage.chosen(np.zeros(3), np.zeros(3, int)) == []


def test_images_of_many_channels_are_refused_in_one_line(tmp_path):
    with pytest.raises(KtError, match="--images: the images have 4 channels"):
        stage._save(tmp_path / "x.png", np.zeros((8, 8, 4), np.uint8))


def test_measured_deltas_are_means_over_seeds_beside_the_control_of_the_same_seeds():
    transfers = tables.study(models=3, seeds=3)["transfers"]
    pair = transfers["teacher"].eq("model_0") & transfers["student"].eq("model_2")
    transfers.loc[pair & transfers["method"].eq("finetune") & transfers["seed"].eq(2), "status"] = "failed"
    transfers.loc[pair & transfers["method"].eq("kl"), ["status", "delta"]] = ["failed", None]
    rows = measured(transfers, "model_2", "model_0").set_index("method")
    of = transfers[pair & transfers["status"].eq("ok")].pivot_table(index="seed", columns="method", values="delta")
    difference = (of["kl_dp"] - of["finetune"]).dropna()
    row = rows.loc["kl_dp"]
    assert (row["against"], row["seeds"], row["common_seeds"]) == ("finetune", 3, 2)
    assert row["delta"] == pytest.approx(of["kl_dp"].mean())
    assert row["beyond"] == pytest.approx(difference.mean())
    assert row["beyond_se"] == pytest.approx(difference.std() / np.sqrt(2))
    assert rows.loc["kl_dp_unsup", "against"] == "self"
    assert rows.loc["kl", ["seeds", "failed"]].tolist() == [0, 3]
    assert rows.index[-2:].tolist() == ["finetune", "self"]
    assert rows.loc["finetune", "failed"] == 1
    assert measured(transfers, "model_9", "model_2").empty
    everyone = measured(transfers, "model_2")
    of_pair = everyone[everyone["teacher"] == "model_0"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_pair, measured(transfers, "model_2", "model_0"), check_dtype=False)
    assert set(everyone["teacher"]) == {"model_0", "model_1"}
    transfers.loc[pair, ["status", "delta"]] = ["failed", None]
    rows = measured(transfers, "model_2", "model_0")
    assert (rows["seeds"].sum(), rows["delta"].notna().sum(), rows["against"].notna().sum()) == (0, 0, 0)
    assert "3 failed" in pair_text(replace(told(tables.DEPTH, None), measured=rows), 5)
