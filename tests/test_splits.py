"""Splits: sizes, shares, parts and files, and that no image is in two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import counts, sizes, split_sizes

from kt.data import scenes
from kt.data.spec import SPLITS
from kt.data.splits import assign
from kt.errors import KtError


@given(st.tuples(*[st.integers(1, 20)] * 4), st.integers(0, 30), st.integers(0, 2**32))
def test_splits_have_the_sizes_asked_for_and_share_no_image(asked, spare, seed):
    spec = sizes(*asked)
    n = sum(asked) + spare
    labels = np.random.default_rng(seed).integers(0, 5, n)
    frame = assign(labels, spec, seed)
    assert frame["split"].value_counts(sort=False).to_dict() == dict(zip(SPLITS, asked, strict=True))
    assert frame["image_id"].is_unique
    assert (frame["image_id"] == frame["row"]).all()
    assert (frame["label"] == labels[frame["row"]]).all()
    assert assign(labels, spec, seed).equals(frame)


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_every_split_holds_the_classes_in_proportion_up_to_rounding(seed, classes):
    n, asked = 240, (30, 50, 20, 100)
    labels = np.random.default_rng(seed).integers(0, classes, n) ** 2 // classes
    frame = assign(labels, sizes(*asked), seed)
    for name, size in zip(SPLITS, asked, strict=True):
        for c, of_class in enumerate(np.bincount(labels)):
            found = int((frame.loc[frame["split"] == name, "label"] == c).sum())
            # a cut at a rank lies within one image of each class of the cut at its quantile, and there are two cuts
            assert abs(found - size * of_class / n) <= 2 * (1 + classes * of_class / n)


def test_the_seed_decides_the_split():
    labels = np.arange(100) % 3
    frames = [assign(labels, sizes(20, 20, 20, 20), seed) for seed in range(3)]
    assert len({tuple(frame["image_id"]) for frame in frames}) == 3


def test_the_split_of_the_digits_study_is_the_one_its_published_numbers_were_measured_on():
    frame = assign(scenes.digits().labels, sizes(400, 500, 150, 747), 0)
    first = {split: frame.loc[frame["split"] == split, "row"].tolist()[:4] for split in SPLITS}
    assert first == FIRST_DIGITS


FIRST_DIGITS = {
    "zoo": [1763, 908, 1507, 982],
    "transfer": [1752, 1341, 1694, 176],
    "validation": [726, 1207, 628, 1223],
    "test": [491, 1555, 1199, 283],
}
PARTS = np.array(["train"] * 60 + ["val"] * 30 + ["extra"] * 10)


def test_shares_are_of_the_part_they_draw_from_and_a_part_alone_is_what_the_others_leave():
    asked = split_sizes(zoo=6, transfer=0.1, validation={"part": "val", "share": 0.2}, test={"part": "val"})
    frame = assign(np.arange(100) % 5, asked, 0, PARTS)
    assert counts(frame) == {"zoo": 6, "transfer": 6, "validation": 6, "test": 24}
    of_part = frame.groupby("split")["row"].agg(lambda rows: set(PARTS[rows]))
    assert of_part.to_dict() == {"zoo": {"train"}, "transfer": {"train"}, "validation": {"val"}, "test": {"val"}}
    assert frame["row"].is_unique
    # a tenth of every class, as the classes are equally large
    tenth = assign(np.arange(200) % 4, split_sizes(transfer=0.1), 3)
    assert tenth[tenth["split"] == "transfer"]["label"].value_counts().tolist() == [5, 5, 5, 5]


def test_images_that_a_file_lists_are_in_its_split_in_its_order_and_in_no_other(tmp_path):
    (tmp_path / "ids.txt").write_text("img7\n\nimg3\n img9 \n")
    names, asked = [f"img{i}" for i in range(20)], split_sizes(test={"file": str(tmp_path / "ids.txt")}, transfer=15)
    frame = assign(np.zeros(20, np.int64), asked, 0, names=names)
    assert frame.loc[frame["split"] == "test", "name"].tolist() == ["img7", "img3", "img9"]
    assert counts(frame) == {"transfer": 15, "validation": 1, "test": 3}
    assert frame["row"].is_unique
    numbers = split_sizes(test={"file": str(tmp_path / "numbers.txt")})
    (tmp_path / "numbers.txt").write_text("5\n1\n")
    frame = assign(np.zeros(20, np.int64), numbers, 0)
    assert frame.loc[frame["split"] == "test", "row"].tolist() == [5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img1\nimg 2\n", r"test.file: 1 of its images are not in the data set: img 2; did you mean 'img2'"),
        ("img1\nimg2\nimg1", "test.file: the image 'img1' is listed twice"),
        ("img1\nimg5", "test.file: the image 'img5' is listed twice, or its class is not taken"),
        ("\n", "test.file: .*ids.txt lists no image"),
    ],
)
def test_files_of_images_that_do_not_fit_the_data_set_give_one_line(tmp_path, text, message):
    (tmp_path / "ids.txt").write_text(text)
    labels = np.array([0] * 5 + [-1] + [0] * 4)
    asked = split_sizes(test={"file": str(tmp_path / "ids.txt")})
    with pytest.raises(KtError, match=f"data.splits.{message}"):
        assign(labels, asked, 0, names=[f"img{i}" for i in range(10)])


def test_images_of_classes_that_are_not_taken_are_in_no_split():
    labels = np.array([0, -1, 1, -1] * 5)
    frame = assign(labels, split_sizes(transfer=8), 0)
    assert (labels[frame["row"]] >= 0).all()
    with pytest.raises(KtError, match=r"11 images asked for .* but the data set has 10"):
        assign(labels, split_sizes(transfer=9), 0)


def test_splits_that_ask_for_too_many_images_are_refused():
    labels = np.arange(10)
    with pytest.raises(KtError, match=r"11 images asked for \(zoo 8 \+ transfer 1 .*\), but the data set has 10"):
        assign(labels, sizes(8, 1, 1, 1), 0)
    both = split_sizes(validation={"part": "val"}, test={"part": "val"})
    with pytest.raises(KtError, match="validation and test both take the rest of the part 'val'"):
        assign(np.zeros(100, np.int64), both, 0, PARTS)
    nothing = split_sizes(validation={"part": "val", "images": 30}, test={"part": "val"})
    with pytest.raises(KtError, match=r"30 images asked for \(validation 30 \+ test the rest\), .* of the part 'val'"):
        assign(np.zeros(100, np.int64), nothing, 0, PARTS)


def test_parts_that_are_not_there_give_one_line():
    with pytest.raises(KtError, match=r"part: unknown part 'vall'; allowed: extra, train, val; did you mean 'val'"):
        assign(np.zeros(100, np.int64), split_sizes(test={"part": "vall"}), 0, PARTS)
    with pytest.raises(KtError, match=r"test.part: the data set has no official parts"):
        assign(np.zeros(100, np.int64), split_sizes(test={"part": "val"}), 0)


def test_files_of_images_may_spell_accents_otherwise_than_the_disk(tmp_path):
    (tmp_path / "test.txt").write_text("caf\u00e9/1.png\n", encoding="utf-8")
    names = ["cafe\u0301/0.png", "cafe\u0301/1.png", "b/0.png", "b/1.png"]
    sizes = split_sizes(test={"file": str(tmp_path / "test.txt")})
    frame = assign(np.array([0, 0, 1, 1]), sizes, 0, names=names)
    assert frame[frame["split"] == "test"]["name"].tolist() == [names[1]]
