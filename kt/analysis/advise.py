"""``kt recommend``: teachers and methods for one student, ranked without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis import heldout
from kt.analysis.deltas import records
from kt.analysis.heldout import best_rung
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, gather
from kt.analysis.predictors import Pairs, ladder
from kt.analysis.wording import number, signed
from kt.errors import KtError, unknown
from kt.store import atomic

Floats = NDArray[np.float64]


def recommend(
    inputs: Inputs, student: str, method: str | None = None, level: float = 0.8, seed: int = 0
) -> pd.DataFrame:
    """Every method and teacher for a student, the highest predicted delta first.

    For every method the predictor that does best on held-out students predicts. Its errors on those students, as they
    came, are spread around the prediction: they give the interval and the probability that delta is below zero. Every
    student weighs the same, and the interval is widened for their small number (as split conformal prediction does,
    with students in place of samples).

    Args:
        inputs: the tables.
        student: a model of the zoo, with or without transfers of its own.
        method: only this method; all where None.
        level: coverage of the intervals, between 0 and 1.
        seed: seed of the folds.

    Returns:
        Columns ``method``, ``teacher``, ``predicted``, ``low``, ``high`` (percentage points; infinite where there are
        too few students), ``p_harm`` (0 to 1), ``measured`` (delta, where the pair was transferred), ``rung``, ``r2``
        (held-out students).

    Raises:
        KtError: the student or the method is unknown, or no method finished enough pairs to learn from.
    """
    if student not in inputs.zoo.index:
        raise KtError(unknown("model", student, inputs.zoo.index))
    if not 0 < level < 1:
        raise KtError(f"--level: {level} is not between 0 and 1")
    outcomes = [found for found in gather(inputs, everyone=True) if found.trains and not found.control]
    if method is not None:
        if method not in (names := [found.method for found in outcomes]):
            raise KtError(unknown("method", method, names) if names else "no method with a teacher finished any pair")
        outcomes = [found for found in outcomes if found.method == method]
    rng = np.random.default_rng(seed)
    frames = [rows for found in outcomes if len(rows := _for_method(found, student, level, rng))]
    if not frames:
        raise KtError("too few finished transfers to predict from: at least 4 models must have taken part")
    rows = pd.concat(frames, ignore_index=True)
    return rows.sort_values("predicted", ascending=False, kind="stable", ignore_index=True)


def _for_method(outcomes: Outcomes, student: str, level: float, rng: np.random.Generator) -> pd.DataFrame:
    held = heldout.hold_out(outcomes, rng, importances=False)
    if held is None:
        return pd.DataFrame()
    scores = heldout.score(outcomes, held)
    rung = best_rung(scores)
    names = outcomes.known.names
    known = Pairs(outcomes.teachers, outcomes.students, outcomes.x)
    predict = ladder(outcomes)[rung](known, outcomes.delta)
    place = names.index(student)
    teachers = np.array([i for i in range(len(names)) if i != place], np.int64)
    students = np.full(len(teachers), place)
    predicted = predict(Pairs(teachers, students, outcomes.known.of(teachers, students)))
    errors, weights = _errors(outcomes, held, rung)
    own = outcomes.students == place
    measured = dict(zip(outcomes.teachers[own].tolist(), outcomes.delta[own].tolist(), strict=True))
    low, high = _ends(errors, weights, level, len(np.unique(outcomes.students)))
    r2 = scores.loc[(scores["scheme"] == "students") & (scores["rung"] == rung), "r2"]
    return pd.DataFrame(
        {
            "method": outcomes.method,
            "teacher": [names[t] for t in teachers],
            "predicted": predicted,
            "low": predicted + low,
            "high": predicted + high,
            "p_harm": [float(weights[made + errors < 0].sum()) for made in predicted],
            "measured": [measured.get(int(t), np.nan) for t in teachers],
            "rung": rung,
            "r2": float(r2.iloc[0]),
        }
    )


def _errors(outcomes: Outcomes, held: heldout.HeldOut, rung: str) -> tuple[Floats, Floats]:
    """What was measured minus what was predicted on held-out students, and weights that make every student equal."""
    made = held.predictions
    made = made[(made["rung"] == rung) & (made["scheme"] == "students")]
    rows = made["row"].to_numpy(np.int64)
    students = outcomes.students[rows]
    count = np.bincount(students)
    weights = 1 / (count[students] * (count > 0).sum())
    return outcomes.delta[rows] - made["predicted"].to_numpy(np.float64), weights


def _ends(errors: Floats, weights: Floats, level: float, students: int) -> tuple[float, float]:
    """Weighted quantiles of the errors that leave a share of ``level`` between them, widened for few students."""
    wider = level * (1 + 1 / students)
    if wider >= 1:
        return -np.inf, np.inf
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(weights[order])
    ends = np.searchsorted(reached, [(1 - wider) / 2, (1 + wider) / 2 - 1e-12])
    low, high = errors[order][np.minimum(ends, len(errors) - 1)]
    return float(low), float(high)


def as_text(rows: pd.DataFrame, student: str, level: float, top: int) -> str:
    """The first rows as a plain table with what it rests on."""
    headings = ("teacher", "method", "predicted", f"{100 * level:g} % interval", "harm", "measured")
    lines = [headings]
    for row in records(rows.head(top)):
        known = np.isfinite([row["low"], row["high"]]).all()
        interval = f"{signed(row['low'])} to {signed(row['high'])}" if known else "too few students"
        predicted, harm = signed(row["predicted"]), f"{number(100 * row['p_harm'], 0)} %"
        lines.append((row["teacher"], row["method"], predicted, interval, harm, signed(row["measured"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        f"{student}: predicted transfer delta in percentage points, best of {len(rows):,} teachers and methods first"
    ]
    text += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for method, of_method in rows.groupby("method", sort=False):
        first = of_method.iloc[0]
        warning = "" if first["r2"] > 0.1 else ": hardly better than the mean"
        text.append(f"{method}: predicted by {first['rung']}, R² {number(first['r2'], 2)} on unseen students{warning}")
    return "\n".join(text)


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Write rows as CSV, atomically; what is infinite is left empty."""
    with atomic(path) as temporary:
        rows.replace([np.inf, -np.inf], np.nan).to_csv(temporary, index=False)
