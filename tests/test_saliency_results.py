"""What a user sees of saliency after training: pictures, pairs, report, explore page, and a student for others."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from PIL import Image

from kt import predictions
from kt.cli import main
from kt.data.clips import in_turn
from kt.data.datasets import Dataset
from kt.data.inputs import inputs
from kt.errors import KtError
from kt.figures.draw import draw
from kt.figures.pictures import pictures as draw_pictures
from kt.figures.tables import Tables
from kt.layout import Layout
from kt.report import render
from kt.stages.one_pair import chosen
from kt.stages.pictures import pictures
from kt.study.load import load
from kt.tables import schema
from kt.tasks.saliency import Saliency
from kt.tasks.task import standard_error
from kt.transfer.ledger import Ledger, unpack

TASK = Saliency()
MODELS = {
    "past": {"frames": 4, "stride": 2, "reach": "before"},
    "still": {"frames": 1},
}
STUDY: dict[str, Any] = {
    "title": "Moving digits",
    "results": "results",
    "device": "cpu",
    "data": {
        "source": "moving-digits",
        "task": "saliency",
        "every": {"test": 4},  # several targets of each video
        "splits": {"zoo": 8, "transfer": 6, "validation": 3, "test": {"part": "test", "images": 5}},
    },
    "zoo": {
        "modules": ["kt.zoo.videos"],
        "input": {"size": 32, "mean": [0.3], "std": [0.25], "clip": {"frames": 1}},
        "models": {
            name: {
                "arch": "tiny_video_difference",
                "args": {"width": 4},
                "input": {"size": 32, "mean": [0.3], "std": [0.25], "clip": clip},
                "train": {"epochs": 2, "batch_size": 4, "lr": 0.01},
            }
            for name, clip in MODELS.items()
        },
    },
    "pairs": {"select": "all"},
    "transfer": {
        "methods": {"kl_dp": {}, "self": {}},
        "seeds": [0],
        "training": {"epochs": 1, "batch_size": 4, "lr": 1e-3},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study after all of its stages."""
    found = tmp_path_factory.mktemp("seen")
    (found / "config.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        stages = ["data", *(f"{stage} --model {name}" for stage in ("weights", "predictions") for name in MODELS)]
        stages += ["zoo", "complementarity", "pairs", *(f"transfer --student {name}" for name in MODELS)]
        for line in [*stages, "tables", "explore"]:
            assert main(line.split()) == 0, line
    made, drawn = found / "results/tables", found / "results/figures"
    draw(made, drawn, ["pictures", "flips_vs_accuracy"])
    page = render(Tables.read(made), drawn, "", {}, "Moving digits", 0.02)
    (found / "results/report.html").write_text(page, "utf-8")
    return found


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / f"results/tables/{name}.parquet").to_pandas()


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def words(page: Path) -> str:
    text = re.sub(r"<(style|script).*?</\1>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_pictures_are_those_of_the_frames_and_of_the_maps_as_they_are_judged(folder):
    data, layout, shown = Dataset.open(folder / "results/data"), Layout(folder / "results"), table(folder, "pictures")
    places = {frame: i for i, frame in enumerate(data.ids("test"))}
    ledger, truths = Ledger(layout.ledger), data.truths("test")
    assert len(shown) == 4  # two trainings, two frames of each
    for row in shown.to_dict("records"):
        place = places[row["image_id"]]
        known = torch.from_numpy(truths[np.array([place])])
        at = data.rows("test")[place]
        assert np.array_equal(pixels(row["image"]), data.images[at])
        assert np.array_equal(pixels(row["truth"]), data.truth[at])
        for column, name in (("teacher", row["teacher"]), ("before", row["student"])):
            found = predictions.read(layout.predictions(name), "test")
            answer = TASK.aligned(torch.from_numpy(np.array(found.answers[place : place + 1])).float(), known)
            assert np.array_equal(pixels(row[f"{column}_map"]), TASK.shown(answer)[0].numpy())
            assert row[f"cc_{column}"] == pytest.approx(found.kept[place, 0])
        outcome = ledger.read(row["key"])[1]
        which = outcome["shown"]["images"].index(place)
        assert np.array_equal(pixels(row["after_map"]), unpack(outcome["shown"]["after"])[which])
        assert row["cc_after"] == pytest.approx(unpack(outcome["last"])[place, 0])
        assert len(set(np.unique(pixels(row["taught_map"])))) == 1
        looks = np.reshape(row["fixations"], (-1, 2)) * (32, 32)
        expected = np.argwhere(known[0, 1].numpy())[:, ::-1] + 0.5
        assert np.allclose(looks, expected)
    assert Image.open(folder / "results/figures/pictures.png").width > 500


def test_the_frames_shown_are_those_where_the_teacher_leads_most_of_several_videos(folder):
    data, layout = Dataset.open(folder / "results/data"), Layout(folder / "results")
    truths, places = data.truths("test"), {frame: i for i, frame in enumerate(data.ids("test"))}
    scores = {n: TASK.scores(predictions.read(layout.predictions(n), "test").kept, truths) for n in MODELS}
    for (teacher, student), rows in table(folder, "pictures").groupby(["teacher", "student"]):
        lead, clusters = scores[teacher] - scores[student], TASK.clusters(truths)
        best = [max(np.flatnonzero(clusters == video), key=lambda i: lead[i]) for video in np.unique(clusters)]
        expected = sorted(best, key=lambda i: -lead[i])[:2]
        assert [places[frame] for frame in rows["image_id"]] == expected


def test_maps_that_are_not_kept_are_left_out_of_pictures(here, tmp_path, monkeypatch):
    study = load(here / "config.yaml")
    monkeypatch.setattr(predictions.File, "answers", lambda self, split: None)
    made = pictures(
        study, study.layout, table(here, "transfers").rename(columns=lambda name: name.replace("cc", "acc"))
    )
    assert made["teacher_map"].null_count == made["before_map"].null_count == len(made) == 4
    assert made["after_map"].null_count == 0
    tables = Tables.read(here / "results/tables")
    known = tables.details("pictures").copy()
    known.loc[0, "teacher_map"] = None
    some = replace(tables, experiments={"pictures": known})
    none = replace(tables, experiments={"pictures": made.to_pandas()})
    for shown, columns in ((some, 5), (none, 3)):
        figure = draw_pictures(shown).figure
        assert len(figure.axes) == 4 * columns


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {
                "pairs": {"select": "top", "k": 1, "by": "agreement"},
                "transfer": {**STUDY["transfer"], "answers": "recomputed"},
            },
            "pairs.by: 'agreement' is read from kept answers, but transfer.answers is 'recomputed'",
        ),
        (
            {"pairs": {"select": "top", "k": 1, "by": "acc_difference"}},
            "unknown value 'acc_difference'; allowed: cc_teacher, cc_student, cc_difference, pos_flips, pos_flips_se, "
            "neg_flips, agreement; did you mean 'cc_difference'?",
        ),
        (
            {"complementarity": {"measures": ["agreement", "cka"]}},
            "'cka' makes no sense for the task 'saliency'; allowed: agreement",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, change, said):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**STUDY, **change}))
    with pytest.raises(KtError) as error:
        load(tmp_path / "config.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_clusters_take_turns():
    order, clusters = np.array([4, 1, 0, 3, 2]), np.array([7, 7, 2, 2, 7])
    assert in_turn(order, clusters).tolist() == [4, 3, 1, 2, 0]
    lead = np.array([0.1, 0.4, 0.2, -1.0, 0.5])
    assert chosen(lead, np.zeros(5, int), clusters) == [4, 2, 1, 0]
    assert chosen(lead, np.zeros(5, int), clusters, most=2) == [4, 2]


def test_errors_of_a_pair_are_over_videos_as_in_the_tables(here, capsys):
    assert main(["pair", "past", "still", "--json", "--images", "seen"]) == 0
    found = json.loads(capsys.readouterr().out)
    zoo = table(here, "zoo").set_index("name")
    row = table(here, "complementarity").set_index(["teacher", "student"]).loc["past", "still"]
    assert found["n"] > found["clusters"] == 5 == schema.clusters(here / "results/tables/zoo.parquet")
    for role, name in (("teacher", "past"), ("student", "still")):
        assert found["cc"][role]["value"] == pytest.approx(zoo.loc[name, "cc"])
        assert found["cc"][role]["se"] == pytest.approx(zoo.loc[name, "cc_se"])
    assert found["pos_flips"]["se"] == pytest.approx(row["pos_flips_se"])
    assert found["measures"]["agreement"] == pytest.approx(row["agreement"])
    assert -1 <= row["agreement"] <= 1
    assert set(found["measures"]) == {"cc_difference", "agreement"}
    written = pd.read_csv("seen/past-to-still.csv").groupby("direction", sort=False)["name"]
    videos = written.apply(lambda names: [name.rpartition("/")[0] for name in names])
    assert all(len(set(of[: len(set(of))])) == len(set(of)) for of in videos), "each video before any again"


def test_a_pair_is_told_in_frames_videos_and_correlation(here, capsys):
    assert main(["pair", "past", "still"]) == 0
    text = capsys.readouterr().out
    assert "test frames of 5 videos of moving-digits" in text
    assert "± is one standard error over test videos" in text
    assert re.search(r"agreement +\S+ +−1 to 1 +mean correlation of both models' maps", text)
    assert "transfer delta in correlation ± standard error over test videos" in text
    assert not re.search(r"image|percent|class\b", text)


def test_an_error_over_one_video_is_unknown_and_no_failure(here, capsys, monkeypatch):
    monkeypatch.setattr(Saliency, "clusters", lambda self, truth: np.zeros(len(truth), np.int64))
    assert main(["pair", "past", "still", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cc"]["teacher"]["se"] is None
    assert np.isnan(standard_error(np.arange(3.0), np.zeros(3, int)))


def test_the_report_speaks_of_frames_videos_and_correlation(folder):
    text = words(folder / "results/report.html")
    assert re.search(r"\d+ test frames of 5 videos", text)
    assert "Standard errors are over test videos" in text
    assert "trains it on the labels, the true maps" in text
    assert "correlation (CC) before, on test frames" in text
    for wrong in (
        "()",
        "accuracy",
        "test images",
        "percentage points",
        "images right",
        "class_entropy",
        "correlation of",
    ):
        assert wrong not in text.partition("The methods")[0], wrong


def test_the_explore_page_has_units_of_the_task(folder):
    page = (folder / "results/explore.html").read_text("utf-8")
    assert '"over": "5 test videos"' in page
    assert page.count("${study.words.over}") + page.count("± is one standard error over ${over}") == 3
    columns = dict(re.findall(r'"key": "(\w+)", "label": "[^"]*", "unit": "([^"]*)"', page))
    assert (columns["cc"], columns["cc_difference"], columns["agreement"]) == ("", "CC", "−1 to 1")
    assert columns["pos_flips"] == "correlation"


def test_a_student_of_clips_answers_bit_by_bit_as_its_exported_folder(here, capsys):
    assert main(["export", "--pair", "past", "still", "--method", "kl_dp"]) == 0
    (card,) = Path("results/students").glob("*/README.md")
    text, facts = card.read_text("utf-8"), json.loads((card.parent / "config.json").read_text())
    assert facts["kt"]["clip"] == {"frames": 1, "stride": 1, "reach": "before"}
    assert "clips [batch, 3, 1, 32, 32] of 1 frames" in text
    assert "(standard error over videos)" in text
    assert "outputs" not in text.partition("|")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for module in re.findall(r"^import (kt\.\S+)", code, re.MULTILINE):
        importlib.import_module(module)
    (call,) = re.findall(r"model = (.*)\.eval\(\)", code)
    study, data = load(here / "config.yaml"), Dataset.open(here / "results/data")
    frames = inputs(data, "test", study.zoo.input_of("still"), torch.device("cpu"), None)[slice(None)]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.chdir(card.parent.parent)
        answers = eval(call, {"timm": timm}).eval()(frames)
    known = torch.from_numpy(data.truths("test")[slice(None)])
    outcome = Ledger(study.layout.ledger).read(facts["kt"]["key"])[1]
    assert np.array_equal(TASK.kept(TASK.aligned(answers, known), known).numpy(), unpack(outcome["last"]).astype("f4"))
