"""The report's tables that come from the analysis."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kt.analysis.analyse import CLEAR
from kt.analysis.deltas import records
from kt.analysis.wording import number, with_error
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, count, error, grid, name, plain, signed_number
from kt.report.verdict import Held, words

MOST_METHODS = 4
LEAST_EFFECTS = 3
"""Effects of one method that are shown even where none is clear."""

MOST_STUDENTS = 20
GIVEN = {"nothing": "nothing", "acc_difference": "accuracy gap", "all others": "all others"}


def against_controls(compared: list[Held]) -> Grid:
    """Every method against the control that it must beat, over the same pairs and seeds."""
    rows = []
    for method in dict.fromkeys(h.method for h in compared):
        of_group = {h.group: h for h in compared if h.method == method}
        rows.append(
            [Cell(method), Cell(of_group["all"].control), *_held(of_group["all"]), *_held(of_group.get("weaker"))]
        )
    headings = ("method", "control", "all pairs: more than the control, points", "clear?", "n")
    weaker = ("weaker teacher: more than the control, points", "clear?", "n")
    caption = "What teachers add: paired difference of transfer deltas, method − control, ± standard error."
    return Grid(caption, (*headings, *weaker), rows)


def _held(h: Held | None) -> list[Cell]:
    if h is None:
        return [Cell("–", float("nan")), Cell("–"), Cell("–", float("nan"))]
    sign = {1: "yes, more", -1: "yes, less", 0: "no"}[h.against.sign]
    text = with_error(h.against.mean, h.against.se)
    return [Cell(text, h.against.mean), Cell(sign), Cell(f"{h.against.n:,}", float(h.against.n))]


def variance(tables: Tables) -> Grid:
    """Variance components of delta over pairs."""
    frame = tables.analysis["variance"]
    return grid(
        "Variance components: shares of the variance of delta between pairs, in percent.",
        frame.assign(shown=_shown(frame)),
        [
            ("method", name("shown")),
            ("standard deviation, points", plain("sd", 2)),
            ("the student, %", plain("student", 0)),
            ("the teacher, %", plain("teacher", 0)),
            ("the pair and chance, %", plain("pair", 0)),
            ("of which seeds, %", plain("of_which_seeds", 0)),
            ("pairs", count("pairs")),
        ],
    )


def ladder(tables: Tables) -> Grid:
    """Every predictor's scores on models never seen."""
    scores = tables.analysis["ladder"]
    scores = scores[scores["method"].isin(tables.chosen(MOST_METHODS))]
    rows = scores[scores["scheme"] == "students"]
    for scheme in ("teachers", "both"):
        of_scheme = scores[scores["scheme"] == scheme][["method", "rung", "r2"]]
        rows = rows.merge(of_scheme, on=["method", "rung"], how="left", suffixes=("", f"_{scheme}"))
    return grid(
        "Predictors, simplest first, on models held out in every role. Regret: what the best teacher would have gained"
        " more than the best of the predicted top.",
        rows,
        [
            ("method", name("method")),
            ("predictor", name("rung")),
            ("R², new students", plain("r2", 2)),
            ("R², new teachers", plain("r2_teachers", 2)),
            ("R², both new", plain("r2_both", 2)),
            ("ceiling of R²", plain("r2_ceiling", 2)),
            ("weighted τ", plain("tau", 2)),
            ("regret of the top teacher, points", plain("regret_1", 2)),
            ("regret of the top 3, points", plain("regret_3", 2)),
            ("time saved by the top 3, %", plain("hours_saved_3", 0)),
            ("pairs", count("pairs")),
        ],
    )


