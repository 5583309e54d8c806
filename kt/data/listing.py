"""What a source of images lists before anything is decoded: labels, names, official parts, and a stream of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.spec import DataSpec

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
        labels: class of each image, int64 [N]; −1 where it has none.
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


def named_parts(spec: DataSpec) -> list[str]:
    """The official parts that the splits draw from, each once."""
    takes = [take for take in spec.splits.takes().values() if take.images != 0 and not take.folder]
    return list(dict.fromkeys(take.part or DEFAULT_PART for take in takes))
