"""A task of a user's module, without classes and on oblong images, through the whole workflow to the report."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import Checkout
from test_tasks_data import pictures

from kt import predictions
from kt.data.datasets import Dataset

pytestmark = pytest.mark.slow

SIDES = [12, 20]
RESNET = {"arch": "resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}}
VIT = {"img_size": SIDES, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
STUDY: dict[str, Any] = {
    "title": "Colours of pictures",
    "results": "results",
    "device": "cpu",
    "data": {
        "source": "pictures.npz",
        "task": "vectors",
        "splits": {"zoo": 120, "transfer": 64, "validation": 32, "test": 60},
    },
    "zoo": {
        "modules": ["vectors"],
        "input": {"size": SIDES, "mean": [0.5] * 3, "std": [0.25] * 3},
        "models": {
            "short": {**RESNET, "train": {"epochs": 2, "batch_size": 16}},
            "long": {**RESNET, "train": {"epochs": 6, "batch_size": 16, "seed": 1}},
            "vit": {"arch": "vit_tiny_patch16_224", "args": VIT, "train": {"epochs": 4, "batch_size": 16}},
        },
    },
    "pairs": {"select": "top", "k": 2},
    "groups": {"choose": {"select": "random", "k": 2, "n": 1}, "methods": {"parallel": {}}},
    "transfer": {
        "methods": {"kl_dp": {}, "bikd": {}, "self": {}, "finetune": {}},
        "seeds": [0, 1],
        "training": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
        "views": {"n": 2},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The study after one run."""
    checkout = Checkout(tmp_path_factory.mktemp("colours"))
    checkout.study = STUDY
    shutil.copy(Path(__file__).with_name("vectors.py"), checkout.folder)
    images, truth = pictures(276)
    np.savez(checkout.folder / "pictures.npz", images=images, truth=truth)
    checkout.succeed()
    return checkout


def test_every_table_is_about_the_metric_of_the_task(finished: Checkout) -> None:
    transfers, zoo = finished.table("transfers"), finished.table("zoo").set_index("name")
    # two seeds; of three students with two teachers two methods and two controls, and one method with both teachers
    assert len(transfers) == 2 * 3 * (2 * 4 + 1)
    assert set(transfers["status"]) == {"ok"}
    assert not [c for frame in (transfers, zoo.reset_index()) for c in frame if "acc" in c.split("_")]
    assert np.allclose(transfers["delta"], transfers["fit_after"] - transfers["fit_before"])
    assert np.allclose(transfers["delta"], transfers["knowledge_gain"] - transfers["knowledge_loss"])
    assert np.allclose(transfers["fit_before"], zoo.loc[transfers["student"], "fit"])
    assert transfers["taught_errors"].isna().all()
    assert transfers["transfer_rate"].dropna().between(0, 100).all()


def test_scores_are_those_of_the_predictions(finished: Checkout) -> None:
    data, zoo = Dataset.open(finished.folder / "results/data"), finished.table("zoo").set_index("name")
    truth, scores = data.truth[data.rows("test")], {}
    for name in STUDY["zoo"]["models"]:
        answers = np.asarray(
            predictions.read(finished.folder / f"results/predictions/{name}.safetensors", "test").answers
        )
        scores[name] = 1 - np.abs(answers.astype(np.float64) - truth).mean(1)
        assert zoo.loc[name, "fit"] == pytest.approx(scores[name].mean(), abs=1e-3)  # answers are rounded
    for row in finished.table("complementarity").to_dict("records"):
        lead = scores[row["teacher"]] - scores[row["student"]]
        assert row["pos_flips"] == pytest.approx(np.maximum(lead, 0).mean(), abs=1e-3)
        assert row["pos_flips"] - row["neg_flips"] == pytest.approx(row["fit_teacher"] - row["fit_student"])


def test_the_report_speaks_of_the_task(finished: Checkout) -> None:
    page = (finished.folder / "results/report.html").read_text("utf-8")
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL))
    assert "accuracy" not in text.lower()
    assert "60 test images" in text
    assert "fit" in text
    assert "the task has no classes" in text  # where a figure is left out
    assert len(list((finished.folder / "results/figures").glob("*.png"))) > 5


def test_a_finished_study_has_nothing_left_to_do(finished: Checkout) -> None:
    assert "Nothing to be done" in finished.succeed()
    assert "0 to do" in finished.succeed("-n")


def test_seeds_differ_and_a_teacher_teaches_some_of_the_images(finished: Checkout) -> None:
    transfers = finished.table("transfers")
    by_seed = transfers[transfers["trains"]].groupby(["method", "student"])["fit_after"].nunique()
    assert (by_seed > 1).all()
    share = transfers[transfers["method"] == "kl_dp"]["teacher_share"]
    assert share.between(0, 100).all()
    assert len(set(share)) > 1
