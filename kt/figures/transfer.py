"""Figures of what transfer did to the students. Source of the measures: FG section 4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import pair_deltas, records
from kt.analysis.wording import counted, number, with_error
from kt.figures import style
from kt.figures.style import BLUE, GREY, INK, MANY, ORANGE, PAGE, Drawing, Tables

NOTHING = "no transfer finished"
WEAKER, STRONGER, CONTROL = "teacher less accurate", "teacher as accurate or more", "student of a control"
TEACHERS = {WEAKER: ("v", ORANGE), STRONGER: ("o", BLUE), CONTROL: ("D", GREY)}
ACROSS = 3
"""Panels in a row of small multiples."""


def delta_by_method(tables: Tables) -> Drawing:
    """Distribution of the pairs' transfer deltas for every method, controls marked, with success rate and n."""
    data = pair_deltas(tables.transfers, tables.complementarity)
    if data.empty:
        return Drawing(style.empty(NOTHING), data)
    summary = tables.methods[tables.methods["group"] == "all"]
    rows = records(summary)
    names = [row["method"] for row in rows]

    figure = Figure(figsize=(PAGE, 1.4 + 0.42 * len(names)), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(0.68, 0.32))
    axes.axvline(0, color=GREY, linewidth=0.8)
    thin = {"color": GREY, "linewidth": 0.8}
    axes.boxplot(
        [data.loc[data["method"] == name, "delta"] for name in names], positions=range(len(names)), widths=0.62,
        orientation="horizontal", whis=(5, 95), showfliers=False, manage_ticks=False, boxprops=thin, whiskerprops=thin,
        capprops=thin, medianprops=thin,
    )  # fmt: skip
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first method on top
    rng = np.random.default_rng(0)  # jitter only
    for place, row in enumerate(rows):
        of_method = data[data["method"] == row["method"]]
        for kind, points in _by_teacher(of_method, row["control"]):
            marker, colour = TEACHERS[kind]
            height = place + rng.uniform(-0.22, 0.22, len(points))
            looks = style.marks(len(points) if row["control"] else len(of_method))
            axes.scatter(points["delta"], height, marker=marker, color=colour, zorder=2, label=kind, **looks)
        error = row["delta_se"] if math.isfinite(row["delta_se"]) else 0.0
        axes.errorbar(
            row["delta"], place, xerr=error, fmt="s", color=INK, markersize=4, markerfacecolor="white", elinewidth=1.6,
            capsize=2.5, zorder=4,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [style.label(r["method"], r["control"]) for r in rows])
    axes.set(xlabel="transfer delta (percentage points)", ylabel="")
    axes.grid(visible=False, axis="y")
    _columns_of_text(beside, rows)
    _legend(figure, axes)
    style.footer(
        figure,
        f"{style.transferred(tables)}; a pair's delta is its mean over seeds. Box: quartiles; whiskers: 5–95 %.",
        "Square and bar: mean ± 1 standard error over pairs, robust to pairs that share a model.",
    )
    return Drawing(figure, data)


def _columns_of_text(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Mean, success and n of every row, in axes that share the rows' height."""
    columns = (
        (0.0, "mean ± SE (points)", [with_error(row["delta"], row["delta_se"]) for row in rows]),
        (0.52, "success", [f"{number(row['success'], 0)} %" for row in rows]),
        (0.76, "n", [_counted(row) for row in rows]),
    )
    for x, title, texts in columns:
        axes.text(x, 1.02, title, transform=axes.transAxes, fontsize=7, color="#555555", va="bottom")
        for place, text in enumerate(texts):
            axes.text(x, place, text, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    axes.set_axis_off()


def _counted(row: dict[str, Any]) -> str:
    return counted(row["students"], "student") if row["control"] else counted(row["pairs"], "pair")


def _by_teacher(pairs: pd.DataFrame, control: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """A method's pairs by what their teacher is to the student; a control's students once each."""
    if control:
        yield CONTROL, pairs.drop_duplicates(["student", "delta"])
        return
    weaker = pairs["acc_difference"] < 0
    for kind, chosen in ((WEAKER, weaker), (STRONGER, ~weaker)):
        if chosen.any():
            yield kind, pairs[chosen]


def _legend(figure: Figure, axes: Axes) -> None:
    """Each kind of point once, above everything else."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    style.legend_marks(
        figure.legend(
            [once[kind] for kind in TEACHERS if kind in once], [kind for kind in TEACHERS if kind in once],
            loc="outside upper left", ncols=3, handletextpad=0.1, columnspacing=1,
        )
    )  # fmt: skip


def delta_vs_accuracy(tables: Tables) -> Drawing:
    """Transfer delta of every pair against the accuracy difference, one panel a method."""
    data = pair_deltas(tables.transfers, tables.complementarity)
    if data.empty:
        return Drawing(style.empty(NOTHING), data)
    methods = records(tables.methods[tables.methods["group"] == "all"])
    down = math.ceil(len(methods) / ACROSS)
    across = min(ACROSS, len(methods))
    figure = Figure(figsize=(PAGE * max(across, 2) / ACROSS, max(3.0, 0.9 + 1.9 * down)), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    reach = max(float(data["acc_difference"].abs().max()), 1.0) * 1.06
    few = data.groupby("method").size().max() <= MANY
    for axes, row in zip(panels.flat, methods, strict=False):
        points = data[data["method"] == row["method"]]
        x, y = points["acc_difference"], points["delta"]
        marker, colour = ("D", GREY) if row["control"] else ("o", BLUE)
        if few:
            axes.errorbar(x, y, points["delta_se"], fmt="none", ecolor="#BBBBBB", elinewidth=0.7, zorder=1)
        axes.scatter(x, y, marker=marker, color=colour, zorder=2, **style.marks(len(points)))
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(f"{style.label(row['method'], row['control'])}, {counted(row['pairs'], 'pair')}")
    low, high = float((data["delta"] - data["delta_se"]).min()), float((data["delta"] + data["delta_se"]).max())
    margin = 0.05 * max(high - low, 1.0)
    panels[0, 0].set(xlim=(-reach, reach), ylim=(low - margin, high + margin))
    for axes in panels.flat[len(methods) :]:
        axes.set_axis_off()
    for place in range(max(0, len(methods) - across), len(methods)):
        panels.flat[place].tick_params(labelbottom=True)
        panels.flat[place].set_xlabel("teacher − student (points)", fontsize=7)
    for axes in panels[:, 0]:
        axes.set_ylabel("transfer delta (points)", fontsize=7)
    bars = "Bars: ± 1 standard error over test images, mean over seeds." if few else _median_error(data)
    style.footer(
        figure,
        "Both axes in percentage points. Dashed: the student becomes as good as its teacher was.",
        f"{style.transferred(tables)}. {bars}",
    )
    return Drawing(figure, data)


def _median_error(data: pd.DataFrame) -> str:
    return f"Median standard error {number(data['delta_se'].median(), 2)} points, over test images."
