"""What a data set holds before anything is decoded: labels, names, official parts, and how to get at the images.

Sources that timm reads lie in ``kt.data.timm_source``, so that nothing here imports torch.
"""

from __future__ import annotations

import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.spec import SPLITS, TIMM_PREFIXES, DataSpec
from kt.errors import KtError, nearest, unknown

Picture = Image.Image | NDArray[np.uint8]
"""One decoded image: a PIL image, or uint8 [H, W, C]."""

Stream = Callable[[NDArray[np.int64]], Iterator[Callable[[], Picture]]]
"""From increasing positions in a listing to one call an image, in that order; the calls may run in any thread."""

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
TORCHVISION = (
    "cifar10", "cifar100", "fashion_mnist", "folder", "image_folder", "imagenet", "inat", "inaturalist", "kmnist",
    "mnist", "places365", "qmnist",
)  # fmt: skip
"""Data sets of torchvision that timm reads, as ``torch/…``."""

DEFAULT_PART = "train"
"""The official part that splits draw from unless they name another."""


@dataclass(frozen=True)
class Listing:
    """What a source holds; position i is the i-th image.

    Attributes:
        labels: class of each image, int64 [N].
        classes: the classes' names, by label.
        parts: official part of each image, [N]; None where the source has no parts.
        names: the image's path or number in the source, [N]; None where it is the position.
        stream: gives the images.
        shape: [H, W, C] of every image, where they are arrays of one shape.
    """

    labels: NDArray[np.int64]
    classes: Sequence[str]
    parts: NDArray[np.str_] | None
    names: Sequence[str] | None
    stream: Stream
    shape: tuple[int, ...] | None = None


def natural(name: str) -> list[int | str]:
    """Sort key under which `class2` comes before `class10`, as timm orders class folders."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def numbered(labels: NDArray[np.integer]) -> list[str]:
    """Names of classes that have none but their label."""
    return [str(label) for label in range(int(labels.max(initial=-1)) + 1)]


# arrays


def digits() -> Listing:
    """The 1,797 digits that ship with scikit-learn, uint8 [8, 8, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int64)
    pictures: Stream = lambda rows: (partial(images.__getitem__, i) for i in rows)  # noqa: E731
    return Listing(labels, numbered(labels), None, None, pictures, images.shape[1:])


@dataclass(frozen=True)
class Builtin:
    """A data set that needs no file; its numbers of images and classes are known before it is read."""

    count: int
    classes: int
    read: Callable[[], Listing]


BUILTIN = {"digits": Builtin(1797, 10, digits)}


def _open_member(archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype[np.generic]]:
    """The stream of an array inside an .npz file, past its header; its shape and dtype."""
    file = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise ValueError(f"{name} holds {'Python objects' if dtype.hasobject else 'columns first'}")
    return file, shape, dtype


_UNREADABLE = (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile)


def _npz_error(path: Path, error: Exception) -> KtError:
    return KtError(f"data.source: {path}: not a readable .npz file ({error})")


def _npz_parts(archive: zipfile.ZipFile, path: Path) -> dict[str, tuple[str, str]]:
    """Names of the arrays of images and labels, by official part; the part is "" where there are none."""
    names = [member.removesuffix(".npy") for member in archive.namelist()]
    parts = {name[2:]: (name, f"y_{name[2:]}") for name in names if name.startswith("x_")}
    if "images" in names or "labels" in names or not parts:
        parts = {"": ("images", "labels")}
    for name in itertools.chain.from_iterable(parts.values()):
        if name not in names:
            raise KtError(f"data.source: {path}: no array {name!r}; it holds: {', '.join(names)}")
    return parts


