"""Predictors of transfer deltas, from a constant to boosted trees on all properties: a ladder of what must be known.

A predictor learns from some pairs and predicts others, perhaps of models left out of its fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import weightedtau
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV

from kt.analysis import statistics
from kt.analysis.effects import LEAST_MODELS, errors_shuffled, importances, related
from kt.analysis.outcomes import Outcomes, Pairs, informative

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONSTANT, TREES = "constant", "all, boosted trees"
MOST_FOR_TREES = 20_000
"""Trees learn from at most this many pairs, drawn at random: more cost time and gain nothing that could be measured."""

LEAST_FOR_ALL = 5
"""Predictors on all properties need this many pairs at least."""

MEASURES = ("pos_flips", "agreement", "kappa", "capa", "cka", "leep")
STATIC = {"teacher size": ("teacher_log10_params", "teacher_params"), "teacher {metric}": ("teacher_acc",)}
"""Properties of the teacher alone, by one name or another: they rank teachers in the same way for every student.

Source: arXiv 2510.06448, where such a ranking is hard to beat."""
GAP = "acc_difference"


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
            rungs[rung.format(metric=outcomes.metric)] = partial(linear, columns=known)
    gap = [GAP] if GAP in names else []
    if gap:
        rungs[f"{outcomes.metric} gap"] = partial(linear, columns=gap)
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
    """Means of students, and of teachers where asked, drawn towards the overall mean; that mean for other models."""
    found = statistics.moments(delta, pairs.teachers, pairs.students)
    if not of_teachers:
        found = statistics.Components(0.0, found.student, found.residual + found.teacher)
    models = 1 + int(max(pairs.teachers.max(), pairs.students.max()))
    average, teachers, students = statistics.shrunken(delta, pairs.teachers, pairs.students, models, found)

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
        max_iter=100,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=leaf,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    model.fit(x, delta)
    return lambda others: np.asarray(model.predict(others.x[columns].to_numpy(np.float64)), np.float64)


Mask = NDArray[np.bool_]

SCHEMES = ("students", "teachers", "both")
FOLDS = 5
FEW_PAIRS, REPEATS = 2_000, 3
"""Up to so many pairs the models are dealt anew so many times, because one deal is chance."""

MOST_RANKINGS = 200
"""Rankings scored at most: more take time and change nothing visible."""

TOP = (1, 3)


@dataclass(frozen=True)
class HeldOut:
    """Predictions for held-out pairs of one method.

    Attributes:
        predictions: columns ``rung``, ``scheme``, ``repeat``, ``fold``, ``row`` (of the outcomes), ``predicted`` and
            ``average`` (of the pairs learned from).
        importances: rows of the table ``importances``, one per group of properties; empty where the trees fail.
    """

    predictions: pd.DataFrame
    importances: pd.DataFrame


def hold_out(outcomes: Outcomes, rng: np.random.Generator, ask: bool = True) -> HeldOut | None:
    """Predictions of all rungs for held-out models; None where fewer than four models leave nothing to learn from.

    Args:
        outcomes: the method's pairs.
        rng: random numbers: how the models are dealt, and what is shuffled.
        ask: whether to ask which properties the trees use.
    """
    if outcomes.control or outcomes.models < LEAST_MODELS:
        return None
    rungs = ladder(outcomes)
    made: list[tuple[Ints, Floats]] = []
    labels: list[tuple[str, str, int, int, float]] = []
    shuffled: list[dict[str, Any]] = []
    groups = related(outcomes) if ask and TREES in rungs else {}
    pairs = Pairs(outcomes.teachers, outcomes.students, outcomes.x)
    for repeat in range(REPEATS if len(outcomes) <= FEW_PAIRS else 1):
        for fold, train, tests in _folds(outcomes, rng):
            average = float(outcomes.delta[train].mean())
            known, others = pairs.rows(train), {scheme: pairs.rows(test) for scheme, test in tests.items()}
            for rung, learn in rungs.items():
                predict = learn(known, outcomes.delta[train])
                for scheme, test in tests.items():
                    made.append((np.flatnonzero(test), predict(others[scheme])))
                    labels.append((rung, scheme, repeat, fold, average))
                if rung == TREES and groups and "students" in tests:
                    shuffled += list(errors_shuffled(outcomes, pairs, tests["students"], predict, groups, average, rng))
    if not made:
        return None
    of_part = pd.DataFrame(labels, columns=["rung", "scheme", "repeat", "fold", "average"])
    predictions = of_part.loc[of_part.index.repeat([len(rows) for rows, _ in made])].reset_index(drop=True)
    predictions["row"] = np.concatenate([rows for rows, _ in made])
    predictions["predicted"] = np.concatenate([values for _, values in made])
    of_trees = predictions[(predictions["rung"] == TREES) & (predictions["scheme"] == "students")]
    r2 = r_squared(of_trees.assign(delta=outcomes.delta[of_trees["row"]])) if len(of_trees) else math.nan
    return HeldOut(predictions, importances(outcomes.method, r2, pd.DataFrame(shuffled)))


def _folds(outcomes: Outcomes, rng: np.random.Generator) -> Iterator[tuple[int, Mask, dict[str, Mask]]]:
    """Folds of models: the pairs to learn from and, for every scheme, those to predict."""
    models = np.union1d(outcomes.teachers, outcomes.students)
    count = min(FOLDS, len(models) // 2)
    fold_of = np.full(len(outcomes.known.names), -1)
    fold_of[rng.permutation(models)] = np.arange(len(models)) % count
    for fold in range(count):
        teacher, student = fold_of[outcomes.teachers] == fold, fold_of[outcomes.students] == fold
        tests = {"students": student & ~teacher, "teachers": teacher & ~student, "both": teacher & student}
        tests = {scheme: test for scheme, test in tests.items() if test.any()}
        if (train := ~teacher & ~student).sum() >= 2:
            yield fold, train, tests


def score(outcomes: Outcomes, held: HeldOut) -> pd.DataFrame:
    """The rows of table ``ladder`` for one method."""
    rows = []
    for (rung, scheme), made in held.predictions.groupby(["rung", "scheme"], sort=False):
        made = made.assign(delta=outcomes.delta[made["row"]], student=outcomes.students[made["row"]])
        ranked = _ranking(made.assign(hours=outcomes.seconds[made["row"]] / 3600))
        rows.append(
            {
                "method": outcomes.method,
                "scheme": scheme,
                "rung": rung,
                "pairs": made["row"].nunique(),
                "models": outcomes.models,
                "hours": float(np.nansum(outcomes.seconds * outcomes.seeds)) / 3600,
                "r2": r_squared(made),
                "r2_ceiling": outcomes.ceiling,
                **ranked,
            }
        )
    order = {scheme: place for place, scheme in enumerate(SCHEMES)}
    return pd.DataFrame(rows).sort_values("scheme", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def r_squared(made: pd.DataFrame) -> float:
    """Share of the squared error of the training pairs' mean that a prediction saves; a constant has exactly zero."""
    around_mean = float(((made["delta"] - made["average"]) ** 2).sum())
    if around_mean <= 0:
        return float("nan")
    return 1 - float(((made["delta"] - made["predicted"]) ** 2).sum()) / around_mean


