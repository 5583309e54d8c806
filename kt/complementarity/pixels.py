"""Right pixels of all models and pairs of a dense task, counted a few images at a time in one pass over the pixels.

The pixels with a truth are the examples. As with ``Right``, each is one bit per model; here the bits lie by image and
class, so that one AND and one population count give a pair's numbers in every class and in every image. Only a few
images are held at once; what stays are the counts of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.agreement import equal, tiles
from kt.complementarity.flips import Numbers, Places, Reals
from kt.complementarity.sources import Source, new_pairs
from kt.tasks.segmentation import IGNORED

HELD = 1 << 24
"""Predicted classes of all models that are held at a time (or one image)."""

SORTED = 1 << 16
"""Classes × images at a time: so few that NumPy sorts the pixels by radix, not by comparison."""


class Masks(Protocol):
    """Truths of a dense task, uint8 [N, H, W], read a slice of the images at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, H and W."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """The masks of some images."""


@dataclass(frozen=True)
class Pixels:
    """Pixels that every model, and both models of every pair, get right.

    Attributes:
        pixels: number of pixels that have a truth.
        by_class: pixels right in every class, int64 [M, C].
        both: the same of both models of a pair, int64 [M, M, C].
        same: pixels for which both predict the same class, int64 [M, M].
        error: standard error of the share of positive flips, float64 [M, M] by teacher and student; the images are
            the sample, and their pixels no independent ones.
    """

    pixels: int
    by_class: Numbers
    both: Numbers
    same: Numbers
    error: Reals

    @property
    def total(self) -> Numbers:
        """Pixels right, int64 [M]."""
        total: Numbers = self.by_class.sum(-1)
        return total

    def flips(self, teachers: Numbers, students: Numbers) -> tuple[Numbers, Numbers]:
        """Positive and negative flips per class of P pairs, int64 [P, C] each: the teacher or the student alone right.

        Source: FG section 3.1, of pixels in place of images.
        """
        both = self.both[teachers, students]
        return self.by_class[teachers] - both, self.by_class[students] - both


def count(source: Source, truth: Masks, classes: int, changed: Sequence[int], pool: Executor) -> Pixels:
    """Right pixels of all models, and of all pairs with a changed model; other pairs are left empty.

    Positive flips are F of V pixels, f_i of v_i in image i. The standard error of R = F / V over images is that of a
    ratio of sums, √Σ (f_i − R v_i)² / V; of images of one pixel it is the binomial one, √(R (1 − R) / V). Of one image
    it is unknown, NaN.

    Args:
        source: predicted classes of every pixel.
        truth: masks of the same images.
        classes: number of classes C.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``HELD`` predicted classes (or those of one image), and 8 bytes per class and ordered pair.

    Source: Cochran 1977, Sampling Techniques, section 6.3, for the error of a ratio.
    """
    models, images = len(source.names), truth.shape[0]
    by_class = np.zeros((models, classes), np.int64)
    both, same = np.zeros((models, models, classes), np.int64), np.zeros((models, models), np.int64)
    squares, products = np.zeros((models, models)), np.zeros((models, models))  # Σ f_i² and Σ f_i v_i
    seen, pixels, square = 0, 0, 0.0  # images with pixels, V and Σ v_i²
    side = truth.shape[1] * truth.shape[2]
    chunk = max(1, min(HELD // (models * side), SORTED // classes))
    for start in range(0, images if changed else 0, chunk):
        rows = slice(start, min(start + chunk, images))
        found = _Chunk.of(source, truth[rows], rows, classes, pool)
        by_class += found.right.sum(1)
        seen += int(np.count_nonzero(found.sizes))
        pixels += int(found.sizes.sum())
        square += float(found.sizes @ found.sizes)

        def compare(pair: tuple[int, Numbers], found: _Chunk = found) -> None:
            model, others = pair
            for other in tiles(others):
                shared = found.shared(model, other)
                both[model, other] += shared.sum(1)
                same[model, other] += equal(found.predicted[model], found.predicted[other])
                in_image = shared.sum(2)
                for place, right in (((model, other), found.right[model]), ((other, model), found.right[other])):
                    flips = (right.sum(-1) - in_image).astype(np.float64)
                    squares[place] += (flips * flips).sum(1)
                    products[place] += flips @ found.sizes

        list(pool.map(compare, new_pairs(models, changed)))
    for model, others in new_pairs(models, changed):
        both[others, model], same[others, model] = both[model, others], same[model, others]
    rate = (by_class.sum(1)[:, None] - both.sum(2)) / max(pixels, 1)
    error = np.sqrt(np.maximum(squares - 2 * rate * products + rate**2 * square, 0)) / max(pixels, 1)
    if seen == 1:  # its pixels are no sample
        error = np.full_like(error, np.nan)
    return Pixels(pixels, by_class, both, same, error)


@dataclass(frozen=True)
class _Chunk:
    """Some images, read once for all models.

    Attributes:
        places: positions of the pixels' bits, by image and class.
        words: bits of every model, uint64 [M, W].
        right: pixels right of every model, int64 [M, n, C].
        predicted: classes of the pixels that have a truth, uint8 [M, v].
        sizes: these pixels in every image, float64 [n].
    """

    places: Places
    words: NDArray[np.uint64]
    right: Numbers
    predicted: NDArray[np.unsignedinteger]
    sizes: Reals

    @classmethod
    def of(cls, source: Source, truth: NDArray[Any], rows: slice, classes: int, pool: Executor) -> _Chunk:
        """From masks uint8 [n, H, W] and the predictions of their images."""
        valid, images = truth != IGNORED, len(truth)
        labels, sizes = truth[valid], valid.reshape(images, -1).sum(1)
        image = np.repeat(np.arange(images), sizes)
        places = Places.of((classes * image + labels).astype(np.min_scalar_type(classes * images)), classes * images)
        predicted = np.stack(list(pool.map(lambda m: source.top(m, rows)[valid], range(len(source.names)))))
        words = np.stack(list(pool.map(lambda classes: places.pack(classes == labels), predicted)))
        right = places.count(words).reshape(-1, images, classes).astype(np.int64)
        return cls(places, words, right, predicted, sizes.astype(np.float64))

    def shared(self, model: int, others: slice | Numbers) -> Numbers:
        """Pixels that a model and each of S others get right, int64 [S, n, C]."""
        counted = self.places.count(self.words[model] & self.words[others])
        return counted.reshape(-1, *self.right.shape[1:]).astype(np.int64)
