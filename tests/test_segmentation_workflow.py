"""Segmentation through the whole workflow: scenes of digits, two networks of different strides and input sizes."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_pipeline import Checkout, without_seconds

from kt.data.datasets import Dataset, split_sizes
from kt.layout import Layout
from kt.predictions import File, read
from kt.study import load, units
from kt.tasks.segmentation import IGNORED

pytestmark = pytest.mark.slow

ENCODER = {"encoder": "resnet10t", "encoder_depth": 3, "channels": [8, 8, 16, 16], "stem_width": 8}
STUDY: dict[str, Any] = {
    "title": "Scenes",
    "results": "results",
    "device": "cpu",
    "data": {
        "source": "scenes",
        "task": "segmentation",
        "splits": {"zoo": 64, "transfer": 32, "validation": 16, "test": {"part": "test", "images": 40}},
    },
    "zoo": {
        "input": {"size": 48, "mean": [0.5] * 3, "std": [0.25] * 3},
        "models": {
            "unet": {
                "arch": "smp_unet",
                "args": {**ENCODER, "decoder_channels": [8, 8, 8]},
                "train": {"epochs": 4, "batch_size": 16, "lr": 1e-2},
            },
            "large": {
                "arch": "smp_unet",
                "args": {**ENCODER, "decoder_channels": [8, 8, 8]},
                "input": {"size": 64, "mean": [0.5] * 3, "std": [0.25] * 3},
                "train": {"epochs": 3, "batch_size": 16, "lr": 1e-2, "seed": 1},
            },
        },
    },
    "transfer": {
        "methods": {"kl_dp": {"level": "pixel"}, "bikd": {}, "self": {}, "finetune": {}, "ensemble_mean": {}},
        "seeds": [0, 1],
        "training": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
        "views": {"n": 2, "scale": [0.5, 1.0]},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The study after one run."""
    checkout = Checkout(tmp_path_factory.mktemp("scenes"))
    checkout.study = STUDY
    checkout.succeed()
    return checkout


def maps(checkout: Checkout, name: str) -> np.ndarray:
    return np.asarray(File.open(checkout.folder / f"results/predictions/{name}.safetensors", "test").map("test.top"))


def mean_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """By loops over classes and pixels, in percent."""
    found = []
    for label in range(11):
        where = truth != IGNORED
        if not ((truth == label) & where).any():
            continue
        both = ((predicted == label) & (truth == label) & where).sum()
        found.append(both / (((predicted == label) | (truth == label)) & where).sum())
    return 100 * float(np.mean(found))


def test_scores_are_those_of_the_class_maps(finished: Checkout) -> None:
    data, zoo = Dataset.open(finished.folder / "results/data"), finished.table("zoo").set_index("name")
    truth = data.truth[data.rows("test")]
    assert truth.shape == (40, 48, 48)
    right = {}
    for name in STUDY["zoo"]["models"]:
        predicted = maps(finished, name)
        assert zoo.loc[name, "miou"] == pytest.approx(mean_iou(predicted, truth), abs=1e-9)
        right[name] = predicted == truth
        assert zoo.loc[name, "pixel_accuracy"] == pytest.approx(100 * right[name].mean(), abs=1e-9)
    for row in finished.table("complementarity").to_dict("records"):
        teacher, student = right[row["teacher"]], right[row["student"]]
        assert row["pixel_flips"] == pytest.approx(100 * (teacher & ~student).mean())
        assert row["neg_pixel_flips"] == pytest.approx(100 * (student & ~teacher).mean())
        assert row["pos_flips"] - row["neg_flips"] == pytest.approx(row["miou_difference"], abs=1e-9)


def test_transfers_are_about_the_mean_iou(finished: Checkout) -> None:
    transfers, zoo = finished.table("transfers"), finished.table("zoo").set_index("name")
    assert set(transfers["status"]) == {"ok"}
    assert len(transfers) == 2 * 4 * 2 + 2  # pairs, methods that train, seeds; and an ensemble of each pair
    assert np.allclose(transfers["miou_before"], zoo.loc[transfers["student"], "miou"])
    assert np.allclose(transfers["delta"], transfers["miou_after"] - transfers["miou_before"])
    assert np.allclose(transfers["delta"], transfers["knowledge_gain"] - transfers["knowledge_loss"])
    ensembles = transfers[transfers["method"] == "ensemble_mean"].groupby("seed")["miou_after"].nunique()
    assert (ensembles == 1).all(), "a mean has no direction"
    share = transfers[transfers["method"] == "kl_dp"]["teacher_share"]
    assert share.between(0, 100, inclusive="neither").all()


