"""Figures of which students and teachers gain: by size, kind and family. Source of the measures: FG section 4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from kt.analysis.deltas import pair_deltas, records
from kt.analysis.wording import counted, number
from kt.figures import published, style
from kt.figures.style import BLUE, GREY, PAGE, PURPLE, Drawing
from kt.figures.tables import Tables

ACROSS, MOST_PANELS = 3, 6
MOST_SERIES, MOST_LEVELS = 4, 24
FEW = 3
"""Models below which a kind or family is only an example."""

LEAST_FOR_TREND = 4
"""Students below which no rank correlation is given."""


def transfer_rate_vs_size(tables: Tables) -> Drawing:
    """Transfer rate of every student, mean over its teachers, against its parameters; one panel per method.

    The published rate counts more than the same images: it is drawn beside the rate that is counted likewise.
    """
    pairs = pair_deltas(tables.transfers, tables.complementarity)
    pairs = pairs[pairs["transfer_rate"].notna() & pairs["trains"]]
    params = tables.zoo.set_index("name")["params"]
    data = pairs.groupby(["method", "control", "student"], as_index=False, sort=False).agg(
        teachers=("teacher", "nunique"),
        transfer_rate=("transfer_rate", "mean"),
        se=("transfer_rate", "sem"),
        as_published=("transfer_rate_published", "mean"),
    )
    data["params"] = pd.to_numeric(data["student"].map(params)).astype(float)
    if data["params"].notna().sum() == 0:
        return style.nothing("no transfer rate of a student whose size is known", data)
    controls = data.loc[data["control"], "method"].unique().tolist()
    names = [*tables.chosen(max(MOST_PANELS - len(controls), 1)), *controls]
    data = data[data["method"].isin(names)].reset_index(drop=True)
    names = [name for name in names if name in set(data["method"])]
    across, down = min(ACROSS, len(names)), math.ceil(len(names) / ACROSS)
    figure = Figure(figsize=(PAGE * max(across, 2) / ACROSS, max(2.6, 1.0 + 1.7 * down)), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    landmarks = published.same_data(tables)
    for axes, name in zip(panels.flat, names, strict=False):
        rows = data[data["method"] == name]
        control = bool(rows["control"].iloc[0])
        axes.errorbar(
            rows["params"],
            rows["transfer_rate"],
            rows["se"],
            fmt="D" if control else "o",
            color=GREY if control else BLUE,
            markersize=3.5,
            elinewidth=0.8,
            ecolor="#BBBBBB",
        )
        axes.set_title(f"{style.label(name, control)}{_trend(rows)}")
        if landmarks:
            x, y = rows["params"], rows["as_published"]
            axes.plot(x, y, "o", color=PURPLE, markersize=3, markerfacecolor="none", markeredgewidth=0.7)
        if landmarks and not control:
            axes.plot(*zip(*published.RATE_BY_SIZE, strict=True), "*--", color=PURPLE, markerfacecolor="white")
    sizes = data["params"].dropna()
    low, high = float(sizes.min()) / 1.5, float(sizes.max()) * 1.5
    highest = float(data["as_published"].fillna(0).max()) if landmarks else 0
    panels[0, 0].set_ylim(-3, max(103, 1.05 * highest))
    style.log_scale(panels[0, 0], low, high, *((1e6, "M") if high >= 1e5 else (1e3, "k")))
    style.outer_labels(panels, len(names), "parameters of the student", "transfer rate (%)")
    style.footer(
        figure,
        f"{style.transferred(tables)}. Points: {counted(data['student'].nunique(), 'student')}, mean over teachers ± 1"
        " standard error over them. ρ: rank correlation over students. A control's rate is what training puts right"
        " without a teacher.",
        _compared(low, high) if landmarks else "",
    )
    return Drawing(figure, data)


def _compared(low: float, high: float) -> str:
    """The published rates, and whether they lie between these numbers of parameters."""
    (small, little), (large, much) = published.RATE_BY_SIZE
    where = " (dashed)" if low <= large and high >= small else ", outside these axes"
    return (
        f"Hollow: the rate as published, which counts all gained images of the teacher's classes; FG: about"
        f" {little:g} % at {small / 1e6:g}M parameters to {much:g} % at {large / 1e6:g}M{where}."
    )


def _trend(rows: pd.DataFrame) -> str:
    """The rank correlation over students, where there are enough of them and sizes differ."""
    known = rows[rows["params"].notna()]
    if len(known) < LEAST_FOR_TREND or known["params"].nunique() < 2 or known["transfer_rate"].nunique() < 2:
        return ""
    rho = float(spearmanr(known["params"], known["transfer_rate"]).statistic)
    return f", ρ {number(rho, 2)}"


def delta_by_kind(tables: Tables) -> Drawing:
    """Mean delta and success by the kind of student and of teacher."""
    return _by(tables, "kind")


def delta_by_family(tables: Tables) -> Drawing:
    """The same by family."""
    return _by(tables, "family")


def _by(tables: Tables, what: str) -> Drawing:
    groups = tables.analysis["groups"]
    names = tables.chosen(MOST_SERIES)
    data = groups[groups["grouping"].isin([f"student {what}", f"teacher {what}"]) & groups["method"].isin(names)]
    columns = ["method", "grouping", "level", "pairs", "students", "teachers", "delta", "se", "success"]
    data = data[columns].reset_index(drop=True)
    if data.empty:
        return style.nothing(tables.why_not("groups", f"no finished transfer between models of known {what}"), data)
    size = data.groupby("level")["pairs"].sum().sort_values(ascending=False, kind="stable")
    levels = sorted(size.index[:MOST_LEVELS])
    data = data[data["level"].isin(levels)].reset_index(drop=True)
    looks, step = style.looks(names), 0.7 / max(len(names), 1)
    row_height = max(0.3, 0.13 * len(names))
    figure = Figure(figsize=(PAGE, 1.5 + row_height * len(levels)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.8))
    shown = (("student", "delta"), ("teacher", "delta"), ("student", "success"))
    for axes, (role, column) in zip(panels, shown, strict=True):
        of_role = data[data["grouping"] == f"{role} {what}"]
        for place, name in enumerate(names):
            colour, marker = looks[name]
            for row in records(of_role[of_role["method"] == name]):
                y = levels.index(row["level"]) + (place - (len(names) - 1) / 2) * step
                error = row["se"] if column == "delta" else math.nan
                axes.errorbar(row[column], y, xerr=error, fmt=marker, color=colour, markersize=3.5, elinewidth=1)
        _dress(axes, role, column, what, tables.task.metric.short)
    landmarks = what == "kind" and _published(panels[2], tables, levels, names, step)
    if data["delta"].min() < 0 < data["delta"].max():
        for axes in panels[:2]:
            axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    models = _models(data)
    panels[0].set_yticks(range(len(levels)), [f"{level}\n{counted(models[level], 'model')}" for level in levels])
    panels[0].set_ylim(len(levels) - 0.5, -0.5)
    for y in np.arange(0.5, len(levels) - 1):
        for axes in panels:
            axes.axhline(y, color="#E6E6E6", linewidth=0.6, zorder=0)
    _legend(figure, looks, names, landmarks)
    left_out = f" Of {len(size)}, those with most pairs." if len(size) > len(levels) else ""
    style.footer(
        figure,
        f"{style.transferred(tables)}. Bars: ± 1 standard error over pairs, robust to pairs that share a model; none"
        f" where one pair is all.{left_out}"
        + (f" A row of one or two models shows those models, not their {what}." if min(models.values()) < FEW else ""),
        f"Published success of students by kind: {published.DESIGN}." if landmarks else "",
    )
    return Drawing(figure, data)


def _models(groups: pd.DataFrame) -> dict[str, int]:
    """Models behind every level: those that teach or those that learn, the larger number of the two."""
    models = groups["students"].where(groups["grouping"].str.startswith("student"), groups["teachers"])
    return {str(level): int(count) for level, count in models.groupby(groups["level"]).max().items()}


def _dress(axes: Axes, role: str, column: str, what: str, short: str) -> None:
    if column == "delta":
        axes.set(xlabel=f"mean transfer delta ({short})", title=f"by {what} of the {role}")
        axes.locator_params(axis="x", nbins=4)
    else:
        axes.set(xlabel="success (% of pairs)", xlim=(-5, 105), title=f"by {what} of the {role}")
    axes.grid(visible=False, axis="y")


def _published(axes: Axes, tables: Tables, levels: list[str], names: list[str], step: float) -> bool:
    """FG's success rates by kind of student; whether any is drawn."""
    drawn = False
    for name, of_kind in published.comparable(published.SUCCESS_OF_KIND, tables).items():
        for level, success in of_kind.items() if name in names else ():
            if level in levels:
                y = levels.index(level) + (names.index(name) - (len(names) - 1) / 2) * step
                axes.plot(success, y, "*", color=PURPLE, markerfacecolor="white", markersize=8, zorder=4)
                drawn = True
    return drawn


def _legend(figure: Figure, looks: dict[str, tuple[str, str]], names: list[str], landmarks: bool) -> None:
    handles: list[Any] = [
        Line2D([], [], color=looks[name][0], marker=looks[name][1], linestyle="", markersize=4, label=name)
        for name in names
    ]
    if landmarks:
        label = f"{next(iter(published.SUCCESS_OF_KIND))}, published (FG)"
        handles.append(
            Line2D([], [], marker="*", color=PURPLE, markerfacecolor="white", linestyle="", markersize=8, label=label)
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=5, handletextpad=0.1, columnspacing=0.8)
