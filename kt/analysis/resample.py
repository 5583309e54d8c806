"""Answers by resampling models, never pairs: bootstrap intervals, permutation p-values, and corrections for many tests.

Pairs of one model are resampled together, because they share its luck.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def weights(models: int, draws: int, rng: np.random.Generator) -> Floats:
    """How often each model is drawn in each bootstrap sample of the models, [draws, models]."""
    return rng.multinomial(models, np.full(models, 1 / models), size=draws).astype(np.float64)


def over_models(values: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap sums of pairs, [draws]: a pair counts as often as its teacher was drawn times its student.

    Args:
        values: one number a pair, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        drawn: ``weights``, [draws, models].
    """
    models = drawn.shape[1]
    square = np.bincount(teachers * models + students, values, models * models).reshape(models, models)
    return np.asarray(((drawn @ square) * drawn).sum(1), np.float64)


def means(values: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap means over pairs, [draws]; NaN where a sample of models holds no pair."""
    count = over_models(np.ones(len(values)), teachers, students, drawn)
    with np.errstate(invalid="ignore", divide="ignore"):
        return over_models(values, teachers, students, drawn) / count


def slopes(y: Floats, x: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap coefficients of a regression over pairs, [draws, k]; NaN where a sample cannot tell them apart.

    Args:
        y: one number a pair, [n].
        x: regressors, the constant among them, [n, k].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        drawn: ``weights``, [draws, models].
    """
    k = x.shape[1]
    products, target = np.empty((len(drawn), k, k)), np.empty((len(drawn), k))
    for i in range(k):
        target[:, i] = over_models(x[:, i] * y, teachers, students, drawn)
        for j in range(i + 1):
            products[:, i, j] = products[:, j, i] = over_models(x[:, i] * x[:, j], teachers, students, drawn)
    found = np.full((len(drawn), k), np.nan)
    usable = np.linalg.matrix_rank(products, hermitian=True) == k
    found[usable] = np.linalg.solve(products[usable], target[usable][..., None])[..., 0]
    return found


def interval(sample: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, leaving out those that are NaN; infinite where hardly any is left."""
    known = sample[np.isfinite(sample)]
    if len(known) < max(20, len(sample) / 2):
        return -np.inf, np.inf
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def permutation_p(
    y: Floats, teachers: Ints, students: Ints, properties: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """P-values of correlations between an outcome of pairs and properties of all pairs, by permuting model labels.

    The models' names are shuffled in the properties, rows and columns alike, so that what pairs share through their
    models stays as it is (QAP). Where other regressors are held fixed, both sides are their residuals.

    Args:
        y: the outcome of the observed pairs, centred, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        properties: every property of every ordered pair of the models, centred over pairs, with zero where it is
            unknown and on the diagonal, [models, models, k].
        draws: permutations.
        rng: random numbers.

    Returns:
        Two-sided p-values, [k]; the smallest possible is 1 / (draws + 1).

    Source: Dekker, Krackhardt, Snijders 2007, Psychometrika 72 (double semi-partialling).
    """
    models, _, k = properties.shape
    flat = properties.reshape(models * models, k).astype(np.float32)
    squares = flat**2
    outcome = y.astype(np.float32)

    def correlations(orders: list[Ints]) -> Floats:
        # Moving the outcome of one matrix about is cheaper than moving k properties.
        moved = np.zeros((2, len(orders), models * models), np.float32)
        for place, order in enumerate(orders):
            cells = order[teachers] * models + order[students]
            moved[0, place, cells] = outcome
            moved[1, place, cells] = 1
        norm = np.sqrt(moved[1] @ squares)
        found: Floats = np.abs(moved[0] @ flat) / np.where(norm > 0, norm, np.inf)
        return found

    observed = correlations([np.arange(models)])[0]
    beaten = np.zeros(k)
    at_once = max(1, min(64, 5_000_000 // models**2))
    for start in range(0, draws, at_once):
        orders = [rng.permutation(models) for _ in range(min(at_once, draws - start))]
        beaten += (correlations(orders) >= observed * (1 - 1e-5)).sum(0)
    return (1 + beaten) / (draws + 1)


def holm(p: Floats) -> Floats:
    """P-values adjusted so that the chance of any false discovery is bounded; NaN stays NaN. Source: Holm 1979."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def benjamini_hochberg(p: Floats) -> Floats:
    """P-values adjusted so that the expected share of false discoveries is bounded; NaN stays NaN."""
    adjusted = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted
