"""Images with masks: folders, arrays and torchvision's data sets; ids, damage, geometry, and views of masks."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from images import input_of, torn_decoding
from PIL import Image

from kt.cli import main
from kt.data import datasets, inputs, scenes, sources
from kt.data.datasets import Dataset, Truths
from kt.data.fit import TURNS, fit
from kt.data.listing import Masked
from kt.data.masks import CLASSES, MaskClasses, ids_in
from kt.data.seen import ViewsSpec
from kt.data.spec import DataSpec
from kt.data.views import draw_views
from kt.data.walk import NotReadable
from kt.errors import KtError

CPU = torch.device("cpu")
SPLITS = {"transfer": 3, "validation": 1, "test": 1}
THREE = ("sky", "road", "tree")


def spec_of(source: object, **keys: Any) -> DataSpec:
    values = {"source": str(source), "task": "segmentation", "size": (12, 16), "classes": THREE, "splits": SPLITS}
    return DataSpec.model_validate({name: value for name, value in (values | keys).items() if value is not None})


def noise(seed: int, sides: tuple[int, int] = (24, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8))


def ids(seed: int, sides: tuple[int, int] = (24, 32), most: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, sides, dtype=np.uint8)


def fill(root: Path, images: str = "images", masks: str = "masks", count: int = 5, first: int = 0) -> Path:
    """Pictures ``<i>.jpg`` and masks ``<i>.png`` in two folders."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        noise(i).save(root / images / f"{i}.jpg")
        Image.fromarray(ids(i)).save(root / masks / f"{i}.png")
    return root


def stored(root: Path, spec: DataSpec) -> Dataset:
    datasets.write(root, spec)
    return Dataset.open(root)


def by_name(data: Dataset) -> dict[str, np.ndarray]:
    return {name: data.truth[row] for name, row in zip(data.splits["name"], data.splits["row"], strict=True)}


def refusal(spec: DataSpec) -> str:
    with pytest.raises(KtError) as caught:
        sources.read(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# the store


def test_masks_are_a_channel_of_the_stored_images(tmp_path):
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s")))
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["images.npy", "meta.json", "splits.parquet"]
    assert (data.images.shape, data.truth.shape) == ((5, 12, 16, 3), (5, 12, 16))
    assert data.images.base is not None
    assert data.truth.dtype == np.uint8
    assert (data.class_names, data.channels, data.splits["label"].unique().tolist()) == (THREE, 3, [-1])
    for i in range(5):  # every second pixel: nearest at half the size, on pixels' centres
        assert np.array_equal(by_name(data)[f"images/{i}.jpg"], ids(i)[1::2, 1::2])


def test_the_hash_covers_masks(tmp_path):
    one, other = fill(tmp_path / "one"), fill(tmp_path / "other")
    assert stored(tmp_path / "a", spec_of(one)).hash == stored(tmp_path / "b", spec_of(other)).hash
    Image.fromarray(ids(9)).save(other / "masks/3.png")
    assert stored(tmp_path / "c", spec_of(other)).hash != stored(tmp_path / "a", spec_of(one)).hash


def test_copies_are_found_whatever_their_masks(tmp_path, caplog):
    source = fill(tmp_path / "s")
    (source / "images/4.jpg").write_bytes((source / "images/0.jpg").read_bytes())
    splits = {"transfer": {"file": str(tmp_path / "one")}, "validation": 1, "test": 1}
    (tmp_path / "one").write_text("images/0.jpg\nimages/1.jpg\nimages/2.jpg")
    facts = datasets.write(tmp_path / "d", spec_of(source, splits=splits))
    assert facts["repeated"] == {"splits": 2, "classes": 0}


def test_an_interrupted_decoding_continues_to_the_same_bytes(tmp_path, monkeypatch):
    source, spec = fill(tmp_path / "s"), spec_of(tmp_path / "s")
    whole = torn_decoding(spec, tmp_path, monkeypatch, chunk=2 * 12 * 16 * 4, rows=4)
    assert whole["pixels"] == {
        name: int(sum((ids(i)[1::2, 1::2] == label).sum() for i in range(5))) for label, name in enumerate(THREE)
    }
    assert source.exists()


def test_classes_without_a_pixel_are_named_and_one_class_is_too_few(tmp_path, caplog):
    stored(tmp_path / "d", spec_of(fill(tmp_path / "s"), classes=(*THREE, "lake")))
    assert "no pixel of 1 of 4 classes is in a split: lake" in caplog.text
    for i in range(5):
        Image.fromarray(0 * ids(i)).save(tmp_path / f"s/masks/{i}.png")
    with pytest.raises(KtError, match="1 class is in the masks of the splits; a study needs at least two"):
        datasets.write(tmp_path / "e", spec_of(tmp_path / "s"))


# folders


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/training", "annotations/training"), ("images/validation", "annotations/validation")),
        (("train/images", "train/masks"), ("val/images", "val/masks")),
        (("images/train", "masks/train"), ("images/val", "masks/val")),
    ],
)
def test_parts_lie_inside_the_folders_or_around_them(train, val, tmp_path):
    fill(fill(tmp_path / "s", *train, count=4), *val, count=3, first=10)
    part = val[0].replace("images", "").strip("/")
    spec = spec_of(tmp_path / "s", splits={"transfer": 2, "validation": 2, "test": {"part": part}})
    data = stored(tmp_path / "d", spec_of(tmp_path / "s", splits={**spec.splits.plain(), "validation": 1}))
    assert {name for name in by_name(data) if name.startswith(val[0])} == {f"{val[0]}/{10 + i}.jpg" for i in range(3)}
    assert len(data.rows("test")) == 3
    assert dict(sources.part_sizes(spec).images) == {train[0].replace("images", "").strip("/"): 4, part: 3}
    unknown = refusal(spec_of(tmp_path / "s", splits={**SPLITS, "test": {"part": f"{part}s"}}))
    assert f"no part '{part}s' in" in unknown
    assert f"did you mean '{part}'" in unknown


