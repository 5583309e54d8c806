"""Properties that correlate with gains: one regression per property, with errors and tests robust to shared models.

Every property is tried alone and with the teacher's lead (``acc_difference``) held fixed, and all together where there
are models enough. pos_flips − neg_flips is that lead exactly, so no regression contains all three: with two of them the
third adds nothing. Properties that a fitted predictor uses are found by shuffling correlated ones together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from kt.analysis import statistics
from kt.analysis.dyadic import Dyads, Fit, ols
from kt.analysis.outcomes import Outcomes, Pairs, informative

Floats = NDArray[np.float64]

GAP = "acc_difference"
ALONE, GIVEN_GAP, TOGETHER = "nothing", GAP, "all others"
LEAST_MODELS = 4
"""Below this, every pair shares a model with every other, and no honest standard error can be had."""

CLEAR = 0.05
"""A corrected p-value below this makes an effect clear."""

MODELS_PER_PROPERTY = 5
"""All properties go into one regression only where there are this many models for each."""

DRAWS = ((1_000, 9_999), (20_000, 999))
"""Permutations drawn up to so many pairs; above, ``FEW_DRAWS``, too few to survive a correction for many tests."""
FEW_DRAWS = 199


def effects(outcomes: Outcomes, bootstrap: int, rng: np.random.Generator, draws: int | None = None) -> pd.DataFrame:
    """The rows of table ``effects`` for one method: none where it is a control or has fewer than four models.

    Corrections for many tests start from ``p_permutation``, which is exact in zoos of any size, where there are at
    least 999 permutations, and from ``p`` otherwise.

    Args:
        outcomes: the method's pairs.
        bootstrap: bootstrap samples of the models.
        rng: random numbers, for the bootstrap and the permutations.
        draws: permutations; as ``DRAWS`` says where None.
    """
    if draws is None:
        draws = next((count for most, count in DRAWS if len(outcomes) <= most), FEW_DRAWS)
    if outcomes.control or outcomes.models < LEAST_MODELS:
        return pd.DataFrame()
    names, _ = informative(outcomes.x)
    columns = {name: outcomes.x[name].to_numpy(np.float64) for name in names}
    drawn = statistics.weights(len(outcomes.known.names), bootstrap, rng)
    rows = []
    for given in (ALONE, GIVEN_GAP):
        others = [] if given == ALONE else [GAP]
        if set(others) <= set(names):
            tried = [
                row
                for name in names
                if name not in others and (row := _row(outcomes, columns, name, others, given, drawn))
            ]
            p = _permutation(outcomes, [row["property"] for row in tried], others, draws, rng)
            rows += [{**row, "p_permutation": value} for row, value in zip(tried, p, strict=True)]
    rows += list(_together(outcomes, names, drawn))
    return _adjusted(pd.DataFrame(rows), "p_permutation" if draws > FEW_DRAWS else "p")


def _row(
    outcomes: Outcomes, columns: Mapping[str, Floats], name: str, others: list[str], given: str, drawn: Floats
) -> dict[str, Any] | None:
    """One property's effect on delta, in points per standard deviation; None where it is a mixture of the others."""
    x = np.column_stack([columns[one] for one in (name, *others)])
    known = np.isfinite(x).all(1)
    design, scale = _standardised(x[known])
    y, teachers, students = outcomes.delta[known], outcomes.teachers[known], outcomes.students[known]
    if len(y) <= design.shape[1] + 1 or np.linalg.matrix_rank(design, tol=1e-6 * np.sqrt(len(y))) < design.shape[1]:
        return None
    fit = ols(y, design, outcomes.dyads if known.all() else Dyads.of(teachers, students))
    sample = statistics.slopes(y, design, teachers, students, drawn)[:, 1]
    return _described(outcomes, name, given, fit, 1, scale[0], sample)


