"""The mean over ordered pairs, with a standard error that knows that pairs share models.

Thousands of pairs come from a few dozen models: one bad student spoils every pair it is in, so pairs are far from
independent, and the ordinary standard error is too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def mean(values: ArrayLike, teachers: Sequence[Any], students: Sequence[Any]) -> tuple[float, float]:
    """Mean over ordered pairs, and its standard error robust to pairs that share a model.

    With e_p = v_p − mean, the sum of e_p e_q over all (p, q) that share at least one model estimates n² Var(mean).
    Taking the mean out makes it too small by the factor 1 − K/n², where K counts those (p, q): exactly so for
    independent values on any set of pairs, and for v = a_teacher + b_student + noise on all pairs of a zoo. We divide
    by it. For eight models that widens the error by 1.37; where no two pairs share a model it is the usual n/(n − 1).

    The result is never below the ordinary standard error: the sum can come out too small or negative in a small zoo,
    and with three models or fewer every pair shares a model with every other, so that it is always zero.

    Args:
        values: one number a pair, [n].
        teachers: model of each pair, [n].
        students: the other model of each pair, [n].

    Returns:
        The mean (NaN without pairs) and its standard error (infinite for fewer than two pairs), in the values' unit.

    Raises:
        ValueError: a pair's teacher is its student.

    Source: Aronow, Samii, Assenova 2015, arXiv 1312.3398; the division by 1 − K/n² is ours.
    """
    v = np.asarray(values, dtype=np.float64)
    n = len(v)
    if n < 2:
        return (float(v[0]) if n else math.nan), math.inf
    codes, names = pd.factorize(np.concatenate([np.asarray(teachers, object), np.asarray(students, object)]))
    first, second = codes[:n], codes[n:]
    if (first == second).any():
        raise ValueError("a pair's teacher is its student")
    residuals = v - v.mean()
    sharing = _over_sharing(residuals, first, second, len(names)) / n**2
    left = 1 - _over_sharing(np.ones(n), first, second, len(names)) / n**2
    robust = sharing / left if left > 1e-12 else 0.0
    return float(v.mean()), max(math.sqrt(max(robust, 0.0)), ordinary(v))


def ordinary(values: ArrayLike) -> float:
    """The usual standard error of a mean, as if the values [n] were independent; infinite for fewer than two."""
    v = np.asarray(values, dtype=np.float64)
    return float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else math.inf


def _over_sharing(x: NDArray[np.float64], first: NDArray[np.intp], second: NDArray[np.intp], models: int) -> float:
    """Sum of x_p x_q over all p, q that share a model, from x [n] and the pairs' two models, int [n] each.

    The squared sums of every model count a (p, q) once for each model they share; those that share both (a pair
    with itself, and with its reverse) are counted twice, and the squared sums of every unordered pair take that back.
    """
    of_model = np.bincount(first, x, models) + np.bincount(second, x, models)
    both = np.minimum(first, second).astype(np.int64) * models + np.maximum(first, second)
    of_both = np.bincount(np.unique(both, return_inverse=True)[1], x)
    return float(of_model @ of_model - of_both @ of_both)
