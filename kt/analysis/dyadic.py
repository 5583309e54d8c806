"""Means and regressions over ordered pairs, with standard errors robust to pairs that share models.

Thousands of pairs come from a few dozen models: one bad student spoils all of its pairs, so pairs are far from
independent, and the ordinary standard error is too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kt.analysis import statistics
from kt.analysis.statistics import Components

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOTHING_LEFT = 1e-9
"""A share of the variance below this is rounding: every pair shares a model with every other."""


LEAST = 0.75
"""A variance is never below this share of what effects of models and of pairs would give. The robust sum
alone covers too little where students' effects are much larger than teachers', the larger of the two as it is too
much. This share is ours, chosen on simulated zoos: with 20 models 95 % intervals cover 94 to 98 %, with 8 models up to
100 % (benchmarks/inference.py)."""


@dataclass(frozen=True)
class Dyads:
    """The models of n ordered pairs as numbers.

    Attributes:
        first: the teacher of each pair, int [n].
        second: the student of each pair, int [n].
        both: number of the unordered pair of models, int [n].
        models: how many models there are.
        couples: how many unordered pairs there are.
    """

    first: Ints
    second: Ints
    both: Ints
    models: int
    couples: int

    @classmethod
    def of(cls, teachers: Sequence[Any] | NDArray[Any], students: Sequence[Any] | NDArray[Any]) -> Dyads:
        """Number the models of n pairs; raises ``ValueError`` where a pair's teacher is its student."""
        n = len(teachers)
        codes, names = pd.factorize(np.concatenate([np.asarray(teachers), np.asarray(students)]))
        first, second = codes[:n].astype(np.int64), codes[n:].astype(np.int64)
        if (first == second).any():
            raise ValueError("a pair's teacher is its student")
        both, couples = pd.factorize(np.minimum(first, second) * len(names) + np.maximum(first, second))
        return cls(first, second, both.astype(np.int64), len(names), len(couples))

    def __len__(self) -> int:
        return len(self.first)

    def over_sharing(self, x: Floats) -> Floats:
        """Sum of x_p x_q' over all p, q that share a model, [k, k], from x [n, k].

        The squared sums of every model count a (p, q) once for each model they share; those that share both (a pair
        with itself, and with its reverse) are counted twice, and the squared sums of every couple take that back.
        """
        of_model = _sums(self.first, x, self.models) + _sums(self.second, x, self.models)
        of_both = _sums(self.both, x, self.couples)
        return of_model.T @ of_model - of_both.T @ of_both

    def two_way(self, x: Floats) -> Floats:
        """Sum of x_p x_q over all p, q of one teacher or of one student, [k], from x [n, k].

        The sums are corrected for few clusters by G/(G − 1). Source: Cameron, Gelbach, Miller 2011.
        """
        parts = []
        for role in (self.first, self.second):
            clusters = len(np.unique(role))
            parts.append((_sums(role, x, self.models) ** 2).sum(0) * clusters / max(clusters - 1, 1))
        return np.asarray(parts[0] + parts[1] - (x**2).sum(0), np.float64)


