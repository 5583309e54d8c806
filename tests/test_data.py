"""Images: where they come from, how they are split, and what a model sees of them."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kt import schema, stages
from kt.check import check
from kt.config import parse
from kt.data import arrays, datasets, decode, sources, views
from kt.data.datasets import Dataset
from kt.data.decode import fit
from kt.data.labels import class_map, relabel
from kt.data.listing import Listing
from kt.data.spec import SPLITS, DataSpec, InputSpec, SplitSizes
from kt.data.splits import assign
from kt.errors import KtError
from kt.layout import Layout
from kt.study import Study

CPU = torch.device("cpu")


def sizes(zoo: int, transfer: int, validation: int, test: int) -> SplitSizes:
    return SplitSizes(zoo=zoo, transfer=transfer, validation=validation, test=test)


def images_of(n: int = 5, side: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


# splits


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
    frame = assign(arrays.digits().labels, sizes(400, 500, 150, 747), 0)
    first = {split: frame.loc[frame["split"] == split, "row"].tolist()[:4] for split in SPLITS}
    assert first == FIRST_DIGITS


FIRST_DIGITS = {
    "zoo": [1763, 908, 1507, 982],
    "transfer": [1752, 1341, 1694, 176],
    "validation": [726, 1207, 628, 1223],
    "test": [491, 1555, 1199, 283],
}
PARTS = np.array(["train"] * 60 + ["val"] * 30 + ["extra"] * 10)


def split_sizes(**takes: object) -> SplitSizes:
    return SplitSizes.model_validate({"transfer": 1, "validation": 1, "test": 1} | takes)


def counts(frame: pd.DataFrame) -> dict[str, int]:
    return frame["split"].value_counts(sort=False).to_dict()


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


# sources


def spec_of(source: object, **keys: object) -> DataSpec:
    splits = {"transfer": 1, "validation": 1, "test": 1}
    return DataSpec.model_validate({"source": str(source), "splits": splits} | keys)


def all_images(listing: Listing) -> list[np.ndarray]:
    return [np.asarray(call()) for call in listing.stream(np.arange(len(listing.labels)))]


def test_digits_are_whole():
    data = arrays.digits()
    images = np.stack(all_images(data))
    assert (images.shape, images.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert (images.min(), images.max()) == (0, 255)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(images) == sources.known_count(spec_of("digits"))


@pytest.mark.parametrize("shape", [(7, 4, 5), (7, 4, 5, 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_come_from_an_npz_file(tmp_path, shape, save):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save(tmp_path / "d.npz", images=images, labels=np.arange(7, dtype=np.uint8), other=np.zeros(3))
    data = sources.read(spec_of(tmp_path / "d.npz"))
    assert np.array_equal(all_images(data), images.reshape(7, 4, 5, -1))
    assert np.array_equal([call() for call in data.stream(np.array([2, 5]))], images.reshape(7, 4, 5, -1)[[2, 5]])
    assert (data.labels.dtype, data.labels.tolist(), data.shape) == (np.int64, [*range(7)], (4, 5, (*shape, 1)[3]))
    assert sources.known_count(spec_of(tmp_path / "d.npz")) == 7


def test_an_npz_file_may_hold_official_parts(tmp_path):
    train, test = images_of(8), images_of(5, seed=1)
    arrays = {"x_train": train, "y_train": np.arange(8) % 3, "x_test": test, "y_test": np.arange(5) % 2}
    np.savez(tmp_path / "d.npz", **arrays)
    takes = {"transfer": 5, "validation": 3, "test": {"part": "test"}}
    datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", splits=takes))
    data = Dataset.open(tmp_path / "store")
    assert counts(data.splits) == {"transfer": 5, "validation": 3, "test": 5}
    every = np.concatenate([train, test])
    for split in SPLITS[1:]:
        assert np.array_equal(data.images[data.rows(split)], every[data.ids(split)])
        assert ((data.ids(split) >= 8) == (split == "test")).all()
    for change, message in [
        ({"x_test": test[:, :4]}, "x_train, x_test have images of different shapes"),
        ({"y_test": np.arange(4)}, "4 labels for 5 x_test"),
    ]:
        np.savez(tmp_path / "d.npz", **(arrays | change))
        with pytest.raises(KtError, match=message):
            sources.read(spec_of(tmp_path / "d.npz"))
    np.savez(tmp_path / "d.npz", x_train=train)
    with pytest.raises(KtError, match="no array 'y_train'; it holds: x_train"):
        sources.read(spec_of(tmp_path / "d.npz"))


def test_parts_that_are_not_there_give_one_line():
    with pytest.raises(KtError, match=r"part: unknown part 'vall'; allowed: extra, train, val; did you mean 'val'"):
        assign(np.zeros(100, np.int64), split_sizes(test={"part": "vall"}), 0, PARTS)
    with pytest.raises(KtError, match=r"test.part: the data set has no official parts"):
        assign(np.zeros(100, np.int64), split_sizes(test={"part": "val"}), 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images_of()}, "no array 'labels'; it holds: images"),
        ({"labels": np.arange(5)}, "no array 'images'; it holds: labels"),
        (
            {"images": images_of().astype(float), "labels": np.arange(5)},
            r"images are float64 \[5, 6, 6, 3\]; need uint8",
        ),
        ({"images": images_of()[0, 0], "labels": np.arange(6)}, r"images are uint8 \[6, 3\]; need uint8 \[N, H, W\]"),
        ({"images": images_of(), "labels": np.arange(4)}, "4 labels for 5 images; need one an image"),
        ({"images": images_of(), "labels": np.arange(5.0)}, "labels are float64"),
        ({"images": images_of(), "labels": np.arange(5) - 1}, "need integers ≥ 0"),
        ({"images": images_of(), "labels": np.array([None] * 5)}, r"not a readable \.npz file"),
        ({"images": np.asfortranarray(images_of()), "labels": np.arange(5)}, r"not a readable \.npz file"),
    ],
)
def test_arrays_that_are_no_data_set_give_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(KtError, match=rf"data\.source: .*d\.npz: .*{message}"):
        sources.read(spec_of(tmp_path / "d.npz"))


def test_files_that_are_no_npz_archive_give_one_line(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=images_of(), labels=np.arange(5))
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.arange(5))
    labels, images = (bytearray(whole) for _ in range(2))
    labels[whole.index(b"labels.npy") + 40] ^= 0xFF
    images[whole.index(b"images.npy") + 300] ^= 0xFF
    one = (tmp_path / "one.npy").read_bytes()
    for content in (b"", b"hello", whole[:-30], whole[:50], one, bytes(labels), bytes(images)):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(KtError, match=r"data\.source: .*d\.npz: not a readable \.npz file"):
            all_images(sources.read(spec_of(tmp_path / "d.npz")))


def test_sources_that_do_not_exist_give_one_line_with_the_nearest_name(tmp_path):
    (tmp_path / "imagenet").mkdir()
    np.savez(tmp_path / "mine.npz", images=images_of(), labels=np.arange(5))
    for source, keys, message in [
        ("digit", {}, "data.source: digit: no such data set or folder .*; allowed: digits, .*; did you mean 'digits'?"),
        ("none.npz", {}, "data.source: none.npz: no such file"),
        (tmp_path / "min.npz", {}, f"no such file .*; did you mean '{tmp_path}/mine.npz'"),
        (tmp_path / "imagenett", {}, f"no such data set or folder .*; did you mean '{tmp_path}/imagenet'"),
        ("torch/cifar10", {"root": str(tmp_path / "gone"), "size": 32}, "data.root: .*gone: no such folder"),
        ("torch/cifar10", {}, "data.size: needed for this source"),
        (tmp_path / "imagenet", {}, "data.size: needed for this source"),
        (
            "digits",
            {"splits": {"transfer": 1, "validation": 1, "test": {"part": "val"}}},
            "test.part: 'val': 'digits' ha",
        ),
        (
            "digits",
            {"splits": {"transfer": 1, "validation": 1, "test": {"file": "ids"}}},
            "test.file: ids: no such file",
        ),
    ]:
        for call in (sources.check_source, sources.read):
            with pytest.raises(KtError, match=message.replace("?", r"\?")) as caught:
                call(spec_of(source, **keys))
            assert "\n" not in str(caught.value)


# folders


def save_image(path: Path, size: tuple[int, int] = (30, 40), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two parts, three classes with images of all kinds; class10 comes last."""
    root = tmp_path / "pictures"
    for part, count in (("train", 6), ("val", 3)):
        for c, (name, mode, suffix) in enumerate(
            [("class1", "RGB", "png"), ("class2", "L", "jpg"), ("class10", "CMYK", "jpeg")]
        ):
            for i in range(count):
                save_image(root / part / name / f"{i}.{suffix}", (30 + 7 * i, 40 - 3 * c), mode, 10 * c + i)
    save_image(root / "train" / "class1" / "deep" / "er.webp", (50, 50), "RGBA")
    (root / "train" / "class1" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    return root


def test_a_folder_with_a_train_folder_has_parts_and_its_class_folders_are_classes_in_natural_order(folder):
    takes = {"transfer": 5, "validation": {"part": "val", "images": 3}, "test": {"part": "val"}}
    data = sources.read(spec_of(folder, size=16, splits=takes))
    assert data.classes == ["class1", "class2", "class10"]
    assert np.bincount(data.labels).tolist() == [10, 9, 9]
    assert dict(zip(*np.unique(data.parts, return_counts=True), strict=True)) == {"train": 19, "val": 9}
    assert "train/class1/deep/er.webp" in data.names
    alone = sources.read(spec_of(folder / "val", size=16))
    assert (alone.parts, alone.classes) == (None, data.classes)
    assert alone.names[:3] == ["class1/0.png", "class1/1.png", "class1/2.png"]
    only_train = sources.read(spec_of(folder, size=16))
    assert set(only_train.parts) == {"train"}


def test_folders_that_are_no_data_set_give_one_line(folder):
    (folder / "train" / "class3").mkdir()
    with pytest.raises(KtError, match="train/class3: no image in this class folder"):
        sources.read(spec_of(folder, size=16))
    data = sources.read(spec_of(folder, size=16, classes=["class1"]))  # an empty class that is not taken is no harm
    assert set(data.labels) == {0, 1, 3}
    with pytest.raises(KtError, match=r"no part 'vall' in .*; did you mean 'val'"):
        sources.read(spec_of(folder, size=16, splits={"transfer": 1, "validation": 1, "test": {"part": "vall"}}))
    with pytest.raises(KtError, match="class10: no class folders in it"):
        sources.read(spec_of(folder / "val" / "class10", size=16))


# labels


def test_a_list_or_a_mapping_takes_classes_and_gives_them_labels(folder, tmp_path):
    (tmp_path / "c.txt").write_text("class10\nclass1\n")
    (tmp_path / "c.yaml").write_text("{class10: 0, class1: 1}")
    (tmp_path / "c.json").write_text('["class10", "class1"]')
    given = [{"classes": ["class10", "class1"]}, {"classes": {"class10": 0, "class1": 1}}]
    for keys in given + [{"class_file": str(tmp_path / name)} for name in ("c.txt", "c.yaml", "c.json")]:
        spec = spec_of(folder, size=16, **keys)
        labels, names = relabel(sources.read(spec), spec)
        assert names == ["class10", "class1"]
        assert np.array_equal(labels, np.array([1, -1, 0])[sources.read(spec_of(folder, size=16)).labels])
    # several classes may share a label, and models may know more classes than the images have
    spec = spec_of(folder, size=16, classes={"class1": 4, "class2": 4}, num_classes=7)
    labels, names = relabel(sources.read(spec), spec)
    assert (set(labels), names) == ({-1, 4}, ["0", "1", "2", "3", "class2", "5", "6"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": ["class1", "clas2"]}, "data.classes: no class 'clas2' in .*; did you mean 'class2'"),
        ({"class_file": "c.txt"}, "data.class_file: c.txt: no such file"),
        ({"num_classes": 2}, "data.num_classes: 2, but a label is 2"),
        ({"classes": {"class1": 5}, "num_classes": 5}, "data.num_classes: 5, but a label is 5"),
        ({"classes": ["class1"], "class_file": __file__}, "give either data.classes or data.class_file, not both"),
    ],
)
def test_classes_that_do_not_fit_give_one_line(folder, keys, message):
    spec = spec_of(folder, size=16, **keys)
    with pytest.raises(KtError, match=message):
        relabel(sources.read(spec), spec)


@pytest.mark.parametrize("text", ["", "{a: -1}", "{a: true}", "{a: b}", "3", "[a, a]", "{a: ["])
def test_files_that_hold_no_classes_give_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(KtError, match=r"data\.class_file: .*c\.yaml: ") as caught:
        class_map(spec_of("digits", class_file=str(tmp_path / "c.yaml")))
    assert "\n" not in str(caught.value)


# decoding


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_an_image_is_stored_as_torchvision_resizes_and_crops_it(width, height, size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])(Image.fromarray(pixels))
    assert np.array_equal(fit(Image.fromarray(pixels), size, 3), np.asarray(theirs))
    assert np.array_equal(fit(pixels, size, 3), np.asarray(theirs))


