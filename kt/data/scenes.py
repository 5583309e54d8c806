"""Data sets that are known before they are read: digits, scenes and videos of them, classes of VOC and Cityscapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kt.data import moving
from kt.data.listing import Listing, Masked, Stream, numbered
from kt.data.moving import TRAINING_DIGITS, Floats, enlarged, noise

SIDE = 48
"""Height and width of a scene, pixels."""

SCENES = {"train": 900, "test": 300}
"""Scenes of each official part."""

CLASSES = ("background", *map(str, range(10)))

VOC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Classes of PASCAL VOC 2012, by their ids. Source: Everingham et al. 2015, IJCV 111."""

CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""Ids of the classes of Cityscapes that are evaluated. Source: Cordts et al. 2016, CVPR, and its published scripts."""


@dataclass(frozen=True)
class Builtin:
    """A data set that needs no file; what is known before it is read.

    Attributes:
        images: number by official part, or that of the videos; under "" of the whole data set, where it has no parts.
        classes: their names, by label.
        shape: [H, W, C] of the images.
        read: lists it.
        truth: of each image, or frame: one of the classes, a `mask` of them, or a `map` of where people look.
    """

    images: Mapping[str, int]
    classes: Sequence[str]
    shape: tuple[int, int, int]
    read: Callable[[], Listing]
    truth: Literal["class", "mask", "map"] = "class"


def digits() -> Listing:
    """The 1,797 digits that ship with scikit-learn, uint8 [8, 8, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int64)
    pictures: Stream = lambda rows: (partial(images.__getitem__, i) for i in rows)  # noqa: E731
    return Listing(labels, numbered(labels), None, None, pictures, images.shape[1:])


def scenes() -> Listing:
    """1,200 scenes of three to six digits on a textured background, uint8 [48, 48, 3], with a mask each.

    No digit is in scenes of both parts. A scene depends on its number alone.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    of_part = {"train": slice(TRAINING_DIGITS), "test": slice(TRAINING_DIGITS, None)}
    parts = np.repeat(list(SCENES), list(SCENES.values()))

    def call(row: int) -> Masked:
        some = of_part[parts[row]]
        return scene(np.random.default_rng([0, row]), data.images[some] / 16, data.target[some])

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Masked]]:
        return (partial(call, row) for row in rows.tolist())

    return Listing(np.zeros(len(parts), np.int64), CLASSES, parts, None, stream, (SIDE, SIDE, 3))


def scene(generator: np.random.Generator, images: Floats, labels: NDArray[np.int64]) -> Masked:
    """A scene; only arithmetic that rounds alike everywhere, so that it has the same bytes on all machines.

    Args:
        generator: of all that is random.
        images: digits to draw from, [n, 8, 8] in [0, 1].
        labels: their classes, [n].
    """
    shades = 0.4 * generator.random((2, 1)) + 0.1 * generator.random((2, 3))
    pattern = noise(generator, int(generator.integers(3, 13)), SIDE)[..., None]
    canvas = shades[0] + (shades[1] - shades[0]) * pattern
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(generator.integers(3, 7)):
        which, side = generator.integers(len(images)), int(generator.integers(15, 22))
        ink = np.clip(1.6 * enlarged(images[which], side) - 0.3, 0, 1)
        places = generator.integers(0, SIDE - side + 1, (24, 2)).tolist()
        windows = [(slice(top, top + side), slice(left, left + side)) for top, left in places]
        window = min(windows, key=lambda where: np.count_nonzero(mask[where]))
        colour = 0.6 + 0.4 * generator.random(3)
        canvas[window] += ink[..., None] * (colour - canvas[window])
        mask[window][ink >= 0.5] = labels[which] + 1
    canvas += 0.06 * (generator.random(canvas.shape) - 0.5)
    return Masked(np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8), mask)


BUILTIN = {
    "digits": Builtin({"": 1797}, CLASSES[1:], (8, 8, 1), digits),
    "scenes": Builtin(SCENES, CLASSES, (SIDE, SIDE, 3), scenes, "mask"),
    "moving-digits": Builtin(moving.VIDEOS, (), (moving.SIDE, moving.SIDE, 3), moving.videos, "map"),
}
