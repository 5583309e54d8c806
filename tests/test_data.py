"""Sources in arrays, the store that all stages share, and the stage that makes it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from images import all_images, counts, images_of, input_of, sizes, spec_of

from kt import stages
from kt.data import datasets, scenes, sources
from kt.data.datasets import Dataset
from kt.data.fit import fit
from kt.data.spec import SPLITS, DataSpec
from kt.errors import KtError
from kt.layout import Layout
from kt.study.check import check, check_images
from kt.study.load import parse
from kt.study.study import Study
from kt.tables import schema


def test_digits_are_whole():
    data = scenes.digits()
    images = np.stack(all_images(data))
    assert (images.shape, images.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert (images.min(), images.max()) == (0, 255)
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert sources.part_sizes(spec_of("digits")).images == {None: len(images)}
    assert sources.known_count(spec_of("digits")) == len(images)


@pytest.mark.parametrize("shape", [(7, 4, 5), (7, 4, 5, 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_come_from_an_npz_file(tmp_path, shape, save):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save(tmp_path / "d.npz", images=images, labels=np.arange(7, dtype=np.uint8), other=np.zeros(3))
    data = sources.read(spec_of(tmp_path / "d.npz"))
    assert np.array_equal(all_images(data), images.reshape(7, 4, 5, -1))
    assert np.array_equal([call() for call in data.stream(np.array([2, 5]))], images.reshape(7, 4, 5, -1)[[2, 5]])
    assert (data.labels.dtype, data.labels.tolist(), data.shape) == (np.int64, [*range(7)], (4, 5, (*shape, 1)[3]))
    assert sources.part_sizes(spec_of(tmp_path / "d.npz")).images == {None: 7}


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
        ({"images": images_of(), "labels": np.arange(4)}, "4 labels for 5 images; one per image is needed"),
        ({"images": images_of(), "labels": np.arange(5.0)}, "labels are float64"),
        ({"images": images_of(), "labels": np.arange(5) - 1}, "need integers ≥ 0"),
        ({"images": images_of(), "labels": np.array([None] * 5)}, r"not a readable \.npz file"),
        ({"images": images_of().transpose(0, 3, 1, 2), "labels": np.arange(5)}, r"colours first; need .*transpose"),
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


@pytest.fixture
def spec() -> DataSpec:
    return DataSpec(source="digits", seed=3, splits=sizes(10, 20, 30, 40))


def test_a_stored_data_set_opens_as_it_was_written(tmp_path, spec):
    datasets.write(tmp_path, spec)
    data, digits = Dataset.open(tmp_path), scenes.digits()
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
    assert set(meta) == {"classes", "hash", "source", "images", "damaged", "repeated", "left_out"}
    assert meta["images"] == {"zoo": 10, "transfer": 20, "validation": 30, "test": 40}
    assert meta["classes"] == [str(c) for c in range(10)]
    assert len(schema.read_frame(tmp_path / "splits.parquet", "splits")) == 100


def test_the_sizes_of_the_splits_are_checked_before_anything_is_decoded(tmp_path, spec):
    def refuse(counts):
        raise KtError(str(counts))

    with pytest.raises(KtError, match=r"\{'zoo': 10, 'transfer': 20, 'validation': 30, 'test': 40\}"):
        datasets.write(tmp_path, spec, check=refuse)
    assert not list(tmp_path.iterdir())


def test_the_store_is_below_the_folder_given(tmp_path, spec):
    datasets.write(Path(tmp_path) / "a" / "b", spec)
    assert os.listdir(tmp_path) == ["a"]


def test_arrays_keep_their_size_and_channels_unless_a_size_is_given(tmp_path):
    images = images_of(4, 6, 2)
    assert fit(picture := images[0], None, 3) is picture
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(4))
    with pytest.raises(KtError, match=r"data.size: images of 2 channels cannot be resized"):
        datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", size=3))
    np.savez(tmp_path / "d.npz", images=images[..., :1], labels=np.arange(4))
    datasets.write(tmp_path / "store", spec_of(tmp_path / "d.npz", size=3))
    assert Dataset.open(tmp_path / "store").images.shape == (3, 3, 3, 1)


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
    for call in (check_images, lambda study: stages.data(study, layout, 1)):
        with pytest.raises(KtError, match=r"batch_size: 9 is larger than data.splits.transfer \(8\)"):
            call(study)
    assert not (layout.data / "images.npy").exists()
    with caplog.at_level("INFO"):
        stages.data(study_of(folder, tmp_path, 8), layout, 2)
    assert "enlarged" not in caplog.text
    assert "3 zoo, 8 transfer, 2 validation, 2 test images" in caplog.text
    large = study.model_copy(update={"zoo": study.zoo.model_copy(update={"input": input_of(64)})})
    stages.data(large.model_copy(update={"transfer": study_of(folder, tmp_path, 8).transfer}), layout, 1)
    assert "images of 16 pixels are enlarged for a (64), b (64)" in caplog.text
