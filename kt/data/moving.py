"""Videos of digits of which one moves, ``moving-digits``: a data set that needs no file.

A frame alone does not tell which digit moves. Slow digits are seen only by models whose clips reach far back, past the
noise of single frames; fast ones by all. But in each video one digit stops and another starts, so that clips that reach
far back show two digits that moved, and only the last frames tell which of them moves now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data.listing import Framed, Listing
from kt.data.videos import Indices, Looks, Video, listing_of

Floats = NDArray[np.float64]

TRAINING_DIGITS = 1300
"""The first digits are those of training images, all others those of test images."""

SIDE = 32
"""Height and width of a frame, pixels."""

CELL = SIDE // 2
"""Side of the four squares that hold one digit each, pixels."""

DIGIT = 9
"""Height and width of a digit, pixels."""

FRAMES = 16
"""Frames of a video."""

REST = 2
"""The first frames of a video, in which nothing moves."""

SWITCH = (7, 11)
"""First frame in which the second digit moves: at least, and less than."""

VIDEOS = {"train": 320, "test": 80}
"""Videos of each official part."""

SLOW, FAST = (0.15, 0.35), (1.0, 2.0)
"""Ranges of the speeds of slow and of fast digits, pixels per frame."""

SPREAD = 2.5
"""Standard deviation of a map around the centre of what moves, pixels."""

LOOKS = 8
"""Fixations of a frame in which something moves."""

NOISE = 0.16
"""Largest noise either way of a value in a frame, of values in [0, 1]."""


class Made(NamedTuple):
    """A video.

    Attributes:
        frames: uint8 [T, H, W, 3].
        maps: uint8 [T, H, W], 0 in frames in which nothing moves.
        fixations: y and x of the fixations of each frame, int64 [T, k, 2]; without meaning where nothing moves.
    """

    frames: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    fixations: NDArray[np.int64]


def made(generator: np.random.Generator, images: Floats) -> Made:
    """A video of three or four digits on a textured background.

    Args:
        generator: of all that is random.
        images: digits to draw from, [n, 8, 8] in [0, 1].
    """
    shades = 0.4 * generator.random((2, 1)) + 0.1 * generator.random((2, 3))
    pattern = noise(generator, int(generator.integers(3, 9)), SIDE)[..., None]
    canvas = np.tile(shades[0] + (shades[1] - shades[0]) * pattern, (FRAMES, 1, 1, 1))
    corners = CELL * np.array([(0, 0), (0, 1), (1, 0), (1, 1)])[generator.permutation(4)]
    switch = int(generator.integers(*SWITCH))
    moves = [(REST, switch), (switch, FRAMES)]
    centres = np.zeros((FRAMES, 2))
    for i, corner in enumerate(corners[: generator.integers(3, 5)]):
        begin, end = moves[i] if i < len(moves) else (0, 0)
        places = corner + _path(generator, begin, end)
        centres[begin:end] = places[begin:end] + (DIGIT - 1) / 2
        ink = np.clip(1.6 * enlarged(images[generator.integers(len(images))], DIGIT) - 0.3, 0, 1)
        colour = 0.6 + 0.4 * generator.random(3)
        for frame, place in zip(canvas, places, strict=True):
            _draw(frame, ink, place, colour)
    canvas += 2 * NOISE * (generator.random(canvas.shape) - 0.5)
    looks = np.rint(centres[:, None] + SPREAD * generator.standard_normal((FRAMES, LOOKS, 2)))
    maps = np.stack([_bell(centre) for centre in centres])
    maps[:REST] = 0
    frames = np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    return Made(frames, maps, np.clip(looks, 0, SIDE - 1).astype(np.int64))


def _path(generator: np.random.Generator, begin: int, end: int) -> Floats:
    """Place of a digit in its square, [T, 2]: it moves in the frames from ``begin`` on that are before ``end``.

    It is reflected at the square's edges, so that its place is uniform in every frame, whether it moves or not.
    """
    room = float(CELL - DIGIT)
    start, direction = room * generator.random(2), generator.random(2) - 0.5
    low, high = (SLOW, FAST)[generator.integers(2)]
    speed = (low + (high - low) * generator.random()) / np.sqrt((direction**2).sum())
    steps = np.clip(np.arange(FRAMES) - begin + 1, 0, max(end - begin, 0))
    far = (start + steps[:, None] * speed * direction) % (2 * room)
    places: Floats = np.minimum(far, 2 * room - far)
    return places


def _draw(frame: Floats, ink: Floats, place: Floats, colour: Floats) -> None:
    """Draw a digit into a frame [H, W, 3] at a place between pixels, bilinear."""
    (top, left), (down, across) = place.astype(np.int64), place % 1
    padded = np.pad(ink, 1)
    rows = padded[1:] * (1 - down) + padded[:-1] * down
    shown = (rows[:, 1:] * (1 - across) + rows[:, :-1] * across)[..., None]
    window = frame[top : top + DIGIT + 1, left : left + DIGIT + 1]
    shown = shown[: window.shape[0], : window.shape[1]]
    window += shown * (colour - window)


def _bell(centre: Floats) -> NDArray[np.uint8]:
    """A Gaussian around a place, uint8 [H, W], of height 255."""
    y, x = (np.exp(-0.5 * ((np.arange(SIDE) - at) / SPREAD) ** 2) for at in centre)
    bell: NDArray[np.uint8] = np.rint(255 * y[:, None] * x).astype(np.uint8)
    return bell


def noise(generator: np.random.Generator, cells: int, side: int) -> Floats:
    """Smooth noise in [0, 1] with so many cells along a side, [side, side]."""
    return enlarged(generator.random((cells, cells)), side)


def enlarged(image: Floats, side: int) -> Floats:
    """A square image at a larger side, bilinear."""
    place = np.clip((np.arange(side) + 0.5) * len(image) / side - 0.5, 0, len(image) - 1)
    first = place.astype(np.int64)
    second, share = np.minimum(first + 1, len(image) - 1), place - first
    rows = image[first] + (image[second] - image[first]) * share[:, None]
    columns: Floats = rows[:, first] + (rows[:, second] - rows[:, first]) * share
    return columns


@dataclass(frozen=True)
class MovingDigits(Video):
    """One video; it depends on its number alone.

    Attributes:
        number: of the video.
        drawn: digits that it draws from.
    """

    number: int
    drawn: slice

    def count(self) -> int:
        """Number of frames."""
        return FRAMES

    def made(self) -> Made:
        """The whole video."""
        return made(np.random.default_rng([1, self.number]), digits()[self.drawn])

    def frames(self, first: int, targets: Indices) -> Iterator[Callable[[], Framed]]:
        """One call for each frame from ``first`` to the last, those of ``targets`` with their map."""
        whole, shown = self.made(), set(targets.tolist())
        for k in range(first, FRAMES):
            yield partial(Framed, whole.frames[k], whole.maps[k] if k in shown else None)

    def looks(self, targets: Indices) -> Iterator[Looks]:
        """Fixations of some frames."""
        return (Looks(points, (SIDE, SIDE)) for points in self.made().fixations[targets])


@cache
def digits() -> Floats:
    """The digits of scikit-learn, [1797, 8, 8] in [0, 1]."""
    from sklearn.datasets import load_digits

    images: Floats = load_digits().images / 16
    return images


def videos() -> Listing:
    """400 videos of 16 frames, uint8 [32, 32, 3]; no digit is in videos of both parts."""
    of_part = {"train": slice(TRAINING_DIGITS), "test": slice(TRAINING_DIGITS, None)}
    parts, mapped = np.repeat(list(VIDEOS), list(VIDEOS.values())).tolist(), np.arange(REST, FRAMES)
    found = [MovingDigits(str(number), mapped, number, of_part[part]) for number, part in enumerate(parts)]
    return listing_of(found, parts, (SIDE, SIDE, 3))
