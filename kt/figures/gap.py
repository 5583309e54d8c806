"""Figures of what the accuracy difference of teacher and student has to do with it. Source of the measures: FG."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import PAIR, pair_deltas, records
from kt.analysis.wording import counted, in_points, number
from kt.figures import style
from kt.figures.style import BLUE, COLUMN, GREY, INK, MANY, ORANGE, PAGE, Drawing
from kt.figures.tables import Tables
from kt.figures.transfer import NOTHING

ACROSS = 3
"""Panels in a row of small multiples."""

SHADE = "#F3F3F3"
"""Behind pairs whose teacher is the weaker model."""

MOST_SHARES = 6
"""Methods whose teacher's share is drawn."""


def delta_vs_accuracy(tables: Tables) -> Drawing:
    """Transfer delta of every pair against the accuracy difference, one panel a method, with the best quarter."""
    data = pair_deltas(tables.transfers, tables.complementarity)
    if data.empty:
        return style.nothing(NOTHING, data)
    methods = records(tables.methods[tables.methods["group"] == "all"])
    down = math.ceil(len(methods) / ACROSS)
    across = min(ACROSS, len(methods))
    figure = Figure(figsize=(PAGE * max(across, 2) / ACROSS, max(3.0, 1.2 + 1.9 * down)), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    reach = max(float(data["acc_difference"].abs().max()), 1.0) * 1.06
    few = data.groupby("method").size().max() <= MANY
    bins = tables.analysis["groups"]
    bins = bins[bins["grouping"] == "accuracy difference"]
    for axes, row in zip(panels.flat, methods, strict=False):
        points = data[data["method"] == row["method"]]
        x, y = points["acc_difference"], points["delta"]
        marker, colour = ("D", GREY) if row["control"] else ("o", BLUE)
        if few:
            axes.errorbar(x, y, points["delta_se"], fmt="none", ecolor="#BBBBBB", elinewidth=0.7, zorder=1)
        axes.scatter(x, y, marker=marker, color=colour, zorder=2, **style.marks(len(points)))
        axes.axvspan(-reach, -tables.equal_within, color=SHADE, linewidth=0, zorder=0)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        _best_quarter(axes, bins[bins["method"] == row["method"]])
        axes.set_title(f"{style.label(row['method'], row['control'])}, {counted(row['pairs'], 'pair')}")
    low, high = float((data["delta"] - data["delta_se"]).min()), float((data["delta"] + data["delta_se"]).max())
    margin = 0.05 * max(high - low, 1.0)
    panels[0, 0].set(xlim=(-reach, reach), ylim=(low - margin, high + margin))
    style.outer_labels(panels, len(methods), "teacher − student (points)", "transfer delta (points)")
    bars = "Bars: ± 1 standard error over test images, mean over seeds." if few else _median_error(data)
    within = f" by over {in_points(tables.equal_within)}" if tables.equal_within else ""
    quarter = " Orange: mean of the best quarter of each bin's pairs." if len(bins) else ""
    style.footer(
        figure,
        f"Both axes in percentage points. Dashed: the student becomes as good as its teacher was. Shaded: the teacher "
        f"is weaker{within}.{quarter}",
        f"{style.transferred(tables)}. {bars}",
    )
    return Drawing(figure, data)


def _best_quarter(axes: Axes, bins: pd.DataFrame) -> None:
    """Mean delta of the best quarter of the pairs in every bin of the accuracy difference, as steps."""
    for row in records(bins):
        ends = (row["low_end"], row["high_end"])
        for width, colour in ((2.6, "white"), (1.6, ORANGE)):
            axes.plot(ends, [row["top_quartile"]] * 2, color=colour, linewidth=width, zorder=3, solid_capstyle="butt")


def _median_error(data: pd.DataFrame) -> str:
    return f"Median standard error {number(data['delta_se'].median(), 2)} points, over test images."


def teacher_share(tables: Tables) -> Drawing:
    """Share of the transfer images that the teacher teaches, against the accuracy difference, for every method."""
    finished = tables.transfers[(tables.transfers["status"] == "ok") & tables.transfers["teacher_share"].notna()]
    shares = finished.groupby(["method", *PAIR], as_index=False, sort=False)["teacher_share"].mean()
    gap = tables.complementarity[[*PAIR, "acc_difference"]]
    data = shares.merge(gap, on=PAIR)
    varied = {name for name, rows in data.groupby("method") if np.ptp(rows["teacher_share"]) > 0}
    chosen = [name for name in tables.chosen(len(tables.methods)) if name in varied][:MOST_SHARES]
    if not chosen:
        return style.nothing("no method shares the images out between teacher and student", data)
    data = data[data["method"].isin(chosen)].reset_index(drop=True)
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    axes: Axes = figure.add_subplot()
    reach = max(float(data["acc_difference"].abs().max()), 1.0) * 1.06
    axes.axvspan(-reach, -tables.equal_within, color=SHADE, linewidth=0, zorder=0)
    axes.axhline(50, color=GREY, linewidth=0.8, zorder=1)
    looks = style.looks(chosen)
    for name in chosen:
        colour, marker = looks[name]
        rows = data[data["method"] == name]
        axes.scatter(
            rows["acc_difference"], rows["teacher_share"], marker=marker, color=colour, zorder=2, label=name,
            **style.marks(len(rows)),
        )  # fmt: skip
    axes.set(
        xlim=(-reach, reach), ylim=(-3, 103), xlabel="accuracy of teacher − student (percentage points)",
        ylabel="images that the teacher teaches (%)",
    )  # fmt: skip
    style.legend_above(figure, [axes], ncols=3)
    always = sorted(set(shares["method"]) - set(data["method"]))
    never = f" Share constant: {', '.join(always)}." if always else ""
    spread = float(finished.groupby(["method", *PAIR])["teacher_share"].sem().max())
    error = f"largest standard error over seeds {number(spread)} points" if math.isfinite(spread) else "one seed"
    style.footer(figure, f"{style.transferred(tables)}. Points: pairs, mean over seeds; {error}.{never}")
    return Drawing(figure, data)