def test_images_may_lie_deeper_and_masks_have_any_ending(tmp_path):
    fill(tmp_path / "s", "images/a/b", "labels/a/b")
    (tmp_path / "s/images/a/b/2.jpg").rename(tmp_path / "s/images/a/b/\u00e9.v1.jpg")
    (tmp_path / "s/labels/a/b/2.png").rename(tmp_path / "s/labels/a/b/e\u0301.v1.png")  # as macOS writes it
    (tmp_path / "s/labels/a/b/0.png").rename(tmp_path / "s/labels/a/b/0.PNG")
    Image.fromarray(ids(1)).save(tmp_path / "s/labels/a/b/1.tif")
    (tmp_path / "s/labels/a/b/1.png").unlink()
    data = stored(tmp_path / "d", spec_of(tmp_path / "s", masks="labels"))
    assert np.array_equal(by_name(data)["images/a/b/1.jpg"], ids(1)[1::2, 1::2])
    assert np.array_equal(by_name(data)["images/a/b/\u00e9.v1.jpg"], ids(2)[1::2, 1::2])


def test_images_without_masks_and_masks_without_images_are_named(tmp_path):
    root = fill(tmp_path / "s", count=7)
    (root / "masks/5.png").unlink()
    (root / "images/6.jpg").unlink()
    text = refusal(spec_of(root))
    assert "1 images without a mask in masks: images/5.jpg; 1 masks without an image in images: masks/6.png" in text
    assert text.endswith("mend them, or set data.damaged: skip, which leaves them out")
    facts = datasets.write(tmp_path / "d", spec_of(root, damaged="skip"))
    assert facts["left_out"] == {"images without a mask": 1, "masks without an image": 1}
    assert sum(facts["images"].values()) == 5


def test_two_files_of_one_name_are_refused(tmp_path):
    root = fill(tmp_path / "s")
    Image.fromarray(ids(0)).save(root / "masks/0.tif")
    assert "two files of one name: masks/0.png and masks/0.tif; keep one" in refusal(spec_of(root))