@dataclass(frozen=True)
class Fit:
    """A least-squares fit over pairs.

    Attributes:
        beta: coefficients, [k].
        se: their standard errors, robust to pairs that share a model, [k]; infinite where none can be had.
        se_two_way: standard errors clustered by teacher and by student, which miss that one model is both, [k].
        se_iid: the ordinary standard errors, as if pairs were independent, [k].
        df: degrees of freedom of the t distribution that ``beta / se`` is compared with, [k].
        n: pairs.
        models: distinct models among them.
    """

    beta: Floats
    se: Floats
    se_two_way: Floats
    se_iid: Floats
    df: Floats
    n: int
    models: int

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Lower and upper ends of the confidence intervals, [k] each."""
        reach = stats.t.ppf(0.5 + level / 2, self.df) * self.se
        return self.beta - reach, self.beta + reach

    def p(self) -> Floats:
        """Two-sided p-values of the coefficients against zero, [k]; one where nothing is known or left to explain."""
        t = np.abs(self.beta) / np.where(self.se > 0, self.se, np.inf)
        return np.asarray(2 * stats.t.sf(t, self.df), np.float64)


def ols(y: ArrayLike, x: ArrayLike, dyads: Dyads) -> Fit:
    """Least squares over pairs with dyadic-robust standard errors.

    With weights w = x (x'x)⁻¹, so that a coefficient is Σ w_p y_p, and residuals e, the sum of w_p e_p w_q e_q over
    all (p, q) that share at least one model estimates its variance. Fitting makes the residuals too small: for
    independent errors the sum comes out too small by the factor 1 − Σ w_p w_q h_pq / Σ w_p², the sum again over
    (p, q) that share a model, with h = x (x'x)⁻¹ x'. We divide by it. For a mean that is 1 − K/n², where K counts
    the (p, q), and exact also for v = a_teacher + b_student + noise on all pairs of a zoo: for eight models it widens
    the error by 1.37; where no two pairs share a model it is the usual n/(n − 1).

    The sum can come out too small or negative in a small zoo: the result is never below ``LEAST`` times what
    effects of teachers, students and pairs would give, with variances estimated from the residuals. With three
    models or fewer every pair shares a model with every other, so that the sum is always zero: then it is the
    ordinary one.

    The t distribution's degrees of freedom are the effective number of independent parts behind a coefficient, less
    one: (Σ v)² / Σ v², with v the shares of every model and of every pair in the variance under those effects. It is
    about the number of models for a mean where models differ, that of pairs where they do not, and small where few
    models carry a coefficient, as for a property that one model alone has.

    Args:
        y: one number per pair, [n].
        x: regressors, [n, k], the constant among them if there is to be one; of full rank.
        dyads: the models of the pairs.

    Raises:
        ValueError: the columns of ``x`` are linearly dependent.

    Source: Aronow, Samii, Assenova 2015, arXiv 1312.3398; the division is ours; the degrees of freedom follow
    Carter, Schnepel, Steigerwald 2017 (effective number of clusters).
    """
    values, regressors = np.asarray(y, np.float64), np.asarray(x, np.float64)
    n, k = regressors.shape
    if n == 0 or np.linalg.matrix_rank(regressors) < k:
        raise ValueError("the columns of x are linearly dependent")
    inverse = np.asarray(np.linalg.inv(regressors.T @ regressors), np.float64)
    weights: Floats = regressors @ inverse
    beta = weights.T @ values
    residuals = values - regressors @ beta
    unknown = np.full(k, np.inf)
    if n <= k:
        return Fit(beta, unknown, unknown, unknown, np.ones(k), n, dyads.models)
    se_iid = np.sqrt(np.diag(inverse) * float(residuals @ residuals) / (n - k))
    two_way = np.sqrt(np.maximum(dyads.two_way(weights * residuals[:, None]), 0))
    robust = np.diag(dyads.over_sharing(weights * residuals[:, None]))
    left = _left(weights, regressors, inverse, dyads)
    usable = left > NOTHING_LEFT
    found = statistics.moments(residuals, dyads.first, dyads.second)
    carried = _carried(weights, found, dyads)
    variance = np.where(usable, np.maximum(robust / np.where(usable, left, 1), LEAST * carried.sum(0)), se_iid**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = np.where(variance > 0, carried.sum(0) ** 2 / (carried**2).sum(0), dyads.models)
    return Fit(beta, np.sqrt(variance), two_way, se_iid, np.maximum(effective - 1, 1), n, dyads.models)


def _left(weights: Floats, x: Floats, inverse: Floats, dyads: Dyads) -> Floats:
    """Share of each coefficient's variance that is left after fitting, where errors are independent, [k]."""
    k = x.shape[1]
    taken = [float((inverse * dyads.over_sharing(weights[:, [j]] * x)).sum()) for j in range(k)]
    return np.asarray(1 - np.array(taken) / (weights**2).sum(0), np.float64)


def _carried(weights: Floats, found: Components, dyads: Dyads) -> Floats:
    """Parts of each model, then of each pair, in a coefficient's variance if there is nothing else, [m + n, k].

    Half of a pair's residual is the pair's own, the other half is shared by its two models: alone, the first gives too
    many degrees of freedom in small zoos and the second too few (benchmarks/inference.py).
    """
    taught, learned = _sums(dyads.first, weights, dyads.models), _sums(dyads.second, weights, dyads.models)
    of_models = found.teacher * taught**2 + found.student * learned**2 + 2 * found.covariance * taught * learned
    of_pairs = found.residual * weights**2 / 2
    shared = (_sums(dyads.first, of_pairs, dyads.models) + _sums(dyads.second, of_pairs, dyads.models)) / 2
    return np.concatenate([of_models + shared, of_pairs])


def _sums(groups: Ints, x: Floats, count: int) -> Floats:
    """Sums of the rows of x [n, k] by group, [count, k]."""
    return np.column_stack([np.bincount(groups, column, count) for column in x.T])


def mean(values: ArrayLike, teachers: Sequence[Any], students: Sequence[Any]) -> tuple[float, float]:
    """Mean over ordered pairs, and its standard error robust to pairs that share a model.

    Args:
        values: one number per pair, [n].
        teachers: model of each pair, [n].
        students: the other model of each pair, [n].

    Returns:
        The mean (NaN without pairs) and its standard error, in the values' unit: that of ``ols``, but never below the
        ordinary one. It is infinite for fewer than two pairs, and for pairs of one student that are all equal: they
        are one training, as of a control, and say nothing of how much others would differ.

    Raises:
        ValueError: a pair's teacher is its student.
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2 or (len(set(students)) == 1 and np.ptp(v) == 0):
        return (float(v[0]) if len(v) else math.nan), math.inf
    fit = ols(v, np.ones((len(v), 1)), Dyads.of(teachers, students))
    return float(fit.beta[0]), float(max(fit.se[0], fit.se_iid[0]))


def ordinary(values: ArrayLike) -> float:
    """The usual standard error of a mean, as if the values [n] were independent; infinite for fewer than two."""
    v = np.asarray(values, dtype=np.float64)
    return float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else math.inf
