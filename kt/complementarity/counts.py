"""What follows from four numbers: images that both, only the teacher, only the student, or neither gets right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Numbers = NDArray[np.int64]


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

    Its classes have nothing to do with the images. Whether it draws each from all classes evenly or says one of them,
    drawn evenly, of all images: of the images that the student gets wrong it gets one in C right.

    Source: FG measures it with random weights, and finds about 0.03 % with ImageNet's 1,000 classes, as this does.
    """
    return 100 * (n - student) / n / classes