def _ranking(made: pd.DataFrame) -> dict[str, Any]:
    """Scores of the ranking of each student's teachers: τ, regret of those ranked first, and hours saved.

    Of many students, some spread evenly are taken.
    """
    taus: list[float] = []
    regrets: dict[int, list[float]] = {k: [] for k in TOP}
    whole, spent = dict.fromkeys(TOP, 0.0), dict.fromkeys(TOP, 0.0)
    number = made.groupby(["repeat", "fold", "student"], sort=False).ngroup()
    step = -(-(1 + int(number.max())) // MOST_RANKINGS)
    for _, group in made[number % step == 0].groupby(number, sort=False):
        delta, predicted = group["delta"].to_numpy(np.float64), group["predicted"].to_numpy(np.float64)
        if len(delta) < 3:
            continue
        hours = group["hours"].to_numpy(np.float64)
        if np.ptp(delta) > 0:
            taus.append(float(weightedtau(delta, predicted).statistic) if np.ptp(predicted) > 1e-12 else 0.0)
        best_first = np.argsort(-predicted, kind="stable")
        for k in TOP:
            if len(delta) <= k:
                continue
            regrets[k].append(float(delta.max() - _best_taken(delta, predicted, k)))
            whole[k] += hours.sum()
            spent[k] += hours[best_first[:k]].sum()
    return {
        "students": made["student"].nunique(),
        "tau": _mean(taus),
        **{f"regret_{k}": _mean(regrets[k]) for k in TOP},
        **{f"hours_saved_{k}": _saved(whole[k], spent[k]) for k in TOP},
    }


def _best_taken(delta: Floats, predicted: Floats, k: int) -> float:
    """Delta of the best of the k teachers predicted best; where all are tied, expected of k drawn at random."""
    if np.ptp(predicted) > 1e-12:
        return float(delta[np.argsort(-predicted, kind="stable")[:k]].max())
    n = len(delta)
    chance = np.array([math.comb(below, k - 1) for below in range(n)]) / math.comb(n, k)  # to be the largest of k
    return float(np.sort(delta) @ chance)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _saved(whole: float, part: float) -> float:
    return 100 * (1 - part / whole) if whole > 0 else float("nan")


def best_rung(scores: pd.DataFrame, scheme: str = "students") -> str:
    """The rung with the highest held-out R²; ties go to the simpler one."""
    rows = scores[(scores["scheme"] == scheme) & scores["r2"].notna()]
    return CONSTANT if rows.empty else str(rows.sort_values("r2", ascending=False, kind="stable")["rung"].iloc[0])
