"""Listing of a source of images before anything is decoded: labels, names, official parts, and a stream of images."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.spec import MOST_CLASSES, DataSpec
from kt.errors import KtError

Picture = Image.Image | NDArray[np.uint8]
"""One decoded image: a PIL image, or uint8 [H, W, C]."""

Stream = Callable[[NDArray[np.int64]], Iterator[Callable[[], Picture]]]
"""From increasing positions in a listing to one call an image, in that order; the calls may run in any thread."""

DEFAULT_PART = "train"
"""The official part that splits draw from unless they name another."""


@dataclass(frozen=True)
class Listing:
    """What a source holds; position i is the i-th image.

    Attributes:
        labels: class of each image, int64 [N]; −1 where it has none, 0 for all where the task has no classes.
        classes: the classes' names, by label.
        parts: official part of each image, [N]; None where the source has no parts.
        names: the image's path or number in the source, [N]; None where it is the position.
        stream: gives the images.
        shape: [H, W, C] of every image, where they are arrays of one shape.
        default: the part that splits draw from unless they name another.
        left_out: files and folders that are not read, counted by what they are.
        warnings: lines about the source that its user should see.
        folders: paths without links of the folders that are read.
        truth: of each image where the task has no classes, [N, …].
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
    """Names in an order of ``ORDERS``; those that tie in it (`A` and `a`, `1` and `01`) in that of their characters."""
    return sorted(names, key=lambda name: (ORDERS[order](name), name))


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    r"""A file's name as one line of UTF-8: line breaks, control characters and undecodable bytes as ``\x0a``."""
    return name if name.isprintable() else _UNPRINTABLE.sub(_escaped, name)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return rf"\x{code & 0xFF:02x}" if not 0x2028 <= code <= 0x2029 else rf"\u{code:04x}"


def numbered(labels: NDArray[np.integer]) -> list[str]:
    """Names of classes that have none but their label."""
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