@pytest.mark.parametrize(("mode", "value"), [("RGB", 77), ("L", 77), ("RGBA", 77), ("P", 77), ("CMYK", 77), ("1", 255)])
def test_images_of_all_modes_become_colour_or_grey(mode, value):
    image = Image.new("RGB", (12, 9), (value, value, value)).convert(mode)
    for channels in (1, 3):
        stored = fit(image, 6, channels)
        assert stored.shape == (6, 6, channels)
        assert (np.abs(stored.astype(int) - value) <= 1).all()  # a palette has its steps
    deep = Image.fromarray(np.full((9, 12), 77 * 256 + 99, np.uint16))
    assert (fit(deep, 6, 3) == 77).all()


def test_arrays_keep_their_size_and_channels_unless_a_size_is_given(tmp_path):
    images = images_of(4, 6, 2)
    assert fit(picture := images[0], None, 3) is picture
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(4))
    with pytest.raises(KtError, match=r"data.size: images of 2 channels cannot be resized"):
        datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", size=3))
    np.savez(tmp_path / "d.npz", images=images[..., :1], labels=np.arange(4))
    datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", size=3))
    assert Dataset.open(tmp_path / "store").images.shape == (3, 3, 3, 1)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 25])
def test_a_folder_is_decoded_alike_however_it_is_cut(folder, tmp_path, monkeypatch, threads, chunk_bytes):
    spec = spec_of(folder, size=16, splits={"transfer": 9, "validation": 5, "test": {"part": "val"}})
    monkeypatch.setattr(decode, "CHUNK_BYTES", chunk_bytes)
    datasets.write(tmp_path / "store", spec, threads)
    data = Dataset.open(tmp_path / "store")
    assert (data.images.shape, data.class_names) == ((23, 16, 16, 3), ("class1", "class2", "class10"))
    for split in SPLITS[1:]:
        mine = data.splits[data.splits["split"] == split]
        for row, name, label in zip(mine["row"], mine["name"], mine["label"], strict=True):
            assert np.array_equal(data.images[row], fit(Image.open(folder / name), 16, 3))
            assert data.class_names[label] == name.split("/")[1]
            assert label == data.labels[row]
            assert name.startswith("val" if split == "test" else "train")
    assert sorted(os.listdir(tmp_path / "store")) == ["images.npy", "labels.npy", "meta.json", "splits.parquet"]


