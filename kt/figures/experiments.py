"""Figures of students with several teachers: groups (FG section 4), amalgamation (CFL) and knowledge flow (KF)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kt.analysis.deltas import records
from kt.analysis.wording import counted, counted_range, decimals, examples, plural, value_with_error, with_error
from kt.figures import fading, published, style
from kt.figures.policies import named
from kt.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PAGE, PURPLE, SERIES, Drawing
from kt.figures.tables import Tables
from kt.tasks.task import Words


def several_teachers(tables: Tables) -> Drawing:
    """Delta of methods with several teachers beside the same students' single teachers."""
    data = tables.analysis["several"].reset_index(drop=True)
    if data.empty:
        return style.nothing(tables.why_not("several", "no transfer from a group of teachers (key `groups`)"), data)
    rows = records(data)
    figure = Figure(figsize=(PAGE, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, row in enumerate(rows):
        axes.errorbar(
            row["delta"],
            y,
            xerr=row["se"],
            fmt="o",
            color=BLUE,
            markersize=5,
            elinewidth=1.4,
            capsize=2,
            label="together",
        )
        axes.plot(row["single_mean"], y + 0.22, "s", color=ORANGE, markersize=4, label="one of them, mean")
        axes.plot(
            row["single_best"], y + 0.22, "^", color=GREEN, markersize=4.5, label="the best of them, known afterwards"
        )
        for value in published.SEVERAL.get(row["method"], ()) if published.same_data(tables) else ():
            axes.plot(
                value,
                y - 0.24,
                "*",
                color=PURPLE,
                markerfacecolor="white",
                markersize=7,
                label="published (FG, 3 teachers, two students)",
            )
    labels = [f"{row['method']}, {_teachers(row)}\n{counted(row['students'], 'student')}" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"transfer delta ({tables.task.metric.difference})")
    axes.grid(visible=False, axis="y")
    style.legend_above(figure, [axes], ("together",), ncols=2)
    single = next((row["single"] for row in rows if isinstance(row["single"], str)), None)
    taken = f" Single teachers by {single}, the method with the highest mean delta." if single else ""
    style.footer(
        figure,
        f"{style.of_groups(tables)}. Bars: ± 1 standard error over students.{taken}",
        "A budget of several trainings may lie behind a row: see the table transfers, column budget.",
    )
    return Drawing(figure, data)


def _teachers(row: dict[str, Any]) -> str:
    return f"{int(row['teachers'])} teachers" if pd.notna(row["teachers"]) else "teachers unknown"


NO_AMALGAMATION = "no amalgamation finished"
REFERENCE = "kd"
PART_MARKS = (("o", BLUE), ("^", ORANGE), ("D", GREEN), ("v", GREY))
"""Marks of the teachers' parts, over and over."""


def by_part(details: pd.DataFrame) -> pd.DataFrame:
    """The metric by experiment, method and part: mean and standard error over seeds.

    Args:
        details: the table ``amalgamation``.

    Returns:
        ``experiment``, ``method``, ``part``, ``n`` (test examples), ``seeds``, ``acc`` and ``acc_se`` (over seeds; that
        over test examples where there is one seed), ``gain`` and ``gain_se``: against plain distillation of the same
        seeds, paired; null where there is none.
    """
    keys = ["experiment", "method", "part"]
    reference = details[details["method"] == REFERENCE].set_index(["experiment", "part", "seed"])["acc"]
    own = details.set_index(["experiment", "part", "seed"]).index
    paired = details["acc"] - reference.reindex(own).to_numpy()
    rows = details.assign(gain=paired.where(details["trains"] & (details["method"] != REFERENCE)))
    found = (
        rows.groupby(keys, sort=False)
        .agg(
            n=("n", "max"),
            seeds=("seed", "nunique"),
            acc=("acc", "mean"),
            acc_se=("acc", "sem"),
            over_images=("acc_se", "mean"),
            gain=("gain", "mean"),
            gain_se=("gain", "sem"),
        )
        .reset_index()
    )
    found["acc_se"] = found["acc_se"].fillna(found.pop("over_images"))
    return found


def amalgamation(tables: Tables) -> Drawing:
    """The metric by method with standard errors, one panel per experiment."""
    details = tables.details("amalgamation")
    if details.empty:
        return style.nothing(NO_AMALGAMATION, details)
    data = by_part(details)
    names = list(data["experiment"].unique())
    methods = [list(data.loc[data["experiment"] == name, "method"].unique()) for name in names]
    heights = [0.7 + 0.34 * len(of_panel) for of_panel in methods]
    figure = Figure(figsize=(PAGE, 0.7 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, name, of_panel in zip(panels, names, methods, strict=True):
        _amalgams(axes, data[data["experiment"] == name], of_panel, tables.task)
        axes.set_title(name)
    panels[-1].set_xlabel(_value(tables.task))
    seeds = data.loc[data["seeds"] > 1, "seeds"]
    over = f"over {counted_range(seeds, 'seed')}, and " if len(seeds) else ""
    style.footer(
        figure,
        f"Squares: all classes. Other marks: the {plural(tables.task.example)} of one teacher's classes.",
        f"At the right: mean ± standard error, and the paired difference to {REFERENCE}.",
        f"{counted(int(data['n'].max()), examples(tables.task))}. Bars: ± 1 standard error {over}over"
        f" {plural(examples(tables.task))} where nothing was trained.",
    )
    return Drawing(figure, data)


def _amalgams(axes: Axes, data: pd.DataFrame, methods: list[str], task: Words) -> None:
    """The methods of one experiment from top to bottom."""
    parts = [part for part in data["part"].unique() if part != "all"]
    looks = {part: PART_MARKS[i % len(PART_MARKS)] for i, part in enumerate(parts)}
    for row in records(data):
        place = methods.index(row["method"])
        marker, colour = looks.get(row["part"], ("s", INK))
        whole = row["part"] == "all"
        beside = 0 if whole else 0.14 + 0.3 * parts.index(row["part"]) / len(parts)
        axes.errorbar(
            row["acc"],
            place + beside,
            xerr=row["acc_se"],
            fmt=marker,
            color=colour,
            capsize=2,
            markersize=5 if whole else 3.5,
            markerfacecolor="white" if whole else colour,
            elinewidth=1.2,
            label=None if whole else row["part"],
            zorder=3 if whole else 2,
        )
        if whole:
            gain = with_error(row["gain"], row["gain_se"], decimals(task))
            text = value_with_error(row["acc"], row["acc_se"], decimals(task, 1))
            text = f"{text}{f'  ({gain})' if pd.notna(row['gain_se']) else ''}"
            axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), methods)
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(
        once.values(),
        once.keys(),
        loc="lower right",
        bbox_to_anchor=(1, 0.98),
        ncols=len(once),
        handletextpad=0.1,
        columnspacing=1,
    )


NO_FLOW = "no training of an experiment with knowledge flow finished"


def by_method(details: pd.DataFrame) -> pd.DataFrame:
    """The metric of each method by training examples: mean and standard error over seeds, and their number.

    Args:
        details: the table ``flow``.

    Returns:
        Columns ``experiment``, ``images`` (NaN where all were used), ``name`` (the method, and the teacher where each
        takes the student's place), ``acc`` and ``se`` (NaN for one seed), ``seeds``, and
        ``gain`` and ``gain_se`` against training from scratch, paired by seed (NaN without it).
    """
    trials = details.drop_duplicates("key")
    scratch = trials[trials["method"] == "scratch"].set_index(["experiment", "seed"])["acc"]
    paired = scratch.reindex(pd.MultiIndex.from_frame(trials[["experiment", "seed"]])).to_numpy()
    gains = (trials["acc"] - paired).where(trials["method"] != "scratch")
    grouped = named(trials).assign(gain=gains).groupby(["experiment", "images", "name"], sort=False, dropna=False)
    found: pd.DataFrame = grouped.agg(
        acc=("acc", "mean"), se=("acc", "sem"), seeds=("acc", "count"), gain=("gain", "mean"), gain_se=("gain", "sem")
    ).reset_index()
    return found


def flow(tables: Tables) -> Drawing:
    """The metric by method and number of training examples; below, how the teachers fade and what that costs.

    The table beside the figure has the numbers of its upper part; of policies, which have none, what is drawn of them.
    """
    details = tables.details("flow")
    if details.empty:
        return style.nothing(NO_FLOW, details)
    over_time = details[details["method"] == "flow"].dropna(subset=["epoch"])
    experiments = list(over_time["experiment"].unique())
    plays = tables.task.plays  # the figure `returns` has the values of policies
    data = fading.of_all(over_time) if plays else by_method(details)
    if plays and over_time.empty:
        return style.nothing(NO_FLOW, data)
    heights = [] if plays else [2.4]
    heights += [0.8 + 1.2 * len(experiments)] if experiments else []
    figure = Figure(figsize=(PAGE, 0.8 + sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if not plays:
        _flow_by_method(parts.pop(0), data, tables.task)
    for part in parts:
        fading.over_time(part, over_time, experiments, tables.task)
    shown, there = len(fading.shown_stages(over_time)), over_time["stage"].nunique()
    some = f" ({shown} of {there})" if shown < there else ""
    below = "" if plays else "Below: "
    last = f"{counted(int(details['n'].max()), examples(tables.task))}, last epoch. " if not plays else ""
    style.footer(
        figure,
        f"{last}Bars and bands: ± 1 standard error over {counted_range(data['seeds'], 'seed')}.",
        f"{below}Weights of the student's own features and of each teacher's, by stage of the student{some}; at the"
        f" right validation {tables.task.metric.name} with what flows into the student, and by itself.",
    )
    return Drawing(figure, data)


def _flow_by_method(figure: SubFigure, data: pd.DataFrame, task: Words) -> None:
    sizes = records(data.drop_duplicates("experiment")[["experiment", "images"]])
    place = {row["experiment"]: i for i, row in enumerate(sizes)}
    names = list(data["name"].unique())
    axes: Axes = figure.subplots()
    for i, name in enumerate(names):
        colour, marker = SERIES[i % len(SERIES)]
        rows = data[data["name"] == name]
        x = rows["experiment"].map(place) + 0.09 * (i - (len(names) - 1) / 2)
        axes.errorbar(
            x,
            rows["acc"],
            yerr=rows["se"],
            fmt=marker,
            color=colour,
            markersize=4.5,
            elinewidth=1.4,
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(sizes)), [f"{row['experiment']}\n{_images(row['images'], task)}" for row in sizes])
    axes.set_ylabel(_value(task))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.3)


def _images(images: float, task: Words) -> str:
    return f"all {plural(task.example)}" if math.isnan(images) else counted(int(images), task.example)


def _value(task: Words) -> str:
    """The metric and its unit, for an axis."""
    unit = f" ({task.metric.unit})" if task.metric.unit else ""
    return f"{task.metric.name} on the {plural(examples(task))}{unit}"