@pytest.mark.parametrize(
    ("folders", "keys", "expected"),
    [
        (["image", "masks"], {}, "needs a folder 'images' .*there are: image, masks; did you mean 'image'"),
        (["images"], {}, "data.source: no folder masks or annotations in .*; there are: images"),
        (["images", "mask"], {}, "no folder masks or annotations .*did you mean 'mask'"),
        (["images", "masks", "annotations"], {}, "masks in masks, annotations; name one in data.masks"),
        (["images", "labels"], {"masks": "lables"}, "data.masks: no folder 'lables' in .*did you mean 'labels'"),
        (["images", "images"], {"masks": "images"}, "images and images are the same folder"),
        (["images/train", "masks/val"], {}, "no folder masks/train, of the masks of train"),
        (["images/train", "images/training", "masks/train"], {}, ""),
    ],
)
def test_folders_that_do_not_fit_are_named(folders, keys, expected, tmp_path):
    for i, folder in enumerate(folders):
        (tmp_path / "s" / folder).mkdir(parents=True, exist_ok=True)
        noise(i).save(tmp_path / "s" / folder / "0.png")
    if expected:
        with pytest.raises(KtError, match=expected):
            sources.read(spec_of(tmp_path / "s", **keys))
    else:
        assert sources.read(spec_of(tmp_path / "s", **keys)).parts.tolist() == ["train"]


# ids


@pytest.mark.parametrize(
    ("keys", "names", "expected"),
    [
        ({"classes": THREE}, THREE, [0, 1, 2, 255]),
        ({"classes": ("road", "tree"), "ignore": 0}, ("road", "tree"), [255, 0, 1, None]),
        ({"classes": ("road", "tree"), "ignore": (0, 255)}, ("road", "tree"), [255, 0, 1, 255]),
        ({"classes": {"tree": 2, "sky": 0}, "ignore": (1, 255)}, ("sky", "tree"), [0, 255, 1, 255]),
        ({"classes": None, "num_classes": 3}, ("0", "1", "2"), [0, 1, 2, 255]),
        ({"classes": None, "num_classes": 2, "ignore": (0, 255)}, ("1", "2"), [255, 0, 1, 255]),
        ({"classes": {"a": 0, "b": 1, "c": 2, "d": 255}, "ignore": ()}, tuple("abcd"), [0, 1, 2, 3]),
    ],
)
def test_ids_are_classes_in_their_order_or_ignored(keys, names, expected, tmp_path):
    from kt.data.masks import classes_of

    classes = classes_of(spec_of(fill(tmp_path / "s", count=1), **keys))
    assert tuple(classes.names) == names
    for one, label in zip((0, 1, 2, 255), expected, strict=True):
        pixel = np.full((1, 1), one, np.uint8)
        if label is None:
            with pytest.raises(NotReadable, match=f"ids .* neither a class's nor ignored: {one} .1 pixels"):
                classes.of(pixel)
        else:
            assert classes.of(pixel).tolist() == [[label]]