def damage(folder: Path) -> list[str]:
    """Break two of the pictures, and name them."""
    whole = (folder / "train/class2/1.jpg").read_bytes()
    (folder / "train/class2/1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "val/class1/0.png").write_bytes(b"no picture")
    return ["train/class2/1.jpg", "val/class1/0.png"]


TAKE_ALL = {"transfer": 14, "validation": 5, "test": {"part": "val"}}


def test_damaged_images_stop_the_stage_and_are_named(folder, tmp_path):
    names = damage(folder)
    with pytest.raises(KtError, match=r"damaged images: 2 of 28, mend them, or set data.damaged: skip: ") as caught:
        datasets.write(tmp_path / "store", spec_of(folder, size=16, splits=TAKE_ALL))
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)
    with pytest.raises(KtError, match=r"more than data.max_damaged \(0.05\) allows"):
        datasets.write(tmp_path / "store", spec_of(folder, size=16, splits=TAKE_ALL, damaged="skip", max_damaged=0.05))


def test_damaged_images_that_are_skipped_are_counted_and_named_and_in_no_split(folder, tmp_path, caplog):
    whole = spec_of(folder, size=16, splits=TAKE_ALL)
    datasets.write(tmp_path / "whole", whole)
    names = damage(folder)
    datasets.write(tmp_path / "store", whole.model_copy(update={"damaged": "skip", "max_damaged": 0.1}))
    before, data = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "store")
    assert len(data.splits) == 26
    assert not data.splits["name"].isin(names).any()
    kept = before.splits[~before.splits["name"].isin(names)].reset_index(drop=True)
    assert kept.equals(data.splits)
    assert np.array_equal(before.images[kept["row"]], data.images[kept["row"]])
    assert sorted(json.loads((tmp_path / "store/meta.json").read_text())["damaged"]) == names
    assert "2 damaged images are left out: " in caplog.text
    assert before.hash != data.hash


