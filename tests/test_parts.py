"""Official parts of folders, sources a level too high, and how many images there are."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml
from images import VAL, by_class, fill, refusal, spec_of
from studies import small_zoo

from kt import cli
from kt.data import datasets, sources
from kt.data.datasets import Dataset
from kt.data.folders import folder
from kt.errors import KtError
from kt.study.check import check_data


def test_the_training_part_is_known_by_its_usual_names(tmp_path):
    for name in ("training", "Train", "TRAIN"):
        root = fill(tmp_path / name, f"{name}/a", f"{name}/b", "validation/a", "validation/b", images=3)
        splits = {"transfer": 2, "validation": {"part": "validation"}, "test": 1}
        data = folder(spec_of(root, size=8, splits=splits))
        assert (data.classes, set(data.parts), data.default) == (["a", "b"], {name, "validation"}, name)
        datasets.write(root / "store", spec_of(root, size=8, splits=splits))
        names = Dataset.open(root / "store").splits.groupby("split")["name"].agg(lambda n: {x.split("/")[0] for x in n})
        assert names.to_dict() == {"transfer": {name}, "validation": {"validation"}, "test": {name}}


def test_a_part_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    fill(tmp_path, "train/a", "train/b", "validation/a", "validation/b")
    assert refusal(tmp_path, **VAL) == f"data.splits: no part 'val' in {tmp_path}; there are: train, validation"
    fill(tmp_path / "deeper", "val/a", "val/b", "test/a", "test/b")
    assert refusal(tmp_path / "deeper") == f"data.splits: no part 'train' in {tmp_path}/deeper; there are: test, val"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["data/a", "data/b"],
            "only one class folder, 'data'; a study needs at least two classes; is the source .*/data?",
        ),
        (["data/train/a", "data/val/a"], "only one class folder, 'data'"),
        (["a"], "only one class folder, 'a'; a study needs at least two classes"),
        (["train/a", "val/a"], "only one class folder, 'a'"),
        (["train", "val"], "train: no class folders in it; a part needs one folder per class"),
        (
            ["train_images/a", "train_images/b", "val_images/a", "val_images/b"],
            "folders are called like official parts",
        ),
        (["train2017", "val2017"], "its folders are called like official parts: train2017, val2017; name them in data"),
        (["trainset/a", "trainset/b", "testset/a", "testset/b"], "called like official parts: testset, trainset"),
        (
            ["images/TRAIN/a", "images/VAL/a", "extra/a"],
            "these folders hold official parts, not images: images; is one",
        ),
        (["cifar/train/a", "cifar/test/a", "mnist/train/a", "mnist/test/a"], "folders hold official parts, not images"),
    ],
)
def test_sources_a_level_too_high_or_of_a_single_class_are_refused(tmp_path, folders, message):
    root = fill(tmp_path, *folders)
    assert re.search(message.replace("?", r"\?"), refusal(root))


def test_classes_that_are_called_like_parts_can_be_named(tmp_path):
    fill(tmp_path, "bullet_train", "freight_train")
    assert list(by_class(tmp_path, classes=["freight_train", "bullet_train"])) == ["bullet_train", "freight_train"]
    fill(tmp_path / "vehicles", "train", "car")  # images lie in `train` itself: it is a class
    assert list(by_class(tmp_path / "vehicles")) == ["car", "train"]


def test_folders_beside_the_parts_are_said(tmp_path):
    fill(tmp_path, "train/a", "train/b", "val/a", "val/b", "annotations/x")
    assert folder(spec_of(tmp_path, size=8, **VAL)).left_out == {"folder annotations, which no split names": 1}


def test_a_class_that_a_part_lacks_is_said_and_the_others_are_read(tmp_path, caplog):
    fill(tmp_path, "train/a", "train/b", "train/c", "val/a", images=4)
    (tmp_path / "val/b").mkdir()
    facts = datasets.write(tmp_path / "store", spec_of(tmp_path, size=8, **VAL))
    assert "data: val has no image of 2 of 3 classes: b, c" in caplog.text
    assert facts["classes"] == ["a", "b", "c"]


def test_parts_whose_classes_do_not_meet_are_refused(tmp_path):
    fill(tmp_path, "train/a", "train/b", "val/images")  # as Tiny ImageNet comes
    assert "no class of train has an image in val: train has a, b; val has images" in refusal(tmp_path, **VAL)
    fill(tmp_path / "case", "train/Cat", "train/dog", "val/cat", "val/dog")
    assert "the class 'cat' is called 'Cat' in train; give it one name" in refusal(tmp_path / "case", **VAL)
    fill(tmp_path / "space", "train/cat", "train/dog", "val/cat ", "val/dog")
    assert "the class 'cat ' is called 'cat' in train; give it one name" in refusal(tmp_path / "space", **VAL)
    fill(tmp_path / "both", "train/A", "train/a", "val/A", "val/a")
    assert list(by_class(tmp_path / "both", **VAL)) == ["A", "a"]


# how many images there are


def test_the_check_of_a_configuration_counts_the_images(tmp_path):
    fill(tmp_path / "s", "train/a", "train/b", "val/a", "val/b", images=5)
    asked = {"transfer": 6, "validation": 4, "test": {"part": "val"}}
    sizes = sources.part_sizes(spec_of(tmp_path / "s", size=8, splits=asked))
    assert (sizes.images, sizes.default) == ({"train": 10, "val": 10}, "train")
    chosen = sources.part_sizes(spec_of(tmp_path / "s", size=8, splits=asked, classes=["b"]))
    assert chosen.images == {"train": 5, "val": 5}
    with pytest.raises(KtError, match=r"data.classes: no class 'c' in"):
        sources.part_sizes(spec_of(tmp_path / "s", size=8, splits=asked, classes=["c"]))
    photos = {"transfer": {"folder": str(tmp_path / "s/val/a")}, "validation": 4, "test": 4}
    assert sources.part_sizes(spec_of("digits", size=8, splits=photos)).images == {
        "train": 1797, f"{tmp_path}/s/val/a": 5,
    }  # fmt: skip


@pytest.mark.parametrize("classes", [["3"], [], {"3": 1, "5": 1}])
def test_a_study_of_one_class_is_refused(classes):
    with pytest.raises(KtError, match=r"data.classes: a study needs classes of at least two labels, not [01]"):
        check_data(spec_of("digits", classes=classes))


def test_arrays_of_one_class_are_refused_and_labels_that_no_image_has_are_said(tmp_path, caplog):
    arrays = {"images": np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)}
    np.savez(tmp_path / "d.npz", **arrays, labels=np.ones(6, np.int64))
    some = {"transfer": 3, "validation": 1, "test": 2}
    with pytest.raises(KtError, match="images of 1 class in the splits; a study needs at least two classes"):
        datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", splits=some))
    np.savez(tmp_path / "d.npz", **arrays, labels=np.arange(6) % 2 + 1)
    datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", splits=some))
    assert "data: no image of 1 of 3 classes is in a split: 0" in caplog.text


def test_the_command_that_checks_a_configuration_refuses_more_images_than_a_folder_has(tmp_path, capfd):
    fill(tmp_path / "s", "a", "b", images=6)
    member = {"arch": "tiny_mixer", "train": {"epochs": 1, "batch_size": 4}}
    study = {
        "results": str(tmp_path / "results"),
        "data": {
            "source": str(tmp_path / "s"),
            "size": 16,
            "splits": {"zoo": 4, "transfer": 4, "validation": 1, "test": 3},
        },
        "zoo": small_zoo(a=member, b=member),
        "pairs": {"select": "all"},
        "transfer": {"methods": {"kl": {}}, "training": {"epochs": 1, "batch_size": 4, "lr": 0.1}},
    }
    for test, status in ((3, 0), (300, 1)):
        study["data"]["splits"]["test"] = test
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        assert cli.main(["config", "check", "--config", str(tmp_path / "study.yaml")]) == status
    said = "data.splits: 309 images asked for (zoo 4 + transfer 4 + validation 1 + test 300), but the data set has 12"
    assert capfd.readouterr().err.strip().endswith(said)