def effects(tables: Tables) -> Grid:
    """Clear effects of properties, and the likeliest where none is, with honest and naive errors side by side."""
    frame = tables.analysis["effects"]
    frame = frame[frame["method"].isin(tables.chosen(MOST_METHODS))].sort_values("p_bh", kind="stable")
    place = frame.groupby(["method", "given"], sort=False).cumcount()
    frame = frame[(frame["p_bh"] < CLEAR) | (place < LEAST_EFFECTS)].sort_values(["method", "given", "p_bh"])
    frame = frame.assign(
        shown=[words(p) for p in frame["property"]],
        held=[GIVEN.get(g, g) for g in frame["given"]],
        effect_se=frame["se"],
    )
    return grid(
        "Properties and gains: points of delta for one standard deviation more. Clear effects (corrected p below"
        f" {CLEAR}) and each method's {LEAST_EFFECTS} likeliest others.",
        frame,
        [
            ("method", name("method")),
            ("property", name("shown")),
            ("held fixed", name("held")),
            ("effect ± robust error", error("effect")),
            ("two-way error", plain("se_two_way", 2)),
            ("naive error", plain("se_iid", 2)),
            ("95 % bootstrap over models", lambda row: Cell(_interval(row), float(row["boot_low"]))),
            ("p, permutation", plain("p_permutation", 4)),
            ("p, corrected (BH)", plain("p_bh", 3)),
            ("p, corrected (Holm)", plain("p_holm", 3)),
            ("pairs", count("pairs")),
        ],
    )


def _interval(row: dict[str, Any]) -> str:
    return "–" if pd.isna(row["boot_low"]) else f"{number(row['boot_low'], 2)} to {number(row['boot_high'], 2)}"


def importances(tables: Tables) -> Grid:
    """What boosted trees use, where they predict anything."""
    frame = tables.analysis["importances"]
    frame = frame[frame["method"].isin(tables.chosen(MOST_METHODS))]
    frame = frame[frame.groupby("method", sort=False).cumcount() < LEAST_EFFECTS]
    return grid(
        "What boosted trees use: held-out R² that shuffling a group of related properties costs them.",
        frame,
        [
            ("method", name("method")),
            ("properties shuffled together", name("properties")),
            ("R² lost ± standard error over folds", error("importance")),
            ("R² of the trees", plain("r2", 2)),
        ],
    )


def recommended(tables: Tables, method: str) -> Grid:
    """The teacher predicted best for every student, without that student's transfers, beside what came of it."""
    frame = tables.analysis["predictions"]
    rows = []
    for student, of_student in frame[frame["method"] == method].groupby("student", sort=True):
        chosen = of_student.sort_values("predicted", ascending=False, kind="stable").iloc[0]
        best = of_student.sort_values("delta", ascending=False, kind="stable").iloc[0]
        rows.append(
            {
                "student": student,
                "teacher": chosen["teacher"],
                "predicted": chosen["predicted"],
                "delta": chosen["delta"],
                "best": best["teacher"],
                "best_delta": best["delta"],
                "teachers": len(of_student),
            }
        )
    more = f" The first {MOST_STUDENTS} students." if len(rows) > MOST_STUDENTS else ""
    return grid(
        f"Teachers recommended for `{method}` had the student's own transfers not been run, and what came of it.{more}",
        pd.DataFrame(rows[:MOST_STUDENTS]),
        [
            ("student", name("student")),
            ("recommended teacher", name("teacher")),
            ("predicted delta, points", signed_number("predicted")),
            ("measured delta, points", signed_number("delta")),
            ("best teacher", name("best")),
            ("its delta, points", signed_number("best_delta")),
            ("teachers", count("teachers")),
        ],
    )


def several(tables: Tables) -> Grid:
    """Methods with several teachers beside the same students' single teachers."""
    frame = tables.analysis["several"]
    return grid(
        "Several teachers together, and single ones of the same teachers for the same students.",
        frame.assign(delta_se=frame["se"]),
        [
            ("method", name("method")),
            ("teachers", count("teachers")),
            ("delta, points ± standard error over students", error("delta")),
            ("success, % of students", plain("success", 0)),
            ("one of them: mean, points", signed_number("single_mean")),
            ("the best of them, points", signed_number("single_best")),
            ("single method", name("single")),
            ("students", count("students")),
        ],
    )


def unsaid(tables: Tables) -> list[str]:
    """What the analysis says cannot be said: the lines of that heading in its summary."""
    _, _, after = tables.summary.partition("## What cannot be said")
    section = after.partition("\n## ")[0]
    return [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]


def _shown(frame: pd.DataFrame) -> list[str]:
    return [f"{row['method']} (control)" if row["control"] else row["method"] for row in records(frame)]