def test_a_split_that_loses_all_its_images_is_an_error(folder, tmp_path):
    (folder / "val/class1/0.png").write_bytes(b"")
    (tmp_path / "one.txt").write_text("val/class1/0.png")
    takes = {"transfer": 5, "validation": 5, "test": {"part": "val", "file": str(tmp_path / "one.txt")}}
    with pytest.raises(KtError, match=r"data.splits.test: no image is left for it"):
        datasets.write(tmp_path / "s", spec_of(folder, size=16, splits=takes, damaged="skip", max_damaged=1.0))


def test_decoding_goes_on_after_a_kill_at_the_chunk_where_it_was(folder, tmp_path, monkeypatch, python):
    spec = spec_of(folder, size=16, splits=TAKE_ALL, damaged="skip", max_damaged=0.1)
    damage(folder)
    datasets.write(tmp_path / "whole", spec)
    code = """
import os, signal, sys
from pathlib import Path
from kt.data import datasets, decode
from kt.data.spec import DataSpec
from kt.growing import Growing
append, left = Growing.append, [4]
def killing(self, rows, note):
    if not left[0]:
        self.path.open("ab").write(b"half a row")
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    append(self, rows, note)
Growing.append, decode.CHUNK_BYTES = killing, 2000
datasets.write(Path(sys.argv[1]), DataSpec.model_validate_json(sys.argv[2], strict=False))
"""
    assert python(code, tmp_path / "store", spec.model_dump_json()).returncode == -9
    seen: list[int] = []
    monkeypatch.setattr(decode, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(decode, "fit", lambda *args: seen.append(1) or fit(*args))
    datasets.write(tmp_path / "store", spec)
    assert 28 - 4 * 2 - 2 <= len(seen) <= 28 - 4 * 2  # four chunks of two were done; a damaged image may not get to fit
    same = [(tmp_path / name / "images.npy").read_bytes() for name in ("whole", "store")]
    assert same[0] == same[1]
    assert Dataset.open(tmp_path / "store").splits.equals(Dataset.open(tmp_path / "whole").splits)


def test_what_was_decoded_for_another_configuration_is_not_used(folder, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*args: object) -> None:
        raise Stop

    spec = spec_of(folder, size=16, splits=TAKE_ALL)
    for size in (16, 20):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "CHUNK_BYTES", 2000)
            patch.setattr(decode.Progress, "step", stop)
            with pytest.raises(Stop):
                datasets.write(tmp_path / "store", spec.model_copy(update={"size": size}))
    datasets.write(tmp_path / "store", spec)
    datasets.write(tmp_path / "whole", spec)
    assert (tmp_path / "store/images.npy").read_bytes() == (tmp_path / "whole/images.npy").read_bytes()