def test_pictures_are_those_of_the_data_and_the_models(finished: Checkout) -> None:
    pictures = finished.table("pictures")
    assert set(pictures["method"]) == {"kl_dp"}
    assert len(pictures) >= 4
    data = Dataset.open(finished.folder / "results/data")
    rows = dict(zip(data.ids("test"), data.rows("test"), strict=True))
    places = {image: i for i, image in enumerate(data.ids("test"))}
    for row in pictures.to_dict("records"):
        pixels = {
            name: np.asarray(Image.open(io.BytesIO(base64.b64decode(row[name]))))
            for name in ("image", "truth", "teacher_map", "before_map", "after_map", "taught_map")
        }
        image = rows[row["image_id"]]
        assert np.array_equal(pixels["image"], data.images[image])
        assert np.array_equal(pixels["truth"], data.truth[image])
        for column, name in (("teacher_map", row["teacher"]), ("before_map", row["student"])):
            assert np.array_equal(pixels[column], maps(finished, name)[places[row["image_id"]]])
        assert set(np.unique(pixels["taught_map"])) <= {0, 255}
        assert row["names"][0] == "background"
    figure = finished.folder / "results/figures/pictures.png"
    assert Image.open(figure).width > 500


def test_the_report_speaks_of_pixels_and_the_mean_iou(finished: Checkout) -> None:
    page = (finished.folder / "results/report.html").read_text("utf-8")
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL))
    assert "mean IoU" in text
    assert "top-1" not in text
    assert "40 test images" in text


def test_computed_answers_give_the_same_results_as_kept_ones(finished: Checkout, tmp_path: Path) -> None:
    """Within rounding: a float16 answer may differ by a step where a forward pass has other images beside it."""
    other = Checkout(tmp_path / "recomputed")
    other.study = {**STUDY, "transfer": {**STUDY["transfer"], "answers": "recomputed", "seeds": [0]}}
    for made in ("data", "zoo"):
        shutil.copytree(finished.folder / "results" / made, other.folder / "results" / made)
    other.succeed("results/tables/transfers.parquet")
    for name in STUDY["zoo"]["models"]:
        assert read(other.folder / f"results/predictions/{name}.safetensors", "transfer").answers is None
        assert read(finished.folder / f"results/predictions/{name}.safetensors", "transfer").answers is not None
    keys = ["method", "teacher", "student", "seed"]
    one, two = (
        c.table("transfers").query("seed == 0").sort_values(keys).reset_index(drop=True) for c in (finished, other)
    )
    assert one[keys].equals(two[keys])
    assert np.allclose(one["miou_after"], two["miou_after"], atol=0.05)
    exact = one["method"].isin(["finetune", "bikd"])  # these read no answers
    pd.testing.assert_series_equal(one.loc[exact, "miou_after"], two.loc[exact, "miou_after"])


def test_the_bytes_of_predictions_are_those_that_are_planned(finished: Checkout, tmp_path: Path) -> None:
    study = load.load(finished.folder / "config.yaml")
    planned = units.disk(study, Layout(tmp_path / "nothing"), split_sizes(tmp_path / "nothing", study.data))
    assert planned == units.disk(study, study.layout, split_sizes(finished.folder / "results/data", study.data))
    assert planned is not None
    assert planned.recomputed == 0
    written = sum(path.stat().st_size for path in (finished.folder / "results/predictions").glob("*.safetensors"))
    assert planned.size == pytest.approx(written, rel=0.01)


def test_a_run_again_changes_nothing(finished: Checkout) -> None:
    before = without_seconds(finished.table("transfers"))
    assert "Nothing to be done" in finished.succeed()
    pd.testing.assert_frame_equal(before, without_seconds(finished.table("transfers")))
