"""Pairs to transfer next (``kt next``): those that would improve the predictor most per hour.

Model: delta = properties · coefficients + teacher's effect + student's effect + noise. Knowledge of coefficients and
effects is a normal distribution; a transfer narrows it. The criterion is the mean variance of the predicted delta over
all pairs not yet transferred (integrated variance, or V-optimality): pairs are taken one by one, each time the one that
lowers it most per hour. Deltas only set the sizes of the variances, so the choice does not chase pairs that look good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis import statistics
from kt.analysis.effects import independent
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, Pairs, informative
from kt.analysis.prediction import linear
from kt.analysis.recommend import teaching
from kt.errors import KtError, unknown

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_PROPERTIES = 12
"""More coefficients than this cannot be learned from the few models that there are."""

MOST_PAIRS = 500
"""A plan is made anew after so many pairs: what they bring changes what is worth knowing next."""


@dataclass(frozen=True)
class Plan:
    """Pairs to transfer next.

    Attributes:
        method: the method to transfer by.
        pairs: columns ``teacher``, ``student``, ``method``, ``hours``, ``hours_so_far``, ``error`` (expected standard
            error of a predicted delta after it, percentage points).
        error: the same before any of them.
        left: pairs that could still be transferred.
        hours: what the pairs take together.
    """

    method: str
    pairs: pd.DataFrame
    error: float
    left: int
    hours: float


def choose(inputs: Inputs, budget: float, method: str | None = None) -> Plan:
    """The pairs to transfer next within a budget of hours.

    Raises:
        KtError: the budget is not positive or below the cheapest pair, the method is unknown, nothing finished to learn
            from, its times are unknown, or nothing is left to transfer.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise KtError(f"--budget: {budget:g} hours; it must be above 0")
    outcomes = _method(inputs, method)
    names = outcomes.known.names
    teachers, students = (grid.ravel() for grid in np.indices((len(names), len(names))))
    done = np.eye(len(names), dtype=bool)
    done[outcomes.teachers, outcomes.students] = True
    left = ~done.ravel()
    if not left.any():
        raise KtError(f"nothing is left to transfer by {outcomes.method!r}: every pair of the zoo is done")
    candidates = Pairs(teachers[left], students[left], outcomes.known.of(teachers[left], students[left]))
    seen = Pairs(outcomes.teachers, outcomes.students, outcomes.x)
    hours = _hours(outcomes, candidates.students, len(names))
    if hours.min() > budget:
        raise KtError(f"--budget: {budget:g} hours; one transfer takes {hours.min():.3g} hours at least")
    columns, error, picked = _greedy(seen, candidates, outcomes.delta, hours, budget, len(names))
    pairs = pd.DataFrame(
        {
            "teacher": [names[t] for t in candidates.teachers[picked]],
            "student": [names[s] for s in candidates.students[picked]],
            "method": outcomes.method,
            "hours": hours[picked],
            "hours_so_far": np.cumsum(hours[picked]),
            "error": columns,
        }
    )
    return Plan(outcomes.method, pairs, error, int(left.sum()), float(hours[picked].sum()))


def _method(inputs: Inputs, method: str | None) -> Outcomes:
    found = teaching(inputs)
    if method is None:
        return max(found.values(), key=lambda o: float(o.delta.mean()))
    if method not in found:
        raise KtError(unknown("method", method, found))
    return found[method]


def _hours(outcomes: Outcomes, students: Ints, models: int) -> Floats:
    """Hours of one transfer: the student's mean so far, or the method's where it has none."""
    known = np.isfinite(outcomes.seconds)
    if not known.any():
        raise KtError(f"table transfers: no `seconds` of {outcomes.method!r}, so that a budget of hours means nothing")
    own = outcomes.students[known]
    count = np.bincount(own, minlength=models)
    mean = np.bincount(own, outcomes.seconds[known], models) / np.maximum(count, 1)
    overall = float(outcomes.seconds[known].mean())
    return np.asarray(np.maximum(np.where(count > 0, mean, overall)[students], 1e-9) / 3600, np.float64)