def study_of(folder: Path, tmp_path: Path, batch_size: int) -> Study:
    member = {"arch": "test_resnet", "train": {"epochs": 1, "batch_size": 2}}
    seen = {"size": 15, "mean": [0.5], "std": [0.5], "crop_pct": 0.9}
    splits = {"zoo": 3, "transfer": 0.4, "validation": 2, "test": 2}
    training = {"epochs": 1, "batch_size": batch_size, "lr": 0.1}
    return parse(
        {
            "results": str(tmp_path / "results"),
            "data": {"source": str(folder), "size": 16, "splits": splits},
            "zoo": {"input": seen, "models": {"a": member, "b": member}},
            "pairs": {"select": "all"},
            "transfer": {"methods": {"kl": {}}, "seeds": [0], "training": training},
        },
        "c.yaml",
    )


def test_the_stage_warns_of_images_that_will_be_enlarged_and_refuses_too_small_splits(folder, tmp_path, caplog):
    study, layout = study_of(folder, tmp_path, 9), Layout(tmp_path / "results")
    check(study)
    with pytest.raises(KtError, match=r"batch_size: 9 is larger than data.splits.transfer \(8\)"):
        stages.data(study, layout, 1)
    assert not (layout.data / "images.npy").exists()
    with caplog.at_level("INFO"):
        stages.data(study_of(folder, tmp_path, 8), layout, 2)
    assert "enlarged" not in caplog.text
    assert "3 zoo, 8 transfer, 2 validation, 2 test images" in caplog.text
    large = study.model_copy(update={"zoo": study.zoo.model_copy(update={"input": input_of(64)})})
    stages.data(large.model_copy(update={"transfer": study_of(folder, tmp_path, 8).transfer}), layout, 1)
    assert "images of 16 pixels are enlarged for a (64), b (64)" in caplog.text


# timm's data sets


def test_timm_reads_torchvisions_data_sets(tmp_path):
    from torchvision.datasets import MNIST

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 4).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    takes = {"transfer": 12, "validation": 3, "test": {"part": "validation"}}
    spec = spec_of("torch/mnist", root=str(tmp_path), size=28, channels=1, splits=takes)
    datasets.write(tmp_path / "store", spec)
    data = Dataset.open(tmp_path / "store")
    assert (data.images.shape, counts(data.splits)) == ((25, 28, 28, 1), {"transfer": 12, "validation": 3, "test": 10})
    assert data.class_names[1:3] == ("1 - one", "2 - two")
    test = MNIST(str(tmp_path), train=False)
    mine = data.splits[data.splits["split"] == "test"]
    for row, name, label in zip(mine["row"], mine["name"], mine["label"], strict=True):
        image, expected = test[int(name.removeprefix("validation/"))]
        assert np.array_equal(data.images[row][..., 0], np.asarray(image))
        assert label == expected
    with pytest.raises(KtError, match=r"data.source: torch/mnist: timm cannot open the part 'train' with data.root"):
        sources.read(spec.model_copy(update={"root": "/"}))
    with pytest.raises(KtError, match=r"data.source: torch/mnits: unknown data set 'mnits'; .*did you mean .*'mnist'"):
        sources.read(spec.model_copy(update={"source": "torch/mnits"}))


