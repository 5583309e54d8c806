"""Listing of a source before anything is decoded: truths, names, official parts and a stream of images; and arrays."""

from __future__ import annotations

import itertools
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.spec import MOST_CLASSES, DataSpec
from kt.errors import KtError

Picture = Image.Image | NDArray[np.uint8]
"""One decoded image: a PIL image, or uint8 [H, W, C]."""


class Masked(NamedTuple):
    """An image and the class of each of its pixels.

    Attributes:
        image: the image.
        mask: uint8 [H, W], the class; 255 where a pixel has none. Of an image that EXIF turns, upright or not.
    """

    image: Picture
    mask: NDArray[np.uint8]


class Framed(NamedTuple):
    """A frame of a video and where people looked.

    Attributes:
        image: the frame.
        map: uint8 [H, W], of the frame's size; None where the frame is not learnt from.
    """

    image: Picture
    map: NDArray[np.uint8] | None


Stream = Callable[[NDArray[np.int64]], Iterator[Callable[[], Picture | Masked | Framed]]]
"""From increasing positions in a listing to one call per image, in that order; the calls may run in any thread.

Of a dense task they give each image with its mask, of a task of clips each frame with its map.
"""

DEFAULT_PART = "train"
"""The official part that splits draw from unless they name another."""


@dataclass(frozen=True)
class Listing:
    """Contents of a source; position i is the i-th image.

    Attributes:
        labels: class of each image, int64 [N]; −1 where it has none, 0 for all where no image as a whole has one.
        classes: the classes' names, by label.
        parts: official part of each image, [N]; None where the source has no parts.
        names: the image's path or number in the source, [N]; None where it is the position.
        stream: gives the images.
        shape: [H, W, C] of every image, where they are arrays of one shape.
        default: the part that splits draw from unless they name another.
        left_out: files and folders that are not read, counted by kind.
        warnings: lines about the source for its user.
        folders: paths without links of the folders that are read.
        truth: of each image where the task has no classes, [N, …].
        video: of frames, the number of the video that each belongs to, int64 [N].
        lost: reason why a video cannot be read, by its name; its frames are not among these.
    """

    labels: NDArray[np.int64]
    classes: Sequence[str]
    parts: NDArray[np.str_] | None
    names: Sequence[str] | None
    stream: Stream
    shape: tuple[int, ...] | None = None
    default: str = DEFAULT_PART
    left_out: Mapping[str, int] = field(default_factory=Counter)
    warnings: Sequence[str] = ()
    folders: Collection[str] = ()
    truth: NDArray[Any] | None = None
    video: NDArray[np.int64] | None = None
    lost: Mapping[str, str] = field(default_factory=dict)


def composed(name: str) -> str:
    """A name with accented letters as single characters (NFC), as macOS does not write them."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> list[int | str]:
    """Sort key under which `class2` comes before `class10`, as timm orders class folders."""
    parts = re.split(r"(\d+)", composed(name).lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


ORDERS: dict[str, Callable[[str], Any]] = {"natural": natural, "sorted": str}
"""Sort keys of class folders by their names in ``data.class_order``: timm's order, and torchvision's."""


def ordered(names: Iterable[str], order: str = "natural") -> list[str]:
    """Names in an order of ``ORDERS``; ties (`A` and `a`, `1` and `01`) are ordered by their characters."""
    return sorted(names, key=lambda name: (ORDERS[order](name), name))


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    r"""A file's name as one line of UTF-8: line breaks, control characters and undecodable bytes as ``\x0a``."""
    return name if name.isprintable() else _UNPRINTABLE.sub(_escaped, name)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return rf"\x{code & 0xFF:02x}" if not 0x2028 <= code <= 0x2029 else rf"\u{code:04x}"


def file_names(paths: Sequence[str]) -> Sequence[str]:
    """Paths as they appear in tables and in files of images.

    Raises:
        KtError: two have the same form.
    """
    names = [shown(path) for path in paths]
    if names != paths and (twice := [name for name, n in Counter(names).items() if n > 1]):
        raise KtError(f"data.source: two files are both called {twice[0]!r}; rename one")
    return names


def numbered(labels: NDArray[np.integer]) -> list[str]:
    """Names of classes that have no other: their labels."""
    return [str(label) for label in range(int(labels.max(initial=-1)) + 1)]