def _described(
    outcomes: Outcomes, name: str, given: str, fit: Fit, place: int, scale: float, sample: Floats
) -> dict[str, Any]:
    low, high = fit.interval()
    boot_low, boot_high = statistics.interval(sample)
    return {
        "method": outcomes.method,
        "property": name,
        "given": given,
        "pairs": fit.n,
        "models": fit.models,
        "effect": fit.beta[place],
        "se": fit.se[place],
        "se_two_way": fit.se_two_way[place],
        "se_iid": fit.se_iid[place],
        "df": fit.df[place],
        "low": low[place],
        "high": high[place],
        "boot_low": boot_low,
        "boot_high": boot_high,
        "per": scale,
        "p": fit.p()[place],
    }


def _standardised(x: Floats) -> tuple[Floats, Floats]:
    """A constant and the columns in standard deviations, [n, 1 + k], and those deviations, [k]."""
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return np.column_stack([np.ones(len(x)), (x - x.mean(0)) / scale]), scale


def _permutation(
    outcomes: Outcomes, names: list[str], others: list[str], draws: int, rng: np.random.Generator
) -> Floats:
    """P-values by permuting the models' labels; of the residuals where others are held fixed.

    The outcome is the rank of delta: a few students that collapse would otherwise decide.
    """
    if not names:
        return np.empty(0)
    models = len(outcomes.known.names)
    teachers, students = (grid.ravel() for grid in np.indices((models, models)))
    apart = teachers != students
    everywhere = outcomes.known.of(teachers[apart], students[apart])
    fixed = _filled(everywhere[others].to_numpy(np.float64))
    observed = _filled(outcomes.x[others].to_numpy(np.float64))
    matrix = np.zeros((models * models, len(names)))
    for place, name in enumerate(names):
        matrix[apart, place] = _residual(everywhere[name].to_numpy(np.float64), fixed)
    return statistics.permutation_p(
        _residual(stats.rankdata(outcomes.delta), observed),
        outcomes.teachers,
        outcomes.students,
        matrix.reshape(models, models, len(names)),
        draws,
        rng,
    )


def _filled(x: Floats) -> Floats:
    """Unknown values replaced by the mean of their column."""
    return np.where(np.isfinite(x), x, np.nanmean(x, 0)) if x.size else x


def _residual(values: Floats, others: Floats) -> Floats:
    """Residuals of values after a constant and the other columns; zero where they are unknown."""
    known = np.isfinite(values)
    design = np.column_stack([np.ones(int(known.sum())), others[known]])
    left = np.zeros(len(values))
    left[known] = values[known] - design @ np.linalg.lstsq(design, values[known], rcond=None)[0]
    return left


def _together(outcomes: Outcomes, names: list[str], drawn: Floats) -> Iterator[dict[str, Any]]:
    """All properties in one regression, those left out that the ones before them determine."""
    complete = [name for name in names if np.isfinite(outcomes.x[name].to_numpy(np.float64)).all()]
    chosen = independent(outcomes.x[complete])
    if len(chosen) < 2 or outcomes.models < MODELS_PER_PROPERTY * len(chosen) or len(outcomes) <= len(chosen) + 2:
        return
    design, scale = _standardised(outcomes.x[chosen].to_numpy(np.float64))
    fit = ols(outcomes.delta, design, outcomes.dyads)
    sample = np.full((1, len(chosen) + 1), np.nan)  # its products would fill memory: the other intervals must do
    for place, name in enumerate(chosen):
        row = _described(outcomes, name, TOGETHER, fit, place + 1, scale[place], sample[:, place + 1])
        yield {**row, "boot_low": None, "boot_high": None, "p_permutation": None}


def independent(frame: pd.DataFrame) -> list[str]:
    """Columns that those before them, and a constant, do not determine."""
    design, _ = _standardised(frame.to_numpy(np.float64))
    left = design.copy()
    chosen = []
    for place in range(design.shape[1]):
        norm = float(np.linalg.norm(left[:, place]))
        if norm > 1e-3 * np.sqrt(len(design)):
            unit = left[:, place] / norm
            left[:, place + 1 :] -= np.outer(unit, unit @ left[:, place + 1 :])
            chosen += [str(frame.columns[place - 1])] if place else []
    return chosen


