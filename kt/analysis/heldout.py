"""How well each predictor does on models it has never seen.

Models are dealt into folds. A predictor learns from the pairs none of whose models is in the fold, and is scored on
held-out students (teacher known), held-out teachers (student known) and on pairs of two held-out models: a model that
is held out in one role is held out in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import weightedtau

from kt.analysis.outcomes import Outcomes
from kt.analysis.predictors import CONSTANT, TREES, Learn, Pairs, ladder
from kt.analysis.properties import informative

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

SCHEMES = ("students", "teachers", "both")
FOLDS = 5
FEW_PAIRS, REPEATS = 2_000, 3
"""Up to so many pairs the models are dealt anew so many times, because one deal is chance."""

MOST_RANKINGS = 200
MOST_SHUFFLED = 5_000
"""Rankings scored, and held-out pairs of one fold shuffled, at most: more take time and change nothing visible."""

TOP = (1, 3)
DESERVES = 0.1
"""Held-out R² from which on it is worth asking which properties a predictor uses."""

TOGETHER = 0.6
"""Properties whose absolute rank correlation is at least this, on average, are shuffled together."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions for held-out pairs of one method.

    Attributes:
        predictions: columns ``rung``, ``scheme``, ``repeat``, ``fold``, ``row`` (of the outcomes), ``predicted`` and
            ``average`` (of the pairs learned from).
        importances: rows of the table ``importances``, one a group of properties; empty where not deserved.
    """

    predictions: pd.DataFrame
    importances: pd.DataFrame


def hold_out(outcomes: Outcomes, rng: np.random.Generator, importances: bool = True) -> HeldOut | None:
    """Predictions of all rungs for held-out models; None where fewer than four models leave nothing to learn from.

    Args:
        outcomes: the method's pairs.
        rng: random numbers: how the models are dealt, and what is shuffled.
        importances: whether to ask which properties the trees use.
    """
    if outcomes.control or outcomes.models < 4:
        return None
    rungs = ladder(outcomes)
    parts, shuffled = [], []
    groups = _groups(outcomes) if importances and TREES in rungs else {}
    for repeat in range(REPEATS if len(outcomes) <= FEW_PAIRS else 1):
        for fold, train, tests in _folds(outcomes, rng):
            pairs = Pairs(outcomes.teachers, outcomes.students, outcomes.x)
            average = float(outcomes.delta[train].mean())
            for rung, learn in rungs.items():
                predict = learn(pairs.rows(train), outcomes.delta[train])
                for scheme, test in tests.items():
                    rows = np.flatnonzero(test)
                    made = predict(pairs.rows(test))
                    parts.append(
                        pd.DataFrame({"row": rows, "predicted": made}).assign(
                            rung=rung, scheme=scheme, repeat=repeat, fold=fold, average=average
                        )
                    )
                if rung == TREES and groups and "students" in tests:
                    shuffled += list(_shuffled(outcomes, pairs, tests["students"], predict, groups, average, rng))
    if not parts:
        return None
    predictions = pd.concat(parts, ignore_index=True)
    return HeldOut(predictions, _importances(outcomes, predictions, pd.DataFrame(shuffled)))


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
    """How well teachers are ranked for a student, over students: τ, regret of the predicted best, and hours saved.

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


def _groups(outcomes: Outcomes) -> dict[str, list[str]]:
    """Properties that go together, by average linkage of their absolute rank correlations."""
    names, _ = informative(outcomes.x)
    if len(names) < 2:
        return {name: [name] for name in names}
    rows = np.random.default_rng(0).permutation(len(outcomes))[:5_000]
    correlation = outcomes.x[names].iloc[rows].corr("spearman").abs().fillna(0).to_numpy(copy=True)
    np.fill_diagonal(correlation, 1)
    distance = squareform(1 - np.clip((correlation + correlation.T) / 2, 0, 1), checks=False)
    label = fcluster(linkage(distance, "average"), 1 - TOGETHER, "distance")
    members: dict[int, list[str]] = {}
    for name, group in zip(names, label, strict=True):
        members.setdefault(int(group), []).append(name)
    return {", ".join(group): group for group in members.values()}


def _shuffled(
    outcomes: Outcomes, pairs: Pairs, test: Mask, predict: Any, groups: dict[str, list[str]], average: float,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Squared errors on held-out students with one group of properties after another shuffled among their pairs."""
    rows = np.flatnonzero(test)
    if len(rows) > MOST_SHUFFLED:
        rows = np.sort(rng.choice(rows, MOST_SHUFFLED, replace=False))
    if len(rows) < 2:
        return
    others, delta = Pairs(pairs.teachers[rows], pairs.students[rows], pairs.x.iloc[rows]), outcomes.delta[rows]
    whole = float(((delta - average) ** 2).sum())
    error = float(((delta - predict(others)) ** 2).sum())
    for name, group in groups.items():
        x = others.x.copy()
        x[group] = x[group].to_numpy()[rng.permutation(len(x))]
        worse = float(((delta - predict(Pairs(others.teachers, others.students, x))) ** 2).sum())
        yield {"properties": name, "error": error, "worse": worse, "whole": whole}


def _importances(outcomes: Outcomes, predictions: pd.DataFrame, shuffled: pd.DataFrame) -> pd.DataFrame:
    """Loss of held-out R² by shuffling; nothing where the trees explain too little for the question to make sense."""
    of_trees = predictions[(predictions["rung"] == TREES) & (predictions["scheme"] == "students")]
    if shuffled.empty or of_trees.empty:
        return pd.DataFrame()
    r2 = r_squared(of_trees.assign(delta=outcomes.delta[of_trees["row"]]))
    if not r2 >= DESERVES:
        return pd.DataFrame()
    rows = []
    for name, folds in shuffled.groupby("properties", sort=False):
        whole = float(folds["whole"].sum())
        lost = (folds["worse"] - folds["error"]).to_numpy(np.float64)
        error = float(lost.std(ddof=1)) * np.sqrt(len(lost)) / whole if len(lost) > 1 else np.inf
        rows.append(
            {
                "method": outcomes.method,
                "properties": name,
                "importance": float(lost.sum()) / whole,
                "importance_se": error,
                "r2": r2,
            }
        )
    return pd.DataFrame(rows).sort_values("importance", ascending=False, kind="stable", ignore_index=True)


__all__ = ["SCHEMES", "HeldOut", "Learn", "best_rung", "hold_out", "r_squared", "score"]
