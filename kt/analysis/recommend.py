"""Advice on teachers for one student (``kt recommend``): what is measured, and predictions where they tell anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis import prediction
from kt.analysis.deltas import PAIR, beside, gains, over_seeds
from kt.analysis.effects import LEAST_MODELS
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, Pairs, gather
from kt.analysis.prediction import CONSTANT, best_rung, ladder
from kt.errors import KtError, unknown

Floats = NDArray[np.float64]


TRIED = ("teacher", "method", "control", "uses_labels", "seeds", "failed", "n", "delta", "delta_se", "transfer_rate")
BESIDE = ("against", "beyond", "beyond_se", "common_seeds")


def measured(transfers: pd.DataFrame, student: str, teacher: str | None = None) -> pd.DataFrame:
    """Deltas of a student's pairs by every method that was tried, the largest first, controls last.

    A method stands beside the control that it must beat (``kt.analysis.deltas.gains``), trained with the same seeds.

    Args:
        transfers: the table ``transfers``.
        student: a model.
        teacher: only from this one; from all where None.

    Returns:
        Columns ``teacher``, ``method``, ``control``, ``uses_labels``, ``seeds`` (finished ones), ``failed``, ``n``
        (test examples), ``delta``, ``delta_se`` (means over seeds; the error is that over test examples),
        ``transfer_rate``, ``against`` (the control; None where there is none), ``beyond`` (mean difference to it over
        common seeds), ``beyond_se`` (its ordinary standard error over these seeds; NaN for one), ``common_seeds``.
        Unknown numbers are NaN.
    """
    mine = transfers[transfers["student"] == student]
    mine = mine[mine["teacher"].notna() if teacher is None else mine["teacher"] == teacher]
    if mine.empty:
        return pd.DataFrame(columns=[*TRIED, *BESIDE])
    finished = mine[(mine["status"] == "ok") & mine["delta"].notna()]
    place = ["teacher", "method"]
    rows = mine.groupby(place).agg(
        control=("control", "first"), uses_labels=("uses_labels", "first"), all=("delta", "size")
    )
    means = over_seeds(finished, n=("n", "first")).set_index(place).drop(columns=["student", "control"])
    rows = rows.join(means).join(_beside(finished))
    whole = ["seeds", "common_seeds"]
    rows[whole] = rows[whole].fillna(0).astype(int)
    rows["failed"] = rows["all"] - finished.groupby(place).size().reindex(rows.index, fill_value=0)
    rows = rows.assign(against=rows["against"].astype(object).where(rows["against"].notna(), None)).reset_index()
    order = ["control", "delta", "method"]
    return rows.sort_values(order, ascending=[True, False, True], ignore_index=True)[[*TRIED, *BESIDE]]


def _beside(finished: pd.DataFrame) -> pd.DataFrame:
    """Mean paired difference to the control, its error over seeds, and the seeds, by teacher and method."""
    made = [pd.DataFrame(columns=["teacher", "method", *BESIDE])]
    for gain in gains(finished, pd.DataFrame(), 0.0):
        if gain.control:
            both = beside(finished, gain.method, gain.control, "delta")
            difference = (both["delta"] - both["delta_against"]).groupby([both[name] for name in PAIR])
            found = difference.agg(beyond="mean", beyond_se="sem", common_seeds="size").reset_index()
            made.append(found.drop(columns="student").assign(method=gain.method, against=gain.control))
    return pd.concat(made[1:] or made).set_index(["teacher", "method"])


MEASURED = ("measured", "measured_se", "seeds", "against", "beyond", "beyond_se")
PREDICTED = ("predicted", "low", "high", "p_harm")

JUDGEMENT = ("ladder", "predictions", "groups")
"""Tables of an analysis that hold its judgement of the predictors, and of how many pairs."""


LEAST_R2 = 0.005
"""With two decimals, an R² below this is not above zero."""

LITTLE = 0.1
"""A predictor of no more R² than this is hardly better than the average gain."""

TIED = 0.05
"""Predictions that differ by less than this share of their usual error count as equal."""


@dataclass(frozen=True)
class Judged:
    """How well a method's best predictor does on students left out of its fit.

    Attributes:
        rung: the predictor; empty where too few models took part to judge any.
        r2: its R² on them; NaN where there is none.
        errors: measured minus predicted deltas of their pairs, [n].
        students: numbers of the students, int [n].
    """

    rung: str
    r2: float
    errors: Floats
    students: NDArray[np.int64]

    @property
    def why_not(self) -> str:
        """The reason why it says no more than the average gain does; empty where it says more."""
        return _why_not(self.rung, self.r2)


def _why_not(rung: str, r2: float) -> str:
    if not rung:
        return f"fewer than {LEAST_MODELS} models took part"
    if rung == CONSTANT or not r2 >= LEAST_R2:
        return "on students left out of the fit, no predictor beats the average gain"
    return ""


def judge(outcomes: Outcomes, tables: Mapping[str, pd.DataFrame] | None = None, seed: int = 0) -> Judged:
    """The judgement in the tables of an analysis of these very pairs; a new one where there is none.

    Args:
        outcomes: the method's pairs.
        tables: those of the analysis that ``JUDGEMENT`` names, or all.
        seed: of the folds of a new judgement.
    """
    known = _judged(outcomes, tables) if tables else None
    if known:
        return known
    held = prediction.hold_out(outcomes, np.random.default_rng(seed), ask=False)
    if held is None:
        return Judged("", math.nan, np.empty(0), np.empty(0, np.int64))
    scores = prediction.score(outcomes, held)
    of_rung = held.predictions[held.predictions["rung"] == best_rung(scores)]
    predicted = of_rung[of_rung["scheme"] == "students"].groupby("row")["predicted"].mean()
    rows = predicted.index.to_numpy(np.int64)
    errors = outcomes.delta[rows] - predicted.to_numpy(np.float64)
    return Judged(best_rung(scores), _r2(scores, best_rung(scores)), errors, outcomes.students[rows])


def _judged(outcomes: Outcomes, tables: Mapping[str, pd.DataFrame]) -> Judged | None:
    """The judgement of an analysis; None where it is about other pairs."""
    scores, made, groups = (tables[name][tables[name]["method"] == outcomes.method] for name in JUDGEMENT)
    pairs = groups.loc[groups["grouping"] == "all", "pairs"].tolist()
    rung = best_rung(scores)
    if made.empty or pairs != [len(outcomes)] or rung not in ladder(outcomes):
        return None
    measured = pd.DataFrame({"t": outcomes.teachers, "s": outcomes.students, "measured": outcomes.delta})
    teachers, students = (outcomes.known.number(made[role]) for role in ("teacher", "student"))
    both = made.assign(t=teachers, s=students).merge(measured, how="left", on=["t", "s"])
    if not np.allclose(both["delta"], both["measured"], rtol=1e-12, atol=1e-12):
        return None
    errors = (both["delta"] - both["predicted"]).to_numpy(np.float64)
    return Judged(rung, _r2(scores, rung), errors, students)


def _r2(scores: pd.DataFrame, rung: str) -> float:
    of_rung = scores.loc[(scores["scheme"] == "students") & (scores["rung"] == rung), "r2"]
    return float(of_rung.iloc[0]) if len(of_rung) else math.nan


class Advisor:
    """Ranks teachers for any student, from one fit per method.

    For every method the predictor that does best on held-out students predicts, where it beats the average gain. Its
    errors on those students are spread around the prediction: they give the interval and the probability that delta is
    below zero. Every student weighs the same, and the interval is widened for their small number (as split conformal
    prediction does, with students in place of samples).

    Args:
        inputs: the tables.
        method: only this method; all where None.
        level: coverage of the intervals, between 0 and 1.
        tables: of the analysis of these tables, whose judgement of the predictors is taken.

    Raises:
        KtError: the method is unknown, or no method finished any pair.
    """

    def __init__(
        self,
        inputs: Inputs,
        method: str | None = None,
        level: float = 0.8,
        tables: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        if not 0 < level < 1:
            raise KtError(f"--level: {level} is not between 0 and 1")
        outcomes = teaching(inputs)
        if method is not None and method not in outcomes:
            raise KtError(unknown("method", method, outcomes))
        self.inputs, self.level = inputs, level
        self.outcomes = [found for name, found in outcomes.items() if method in (None, name)]
        self.judged = {found.method: judge(found, tables) for found in self.outcomes}
        self._predict = {
            found.method: ladder(found)[how.rung](Pairs(found.teachers, found.students, found.x), found.delta)
            for found in self.outcomes
            if not (how := self.judged[found.method]).why_not
        }

    def rank(self, student: str) -> pd.DataFrame:
        """Every method and teacher for a student: what is measured first, then what is predicted, the best first.

        Args:
            student: a model of the zoo, with or without transfers of its own.

        Returns:
            Columns ``method``, ``teacher``; of a measured pair ``measured``, ``measured_se``, ``seeds``, ``against``,
            ``beyond`` and ``beyond_se`` (as ``measured`` has them); of another ``predicted``,
            ``low``, ``high`` (in units of the metric; infinite where there are too few students) and ``p_harm`` (0 to
            1), all null where the pairs do not tell; ``rung`` and ``r2`` of the method's predictor.

        Raises:
            KtError: the student is unknown.
        """
        if student not in self.inputs.zoo.index:
            raise KtError(unknown("model", student, self.inputs.zoo.index))
        known = measured(self.inputs.transfers, student).rename(
            columns={"delta": "measured", "delta_se": "measured_se"}
        )
        known = known[known["measured"].notna()]
        rows = pd.concat([self._of_method(found, student) for found in self.outcomes], ignore_index=True)
        rows = rows.merge(known[["method", "teacher", *MEASURED]], how="left", on=["method", "teacher"])
        rows.loc[rows["measured"].notna(), list(PREDICTED)] = np.nan
        return rows.sort_values(["measured", "predicted"], ascending=False, kind="stable", ignore_index=True)

    def _of_method(self, outcomes: Outcomes, student: str) -> pd.DataFrame:
        names, judged = outcomes.known.names, self.judged[outcomes.method]
        place = names.index(student)
        teachers = np.array([i for i in range(len(names)) if i != place], np.int64)
        rows = pd.DataFrame({"method": outcomes.method, "teacher": [names[t] for t in teachers]})
        rows = rows.assign(**dict.fromkeys(PREDICTED, np.nan), rung=judged.rung, r2=judged.r2)
        if outcomes.method not in self._predict:
            return rows
        students = np.full(len(teachers), place)
        predicted = self._predict[outcomes.method](Pairs(teachers, students, outcomes.known.of(teachers, students)))
        open_ = ~np.isin(teachers, outcomes.teachers[outcomes.students == place])
        error = float(np.sqrt((judged.errors**2).mean()))
        if open_.sum() > 1 and np.ptp(predicted[open_]) <= TIED * error:  # it says nothing of teachers
            return rows
        count = np.bincount(judged.students)
        weights = 1 / (count[judged.students] * (count > 0).sum())
        low, high = _ends(judged.errors, weights, self.level, len(np.unique(outcomes.students)))
        harm = [float(weights[made + judged.errors < 0].sum()) for made in predicted]
        return rows.assign(predicted=predicted, low=predicted + low, high=predicted + high, p_harm=harm)


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


CANNOT_TELL = "cannot tell from these pairs"


def open_question(rows: pd.DataFrame) -> str:
    """The reason why one method's rows for a student rank none of the teachers that are not measured; else empty."""
    left = rows[rows["measured"].isna()]
    if left.empty or left["predicted"].notna().any():
        return ""
    why = _why_not(str(left["rung"].iloc[0]), float(left["r2"].iloc[0]))
    return why or "the best predictor gives all of these teachers the same"


def recommend(
    inputs: Inputs,
    student: str,
    method: str | None = None,
    level: float = 0.8,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """The ranking of one student's teachers; arguments and errors as of ``Advisor`` and ``Advisor.rank``."""
    return Advisor(inputs, method, level, tables).rank(student)


def teaching(inputs: Inputs) -> dict[str, Outcomes]:
    """Pairs of every method that trains with a teacher, by name; raises ``KtError`` where none finished."""
    found = {o.method: o for o in gather(inputs, everyone=True) if o.trains and not o.control}
    if not found:
        raise KtError("no method with a teacher finished any pair: there is nothing to learn from yet")
    return found
