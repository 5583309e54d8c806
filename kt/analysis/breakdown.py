"""Gains by group, as the papers give them: by the teacher's lead, by kind and family, and by model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis import dyadic, statistics
from kt.analysis.deltas import TINY, group_of
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes

Floats = NDArray[np.float64]

GAP_BINS = 8
"""At most so many bins of the teacher's lead, of equally many pairs."""

NAMED = ("kind", "family", "pretraining")
AREAS = (2, 5, 20, 50)


def groups(outcomes: Outcomes, bootstrap: int, equal_within: float, rng: np.random.Generator) -> pd.DataFrame:
    """The rows of table ``groups`` for one method: all its pairs, and its pairs by what their models are.

    Args:
        outcomes: the method's pairs.
        bootstrap: bootstrap samples of the models.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
        rng: random numbers.
    """
    drawn = statistics.weights(len(outcomes.known.names), bootstrap, rng)
    rows = [
        {
            "method": outcomes.method,
            "control": outcomes.control,
            "grouping": grouping,
            "level": level,
            "low_end": low,
            "high_end": high,
            **_described(outcomes, member, drawn),
        }
        for grouping, level, member, low, high in _members(outcomes, equal_within)
        if member.any()
    ]
    return pd.DataFrame(rows)


Member = tuple[str, str, NDArray[np.bool_], float | None, float | None]
"""A grouping, a level of it, which pairs belong to it, and the ends of a bin."""


def _members(outcomes: Outcomes, equal_within: float) -> Iterator[Member]:
    yield "all", "all", np.ones(len(outcomes), bool), None, None
    if "acc_difference" in outcomes.x:
        gap = outcomes.x["acc_difference"]
        known = gap.notna().to_numpy()
        region = group_of(gap, equal_within).to_numpy(object)
        ends = {
            "weaker": (None, -equal_within),
            "equal": (-equal_within, equal_within),
            "stronger": (equal_within, None),
        }
        for name, (low, high) in ends.items():
            yield "teacher", name, known & (region == name), low, high
        if known.sum() >= 2 * GAP_BINS:
            values = gap.to_numpy(np.float64)
            edges = np.unique(np.quantile(values[known], np.linspace(0, 1, GAP_BINS + 1)))
            place = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
            for bin_, (low, high) in enumerate(pairwise(edges)):
                yield f"{outcomes.metric} difference", str(bin_ + 1), known & (place == bin_), float(low), float(high)
    for name in NAMED:
        if name not in outcomes.known.labels:
            continue
        label = outcomes.known.labels[name].to_numpy(object)
        known = outcomes.known.labels[name].notna().to_numpy()
        for role, numbers in (("teacher", outcomes.teachers), ("student", outcomes.students)):
            for level in sorted(set(label[known])):
                yield f"{role} {name}", str(level), label[numbers] == level, None, None


def _described(outcomes: Outcomes, member: NDArray[np.bool_], drawn: Floats) -> dict[str, Any]:
    delta, teachers, students = outcomes.delta[member], outcomes.teachers[member], outcomes.students[member]
    n = len(delta)
    facts = {"pairs": n, "students": len(np.unique(students)), "teachers": len(np.unique(teachers))}
    low = high = se = two_way = None
    boot = (-np.inf, np.inf)
    if n > 1:
        fit = dyadic.ols(delta, np.ones((n, 1)), dyadic.Dyads.of(teachers, students))
        low, high, se = float(fit.interval()[0][0]), float(fit.interval()[1][0]), float(fit.se[0])
        two_way = float(fit.se_two_way[0])
        boot = statistics.interval(statistics.means(delta, teachers, students, drawn))
    quartiles = np.quantile(delta, [0.25, 0.5, 0.75])
    rate = outcomes.rate[member]
    return {
        **facts,
        "delta": float(delta.mean()),
        "se": se,
        "se_two_way": two_way,
        "se_iid": dyadic.ordinary(delta) if n > 1 else None,
        "low": low,
        "high": high,
        "boot_low": boot[0],
        "boot_high": boot[1],
        "quartile_1": quartiles[0],
        "median": quartiles[1],
        "quartile_3": quartiles[2],
        "top_quartile": float(delta[delta >= quartiles[2]].mean()),
        "worst": float(delta.min()),
        "success": 100 * float((delta > TINY).mean()),
        "transfer_rate": float(np.nanmean(rate)) if np.isfinite(rate).any() else None,
    }


def by_model(outcomes: Outcomes, zoo: pd.DataFrame) -> pd.DataFrame:
    """The rows of table ``by_model`` for one method: every model as a student and as a teacher."""
    frames = []
    names = np.array(outcomes.known.names, object)
    for role, numbers in (("student", outcomes.students), ("teacher", outcomes.teachers)):
        if role == "teacher" and outcomes.control:
            continue
        frame = pd.DataFrame({"model": names[numbers], "delta": outcomes.delta, "rate": outcomes.rate})
        of_model = frame.groupby("model", sort=False, as_index=False).agg(
            pairs=("delta", "size"),
            mean=("delta", "mean"),
            best=("delta", "max"),
            worst=("delta", "min"),
            success=("delta", lambda values: 100 * float((values > TINY).mean())),
            transfer_rate=("rate", "mean"),
        )
        frames.append(of_model.rename(columns={"mean": "delta"}).assign(role=role))
    rows = pd.concat(frames, ignore_index=True).assign(method=outcomes.method, control=outcomes.control)
    for column in ("params", "kind", "family", "acc"):
        rows[column] = rows["model"].map(zoo[column]) if column in zoo else None
    return rows


