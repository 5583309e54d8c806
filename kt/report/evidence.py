"""The report's tables that come from the analysis."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kt.analysis.deltas import Gain, records
from kt.analysis.effects import CLEAR
from kt.analysis.recommend import CANNOT_TELL, Advisor, open_question
from kt.analysis.wording import decimals, number, predictor_words, property_words, signed, with_error
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, count, error, grid, name, plain, signed_number
from kt.tables.columns import with_metric
from kt.tasks.task import Words

MOST_METHODS = 4
LEAST_EFFECTS = 3
"""Effects of one method that are shown even where none is clear."""

MOST_STUDENTS = 20


def beside_controls(compared: list[Gain], weaker: list[Gain], task: Words) -> Grid:
    """Every method beside the control that it must beat, over the same pairs and seeds."""
    of_weaker = {gain.method: gain for gain in weaker}
    rows = [
        [Cell(gain.method), Cell(gain.control or "–"), *_beyond(gain, task), *_beyond(of_weaker.get(gain.method), task)]
        for gain in compared
    ]
    short = task.metric.short
    headings = ("method", "control", f"all pairs, {short}", "clear?", "pairs")
    of_group = (f"weaker teacher, {short}", "clear?", "pairs")
    caption = "What teachers add: paired difference of transfer deltas, method − control, ± standard error."
    return Grid(caption, (*headings, *of_group), rows)


def _beyond(gain: Gain | None, task: Words) -> list[Cell]:
    if gain is None or gain.control is None:
        return [Cell("–", float("nan")), Cell("–"), Cell("–", float("nan"))]
    sign = {1: "yes, more", -1: "yes, less", 0: "no"}[gain.beyond.sign]
    text = with_error(gain.beyond.mean, gain.beyond.se, decimals(task))
    return [Cell(text, gain.beyond.mean), Cell(sign), Cell(f"{gain.beyond.n:,}", float(gain.beyond.n))]


def variance(tables: Tables) -> Grid:
    """Variance components of delta over pairs."""
    frame = tables.analysis["variance"]
    return grid(
        "Variance components: shares of the variance of delta between pairs, in percent.",
        frame.assign(shown=_shown(frame)),
        [
            ("method", name("shown")),
            (f"standard deviation, {tables.task.metric.short}", plain("sd", decimals(tables.task))),
            ("the student, %", plain("student", 0)),
            ("the teacher, %", plain("teacher", 0)),
            ("the pair and chance, %", plain("pair", 0)),
            ("of which seeds, %", plain("of_which_seeds", 0)),
            ("pairs", count("pairs")),
        ],
    )


def ladder(tables: Tables) -> Grid:
    """Every predictor's scores on models left out of its fit."""
    scores, short, digits = tables.analysis["ladder"], tables.task.metric.short, decimals(tables.task)
    scores = scores[scores["method"].isin(tables.chosen(MOST_METHODS))]
    rows = scores[scores["scheme"] == "students"]
    for scheme in ("teachers", "both"):
        of_scheme = scores[scores["scheme"] == scheme][["method", "rung", "r2"]]
        rows = rows.merge(of_scheme, on=["method", "rung"], how="left", suffixes=("", f"_{scheme}"))
    return grid(
        "Predictors, simplest first, on models held out in every role. Regret: how much more the best teacher gives"
        " than the best of those ranked first.",
        rows.assign(shown=[predictor_words(rung, tables.task) for rung in rows["rung"]]),
        [
            ("method", name("method")),
            ("predictor", name("shown")),
            ("R², new students", plain("r2", 2)),
            ("R², new teachers", plain("r2_teachers", 2)),
            ("R², both new", plain("r2_both", 2)),
            ("ceiling of R²", plain("r2_ceiling", 2)),
            ("weighted τ", plain("tau", 2)),
            (f"regret of the first, {short}", plain("regret_1", digits)),
            (f"regret of the first 3, {short}", plain("regret_3", digits)),
            ("time saved by the first 3, %", plain("hours_saved_3", 0)),
            ("pairs", count("pairs")),
        ],
    )


def effects(tables: Tables) -> Grid:
    """Clear effects of properties, and the likeliest where none is, with robust and naive errors side by side."""
    frame = tables.analysis["effects"]
    frame = frame[frame["method"].isin(tables.chosen(MOST_METHODS))].sort_values("p_bh", kind="stable")
    place = frame.groupby(["method", "given"], sort=False).cumcount()
    frame = frame[(frame["p_bh"] < CLEAR) | (place < LEAST_EFFECTS)].sort_values(["method", "given", "p_bh"])
    frame = frame.assign(
        shown=[property_words(p, tables.task) for p in frame["property"]],
        held=[property_words(g, tables.task) for g in frame["given"]],
        effect_se=frame["se"],
    )
    return grid(
        f"Properties and gains: {tables.task.metric.difference} of delta per standard deviation. Clear effects"
        f" (corrected p below {CLEAR}) and each method's {LEAST_EFFECTS} likeliest others.",
        frame,
        [
            ("method", name("method")),
            ("property", name("shown")),
            ("held fixed", name("held")),
            ("effect ± robust error", error("effect", decimals(tables.task))),
            ("naive error", plain("se_iid", decimals(tables.task))),
            ("95 % bootstrap", lambda row: Cell(_interval(row, decimals(tables.task)), float(row["boot_low"]))),
            ("p, corrected", plain("p_bh", 3)),
            ("pairs", count("pairs")),
        ],
    )


