"""Data sets that timm reads."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from images import all_images, counts, damage, images_of, save_image, spec_of
from PIL import Image

from kt.data import datasets, sources
from kt.data.datasets import Dataset
from kt.data.fit import fit
from kt.errors import KtError


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


def columns_of(monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[object]]) -> None:
    """Stand-ins for Hugging Face's library and for timm's reader of its data sets."""
    from timm.data import dataset_factory

    def picture(i: int) -> bytes:
        Image.fromarray(images_of(20)[i]).save(content := io.BytesIO(), "PNG")
        return content.getvalue()

    class Reader:
        def __init__(self, input_key: str = "image", target_key: str = "label") -> None:
            self.image, self.label = columns[input_key], target_key

        def __getitem__(self, i: int) -> tuple[io.BytesIO, object]:
            return io.BytesIO(picture(i)), columns[self.label][i]

        def iter_targets(self):
            return iter(columns[self.label])

    def create(name: str, root: str, split: str, search_split: bool, input_img_mode: str = "", **keys: str) -> object:
        return types.SimpleNamespace(reader=Reader(**keys))

    library = types.SimpleNamespace(
        load_dataset=lambda *_, **__: types.SimpleNamespace(column_names=list(columns)),
        load_dataset_builder=lambda *_, **__: types.SimpleNamespace(info=types.SimpleNamespace(features=columns)),
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr(dataset_factory, "create_dataset", create)


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_columns_of_other_names_are_named_and_can_be_given(tmp_path, monkeypatch, kind):
    columns_of(monkeypatch, {"img": [None] * 20, "fine_label": [i % 3 for i in range(20)]})
    for keys, message in [
        ({}, r"data.image_key: no column 'image' in .*/mine; it has: img, fine_label; did you mean 'img'"),
        ({"image_key": "img"}, r"data.label_key: no column 'label' in .*; did you mean 'fine_label'"),
        (
            {"image_key": "img", "label_key": "coarse"},
            r"data.label_key: no column 'coarse' in .*; it has: img",
        ),
    ]:
        with pytest.raises(KtError, match=message) as caught:
            sources.read(spec_of(f"{kind}/mine", size=6, **keys))
        assert "\n" not in str(caught.value)
    splits = {"transfer": 9, "validation": 5, "test": 6}
    keys = {"image_key": "img", "label_key": "fine_label"}
    datasets.write(tmp_path / "store", spec_of(f"{kind}/mine", size=6, splits=splits, **keys))
    data = Dataset.open(tmp_path / "store")
    assert np.array_equal(data.images, images_of(20))
    assert data.labels.tolist() == [i % 3 for i in range(20)]
    with pytest.raises(KtError, match=r"data.image_key: 'digits' has no columns; allowed for hfds/…, hfids/…"):
        sources.check_source(spec_of("digits", image_key="img"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1] * 20, "labels are from -1 to 0; an image without a label"),
        ([[0, 1], [2]] * 10, "labels cannot be read"),
        (["a", "b"] * 10, "labels are <U1"),
        ([None] * 20, "labels are from -1 to 0"),
    ],
)
def test_labels_that_are_none_give_one_line(monkeypatch, labels, message):
    columns_of(monkeypatch, {"image": [None] * 20, "label": labels})
    with pytest.raises(KtError, match=rf"data.source: hfds/mine: part 'train': {message}") as caught:
        sources.read(spec_of("hfds/mine", size=6))
    assert "\n" not in str(caught.value)


def test_tar_files_are_read_as_folders_are(tmp_path):
    for name in ("a", "A", "10", "2", "a/@eaDir", "__MACOSX", "a/.ipynb_checkpoints"):
        for i in range(2):
            save_image(tmp_path / "s" / name / f"{i}.{'webp' if i else 'png'}", seed=len(name) + i)
    save_image(tmp_path / "s/a/._0.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "s", ".")
    data = sources.read(spec_of(tmp_path / "s.tar", size=8))
    assert list(data.classes) == ["2", "10", "A", "a"]
    assert np.bincount(data.labels).tolist() == [2, 2, 2, 2]
    assert data.left_out == {"below @eaDir": 2, "below __MACOSX": 2, "below .ipynb_checkpoints": 2, "below ._0.png": 1}
    assert len(all_images(data)) == 8


def test_torchvisions_folders_keep_their_order_and_lose_hidden_classes(tmp_path):
    for i, name in enumerate(["class1", "class10", "class2", ".ipynb_checkpoints", "class2/@eaDir"]):
        save_image(tmp_path / "s" / name / "0.png", seed=i)
    deep = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (40, 1))
    Image.fromarray(deep).save(tmp_path / "s/class1/1.png")
    data = sources.read(spec_of("torch/folder", root=str(tmp_path / "s"), size=40, channels=1))
    assert (list(data.classes), data.labels.tolist()) == (["class1", "class10", "class2"], [0, 0, 1, 2])
    assert data.left_out == {"below .ipynb_checkpoints": 1, "below @eaDir": 1}
    images = [fit(call(), 40, 1) for call in data.stream(np.arange(4))]
    assert np.array_equal(images[1][..., 0], deep >> 8)


def tar_of(folder, *names: str):
    for i, name in enumerate(names):
        save_image(folder / "s" / name, seed=i)
    with tarfile.open(folder / "s.tar", "w") as tar:
        tar.add(folder / "s", ".")
    return spec_of(folder / "s.tar", size=8)


@pytest.mark.parametrize(
    ("names", "two"),
    [
        (["train/a/0.png", "train/b/0.png", "val/a/0.png"], "'train/a' and in 'val/a'"),
        (["apple/red/0.png", "car/red/0.png"], "'apple/red' and in 'car/red'"),
        (["a/0.png", "a/deep/1.png", "b/0.png"], "'a' and in 'a/deep'"),
    ],
)
def test_tar_files_whose_classes_would_not_be_those_of_a_folder_are_refused(tmp_path, names, two):
    with pytest.raises(KtError, match=rf"images lie in {two}, but classes of a tar file are its innermost folders"):
        sources.read(tar_of(tmp_path, *names))


def test_images_beside_the_folders_of_a_tar_file_are_no_class(tmp_path):
    data = sources.read(tar_of(tmp_path, "a/0.png", "b/0.png", "cover.png"))
    assert (list(data.classes), data.labels.tolist()) == (["a", "b"], [0, 1])
    assert data.left_out == {"images beside the folders": 1}


def test_parts_that_are_the_same_images_are_refused(tmp_path, monkeypatch):
    from timm.data import dataset_factory

    class Samples(torch.utils.data.Dataset):
        def __init__(self, train: bool) -> None:
            self.images = images_of(9, seed=train)

        def __len__(self) -> int:
            return 9

        def __getitem__(self, i: int):
            return Image.fromarray(self.images[i]), i % 3

    monkeypatch.setattr(
        dataset_factory, "create_dataset", lambda name, root, split, **_: Samples(split == "train")
    )  # as torchvision's data sets are opened by timm
    takes = {"transfer": 3, "validation": {"part": "val"}, "test": {"part": "test"}}
    with pytest.raises(KtError, match="the parts 'val' and 'test' of torch/cifar10 are the same images; draw from one"):
        sources.read(spec_of("torch/cifar10", size=6, splits=takes))
    takes["validation"] = {"part": "test", "images": 3}
    assert set(sources.read(spec_of("torch/cifar10", size=6, splits=takes)).parts) == {"train", "test"}


def test_torchvisions_folders_have_no_parts(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        save_image(tmp_path / name / "0.png")
    takes = {"transfer": 1, "validation": 1, "test": {"part": "val"}}
    with pytest.raises(KtError, match=r"data.splits.test.part: 'val': 'torch/folder' has no official parts"):
        sources.read(spec_of("torch/folder", root=str(tmp_path), size=8, splits=takes))
    with pytest.raises(KtError, match="its folders are called like official parts: train, val; give the folder itself"):
        sources.read(spec_of("torch/folder", root=str(tmp_path), size=8))


def test_a_compressed_tar_file_is_answered_with_what_helps(tmp_path):
    spec = tar_of(tmp_path, "a/0.png", "b/0.png")
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.add(tmp_path / "s", ".")
    with pytest.raises(
        KtError, match=r"s\.tar: not a tar file of images \(.*\); a compressed one has to be decompressed"
    ):
        sources.read(spec)
