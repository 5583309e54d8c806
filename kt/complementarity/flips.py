"""Flips of all pairs: from one bit per image and model, or from scores that are numbers; and what follows from them.

The bits (15 MB for 50,000 images and 1,826 models) lie by class, and every class fills whole 64-bit words. A pair's
flips in a class are then one AND and one population count of a word or two, and nothing but the bits is held for all
models at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kt.tasks.task import standard_error

WORD = 64

Counts = NDArray[np.unsignedinteger]
"""Numbers of images, as small as they fit: uint8 where no class has more than 64 images, else uint32."""

HELD_SCORES = 1 << 17
"""Differences of scores at a time: they stay in a core's own cache."""

Reals = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Positions of the images' bits.

    Attributes:
        place: the bit of every image, int64 [N].
        starts: the first word of every class, int64 [C]; a class without images has one empty word.
        words: number of words W.
    """

    place: NDArray[np.int64]
    starts: NDArray[np.int64]
    words: int

    @classmethod
    def of(cls, labels: NDArray[np.integer], classes: int) -> Places:
        """Places of images by their labels, [N]."""
        sizes = np.bincount(labels, minlength=classes)
        words = np.maximum(1, -(-sizes // WORD))
        starts = np.cumsum(words) - words
        order = np.argsort(labels, kind="stable")
        first_image = np.cumsum(sizes) - sizes
        place = np.empty(len(labels), np.int64)
        place[order] = np.arange(len(labels)) - np.repeat(first_image - WORD * starts, sizes)
        return cls(place, starts, int(words.sum()))

    def pack(self, right: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """One model's bits, uint64 [W], from whether it gets each image right, bool [N]."""
        bits = np.zeros(WORD * self.words, bool)
        bits[self.place] = right
        return np.packbits(bits).view(np.uint64)

    def count(self, words: NDArray[np.uint64]) -> Counts:
        """Bits that are set in every class, [..., C] from [..., W]."""
        ones: NDArray[np.uint8] = np.bitwise_count(words)
        if len(self.starts) == self.words:
            return ones
        by_class: NDArray[np.uint32] = np.add.reduceat(ones, self.starts, axis=-1, dtype=np.uint32)
        return by_class


@dataclass(frozen=True)
class Right:
    """Images that every model gets right.

    Attributes:
        places: positions of the bits.
        words: bits of every model, uint64 [M, W].
        by_class: images right in every class, [M, C].
        images: number of images N.
    """

    places: Places
    words: NDArray[np.uint64]
    by_class: Counts
    images: int

    @classmethod
    def of(cls, places: Places, words: NDArray[np.uint64]) -> Right:
        """From the bits of every model, uint64 [M, W]."""
        return cls(places, words, places.count(words), len(places.place))

    @property
    def total(self) -> NDArray[np.int64]:
        """Images right, int64 [M]."""
        total: NDArray[np.int64] = self.by_class.sum(-1, dtype=np.int64)
        return total

    def flips(self, teachers: NDArray[np.int64], students: NDArray[np.int64]) -> tuple[Counts, Counts]:
        """Positive and negative flips per class of P pairs, [P, C] each: the teacher or the student alone right.

        Source: FG section 3.1.
        """
        both = self.places.count(self.words[teachers] & self.words[students])
        return self.by_class[teachers] - both, self.by_class[students] - both


@dataclass(frozen=True)
class Graded:
    """Scores of all models that are numbers, not right or wrong.

    A flip is then as large as the scores differ: positive flips are the mean over the images of max(0, teacher −
    student), negative ones that of max(0, student − teacher). Of scores of 0 and 1 these are the shares of images that
    ``Right`` counts.

    Attributes:
        scores: of every model, float64 [M, N]; the largest thing that is held.
        clusters: of the images, int64 [N], where they are not independent.
    """

    scores: Reals
    clusters: NDArray[np.int64] | None = None

    @property
    def images(self) -> int:
        """Number of images N."""
        return len(self.scores[0])

    @cached_property
    def mean(self) -> Reals:
        """Mean score of every model, float64 [M]."""
        mean: Reals = self.scores.mean(1)
        return mean

    def flips(self, teachers: Numbers, students: Numbers) -> tuple[Reals, Reals, Reals]:
        """Positive flips of P pairs, their standard errors over images, and negative flips; float64 [P] each."""
        tile = max(1, HELD_SCORES // max(1, self.images))
        parts = [self._flips(teachers[i : i + tile], students[i : i + tile]) for i in range(0, len(teachers), tile)]
        positive, error, negative = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return positive, error, negative

    def _flips(self, teachers: Numbers, students: Numbers) -> tuple[Reals, Reals, Reals]:
        lead = self.scores[teachers] - self.scores[students]
        positive = np.maximum(lead, 0)
        return positive.mean(1), standard_error(positive, self.clusters), np.maximum(-lead, 0).mean(1)


def kappa(n: int, teacher: Numbers, student: Numbers, positive: Numbers) -> Reals:
    """Error consistency: agreement on right and wrong beyond what the accuracies alone give.

    Args:
        n: images.
        teacher: images that the teacher gets right, int64 [P].
        student: images that the student gets right, int64 [P].
        positive: positive flips, int64 [P].

    Returns:
        Cohen's kappa in [−1, 1], float64 [P]; NaN where both models are always right (or always wrong).

    Source: Geirhos et al. 2020, arXiv 2006.16736, equation 3.
    """
    both = (n - (2 * positive - (teacher - student))) / n
    t, s = teacher / n, student / n
    expected = t * s + (1 - t) * (1 - s)
    certain = ((teacher == n) & (student == n)) | ((teacher == 0) & (student == 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(certain, np.nan, (both - expected) / (1 - expected))


def double_fault(n: int, student: Numbers, positive: Numbers) -> Reals:
    """Percent of images that both models get wrong, float64 [P]; arguments as for ``kappa``.

    Source: Giacinto and Roli 2001; Kuncheva and Whitaker 2003, Machine Learning 51, equation 13.
    """
    return 100 * (n - student - positive) / n


def q_statistic(n: int, teacher: Numbers, student: Numbers, positive: Numbers) -> Reals:
    """Yule's Q in [−1, 1], float64 [P]: 1 if both fail on the same images, 0 if independent; NaN if undefined.

    Arguments as for ``kappa``. Q = (ad − bc) / (ad + bc) with a, d images that both get right or wrong, b, c that one
    gets right.

    Source: Yule 1900; Kuncheva and Whitaker 2003, Machine Learning 51, equation 9.
    """
    negative = positive - (teacher - student)
    same = (teacher - positive).astype(np.float64) * (n - student - positive)
    different = positive.astype(np.float64) * negative
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(same + different > 0, (same - different) / (same + different), np.nan)


def untrained(n: int, student: Numbers, classes: int) -> Reals:
    """Positive flips that an untrained teacher is expected to have, percent of n images, float64 [P].

    Its predictions do not depend on the images. Whether it draws a class for each image, or one class for all images:
    of the images that the student gets wrong it gets one in C right.

    Source: FG measures it with random weights, and finds about 0.03 % with ImageNet's 1,000 classes, as this does.
    """
    return 100 * (n - student) / n / classes