def _npz_labels(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[np.int64]:
    file, shape, dtype = _open_member(archive, name)
    labels = np.frombuffer(file.read(), dtype).reshape(shape)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise KtError(
            f"data.source: {path}: {name} are {labels.dtype} {list(labels.shape)}; need integers ≥ 0, one an image"
        )
    return labels.astype(np.int64)


def _npz_shape(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[int, ...]:
    _, shape, dtype = _open_member(archive, name)
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise KtError(f"data.source: {path}: {name} are {dtype} {list(shape)}; need uint8 [N, H, W] or [N, H, W, C]")
    return (*shape, 1)[:4]


def npz(path: Path) -> Listing:
    """An .npz file with ``images`` uint8 [N, H, W] or [N, H, W, C] and ``labels``; images are read one by one.

    Official parts lie in pairs of arrays instead, ``x_<part>`` and ``y_<part>``.

    Raises:
        KtError: the file cannot be read, or its arrays have wrong types or shapes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _npz_parts(archive, path)
            labels = [_npz_labels(archive, path, name) for _, name in parts.values()]
            shapes = {name: _npz_shape(archive, path, name) for name, _ in parts.values()}
    except _UNREADABLE as error:
        raise _npz_error(path, error) from error
    for (name, shape), of_part in zip(shapes.items(), labels, strict=True):
        if len(of_part) != shape[0]:
            raise KtError(f"data.source: {path}: {len(of_part)} labels for {shape[0]} {name}; need one an image")
    if len({shape[1:] for shape in shapes.values()}) > 1:
        raise KtError(f"data.source: {path}: {', '.join(shapes)} have images of different shapes")
    picture = next(iter(shapes.values()))[1:]

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
        wanted, row = set(rows.tolist()), 0
        try:
            with zipfile.ZipFile(path) as archive:
                for name, shape in shapes.items():
                    file, _, _ = _open_member(archive, name)
                    for _ in range(shape[0]):  # to the end: only then is the file's checksum compared
                        content = file.read(int(np.prod(picture)))
                        if row in wanted:
                            yield partial(np.frombuffer(content, np.uint8).reshape, picture)
                        row += 1
        except _UNREADABLE as error:
            raise _npz_error(path, error) from error

    every = np.concatenate(labels)
    part_of = None if "" in parts else np.repeat(np.array(list(parts)), [len(of_part) for of_part in labels])
    return Listing(every, numbered(every), part_of, None, stream, picture)


# folders


def _images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and its subfolders, in natural order."""
    found = [
        os.path.join(root, file)
        for root, _, files in os.walk(folder, followlinks=True)
        for file in files
        if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith(".")
    ]
    return sorted(found, key=natural)


def _subfolders(folder: Path) -> list[str]:
    return sorted((e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")), key=natural)


def _open(path: str) -> Image.Image:
    return Image.open(path)


def folder(spec: DataSpec) -> Listing:
    """A folder of class folders, or one with a subfolder ``train``, whose subfolders are then official parts.

    Raises:
        KtError: a part that a split names is not there, no class folders, an empty class folder, or classes that
            differ between parts.
    """
    root = Path(spec.source)
    has_parts = DEFAULT_PART in _subfolders(root)
    parts = named_parts(spec) if has_parts else [""]
    for part in parts:
        if not (root / part).is_dir():
            raise KtError(f"data.splits: no part {part!r} in {root}{nearest(part, _subfolders(root))}")
    classes = sorted({name for part in parts for name in _subfolders(root / part)}, key=natural)
    if not classes:
        raise KtError(f"data.source: {root}: no class folders in it; it needs a folder a class, with images inside")
    paths, labels, of_part = [], [], []
    for part in parts:
        for label, name in enumerate(classes):
            found = _images_below(root / part / name) if (root / part / name).is_dir() else []
            if not found and (spec.classes is None or name in spec.classes):
                raise KtError(f"data.source: {root / part / name}: no image in this class folder; delete or fill it")
            paths += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
            of_part += [part] * len(found)
    return Listing(
        np.array(labels, np.int64),
        classes,
        np.array(of_part) if has_parts else None,
        paths,
        lambda rows: (partial(_open, os.path.join(root, paths[i])) for i in rows),
    )


def named_parts(spec: DataSpec) -> list[str]:
    """The official parts that the splits draw from, each once."""
    takes = [take for take in spec.splits.takes().values() if take.images != 0]
    return list(dict.fromkeys(take.part or DEFAULT_PART for take in takes))


# any source


def check_source(spec: DataSpec) -> None:
    """Fail where the source cannot be there, without reading it.

    Raises:
        KtError: naming the source, what is allowed and the nearest name.
    """
    source, path = spec.source, Path(spec.source)
    at = f"data.source: {source}"
    if (source.endswith((".npz", ".tar")) and not path.is_file()) or (
        not spec.by_timm and source not in BUILTIN and not source.endswith(".npz") and not path.is_dir()
    ):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        near = nearest(source, [*BUILTIN, *(str(path.parent / name) for name in beside if not name.startswith("."))])
        kinds = ", ".join(f"{prefix}/…" for prefix in TIMM_PREFIXES)
        what = "no such file" if source.endswith((".npz", ".tar")) else "no such data set or folder"
        raise KtError(
            f"{at}: {what}; allowed: {', '.join(BUILTIN)}, an .npz file, a folder, {kinds}, a .tar file{near}"
        )
    prefix, _, name = source.lower().partition("/")
    if prefix == "torch" and name not in TORCHVISION:
        raise KtError(f"{at}: {unknown('data set', name, TORCHVISION)}")
    if spec.root is not None and not spec.download and not Path(spec.root).is_dir():
        raise KtError(f"data.root: {spec.root}: no such folder")
    if spec.size is None and (spec.by_timm or spec.is_folder):
        raise KtError("data.size: needed for this source, since all stored images have one size; 256 suits ImageNet")
    for split in SPLITS:
        take = spec.splits.takes()[split]
        if take.file and not Path(take.file).is_file():
            raise KtError(f"data.splits.{split}.file: {take.file}: no such file")
        if take.part and (source in BUILTIN or source.endswith(".tar")):
            raise KtError(f"data.splits.{split}.part: {take.part!r}: {source!r} has no official parts")


def known_count(spec: DataSpec) -> int | None:
    """Number of images where it is quickly known; None for folders, timm's data sets and chosen classes."""
    if spec.classes or spec.class_file:
        return None
    if spec.source in BUILTIN:
        return BUILTIN[spec.source].count
    if not spec.source.endswith(".npz"):
        return None
    listing = npz(Path(spec.source))
    return len(listing.labels) if listing.parts is None else None


def read(spec: DataSpec) -> Listing:
    """List a source; raises as ``check_source`` does, or where the source is not what it should be."""
    check_source(spec)
    if spec.source in BUILTIN:
        return BUILTIN[spec.source].read()
    if spec.source.endswith(".npz"):
        return npz(Path(spec.source))
    if spec.by_timm:
        from kt.data.timm_source import read_timm

        return read_timm(spec)
    return folder(spec)
