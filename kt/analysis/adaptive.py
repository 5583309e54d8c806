"""Choice of the next pairs to transfer, from those that are finished (``pairs: {select: adaptive}``).

Model: value = properties · coefficients + teacher's effect + student's effect + noise. Coefficients and both kinds of
effects have normal priors, whose variances are found by EM (empirical Bayes). Two aims have a rule each:

- ``best_teacher``: find each student's best teacher. A pair is worth its expected improvement over the student's best
  pair so far (Mockus 1975; Jones, Schonlau, Welch 1998). The noise counts as part of a pair's own value, which no
  model can know before the transfer. Until transfers tell otherwise, accurate teachers with many positive flips are
  expected to teach more.
- ``predict``: predict all pairs. A pair is worth what it takes from the mean variance of all predictions (V-optimality,
  as in ``kt.analysis.design``); values only set the sizes of the variances.

How many pairs each student gets is decided elsewhere, so that the jobs are known before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from kt.analysis.deltas import PAIR
from kt.analysis.design import form, products, row_of
from kt.analysis.lowrank import Lowered
from kt.analysis.outcomes import Pairs, Properties, informative
from kt.analysis.wording import number, signed, with_error

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

PROMISING = ("acc_difference", "pos_flips", "teacher_acc")
"""Properties expected to raise the gain: the simple rules that are hard to beat in small zoos rank by these."""
HOPE = 0.7
"""Sum of the prior means of their coefficients, in standard deviations of the values."""

STEPS = 30
"""Steps of EM; after these the variances change by no more than a few percent."""


@dataclass(frozen=True)
class Zoo:
    """All pairs that may be chosen.

    Attributes:
        pairs: their models and properties, n of them.
        x: a constant and the properties in standard deviations, 0 where they are unknown, [n, k].
        models: how many models there are.
        promising: columns of x that are ``PROMISING``, [k].
    """

    pairs: Pairs
    x: Floats
    models: int
    promising: Mask

    @classmethod
    def of(cls, known: Properties, teachers: Ints, students: Ints) -> Zoo:
        """The pairs of models given by number, [n] each, with all properties that differ among them."""
        frame = known.of(teachers, students)
        names = informative(frame)[0]
        columns = frame[names].to_numpy(np.float64)
        centred = columns - np.nanmean(columns, 0) if columns.size else columns
        scaled = np.nan_to_num(centred / np.nanstd(centred, 0)) if columns.size else columns
        x = np.column_stack([np.ones(len(frame)), scaled])
        promising = np.isin(["", *names], PROMISING)
        return cls(Pairs(teachers, students, frame), x, len(known.names), promising)

    def rows(self, which: Ints) -> Zoo:
        """Some of the pairs."""
        pairs = Pairs(self.pairs.teachers[which], self.pairs.students[which], self.pairs.x.iloc[which])
        return Zoo(pairs, self.x[which], self.models, self.promising)


def values(transfers: pd.DataFrame, aim: str) -> pd.Series[float]:
    """A value per finished pair, indexed by teacher and student.

    Of every method that trains with a teacher the mean over its seeds; of these means the largest where the aim is to
    find the best teacher and method, else their mean.

    Args:
        transfers: rows with ``teacher``, ``student``, ``method``, ``control``, ``trains``, ``status`` and ``delta``.
        aim: ``best_teacher`` or ``predict``.
    """
    taught = ~transfers["control"] & transfers["trains"] & (transfers["status"] == "ok")
    of_methods = transfers[taught & transfers["delta"].notna()].groupby([*PAIR, "method"])["delta"].mean()
    found: pd.Series[float] = of_methods.groupby(PAIR).agg("max" if aim == "best_teacher" else "mean")
    return found


@dataclass(frozen=True)
class Knowledge:
    """What finished pairs tell of all pairs.

    Attributes:
        mean: of the coefficients, the teachers' and the students' effects, [k + 2 · models].
        covariance: of these.
        noise: variance of a value around them.
    """

    mean: Floats
    covariance: Floats
    noise: float

    def predicted(self, zoo: Zoo) -> tuple[Floats, Floats]:
        """Expected values of pairs, and the variances of these expectations, [n] each."""
        k, models = zoo.x.shape[1], zoo.models
        effects = self.mean[k + zoo.pairs.teachers] + self.mean[k + models + zoo.pairs.students]
        return zoo.x @ self.mean[:k] + effects, form(self.covariance, zoo.x, zoo.pairs, k, models)


def learn(seen: Zoo, value: Floats, hope: float = 0) -> Knowledge:
    """The normal posterior of the model, with the variances that EM finds.

    Args:
        seen: finished pairs.
        value: theirs, [n].
        hope: sum of the prior means of the promising properties' coefficients, in standard deviations of the values.
    """
    k, models, n = seen.x.shape[1], seen.models, len(value)
    spread = max(float(value.var()), 1e-12)
    group = np.repeat([0, 1, 2, 3], [1, k - 1, models, models])
    prior, noise = np.array([1e6 * (spread + float(value.mean()) ** 2), *[spread / 3] * 3]), spread / 3
    hoped = np.zeros(k + 2 * models)
    hoped[:k] = hope * np.sqrt(spread) * seen.promising / max(int(seen.promising.sum()), 1)
    rest = value - seen.x @ hoped[:k]
    square = products(seen.x, seen.pairs, models)
    flags = (np.bincount(numbers, rest, models) for numbers in (seen.pairs.teachers, seen.pairs.students))
    along = np.concatenate([seen.x.T @ rest, *flags])
    for _ in range(STEPS):
        covariance = np.asarray(np.linalg.inv(square / noise + np.diag(1 / prior[group])), np.float64)
        mean = covariance @ along / noise
        second = mean**2 + np.diag(covariance)
        for of_group in range(1, 4):
            if (group == of_group).any():
                prior[of_group] = max(float(second[group == of_group].mean()), 1e-6 * spread)
        left = float(rest @ rest - 2 * mean @ along + mean @ square @ mean + (square * covariance).sum())
        noise = max(left / n, 1e-6 * spread)
    return Knowledge(hoped + mean, covariance, noise)


class Pick(NamedTuple):
    """A chosen pair: its row among all, and why, in words."""

    row: int
    why: str


def choose(zoo: Zoo, seen: Ints, value: Floats, allowed: Mask, quota: Ints, aim: str, digits: int = 2) -> list[Pick]:
    """The pairs to transfer next, student by student.

    Args:
        zoo: all pairs.
        seen: rows of the finished ones.
        value: theirs.
        allowed: pairs that may be chosen, [n].
        quota: pairs of every student, [models]; fewer where it has no more.
        aim: ``best_teacher`` or ``predict``.
        digits: decimals of the words.
    """
    if aim == "best_teacher":
        known = learn(zoo.rows(seen), value, HOPE)
        return _best_teachers(zoo, known, zoo.pairs.students[seen], value, allowed, quota, digits)
    return _most_telling(zoo, learn(zoo.rows(seen), value), allowed, quota, digits)


def _best_teachers(
    zoo: Zoo, known: Knowledge, students: Ints, value: Floats, allowed: Mask, quota: Ints, digits: int
) -> list[Pick]:
    best = np.full(zoo.models, -np.inf)
    np.maximum.at(best, students, value)
    best = np.where(np.isfinite(best), best, value.min())
    mean, variance = known.predicted(zoo)
    error = np.sqrt(variance + known.noise)
    gain = improvement(mean, error, best[zoo.pairs.students])
    picks = []
    for student in np.flatnonzero(quota):
        rows = np.flatnonzero(allowed & (zoo.pairs.students == student))
        for row in rows[np.argsort(-gain[rows], kind="stable")][: quota[student]].tolist():
            told = with_error(float(mean[row]), float(error[row]), digits)
            picks.append(Pick(row, f"expected {told}; best so far {signed(float(best[student]), digits)}"))
    return picks


def improvement(mean: Floats, error: Floats, best: Floats) -> Floats:
    """Expected improvement E[max(v − best, 0)] of normal values v, [n] each."""
    z = (mean - best) / error
    return np.asarray(error * (z * ndtr(z) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)), np.float64)


def _most_telling(zoo: Zoo, known: Knowledge, allowed: Mask, quota: Ints, digits: int) -> list[Pick]:
    k, models, noise = zoo.x.shape[1], zoo.models, known.noise
    wanted = products(zoo.x, zoo.pairs, models)
    total, n = float((known.covariance * wanted).sum()), len(zoo.x)
    both = Lowered(known.covariance @ wanted @ known.covariance, k, models)
    covariance = Lowered(known.covariance.copy(), k, models)
    mine = {s: np.flatnonzero(allowed & (zoo.pairs.students == s)) for s in np.flatnonzero(quota).tolist()}
    picks = []
    for turn in range(int(quota.max(initial=0))):
        for student, rows in mine.items():
            if turn >= quota[student] or not len(rows):
                continue
            x, teachers = zoo.x[rows], zoo.pairs.teachers[rows]
            lowered = both.forms(x, teachers, student) / (noise + covariance.forms(x, teachers, student))
            at = int(np.argmax(lowered))
            z = row_of(x[at], int(teachers[at]), student, models)
            a, b = (matrix.along(x[at], int(teachers[at]), int(student)) for matrix in (covariance, both))
            divisor = noise + float(z @ a)
            covariance.lower(a / divisor, a / 2)
            # both = C W C with the covariance C after the pair, C − aa'/d, without another product of matrices
            both.lower(a / divisor, b - a * float(z @ b) / (2 * divisor))
            mine[student] = np.delete(rows, at)
            before, total = total, total - float(lowered[at])
            errors = (number(float(np.sqrt(max(found, 0) / n)), digits + 2) for found in (before, total))
            picks.append(Pick(int(rows[at]), "mean error of all predictions from {} to {}".format(*errors)))
    return picks