def _adjusted(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows with p-values corrected for the number of properties tried in the same way."""
    if rows.empty:
        return rows
    start = rows[column].astype(float).fillna(rows["p"])
    for corrected, correct in (("p_holm", statistics.holm), ("p_bh", statistics.benjamini_hochberg)):
        rows[corrected] = start.groupby(rows["given"]).transform(lambda p, how=correct: how(p.to_numpy(np.float64)))
    return rows


MOST_SHUFFLED = 5_000
"""Held-out pairs of one fold shuffled at most: more take time and change nothing visible."""

DESERVES = 0.1
"""Held-out R² from which on it is worth asking which properties a predictor uses."""

RELATED = 0.6
"""Properties whose absolute rank correlation is at least this, on average, are shuffled together."""


def related(outcomes: Outcomes) -> dict[str, list[str]]:
    """Groups of correlated properties, by average linkage of their absolute rank correlations."""
    names, _ = informative(outcomes.x)
    if len(names) < 2:
        return {name: [name] for name in names}
    rows = np.random.default_rng(0).permutation(len(outcomes))[:5_000]
    correlation = outcomes.x[names].iloc[rows].corr("spearman").abs().fillna(0).to_numpy(copy=True)
    np.fill_diagonal(correlation, 1)
    distance = squareform(1 - np.clip((correlation + correlation.T) / 2, 0, 1), checks=False)
    label = fcluster(linkage(distance, "average"), 1 - RELATED, "distance")
    members: dict[int, list[str]] = {}
    for name, group in zip(names, label, strict=True):
        members.setdefault(int(group), []).append(name)
    return {", ".join(group): group for group in members.values()}


def errors_shuffled(
    outcomes: Outcomes,
    pairs: Pairs,
    test: NDArray[np.bool_],
    predict: Callable[[Pairs], Floats],
    groups: dict[str, list[str]],
    average: float,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """Squared errors on held-out students with one group of properties after another shuffled among their pairs."""
    rows = np.flatnonzero(test)
    if len(rows) > MOST_SHUFFLED:
        rows = np.sort(rng.choice(rows, MOST_SHUFFLED, replace=False))
    if len(rows) < 2:
        return
    others, delta = Pairs(pairs.teachers[rows], pairs.students[rows], pairs.x.iloc[rows]), outcomes.delta[rows]
    whole = float(((delta - average) ** 2).sum())
    error = float(((delta - predict(others)) ** 2).sum())
    # all shuffled properties in one table, because a call costs more than a row
    x = np.tile(others.x.to_numpy(np.float64), (len(groups), 1, 1))
    for shuffled, group in zip(x, groups.values(), strict=True):
        columns = [others.x.columns.get_loc(name) for name in group]
        shuffled[:, columns] = shuffled[rng.permutation(len(rows))][:, columns]
    frame = pd.DataFrame(x.reshape(-1, x.shape[2]), columns=others.x.columns)
    copies = Pairs(np.tile(others.teachers, len(groups)), np.tile(others.students, len(groups)), frame)
    for name, predicted in zip(groups, predict(copies).reshape(len(groups), -1), strict=True):
        yield {"properties": name, "error": error, "worse": float(((delta - predicted) ** 2).sum()), "whole": whole}


def importances(method: str, r2: float, shuffled: pd.DataFrame) -> pd.DataFrame:
    """The rows of table ``importances``: loss of held-out R² by shuffling; none where the trees predict too little."""
    if shuffled.empty or not r2 >= DESERVES:
        return pd.DataFrame()
    rows = []
    for name, folds in shuffled.groupby("properties", sort=False):
        whole = float(folds["whole"].sum())
        lost = (folds["worse"] - folds["error"]).to_numpy(np.float64)
        error = float(lost.std(ddof=1)) * np.sqrt(len(lost)) / whole if len(lost) > 1 else np.inf
        rows.append(
            {
                "method": method,
                "properties": name,
                "importance": float(lost.sum()) / whole,
                "importance_se": error,
                "r2": r2,
            }
        )
    return pd.DataFrame(rows).sort_values("importance", ascending=False, kind="stable", ignore_index=True)
