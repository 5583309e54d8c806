"""Images: where they come from, how they are split, and what a model sees of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kt import schema, store
from kt.data import datasets, views
from kt.data.datasets import Dataset
from kt.data.spec import DataSpec, InputSpec, SplitSizes
from kt.data.splits import SPLITS, assign
from kt.errors import KtError

CPU = torch.device("cpu")


def sizes(zoo: int, transfer: int, validation: int, test: int) -> SplitSizes:
    return SplitSizes(zoo=zoo, transfer=transfer, validation=validation, test=test)


def images_of(n: int = 5, side: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


# splits


@given(st.tuples(*[st.integers(1, 20)] * 4), st.integers(0, 30), st.integers(0, 2**32))
def test_splits_have_the_sizes_asked_for_and_share_no_image(asked, spare, seed):
    spec = sizes(*asked)
    rng = np.random.default_rng(seed)
    n = spec.total + spare
    ids, labels = rng.permutation(10 * n)[:n], rng.integers(0, 5, n)
    frame = assign(ids, labels, spec, seed)
    assert frame["split"].value_counts(sort=False).to_dict() == dict(zip(SPLITS, asked, strict=True))
    assert frame["image_id"].is_unique
    assert (frame["image_id"] == ids[frame["row"]]).all()
    assert (frame["label"] == labels[frame["row"]]).all()
    assert assign(ids, labels, spec, seed).equals(frame)


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_every_split_holds_the_classes_in_proportion_up_to_rounding(seed, classes):
    n, asked = 240, (30, 50, 20, 100)
    labels = np.random.default_rng(seed).integers(0, classes, n) ** 2 // classes
    frame = assign(np.arange(n), labels, sizes(*asked), seed)
    for name, size in zip(SPLITS, asked, strict=True):
        for c, of_class in enumerate(np.bincount(labels)):
            found = int((frame.loc[frame["split"] == name, "label"] == c).sum())
            # a cut at a rank lies within one image of each class of the cut at its quantile, and there are two cuts
            assert abs(found - size * of_class / n) <= 2 * (1 + classes * of_class / n)


def test_the_seed_decides_the_split():
    ids = np.arange(100)
    frames = [assign(ids, ids % 3, sizes(20, 20, 20, 20), seed) for seed in range(3)]
    assert len({tuple(frame["image_id"]) for frame in frames}) == 3


def test_splits_that_ask_for_too_many_images_or_ids_that_repeat_are_refused():
    ids = np.arange(10)
    with pytest.raises(KtError, match=r"11 images asked for \(zoo 8 \+ transfer 1 .*\), but the data set has 10"):
        assign(ids, ids, sizes(8, 1, 1, 1), 0)
    with pytest.raises(KtError, match="image ids repeat"):
        assign(ids // 2, ids, sizes(1, 1, 1, 1), 0)


# sources


def test_digits_are_whole():
    data = datasets.load("digits")
    assert (data.images.shape, data.images.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(data.images) == datasets.count("digits") == len(np.unique(data.ids))


@pytest.mark.parametrize("shape", [(7, 4, 5), (7, 4, 5, 3)])
def test_images_and_labels_come_from_an_npz_file(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez_compressed(tmp_path / "d.npz", images=images, labels=np.arange(7, dtype=np.uint8), other=np.zeros(3))
    data = datasets.load(str(tmp_path / "d.npz"))
    assert np.array_equal(data.images, images.reshape(7, 4, 5, -1))
    assert (data.labels.dtype, data.labels.tolist(), data.ids.tolist()) == (np.int64, [*range(7)], [*range(7)])
    assert datasets.count(str(tmp_path / "d.npz")) == 7


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
        ({"images": images_of(), "labels": np.arange(4)}, r"labels are int64 \[4\]; need integers ≥ 0, one an image"),
        ({"images": images_of(), "labels": np.arange(5.0)}, "labels are float64"),
        ({"images": images_of(), "labels": np.arange(5) - 1}, "need integers ≥ 0"),
        ({"images": images_of(), "labels": np.array([None] * 5)}, r"not a readable \.npz file"),
    ],
)
def test_arrays_that_are_no_data_set_give_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(KtError, match=rf"data\.source: .*d\.npz: .*{message}"):
        datasets.load(str(tmp_path / "d.npz"))


def test_files_that_are_no_npz_archive_give_one_line(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=images_of(), labels=np.arange(5))
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.arange(5))
    flipped = bytearray(whole)
    flipped[whole.index(b"labels.npy") + 40] ^= 0xFF
    one = (tmp_path / "one.npy").read_bytes()
    for content in (b"", b"hello", whole[:-30], whole[:50], one, bytes(flipped)):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(KtError, match=r"data\.source: .*d\.npz: not a readable \.npz file"):
            datasets.count(str(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "unknown data set 'digit'; allowed: digits; did you mean 'digits'?"),
        ("none.npz", "data.source: none.npz: no such .npz file"),
    ],
)
def test_sources_that_do_not_exist_give_one_line(source, message):
    for call in (datasets.check_source, datasets.count, datasets.load):
        with pytest.raises(KtError, match=message.replace("?", r"\?")):
            call(source)


# the store


@pytest.fixture
def spec() -> DataSpec:
    return DataSpec(source="digits", seed=3, splits=sizes(10, 20, 30, 40))


def test_a_stored_data_set_opens_as_it_was_written(tmp_path, spec):
    datasets.write(tmp_path, spec)
    data, digits = Dataset.open(tmp_path), datasets.load("digits")
    assert isinstance(data.images, np.memmap)
    assert np.array_equal(data.images, digits.images)
    assert np.array_equal(data.labels, digits.labels)
    assert (data.classes, data.channels) == (10, 1)
    for name, n in zip(SPLITS, (10, 20, 30, 40), strict=True):
        assert np.array_equal(data.ids(name), digits.ids[data.rows(name)])
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
store.write_json = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
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
    assert set(meta) == {"classes", "hash", "source"}
    splits = schema.read_frame(tmp_path / "splits.parquet", "splits")
    parts = [store.digest_file(tmp_path / f"{name}.npy") for name in ("images", "labels")]
    assert meta["hash"] == store.digest([*parts, splits.to_dict("list")])


# what a model sees


def test_to_unit_scales_to_zero_and_one_without_resizing():
    images = images_of()
    found = views.to_unit(images, 6, CPU)
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
    found = views.to_unit(images, size, CPU)
    for image, result in zip(images[..., 0] / 255, found[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(result, plain_bilinear(image, size), atol=1e-6)


def test_shrinking_looks_at_every_pixel():
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[0, 0, 0] = 255  # between the points that plain bilinear shrinking by 4 would read
    found = views.to_unit(image, 4, CPU)
    assert found[0, 0, 0, 0] > 0
    grey = views.to_unit(np.full((1, 16, 16, 1), 51, np.uint8), 4, CPU)
    torch.testing.assert_close(grey, torch.full((1, 1, 4, 4), 0.2))


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    images, spec = images_of(), InputSpec(size=6, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = views.to_unit(images, 6, CPU)
    found = views.normalise(x, spec)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("in_memory", [1 << 29, 0])
def test_inputs_are_the_prepared_images_at_the_given_rows(monkeypatch, in_memory):
    monkeypatch.setattr(views, "IN_MEMORY", in_memory)
    images, rows = images_of(9), np.array([7, 2, 2, 0, 5])
    spec = InputSpec(size=9, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    inputs = views.Inputs(images, rows, spec, CPU)
    expected = views.normalise(views.to_unit(images[rows], 9, CPU), spec)
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