def test_a_list_in_a_file_skips_ignored_ids_too(tmp_path):
    (tmp_path / "names.txt").write_text("road\ntree\n")
    keys = {"classes": None, "class_file": str(tmp_path / "names.txt"), "ignore": (0, 255)}
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s"), **keys))
    assert data.class_names == ("road", "tree")
    assert np.array_equal(by_name(data)["images/2.jpg"], np.array([255, 0, 1])[ids(2)[1::2, 1::2]])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"classes": None}, "data.classes: needed for masks: the names"),
        ({"classes": ("one",)}, "data.classes: 1 classes; allowed: 2 to 255"),
        ({"classes": None, "num_classes": 256, "ignore": ()}, "data.num_classes: 256 classes; allowed: 2 to 255"),
        ({"classes": {"a": 0, "b": 255}}, r"data.classes: 'b' has the id 255, which data.ignore \(255\) leaves"),
        ({"classes": {"a": 1, "b": 1, "c": 2}}, "data.classes: 'a' and 'b' have the same id, 1"),
        ({"classes": {"a": 1, "b": 70000}}, "data.classes: 'b' has the id 70000; masks hold ids below 65536"),
        ({"num_classes": 4}, "data.num_classes: 4, but data.classes has 3 classes"),
        ({"class_order": "sorted", "classes": None, "num_classes": 3}, "data.class_order: "),
        ({"label_key": "x"}, "data.label_key: "),
        ({"size": None}, "data.size: needed"),
        ({"splits": {**SPLITS, "transfer": {"folder": "."}}}, "data.splits.transfer.folder: its images have no masks"),
        ({"task": "classification", "classes": None, "ignore": 0}, "data.ignore: is about masks, which"),
        ({"task": "classification", "classes": None, "masks": "m"}, "data.masks: is about masks, which"),
        ({"task": "classification", "classes": None, "fit": "contain"}, "data.fit: is about masks, which"),
        ({"source": "digits"}, "data.source: 'digits' has no masks.*allowed: scenes, torch/cityscapes, torch/voc"),
        ({"source": "torch/vok"}, "data.source: 'torch/vok' has no masks.*did you mean 'torch/voc'"),
        ({"source": "scenes"}, "data.classes: scenes has classes and ids of its own"),
        ({"source": "scenes", "classes": None, "ignore": 1}, "data.ignore: scenes has classes and ids of its own"),
        ({"source": "scenes", "classes": None, "masks": "m"}, "data.masks: 'm' lie in a folder, which scenes is not"),
        ({"source": "scenes", "classes": None, "size": None, "fit": "contain"}, "data.fit: 'contain' needs data.size"),
        ({"source": "scenes", "classes": None, "task": "classification"}, "set data.task: segmentation"),
        ({"source": "torch/voc", "classes": None, "task": "classification"}, "set data.task: segmentation"),
        ({"source": "torch/voc", "classes": None}, "data.root: needed"),
    ],
)
def test_keys_that_make_no_sense_are_refused_in_one_line(keys, expected, tmp_path):
    spec = spec_of(keys.get("source", fill(tmp_path / "s")), **{k: v for k, v in keys.items() if k != "source"})
    assert re.search(expected, refusal(spec))


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG file of 1 to 16 bits per pixel, which Pillow itself writes with 1, 8 and 16 bits alone."""
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    lines = [line + "0" * (-len(line) % 8) for line in lines]
    raw = b"".join(b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines)
    head = struct.pack(">IIBBBBB", *values.shape[::-1], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    whole = [(len(body), kind + body) for kind, body in chunks]
    parts = [struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body)) for size, body in whole]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_of_any_depth_hold_their_ids(bits, tmp_path):
    values = ids(0, (5, 7), min(1 << bits, 200)).astype(np.uint16) * (300 if bits == 16 else 1)
    (tmp_path / "m.png").write_bytes(grey_png(values, bits))
    assert np.array_equal(ids_in(str(tmp_path / "m.png")), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("ending", ["png", "gif", "tif", "bmp"])
def test_palette_masks_hold_indices_whatever_their_colours(bits, ending, tmp_path):
    values = ids(0, (5, 7), 1 << bits)
    picture = Image.frombytes("P", (7, 5), values.tobytes())
    picture.putpalette(np.random.default_rng(1).permutation(256).repeat(3).tolist())
    options = {"bits": bits} if ending == "png" else {}
    if ending == "gif":
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
        options = {"optimize": False}
    picture.save(tmp_path / f"m.{ending}", **options)
    assert np.array_equal(ids_in(str(tmp_path / f"m.{ending}")), values)


# damage


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: Image.fromarray(ids(0, most=5)).save(path), r"ids .*: 3 \(\d+ pixels\), 4 \(\d+ pixels\)"),
        (lambda path: Image.fromarray(ids(0, (24, 31))).save(path), "its mask has 24×31 pixels, the image 24×32"),
        (lambda path: Image.fromarray(ids(0, (32, 24))).save(path), "its mask has 32×24 pixels, the image 24×32"),
        (lambda path: noise(0).save(path), r"its mask: colours \(mode RGB\), not ids"),
        (lambda path: noise(0).convert("RGBA").save(path), r"its mask: colours \(mode RGBA\), not ids"),
        (lambda path: Image.fromarray(ids(0)).save(path, "JPEG"), "its mask: a JPEG file, which changes ids"),
        (lambda path: Image.fromarray(ids(0)).save(path, "JPEG2000"), "its mask: a JPEG file, which changes ids"),
        (
            lambda path: Image.fromarray(ids(0)).save(path, "TIFF", tiffinfo={262: 0}),
            "its mask: a TIFF file with",
        ),
        (lambda path: Image.fromarray(0 * ids(0) + 255).save(path), "no pixel of its mask has a class"),
        (lambda path: path.write_bytes(b""), "its mask: an empty file"),
        (lambda path: path.write_bytes(b"no picture"), "its mask: no image that Pillow reads"),
        (broken, "its mask: "),
    ],
)
def test_a_damaged_mask_is_a_damaged_image(spoil: Callable[[Path], None], reason, tmp_path):
    root = fill(tmp_path / "s", count=9)
    spoil(root / "masks/4.png")
    splits = {"transfer": 6, "validation": 1, "test": 2}
    with pytest.raises(KtError, match=rf"damaged images: 1 of 9, .*: images/4.jpg \({reason}") as caught:
        datasets.write(tmp_path / "d", spec_of(root, splits=splits))
    assert "\n" not in str(caught.value)
    facts = datasets.write(tmp_path / "d", spec_of(root, splits=splits, damaged="skip", max_damaged=0.2))
    assert list(facts["damaged"]) == ["images/4.jpg"]
    data = Dataset.open(tmp_path / "d")
    assert "images/4.jpg" not in by_name(data)
    assert facts["pixels"]["sky"] == sum((ids(i)[1::2, 1::2] == 0).sum() for i in range(9) if i != 4)


# geometry


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("upright", [True, False])
def test_a_mask_is_turned_with_its_image_where_its_size_says_so(orientation, upright, tmp_path):
    truth, sides = ids(0, (6, 8), 2), (6, 8)
    turn = TURNS.get(orientation)
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, turn)
    raw = Image.fromarray(truth) if back is None else Image.fromarray(truth).transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw.point(lambda value: 255 * value).save(tmp_path / "i.png", exif=exif)
    if not upright and orientation < 5:
        return  # of one size either way: masks are taken as they are
    mask = truth if upright else np.asarray(raw)
    made = fit(Masked(Image.open(tmp_path / "i.png"), mask), sides, 1)
    assert np.array_equal(made[..., 0] > 127, truth == 1)
    assert np.array_equal(made[..., 1], truth)


@settings(max_examples=150, deadline=None)
@given(
    sides=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    size=st.one_of(st.integers(8, 40), st.tuples(st.integers(8, 40), st.integers(8, 40))),
    contain=st.booleans(),
    cut=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    large=st.booleans(),
)
def test_a_mask_has_the_geometry_of_its_image(sides, size, contain, cut, large):
    """A quarter of the image is white and of class 1: the stored image is white where the stored mask is 1."""
    height, width = sides
    truth = np.zeros(sides, np.uint8)
    truth[: round(cut[0] * height), : round(cut[1] * width)] = 1
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr("kt.data.fit.LARGEST", 1)
        made = fit(Masked(Image.fromarray(255 * truth), truth), size, 1, contain)
    image, mask = made[..., 0], made[..., 1]
    beside = mask == 255
    assert beside.any() <= contain
    assert (image[beside] == 0).all()
    clear = ((image < 50) | (image > 205)) & ~beside  # the rest are mixed pixels at edges
    assert np.array_equal(image[clear] > 127, mask[clear] == 1)
    assert clear.sum() >= (~beside).sum() - 4 * sum(mask.shape)


def test_contain_keeps_the_whole_image():
    truth = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(4, 0).repeat(4, 1)
    mask = fit(Masked(Image.fromarray(truth), truth), (12, 12), 1, contain=True)[..., 1]
    assert (mask[[0, 1, 10, 11]] == 255).all()
    assert np.array_equal(mask[2:10], truth)


# views


def slow(mask: np.ndarray, top: int, left: int, tall: int, wide: int, mirrored: int) -> np.ndarray:
    height, width = mask.shape
    made = np.empty_like(mask)
    for y in range(height):
        for x in range(width):
            made[y, x] = mask[top + int((y + 0.5) * tall / height), left + int((x + 0.5) * wide / width)]
    return made[:, ::-1] if mirrored else made


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.data())
def test_views_of_masks_are_crops_at_the_stored_size(sides, data):
    height, width = sides
    masks = np.random.default_rng(0).integers(0, 9, (3, *sides), dtype=np.uint8)
    rows, cuts = [2, 0, 1, 1], []
    for _ in rows:
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
        cuts.append([top, left, tall, wide, data.draw(st.integers(0, 1))])
    truths = Truths(masks, np.array(rows), np.array(cuts, np.int32))
    expected = np.stack([slow(masks[row], *cut) for row, cut in zip(rows, cuts, strict=True)])
    assert (len(truths), truths.shape) == (4, (4, *sides))
    assert np.array_equal(truths[:], expected)
    assert np.array_equal(truths[np.array([3, 0])], expected[[3, 0]])


@pytest.mark.parametrize("crop", ["random", "center"])
def test_the_truth_of_a_view_is_what_the_view_shows(crop, tmp_path):
    """Images are white where the class is 1, so the model's input is too."""
    root, generator = tmp_path / "s", np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        truth = generator.integers(0, 2, (3, 4), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(255 * truth).save(root / f"images/{i}.png")
        Image.fromarray(truth).save(root / f"masks/{i}.png")
    splits = {"transfer": 6, "validation": 1, "test": 1}
    spec = spec_of(root, size=(48, 64), classes=("black", "white"), channels=1, splits=splits)
    data, views = stored(tmp_path / "d", spec), ViewsSpec(n=3, crop=crop, scale=(0.2, 1.0))
    given = input_of((48, 64), mean=(0.0,), std=(1.0,))
    seen = inputs.inputs(data, "transfer", given, CPU, views)[:].numpy()[:, 0]
    truths = inputs.truths(data, "transfer", views)
    assert truths.shape == (18, 48, 64)
    clear = (seen < 0.2) | (seen > 0.8)
    assert clear.mean() > 0.8
    assert np.array_equal(seen[clear] > 0.5, truths[:][clear] == 1)
    assert (draw_views(views, data.rows("transfer"), 48, 64).boxes[:, 4] == 1).any()
    for split in ("validation", "test"):
        assert np.array_equal(inputs.truths(data, split, views)[:], data.truth[data.rows(split)])


# arrays


def test_arrays_of_masks_are_read_with_their_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 16, 3), dtype=np.uint8)
    masks = np.stack([ids(i, (12, 16)) for i in range(8)]).astype(np.int64)
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    data = stored(tmp_path / "a", spec_of(tmp_path / "a.npz", size=None))
    rows = np.sort(data.splits["image_id"].to_numpy())
    assert np.array_equal(data.images, images[rows])
    assert np.array_equal(data.truth, masks[rows])
    np.savez(tmp_path / "b.npz", x_train=images[:5], y_train=masks[:5], x_val=images[5:], y_val=masks[5:])
    spec = spec_of(tmp_path / "b.npz", splits={"transfer": 3, "validation": 1, "test": {"part": "val"}})
    data = stored(tmp_path / "b", spec)
    assert np.array_equal(data.truth[data.rows("test")], masks[data.ids("test")])
    assert dict(sources.part_sizes(spec).images) == {"train": 5, "val": 3}
    masks[data.ids("test")[0], 0, :3] = -1
    np.savez(tmp_path / "c.npz", x_train=images[:5], y_train=masks[:5], x_val=images[5:], y_val=masks[5:])
    with pytest.raises(KtError, match=r"neither a class's nor ignored: -1 \(3 pixels\)"):
        datasets.write(tmp_path / "c", spec_of(tmp_path / "c.npz", splits=spec.splits.plain()))


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": (5, 4, 4, 3)}, "no array 'masks'"),
        ({"images": (5, 4, 4, 3), "masks": (4, 4, 4)}, r"masks are uint8 \[4, 4, 4\], images are \[5, 4, 4, 3\]"),
        ({"images": (5, 4, 4, 3), "masks": (5, 4, 4, 1)}, r"masks are uint8 \[5, 4, 4, 1\]"),
        ({"images": (5, 4, 4, 3), "masks": (5,)}, r"masks are uint8 \[5\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, expected, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.zeros(shape, np.uint8) for name, shape in arrays.items()})
    assert expected.replace("\\", "") in refusal(spec_of(tmp_path / "a.npz", size=None))


# torchvision's


def test_voc_is_read_as_it_is_published(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for part, names in {"train": ["2007_1", "2007_2"], "val": ["2008_1", "2008_2"]}.items():
        (base / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            noise(i).save(base / f"JPEGImages/{name}.jpg")
            picture = Image.fromarray(np.where(ids(i) == 2, 255, 10 * ids(i)).astype(np.uint8)).convert("P")
            picture.save(base / f"SegmentationClass/{name}.png")
    splits = {"transfer": 1, "validation": {"part": "val", "images": 1}, "test": {"part": "val"}}
    keys = {"root": str(tmp_path), "classes": None, "splits": splits}
    data = stored(tmp_path / "d", spec_of("torch/voc", **keys))
    assert data.class_names == scenes.VOC
    assert set(by_name(data)) - {"train/2007_1", "train/2007_2"} == {"val/2008_1", "val/2008_2"}
    assert np.array_equal(by_name(data)["val/2008_2"], np.array([0, 10, 255])[ids(1)[1::2, 1::2]])
    (base / "SegmentationClass/2008_1.png").unlink()
    assert "1 files of torch/voc are not there: " in refusal(spec_of("torch/voc", **keys))
    lost = refusal(spec_of("torch/voc", **(keys | {"root": str(tmp_path / "d")})))
    assert "torchvision cannot open the part 'train' of torch/voc" in lost
    unknown = refusal(spec_of("torch/voc", **(keys | {"splits": {**splits, "transfer": {"part": "trainval"}}})))
    assert "data.splits.transfer.part: unknown part 'trainval'; allowed: train, val" in unknown


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_is_read_with_published_or_training_ids(kind, tmp_path):
    published = kind == "labelIds"
    for part in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder / part / "bern").mkdir(parents=True)
        for i in range(2):
            noise(i).save(tmp_path / f"leftImg8bit/{part}/bern/bern_{i}_leftImg8bit.png")
            values = np.array([7, 33, 0 if published else 255] if published else [0, 18, 255], np.uint8)[ids(i)]
            Image.fromarray(values).save(tmp_path / f"gtFine/{part}/bern/bern_{i}_gtFine_{kind}.png")
    splits = {"transfer": 1, "validation": {"part": "val", "images": 1}, "test": {"part": "val"}}
    data = stored(tmp_path / "d", spec_of("torch/cityscapes", root=str(tmp_path), classes=None, splits=splits))
    assert data.class_names == tuple(scenes.CITYSCAPES)
    expected = np.array([0, 18, 255])[ids(1)[1::2, 1::2]]
    assert np.array_equal(by_name(data)["val/bern_1_leftImg8bit"], expected)


def test_the_classes_of_cityscapes_are_those_of_torchvision():
    from torchvision.datasets import Cityscapes

    evaluated = {one.name: one.id for one in Cityscapes.classes if not one.ignore_in_eval}
    assert evaluated == scenes.CITYSCAPES
    assert [one.train_id for one in Cityscapes.classes if not one.ignore_in_eval] == list(range(19))
    ignored = {one.id for one in Cityscapes.classes if one.ignore_in_eval and one.id >= 0} | {255}
    assert set(CLASSES["torch/cityscapes"].ignored) == ignored


# scenes


CHECKSUM = 2738699456
"""Of every hundredth scene: results in the documents are about these."""


def test_scenes_are_the_same_everywhere():
    listing = scenes.scenes()
    assert {part: int((listing.parts == part).sum()) for part in ("train", "test")} == scenes.SCENES
    some = [call() for call in listing.stream(np.arange(0, 1200, 100))]
    assert all(one.image.shape == (48, 48, 3) and one.mask.shape == (48, 48) for one in some)
    assert np.array_equal(np.unique([one.mask for one in some]), np.arange(11))
    assert np.array_equal(next(listing.stream(np.array([300])))().image, some[3].image)
    assert zlib.crc32(b"".join(one.image.tobytes() + one.mask.tobytes() for one in some)) == CHECKSUM


def test_scenes_may_be_stored_at_another_size(tmp_path):
    splits = {"transfer": 3, "validation": 1, "test": {"part": "test", "images": 2}}
    plain = stored(tmp_path / "a", spec_of("scenes", size=None, classes=None, splits=splits))
    large = stored(tmp_path / "b", spec_of("scenes", size=(96, 96), classes=None, splits=splits))
    assert (large.images.shape, large.truth.shape) == ((6, 96, 96, 3), (6, 96, 96))
    assert np.array_equal(large.truth, plain.truth.repeat(2, 1).repeat(2, 2))


def test_no_digit_is_in_scenes_of_both_parts(monkeypatch):
    drawn = dict[int, np.ndarray]()

    def scene(generator: Any, images: np.ndarray, labels: np.ndarray) -> Masked:
        drawn[len(images)] = images
        return Masked(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))

    monkeypatch.setattr(scenes, "scene", scene)
    for call in scenes.scenes().stream(np.array([0, 899, 900, 1199])):
        call()
    every = np.stack([call() for call in scenes.digits().stream(np.arange(1797))])[..., 0]
    assert sorted(drawn) == [497, 1300]
    assert np.array_equal(np.rint(255 * np.concatenate([drawn[1300], drawn[497]])), every)


def test_a_scene_shows_its_digits_where_the_mask_has_them():
    """Two digits, so that all others are background; the ink is brighter than what surrounds it."""
    digit = np.zeros((1, 8, 8))
    digit[0, 1:7, 3:5] = 1
    for seed in range(5):
        image, mask = scenes.scene(np.random.default_rng(seed), digit, np.array([4]))
        assert set(np.unique(mask)) == {0, 5}
        assert image[mask == 5].mean() > image[mask == 0].mean() + 40


# the configuration of classification is as it was


def test_new_keys_leave_hashes_of_other_studies_as_they_were():
    spec = DataSpec.model_validate({"source": "digits", "splits": SPLITS})
    assert not {"task", "masks", "ignore", "fit"} & spec.plain().keys()
    dense = spec_of("scenes", classes=None, size=None).plain()
    assert dense["task"] == "segmentation"
    assert not {"masks", "ignore", "fit"} & dense.keys()


def test_a_mask_has_one_table_of_ids():
    classes = MaskClasses(("a", "b"), (3, 60_000), (7,))
    assert classes.of(np.array([[3, 60_000, 7]], np.uint16)).tolist() == [[0, 1, 255]]
    with pytest.raises(NotReadable, match=r"-4 \(1 pixels\), 99999 \(2 pixels\)"):
        classes.of(np.array([[3, -4, 99_999, 99_999]]))


# the study


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    fpn = {"encoder": "test_resnet", "encoder_depth": 4, "decoder_pyramid_channels": 8}
    squashed = {"size": [32, 48], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "squash"}
    model = {"arch": "smp_fpn", "args": fpn, "train": {"epochs": 1, "batch_size": 2}}
    return {
        "results": str(tmp_path / "results"),
        "data": {
            "source": "scenes",
            "task": "segmentation",
            "splits": {"zoo": 4, "transfer": 4, "validation": 4, "test": {"part": "test", "images": 4}},
        },
        "zoo": {
            "input": {"size": 48, "mean": [0.5] * 3, "std": [0.25] * 3},
            "models": {"a": model, "b": {**model, "input": squashed}},
        },
        "pairs": {"select": "all"},
        "transfer": {
            "methods": {"kl": {}},
            "seeds": [0],
            "training": {"epochs": 1, "batch_size": 2, "lr": 1e-4},
        },
    }


def run(study: dict[str, Any], folder: Path, *command: str) -> int:
    (folder / "c.yaml").write_text(yaml.safe_dump(study))
    return main([*command, "--config", str(folder / "c.yaml")])


def test_the_stage_of_the_data_stores_scenes(study, tmp_path):
    assert run(study, tmp_path, "data") == 0
    data = Dataset.open(tmp_path / "results/data")
    assert (data.images.shape, data.truth.shape, data.classes) == ((16, 48, 48, 3), (16, 48, 48), 11)
    assert data.splits.groupby("split")["image_id"].min()["test"] >= scenes.SCENES["train"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"crop_pct": 0.875}, "size 48, crop_pct 0.875, crop_mode 'center': shows only a part of images stored at 48"),
        ({"size": [48, 64]}, "size 48×64, crop_pct 1, crop_mode 'center': shows only a part of images stored at 48"),
        ({"size": [48, 64], "crop_mode": "border"}, "size 48×64, crop_pct 1, crop_mode 'border': shows only a part"),
        ({"crop_mode": "squash", "crop_pct": 0.9}, "size 48, crop_pct 0.9, crop_mode 'squash': shows only a part"),
    ],
)
def test_a_member_that_sees_a_part_of_the_images_is_refused(given, text, study, tmp_path, capsys):
    study["zoo"]["models"]["a"]["input"] = study["zoo"]["input"] | given
    assert run(study, tmp_path, "config", "check") == 1
    assert f"zoo.models.a.input: {text}" in capsys.readouterr().err