def test_timm_reads_tar_files_and_damaged_images_in_them_are_not_replaced(folder, tmp_path):
    names = damage(folder)
    (folder / "train/class1/deep/er.webp").unlink()  # timm reads no .webp
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(folder / "train", "pictures")
    spec = spec_of(tmp_path / "pictures.tar", size=16, splits={"transfer": 9, "validation": 5, "test": 4})
    with pytest.raises(KtError, match="damaged images: 1 of 18, "):
        datasets.write(tmp_path / "store", spec)
    datasets.write(tmp_path / "store", spec.model_copy(update={"damaged": "skip", "max_damaged": 0.1}))
    datasets.write(
        tmp_path / "folder",
        spec_of(folder, size=16, splits={"transfer": 9, "validation": 5, "test": 4}, damaged="skip", max_damaged=0.1),
    )
    found, expected = (Dataset.open(tmp_path / name) for name in ("store", "folder"))
    pictures = [{image.tobytes() for image in data.images[data.splits["row"]]} for data in (found, expected)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 17
    assert names[0] not in found.splits["name"]


def test_timm_data_sets_that_are_streams_are_read_in_order(tmp_path, monkeypatch):
    from timm.data import dataset_factory

    class Samples(torch.utils.data.IterableDataset):
        def __init__(self, n: int) -> None:
            self.n = n

        def __iter__(self):
            return ((Image.new("RGB", (8, 8), (i, i, i)), i % 3) for i in range(self.n))

    monkeypatch.setattr(
        dataset_factory, "create_dataset", lambda name, root, split, **_: Samples({"train": 12, "val": 6}[split])
    )
    takes = {"transfer": 7, "validation": 4, "test": {"part": "val"}}
    datasets.write(tmp_path / "store", spec_of("wds/mine", size=8, splits=takes))
    data = Dataset.open(tmp_path / "store")
    for row, name, label in zip(data.splits["row"], data.splits["name"], data.splits["label"], strict=True):
        number = int(name.split("/")[1])
        assert (data.images[row] == number).all()
        assert label == number % 3


def test_a_package_that_timm_needs_is_named():
    pytest.importorskip("timm")
    if importlib.util.find_spec("webdataset"):
        pytest.skip("webdataset is installed")
    with pytest.raises(KtError, match=r"data.source: wds/x: timm cannot open .*webdataset"):
        sources.read(spec_of("wds/x", size=8))


# the store


@pytest.fixture
def spec() -> DataSpec:
    return DataSpec(source="digits", seed=3, splits=sizes(10, 20, 30, 40))


def test_a_stored_data_set_opens_as_it_was_written(tmp_path, spec):
    datasets.write(tmp_path, spec)
    data, digits = Dataset.open(tmp_path), arrays.digits()
    images = np.stack(all_images(digits))
    assert isinstance(data.images, np.memmap)
    assert (data.images.shape, data.classes, data.channels) == ((100, 8, 8, 1), 10, 1)
    for name, n in zip(SPLITS, (10, 20, 30, 40), strict=True):
        assert np.array_equal(data.images[data.rows(name)], images[data.ids(name)])
        assert np.array_equal(data.labels[data.rows(name)], digits.labels[data.ids(name)])
        assert len(data.rows(name)) == n
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "labels.npy", "meta.json", "splits.parquet"]


def test_the_hash_names_images_labels_and_splits(tmp_path, spec):
    hashes = []
    for i, seed in enumerate((3, 3, 4)):
        datasets.write(tmp_path / str(i), spec.model_copy(update={"seed": seed}))
        hashes.append(Dataset.open(tmp_path / str(i)).hash)
    assert hashes[0] == hashes[1] != hashes[2]
    images, labels = images_of(100, 4, 1), np.arange(100) % 3
    for i, (x, y) in enumerate([(images, labels), (images ^ 1, labels), (images, labels[::-1])]):
        np.savez(tmp_path / "d.npz", images=x, labels=y)
        datasets.write(tmp_path / f"npz{i}", spec.model_copy(update={"source": str(tmp_path / "d.npz")}))
        hashes.append(Dataset.open(tmp_path / f"npz{i}").hash)
    assert len(set(hashes)) == 5


@pytest.mark.parametrize("gone", ["images.npy", "labels.npy", "meta.json", "splits.parquet"])
def test_an_incomplete_store_gives_one_line(tmp_path, spec, gone):
    datasets.write(tmp_path, spec)
    (tmp_path / gone).unlink()
    with pytest.raises(KtError, match=r"no such file|No such file"):
        Dataset.open(tmp_path)