def _greedy(
    seen: Pairs, candidates: Pairs, delta: Floats, hours: Floats, budget: float, models: int
) -> tuple[list[float], float, list[int]]:
    """Errors after each pick, the error before, and the picks, as rows of the candidates."""
    names = [name for name in informative(seen.x)[0] if seen.x[name].notna().all() and candidates.x[name].notna().all()]
    names = independent(seen.x[names])[:MOST_PROPERTIES] if names else []
    left_over = delta - linear(seen, delta, names)(seen) if names else delta - delta.mean()
    found = statistics.moments(left_over, seen.teachers, seen.students)
    noise = max(found.residual, 1e-6 * max(float(delta.var()), 1e-12))
    both = pd.concat([seen.x[names], candidates.x[names]]).to_numpy(np.float64)
    scale = both.std(0)
    x = np.column_stack(
        [np.ones(len(candidates.x)), (both[len(seen.x) :] - both.mean(0)) / np.where(scale > 0, scale, 1)]
    )
    old = np.column_stack([np.ones(len(seen.x)), (both[: len(seen.x)] - both.mean(0)) / np.where(scale > 0, scale, 1)])
    k = x.shape[1]
    prior = np.concatenate(
        [
            np.full(k, max(float(delta.var()), noise)),
            np.full(models, max(found.teacher, 1e-3 * noise)),
            np.full(models, max(found.student, 1e-3 * noise)),
        ]
    )
    covariance = np.asarray(np.linalg.inv(np.diag(1 / prior) + products(old, seen, models) / noise), np.float64)
    wanted = products(x, candidates, models)
    open_, spent = np.ones(len(x), bool), 0.0
    picks: list[int] = []
    errors: list[float] = []
    before = float(np.sqrt(np.trace(covariance @ wanted) / len(x)))
    while len(picks) < MOST_PAIRS:
        affordable = open_ & (spent + hours <= budget * (1 + 1e-12))
        if not affordable.any():
            break
        gain = form(covariance @ wanted @ covariance, x, candidates, k, models)
        gain /= noise + form(covariance, x, candidates, k, models)
        pick = int(np.argmax(np.where(affordable, gain / hours, -np.inf)))
        row = row_of(x[pick], int(candidates.teachers[pick]), int(candidates.students[pick]), models)
        along = covariance @ row
        covariance -= np.outer(along, along) / (noise + float(row @ along))
        open_[pick] = False
        spent += float(hours[pick])
        picks.append(pick)
        errors.append(float(np.sqrt(max(np.trace(covariance @ wanted), 0) / len(x))))
    return errors, before, picks


def row_of(x: Floats, teacher: int, student: int, models: int) -> Floats:
    """A pair's row z: its properties, a flag of the teacher and a flag of the student."""
    row = np.zeros(len(x) + 2 * models)
    row[: len(x)], row[len(x) + teacher], row[len(x) + models + student] = x, 1, 1
    return row


def products(x: Floats, pairs: Pairs, models: int) -> Floats:
    """Z'Z for pairs whose rows Z are their properties, a flag of the teacher and a flag of the student."""
    k = x.shape[1]
    size = k + 2 * models
    made = np.zeros((size, size))
    made[:k, :k] = x.T @ x
    teachers, students = k + pairs.teachers, k + models + pairs.students
    for places in (teachers, students):
        sums = np.column_stack([np.bincount(places, column, size) for column in x.T])
        made[:, :k] += sums
        made[:k, :] += sums.T
        made[np.arange(size), np.arange(size)] += np.bincount(places, minlength=size)
    together = np.bincount(teachers * size + students, minlength=size * size).reshape(size, size)
    return np.asarray(made + together + together.T, np.float64)


def form(matrix: Floats, x: Floats, pairs: Pairs, k: int, models: int) -> Floats:
    """The form z'Mz of every pair's row z, [n], without writing the rows out."""
    t, s = k + pairs.teachers, k + models + pairs.students
    of_x = x @ matrix[:k, :k]
    linear_part = (x * (matrix[:k, :].T[t] + matrix[:k, :].T[s])).sum(1)
    diagonal = np.diag(matrix)
    return np.asarray((of_x * x).sum(1) + 2 * linear_part + diagonal[t] + diagonal[s] + 2 * matrix[t, s], np.float64)