def _interval(row: dict[str, Any], digits: int) -> str:
    low, high = (number(row[name], digits) for name in ("boot_low", "boot_high"))
    return "–" if pd.isna(row["boot_low"]) else f"{low} to {high}"


def importances(tables: Tables) -> Grid:
    """Properties that boosted trees use, where they predict anything."""
    frame = tables.analysis["importances"]
    frame = frame[frame["method"].isin(tables.chosen(MOST_METHODS))]
    frame = frame[frame.groupby("method", sort=False).cumcount() < LEAST_EFFECTS]
    key = tables.task.metric.key
    frame = frame.assign(properties=[with_metric(names, key) for names in frame["properties"]])
    return grid(
        "Properties that boosted trees use: held-out R² that shuffling a group of related properties costs them.",
        frame,
        [
            ("method", name("method")),
            ("properties shuffled together", name("properties")),
            ("R² lost ± standard error over folds", error("importance")),
            ("R² of the trees", plain("r2", 2)),
        ],
    )


def recommended(tables: Tables, advisor: Advisor) -> Grid:
    """The teacher that ``kt recommend`` ranks first for every student: a measured one, else by prediction."""
    (method,) = advisor.judged
    task, digits = tables.task, decimals(tables.task)
    students = sorted(map(str, tables.inputs.zoo.index))
    ranked = {student: advisor.rank(student) for student in students[:MOST_STUDENTS]}
    rows = [[Cell(student), *_first(of_student, digits)] for student, of_student in ranked.items()]
    headings = ["student", "best measured teacher", f"its delta, {task.metric.short}", "teachers measured"]
    if any(of_student["measured"].isna().any() for of_student in ranked.values()):
        headings += ["of the others the likeliest", f"predicted delta, {task.metric.short}", "P(delta < 0)"]
    more = f" The first {MOST_STUDENTS} students." if len(students) > MOST_STUDENTS else ""
    caption = f"Teachers that `kt recommend` ranks first for `{method}`: measured ones first, as measured.{more}"
    return Grid(caption, tuple(headings), [row[: len(headings)] for row in rows])


def _first(rows: pd.DataFrame, digits: int) -> list[Cell]:
    """The best measured teacher, and the one with the highest prediction among the others."""
    known, left = rows[rows["measured"].notna()], rows[rows["measured"].isna()]
    of = Cell(f"{len(known):,} of {len(rows):,}", float(len(known)))
    shown = [Cell("–"), Cell("–", float("nan")), of]
    if len(known):
        best = records(known.head(1))[0]
        shown = [
            Cell(best["teacher"]),
            Cell(with_error(best["measured"], best["measured_se"], digits), best["measured"]),
            of,
        ]
    if left.empty:
        return [*shown, Cell("all are measured"), Cell("–", float("nan")), Cell("–", float("nan"))]
    if open_question(rows):
        return [*shown, Cell(CANNOT_TELL), Cell("–", float("nan")), Cell("–", float("nan"))]
    told = records(left.head(1))[0]
    predicted = Cell(signed(told["predicted"], digits), told["predicted"])
    return [*shown, Cell(told["teacher"]), predicted, Cell(number(told["p_harm"], 2), told["p_harm"])]


def afterwards(tables: Tables, method: str) -> Grid:
    """The teacher that the predictor ranks first for every student without its transfers, and the best one."""
    frame, short, digits = tables.analysis["predictions"], tables.task.metric.short, decimals(tables.task)
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
        f"Would the predictor have helped? Its first choice for `{method}`, fitted without the student’s transfers and"
        f" some of the teachers, beside the best teacher.{more}",
        pd.DataFrame(rows[:MOST_STUDENTS]),
        [
            ("student", name("student")),
            ("its first choice", name("teacher")),
            (f"predicted delta, {short}", signed_number("predicted", digits)),
            (f"measured delta, {short}", signed_number("delta", digits)),
            ("best teacher", name("best")),
            (f"its delta, {short}", signed_number("best_delta", digits)),
            ("teachers", count("teachers")),
        ],
    )


def several(tables: Tables) -> Grid:
    """Methods with several teachers beside the same students' single teachers."""
    frame, short, digits = tables.analysis["several"], tables.task.metric.short, decimals(tables.task)
    return grid(
        "Several teachers together, and single ones of the same teachers for the same students.",
        frame.assign(delta_se=frame["se"]),
        [
            ("method", name("method")),
            ("teachers", count("teachers")),
            (f"delta ± standard error over students, {short}", error("delta", digits)),
            ("success, % of students", plain("success", 0)),
            (f"one of them: mean, {short}", signed_number("single_mean", digits)),
            (f"the best of them, {short}", signed_number("single_best", digits)),
            ("single method", name("single")),
            ("students", count("students")),
        ],
    )


def _shown(frame: pd.DataFrame) -> list[str]:
    return [f"{row['method']} (control)" if row["control"] else row["method"] for row in records(frame)]