def spread(models: pd.DataFrame) -> pd.DataFrame:
    """The table ``spread``: quartiles of success rate and delta over students and over teachers, from ``by_model``."""
    rows = []
    for (method, role), of_role in models.groupby(["method", "role"], sort=False):
        row = {"method": method, "control": bool(of_role["control"].iloc[0]), "role": role, "models": len(of_role)}
        for column in ("success", "delta"):
            low, middle, high = np.quantile(of_role[column], [0.25, 0.5, 0.75])
            row |= {f"{column}_quartile_1": low, f"{column}_median": middle, f"{column}_quartile_3": high}
        rows.append(row)
    return pd.DataFrame(rows)


def variance(outcomes: Outcomes) -> dict[str, Any]:
    """The row of table ``variance`` for one method: variance components of delta over pairs."""
    found = statistics.moments(outcomes.delta, outcomes.teachers, outcomes.students)
    total = found.total
    of_seeds = float((outcomes.noise / outcomes.seeds).mean()) if np.isfinite(outcomes.noise) else float("nan")
    known = found.known and total > 0
    return {
        "method": outcomes.method,
        "control": outcomes.control,
        "pairs": len(outcomes),
        "models": outcomes.models,
        "sd": float(np.sqrt(total)),
        "teacher": 100 * found.teacher / total if known else None,
        "student": 100 * found.student / total if known else None,
        "pair": 100 * found.residual / total if known else None,
        "of_which_seeds": 100 * min(of_seeds, found.residual) / total if known and np.isfinite(of_seeds) else None,
        "seed_sd": float(np.sqrt(outcomes.noise)) if np.isfinite(outcomes.noise) else None,
        "r2_ceiling": outcomes.ceiling,
    }


def expertise(inputs: Inputs) -> pd.DataFrame:
    """The table ``expertise``: how few classes hold what a teacher knows better; empty where that was not measured."""
    rows = []
    for area in AREAS:
        column = f"expertise_{area}"
        if column not in inputs.scores:
            continue
        classes = inputs.scores[column].map(lambda v: len(v) if isinstance(v, (list, tuple, np.ndarray)) else v)
        count = pd.to_numeric(classes, errors="coerce").dropna()
        if count.empty:
            continue
        low, middle, high = np.quantile(count, [0.25, 0.5, 0.75])
        similar = f"expertise_similarity_{area}"
        rows.append(
            {
                "area": area,
                "pairs": len(count),
                "quartile_1": low,
                "median": middle,
                "quartile_3": high,
                "similarity": _mean(inputs.scores, similar),
                "of_all_classes": _mean(inputs.scores, "class_similarity"),
            }
        )
    return pd.DataFrame(rows)


def _mean(frame: pd.DataFrame, column: str) -> float | None:
    if column not in frame:
        return None
    values = pd.to_numeric(frame[column], errors="coerce").dropna()
    return float(values.mean()) if len(values) else None


def several(inputs: Inputs, outcomes: list[Outcomes]) -> pd.DataFrame:
    """The table ``several``: methods with several teachers, beside the same students' single teachers.

    The single transfers are those of the method with the highest mean delta that has a teacher.
    """
    rows = inputs.several[inputs.several["delta"].notna() & ~inputs.several["control"]]
    if rows.empty:
        return pd.DataFrame()
    taught = [found for found in outcomes if found.trains and not found.control]
    best = max(taught, key=lambda found: float(found.delta.mean()), default=None)
    single: dict[tuple[str, str], float] = {}
    if best is not None:
        names = best.known.names
        single = {
            (names[t], names[s]): float(d) for t, s, d in zip(best.teachers, best.students, best.delta, strict=True)
        }
    lists = rows["teachers"] if "teachers" in rows else pd.Series([None] * len(rows), rows.index, dtype=object)
    singles = [
        [single[teacher, str(student)] for teacher in _listed(names) if (teacher, str(student)) in single]
        for names, student in zip(lists, rows["student"], strict=True)
    ]
    rows = rows.assign(
        count=lists.map(lambda names: len(_listed(names)) or np.nan),
        singles=pd.Series(singles, rows.index, dtype=object),
    )
    made = []
    for (method, count), of_method in rows.groupby(["method", "count"], dropna=False):
        students = of_method.groupby("student")["delta"].mean()
        compared = of_method[of_method["singles"].map(len) > 0]
        made.append(
            {
                "method": method,
                "teachers": count,
                "students": len(students),
                "delta": float(students.mean()),
                "se": dyadic.ordinary(students) if len(students) > 1 else None,
                "success": 100 * float((students > TINY).mean()),
                "single": best.method if best and len(compared) else None,
                "single_mean": float(compared["singles"].map(np.mean).mean()) if len(compared) else None,
                "single_best": float(compared["singles"].map(max).mean()) if len(compared) else None,
            }
        )
    return pd.DataFrame(made)


def _listed(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, (list, tuple, np.ndarray)) else []