def checked_labels(labels: NDArray[np.generic], at: str) -> NDArray[np.int64]:
    """Labels as int64 [N].

    Raises:
        KtError: they are not one integer from 0 to ``MOST_CLASSES`` per image.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise KtError(f"{at} are {labels.dtype} {list(labels.shape)}; need integers ≥ 0, one per image")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high >= MOST_CLASSES:
        of = "an image without a label? " if low < 0 else ""
        raise KtError(f"{at} are from {low} to {high}; {of}need integers ≥ 0 below {MOST_CLASSES}, one per image")
    return labels.astype(np.int64)


def named_parts(spec: DataSpec, default: str = DEFAULT_PART) -> list[str]:
    """The official parts that the splits draw from, each once; ``default`` for those that name none."""
    takes = [take for take in spec.splits.takes().values() if take.images != 0 and not take.folder]
    return list(dict.fromkeys(take.part or default for take in takes))


def _open_member(archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype[np.generic]]:
    """The stream of an array inside an .npz file, past its header; its shape and dtype."""
    file = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or (fortran and len(shape) > 1):
        held = "Python objects" if dtype.hasobject else f"columns first; save np.ascontiguousarray({name})"
        raise ValueError(f"{name} holds {held}")
    return file, shape, dtype


_UNREADABLE = (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile)


def _npz_error(path: Path, error: Exception) -> KtError:
    return KtError(f"data.source: {path}: not a readable .npz file ({error})")


def _npz_parts(archive: zipfile.ZipFile, path: Path, truth: str) -> dict[str, tuple[str, str]]:
    """Names of the arrays of images and truths, by official part; the part is "" where there are none."""
    names = [member.removesuffix(".npy") for member in archive.namelist()]
    parts = {name[2:]: (name, f"y_{name[2:]}") for name in names if name.startswith("x_")}
    if "images" in names or truth in names or not parts:
        parts = {"": ("images", truth)}
    for name in itertools.chain.from_iterable(parts.values()):
        if name not in names:
            raise KtError(f"data.source: {path}: no array {name!r}; it holds: {', '.join(names)}")
    return parts


def _npz_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    file, shape, dtype = _open_member(archive, name)
    return np.frombuffer(file.read(), dtype).reshape(shape)


def _npz_shape(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[int, ...]:
    _, shape, dtype = _open_member(archive, name)
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise KtError(f"data.source: {path}: {name} are {dtype} {list(shape)}; need uint8 [N, H, W] or [N, H, W, C]")
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
        raise KtError(
            f"data.source: {path}: {name} are {list(shape)}, colours first; need [N, H, W, C]: "
            f"save {name}.transpose(0, 2, 3, 1)"
        )
    return (*shape, 1)[:4]


def npz(path: Path, has_classes: bool = True) -> Listing:
    """An .npz file with ``images`` uint8 [N, H, W] or [N, H, W, C] and ``labels``; images are read one by one.

    For a task without classes ``truth`` [N, …] stands in place of the labels. Official parts lie in pairs of arrays
    instead, ``x_<part>`` and ``y_<part>``.

    Raises:
        KtError: the file cannot be read, or its arrays have wrong types or shapes.
    """
    kind = "labels" if has_classes else "truth"
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _npz_parts(archive, path, kind)
            truths = {name: _npz_array(archive, name) for _, name in parts.values()}
            shapes = {name: _npz_shape(archive, path, name) for name, _ in parts.values()}
    except _UNREADABLE as error:
        raise _npz_error(path, error) from error
    if has_classes:
        truths = {name: checked_labels(labels, f"data.source: {path}: {name}") for name, labels in truths.items()}
    for (name, shape), of_part in zip(shapes.items(), truths.values(), strict=True):
        if of_part.ndim == 0 or len(of_part) != shape[0]:
            number = len(of_part) if of_part.ndim else "no row of"
            raise KtError(f"data.source: {path}: {number} {kind} for {shape[0]} {name}; one per image is needed")
    if len({(truth.dtype, truth.shape[1:]) for truth in truths.values()}) > 1:
        raise KtError(f"data.source: {path}: {', '.join(truths)} have different types or shapes")
    picture = _one_shape(path, shapes)

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

    every = np.concatenate(list(truths.values()))
    part_of = None if "" in parts else np.repeat(np.array(list(parts)), [len(truth) for truth in truths.values()])
    if not has_classes:
        return Listing(np.zeros(len(every), np.int64), [], part_of, None, stream, picture, truth=every)
    return Listing(every, numbered(every), part_of, None, stream, picture)


def masked_npz(path: Path, classes: Sequence[str], of: Callable[[NDArray[np.integer]], NDArray[np.uint8]]) -> Listing:
    """An .npz file with ``images`` as ``npz`` reads them and ``masks``, integers [N, H, W]; both are read one by one.

    Official parts lie in pairs of arrays instead, ``x_<part>`` and ``y_<part>``.

    Args:
        path: the file.
        classes: their names.
        of: the class of each pixel of a mask.

    Raises:
        KtError: the file cannot be read, or its arrays have wrong types or shapes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _npz_parts(archive, path, "masks")
            shapes = {pair: _npz_shape(archive, path, pair[0]) for pair in parts.values()}
            for (images, masks), shape in shapes.items():
                _, found, dtype = _open_member(archive, masks)
                if found != shape[:3] or dtype.kind not in "iu":
                    text = f"{masks} are {dtype} {list(found)}, {images} are {list(shape)}; need integers [N, H, W]"
                    raise KtError(f"data.source: {path}: {text} of the same N, H and W")
    except _UNREADABLE as error:
        raise _npz_error(path, error) from error
    picture = _one_shape(path, {images: shape for (images, _), shape in shapes.items()})

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Masked]]:
        wanted, row = set(rows.tolist()), 0
        try:
            with zipfile.ZipFile(path) as archive:
                for (images, masks), shape in shapes.items():
                    (image_file, _, _), (file, _, dtype) = _open_member(archive, images), _open_member(archive, masks)
                    for _ in range(shape[0]):  # to the end: only then are checksums compared
                        image = image_file.read(int(np.prod(picture)))
                        mask = file.read(int(np.prod(picture[:2])) * dtype.itemsize)
                        if row in wanted:
                            yield partial(pair, image, mask, dtype)
                        row += 1
        except _UNREADABLE as error:
            raise _npz_error(path, error) from error

    def pair(image: bytes, mask: bytes, dtype: np.dtype[np.generic]) -> Masked:
        ids: NDArray[Any] = np.frombuffer(mask, dtype).reshape(picture[:2])
        return Masked(np.frombuffer(image, np.uint8).reshape(picture), of(ids))

    sizes = [shape[0] for shape in shapes.values()]
    part_of = None if "" in parts else np.repeat(np.array(list(parts)), sizes)
    return Listing(np.zeros(sum(sizes), np.int64), classes, part_of, None, stream, picture)


def _one_shape(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape [H, W, C] of the images in all arrays, whose shapes are [N, H, W, C]."""
    if len({shape[1:] for shape in shapes.values()}) > 1:
        raise KtError(f"data.source: {path}: {', '.join(shapes)} have images of different shapes")
    return next(iter(shapes.values()))[1:]
