"""Predictors of transfer deltas, from a constant to boosted trees on all properties: a ladder of what must be known.

A predictor learns from some pairs and predicts others, perhaps of models it has never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV

from kt.analysis import components
from kt.analysis.outcomes import Outcomes
from kt.analysis.properties import informative

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONSTANT, TREES = "constant", "all, boosted trees"
MOST_FOR_TREES = 20_000
"""Trees learn from at most this many pairs, drawn at random: more cost time and gain nothing that could be measured."""

LEAST_FOR_ALL = 5
"""Predictors on all properties need this many pairs at least."""

MEASURES = ("pos_flips", "agreement", "kappa", "capa", "cka", "leep")
STATIC = {"teacher size": ("teacher_log10_params", "teacher_params"), "teacher accuracy": ("teacher_acc",)}
"""Properties of the teacher alone, by one name or another: they rank teachers in the same way for every student.

Source: arXiv 2510.06448, where such a ranking is hard to beat."""
GAP = "acc_difference"


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn from or to predict: their models' numbers, int [n] each, and properties, [n, columns]."""

    teachers: Ints
    students: Ints
    x: pd.DataFrame

    def rows(self, which: NDArray[np.bool_]) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.teachers[which], self.students[which], self.x[which])


Predict = Callable[[Pairs], Floats]
Learn = Callable[[Pairs, Floats], Predict]
"""From pairs and their deltas [n] to a function that predicts those of others."""


def ladder(outcomes: Outcomes) -> dict[str, Learn]:
    """The predictors that the known properties allow, simplest first."""
    names, _ = informative(outcomes.x)
    rungs: dict[str, Learn] = {
        CONSTANT: _constant,
        "student mean": partial(_effects, of_teachers=False),
        "teacher + student": partial(_effects, of_teachers=True),
    }
    for rung, columns in STATIC.items():
        if known := [name for name in columns if name in names]:
            rungs[rung] = partial(linear, columns=known)
    gap = [GAP] if GAP in names else []
    if gap:
        rungs["accuracy gap"] = partial(linear, columns=gap)
    for measure in MEASURES:
        if measure in names:
            rungs[" + ".join([*(["gap"] if gap else []), measure])] = partial(linear, columns=[*gap, measure])
    if len(names) > 1 and len(outcomes) >= LEAST_FOR_ALL:
        rungs["all, linear"] = partial(linear, columns=names)
        rungs[TREES] = partial(trees, columns=names)
    return rungs


def _constant(pairs: Pairs, delta: Floats) -> Predict:
    average = float(delta.mean())
    return lambda others: np.full(len(others.teachers), average)


def _effects(pairs: Pairs, delta: Floats, of_teachers: bool) -> Predict:
    """Means of students, and of teachers where asked, drawn towards the overall mean; that mean for unseen models."""
    found = components.moments(delta, pairs.teachers, pairs.students)
    if not of_teachers:
        found = components.Components(0.0, found.student, found.residual + found.teacher)
    models = 1 + int(max(pairs.teachers.max(), pairs.students.max()))
    average, teachers, students = components.shrunken(delta, pairs.teachers, pairs.students, models, found)

    def predict(others: Pairs) -> Floats:
        made = np.full(len(others.teachers), average)
        for effect, numbers in ((teachers, others.teachers), (students, others.students)):
            seen = numbers < models
            made[seen] += effect[numbers[seen]]
        return made

    return predict


def linear(pairs: Pairs, delta: Floats, columns: Sequence[str]) -> Predict:
    """Ridge regression on standardised columns; an unknown value counts as the average one."""
    x = pairs.x[list(columns)].to_numpy(np.float64)
    known = np.isfinite(x)
    count = np.maximum(known.sum(0), 1)
    centre = np.where(known, x, 0).sum(0) / count
    scale = np.sqrt((np.where(known, x - centre, 0) ** 2).sum(0) / count)
    scale = np.where(scale > 1e-12 * (1 + np.abs(centre)), scale, np.inf)
    if not np.isfinite(scale).any() or len(delta) < 3:
        return _constant(pairs, delta)

    def prepared(frame: pd.DataFrame) -> Floats:
        values = frame[list(columns)].to_numpy(np.float64)
        return np.asarray(np.where(np.isfinite(values), values - centre, 0) / scale, np.float64)

    model = RidgeCV(alphas=np.logspace(-3, 4, 15)).fit(prepared(pairs.x), delta)
    return lambda others: np.asarray(model.predict(prepared(others.x)), np.float64)


def trees(pairs: Pairs, delta: Floats, columns: Sequence[str]) -> Predict:
    """Gradient-boosted trees; unknown values are a branch of their own.

    Columns that do not vary among these pairs are left out: trees cannot split them, nor bin what is all unknown.
    """
    columns = [name for name in columns if pairs.x[name].min() < pairs.x[name].max()]
    if not columns:
        return _constant(pairs, delta)
    x = pairs.x[columns].to_numpy(np.float64)
    if len(delta) > MOST_FOR_TREES:
        some = np.random.default_rng(0).choice(len(delta), MOST_FOR_TREES, replace=False)
        x, delta = x[some], delta[some]
    leaf = int(np.clip(len(delta) // 20, 3, 30))
    model = HistGradientBoostingRegressor(
        max_iter=100, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=leaf, l2_regularization=1.0,
        early_stopping=False, random_state=0,
    )  # fmt: skip
    model.fit(x, delta)
    return lambda others: np.asarray(model.predict(others.x[columns].to_numpy(np.float64)), np.float64)