def test_a_damaged_image_file_gives_one_line(tmp_path, spec):
    datasets.write(tmp_path, spec)
    (tmp_path / "images.npy").write_bytes((tmp_path / "images.npy").read_bytes()[:5000])
    with pytest.raises(KtError, match="the stored data set is incomplete"):
        Dataset.open(tmp_path)


def test_a_writer_killed_before_the_end_leaves_a_store_that_does_not_open(tmp_path, spec, python):
    code = """
import os, signal, sys
from pathlib import Path
from kt import store
from kt.data import datasets
from kt.data.spec import DataSpec
writing = store.write_json
store.write_json = lambda path, *args: os.kill(os.getpid(), 9) if path.name == "meta.json" else writing(path, *args)
datasets.write(Path(sys.argv[1]), DataSpec.model_validate_json(sys.argv[2]))
"""
    assert python(code, tmp_path, spec.model_dump_json()).returncode == -9
    with pytest.raises(KtError, match=r"meta\.json: no such file"):
        Dataset.open(tmp_path)
    datasets.write(tmp_path, spec)
    assert Dataset.open(tmp_path).classes == 10


def test_the_facts_of_a_store_are_json_and_its_splits_are_a_table(tmp_path, spec):
    datasets.write(tmp_path, spec)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert set(meta) == {"classes", "hash", "source", "images", "damaged"}
    assert meta["images"] == {"zoo": 10, "transfer": 20, "validation": 30, "test": 40}
    assert meta["classes"] == [str(c) for c in range(10)]
    assert len(schema.read_frame(tmp_path / "splits.parquet", "splits")) == 100


def test_the_sizes_of_the_splits_are_checked_before_anything_is_decoded(tmp_path, spec):
    def refuse(counts):
        raise KtError(str(counts))

    with pytest.raises(KtError, match=r"\{'zoo': 10, 'transfer': 20, 'validation': 30, 'test': 40\}"):
        datasets.write(tmp_path, spec, check=refuse)
    assert not list(tmp_path.iterdir())


# what a model sees


