"""Outputs in another order of the classes than the data set's: noticed, and mended by a key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tables import said

from kt import predictions
from kt.data.classes import class_folders
from kt.data.datasets import Dataset
from kt.data.sources import check_source
from kt.data.spec import DataSpec
from kt.errors import KtError
from kt.stages.members import _warn_of_order, better_order
from kt.study.study import Study
from kt.zoo.spec import Member, ZooSpec

NAMES = [f"class{i}" for i in range(1, 13)]
LABELS = np.arange(240) % 12


def outputs(order: list[str], names: list[str] = NAMES, right: float = 0.9) -> np.ndarray:
    """The largest outputs of a model whose outputs stand for classes in some order, with a share of errors."""
    generator = np.random.default_rng(0)
    place = np.array([order.index(name) for name in names])
    wrong = generator.random(len(LABELS)) > right
    return np.where(wrong, generator.integers(0, len(names), len(LABELS)), place[LABELS % len(names)])


def test_torchvisions_order_is_noticed_by_hand():
    predicted = outputs(sorted(NAMES), right=1)  # class1, class10, class11, class12, class2, …
    assert (predicted == LABELS).mean() == 1 / 12
    assert better_order(predicted, LABELS, NAMES) == ("sorted", 1 / 12, 1.0)


@pytest.mark.parametrize(
    ("names", "order", "said"),
    [
        (NAMES, sorted(NAMES), "sorted"),
        (sorted(NAMES), NAMES, "natural"),
        (
            sorted(["ant", "Bee", "cat", "Dog", "eel", "Fox", "gnu", "Hen", "ibex", "Jay", "koi", "Lynx"]),
            None,
            "natural",
        ),
        ([str(i) for i in range(12)], sorted(map(str, range(12))), "sorted"),
        (NAMES, [NAMES[-1], *NAMES[:-1]], "labels from 1"),
        (NAMES, [*NAMES[1:], NAMES[0]], "labels from -1"),
        (NAMES, [NAMES[i] for i in np.random.default_rng(3).permutation(12)], "other"),
    ],
)
def test_other_orders_are_noticed(names, order, said):
    found = better_order(outputs(order or sorted(names, key=str.lower), names), LABELS, names)
    assert found is not None
    assert found.order == said
    assert found.reordered > 0.8


@pytest.mark.parametrize("right", [1.0, 0.9, 0.5, 0.2, 0.0])
@pytest.mark.parametrize("images", [1, 2, 24, 240])
def test_a_right_order_and_a_bad_model_give_no_warning(right, images):
    assert better_order(outputs(NAMES, right=right)[:images], LABELS[:images], NAMES) is None


def spec(folder: Path, **more: object) -> DataSpec:
    splits = {"transfer": 1, "validation": 240, "test": 1}
    return DataSpec.model_validate({"source": str(folder), "size": 4, "splits": splits, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / name / "a.png")
    return tmp_path / "images"


def test_the_order_of_class_folders_is_a_key(folder):
    assert class_folders(spec(folder)).classes == NAMES
    assert class_folders(spec(folder, class_order="sorted")).classes == sorted(NAMES)
    with pytest.raises(
        KtError, match=r"data.class_order: 'sorted' orders class folders, but data.classes has the labels"
    ):
        check_source(spec(folder, class_order="sorted", classes=("class1", "class2")))
    with pytest.raises(KtError, match=r"data.class_order: 'sorted' orders class folders, but digits has labels"):
        check_source(spec(folder, class_order="sorted", source="digits"))


@pytest.mark.parametrize(
    ("data", "member", "line"),
    [({}, {}, "set data.class_order: sorted"), ({"classes": tuple(NAMES)}, {}, "set the order of data.classes"),
     ({}, {"classes": tuple(range(12))}, "set the order of zoo.models.a.classes")],
)  # fmt: skip
def test_the_warning_names_the_key(folder, tmp_path, caplog, data, member, line):
    logits = np.eye(12, dtype=np.float16)[outputs(sorted(NAMES))]
    predictions.write(
        tmp_path / "m.safetensors",
        {"validation": said(logits, np.arange(240))},
        "print",
        "data",
    )
    splits = pd.DataFrame({"row": np.arange(240), "image_id": np.arange(240), "split": "validation"})
    dataset = Dataset(np.zeros((240, 4, 4, 1), np.uint8), LABELS, splits, tuple(NAMES), "hash")
    given = Member.model_validate({"arch": "resnet18", "checkpoint": "w.pth", **member})
    study = Study.model_construct(data=spec(folder, **data), zoo=ZooSpec(models={"a": given}))
    _warn_of_order(study, "a", dataset, tmp_path / "m.safetensors")
    assert "predict a: accuracy on validation is" in caplog.text
    assert line in caplog.text