def input_of(size: int, **keys: object) -> InputSpec:
    return InputSpec.model_validate({"size": size, "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)} | keys)


def test_to_unit_scales_to_zero_and_one_without_resizing():
    images = images_of()
    found = views.to_unit(images, input_of(6), CPU)
    np.testing.assert_allclose(found.numpy(), images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert found.dtype == torch.float32


def plain_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of a square [H, H] with pixel centres at 0.5, slowly."""
    side = len(image)
    out = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (min(max((k + 0.5) * side / size - 0.5, 0), side - 1) for k in (i, j))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out


@pytest.mark.parametrize("size", [8, 13, 16])
def test_enlarging_is_bilinear(size):
    images = images_of(2, 8, 1)
    found = views.to_unit(images, input_of(size), CPU)
    for image, result in zip(images[..., 0] / 255, found[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(result, plain_bilinear(image, size), atol=1e-6)


def test_shrinking_looks_at_every_pixel():
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[0, 0, 0] = 255  # between the points that plain bilinear shrinking by 4 would read
    found = views.to_unit(image, input_of(4), CPU)
    assert found[0, 0, 0, 0] > 0
    grey = views.to_unit(np.full((1, 16, 16, 1), 51, np.uint8), input_of(4), CPU)
    torch.testing.assert_close(grey, torch.full((1, 1, 4, 4), 0.2))


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    images, spec = images_of(), InputSpec(size=6, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = views.to_unit(images, spec, CPU)
    found = views.normalise(x, spec)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def pictures(height: int, width: int, n: int = 2) -> np.ndarray:
    """Smooth images with edges and noise, uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (n, 7, 9, 3), dtype=np.uint8)
    large = np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse])
    large[:, height // 3 : height // 2, width // 4 : width // 2] = [[[250, 20, 90]]]
    return np.clip(large + rng.normal(0, 8, large.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("height", "width", "size", "crop_pct"),
    [(256, 256, 224, 0.875), (256, 256, 224, 1.0), (97, 160, 64, 0.9), (40, 64, 96, 0.95), (80, 60, 48, 1.15)],
)
def test_a_models_view_is_timms_up_to_pils_rounding_to_bytes(height, width, size, crop_pct, crop_mode, interpolation):
    from timm.data.transforms_factory import create_transform

    images = pictures(height, width)
    spec = input_of(size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)
    geometry = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    transform = create_transform((3, size, size), mean=spec.mean, std=spec.std, **geometry)
    theirs = torch.stack([transform(Image.fromarray(image)) for image in images])
    ours = views.normalise(views.to_unit(images, spec, CPU), spec)
    levels = 255 * (ours - theirs).abs() * torch.tensor(spec.std).view(3, 1, 1)
    assert levels.mean() < 0.4
    # Pillow may take the columns first where the sides shrink unequally, and cuts overshoots off in between
    assert levels.max() < (6 if (crop_mode, interpolation) == ("squash", "bicubic") else 1.5)
    if (height, width) == (256, 256) and crop_pct == 0.875:
        torch.testing.assert_close(ours, theirs)  # the store has the resized image's size: nothing is resized


def test_the_border_of_a_small_image_is_the_mean_and_otherwise_black():
    image = np.full((1, 8, 4, 3), 255, np.uint8)
    for crop_mode, value in [
        ("border", torch.zeros(3)),
        ("center", -torch.tensor([0.1, 0.2, 0.3]) / torch.tensor([0.5, 1, 2])),
    ]:
        spec = input_of(8, crop_mode=crop_mode, crop_pct=1.0 if crop_mode == "border" else 2.0)
        seen = views.normalise(views.to_unit(image, spec, CPU), spec)[0]
        torch.testing.assert_close(seen[:, 4, 0], value)
        torch.testing.assert_close(seen[:, 4, 4], (1 - torch.tensor(spec.mean)) / torch.tensor(spec.std))


@pytest.mark.parametrize(("in_memory", "keep"), [(1 << 29, True), (0, True), (1 << 29, False)])
def test_inputs_are_the_prepared_images_at_the_given_rows(monkeypatch, in_memory, keep):
    monkeypatch.setattr(views, "IN_MEMORY", in_memory)
    images, rows = images_of(9), np.array([7, 2, 2, 0, 5])
    spec = InputSpec(size=9, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    inputs = views.Inputs(images, rows, spec, CPU, keep)
    expected = views.normalise(views.to_unit(images[rows], spec, CPU), spec)
    assert len(inputs) == 5
    assert torch.equal(inputs[np.array([4, 0, 1])], expected[[4, 0, 1]])
    assert torch.equal(inputs[slice(1, 9)], expected[1:])


# augmentation


@pytest.mark.parametrize("name", views.AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (1, 1, 5, 5), (3, 1, 8, 12), (2, 1, 1, 1)])
def test_augmentations_keep_shape_and_range_and_depend_on_the_generator_alone(name, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before, outside = x.clone(), torch.get_rng_state()
    augment = views.AUGMENTATIONS[name]
    found = [augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert found[0].shape == x.shape
    assert (found[0].min() >= 0, found[0].max() <= 1) == (True, True)
    assert torch.equal(found[0], found[1])
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), outside)
    if name != "none" and shape[-1] > 1:
        assert not torch.equal(found[0], found[2])


def test_shift_moves_every_image_whole_by_up_to_a_sixteenth_and_fills_with_black():
    side, reach = 32, 2
    x = torch.rand(60, 2, side, side, generator=torch.Generator().manual_seed(0)) + 0.01
    moved = views.AUGMENTATIONS["shift"](x, torch.Generator().manual_seed(1))
    offsets = set()
    for image, result in zip(x, moved, strict=True):
        filled = (result[0] > 0).nonzero()
        (top, left), (bottom, right) = filled.amin(0).tolist(), filled.amax(0).tolist()
        # rows and columns that went over the edge are gone, as many came in black on the other side
        dy, dx = top or bottom - (side - 1), left or right - (side - 1)
        expected = torch.zeros_like(image)
        for i in range(side):
            for j in range(side):
                if 0 <= i - dy < side and 0 <= j - dx < side:
                    expected[:, i, j] = image[:, i - dy, j - dx]
        assert torch.equal(result, expected)
        offsets.add((dy, dx))
    assert len(offsets) > 15
    assert {abs(offset) for pair in offsets for offset in pair} == set(range(reach + 1))


def test_erase_blackens_one_square_of_all_channels_and_nothing_else():
    x = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.01
    erased = views.AUGMENTATIONS["erase"](x, torch.Generator().manual_seed(1))
    black = erased == 0
    assert torch.equal(erased[~black], x[~black])
    corners = set()
    for mask in black:
        assert torch.equal(mask[0], mask[1])
        assert torch.equal(mask[0], mask[2])
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        assert (len(rows), len(columns), int(mask[0].sum())) == (6, 6, 36)
        assert (int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) == (5, 5)
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 10


def test_noise_has_the_deviation_it_promises():
    x = torch.full((8, 1, 64, 64), 0.5)
    noisy = views.AUGMENTATIONS["noise"](x, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.002)


def test_no_augmentation_gives_the_images_themselves():
    x = torch.rand(2, 1, 4, 4)
    assert views.AUGMENTATIONS["none"](x, torch.Generator()) is x


def test_the_store_is_below_the_folder_given(tmp_path, spec):
    datasets.write(Path(tmp_path) / "a" / "b", spec)
    assert os.listdir(tmp_path) == ["a"]
