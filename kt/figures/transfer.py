"""Figures of methods and their transfer deltas, and of the teacher's lead behind them. Source: FG section 4."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import PAIR, group_of, pair_deltas, records
from kt.analysis.wording import amount, counted, decimals, lead, number, over, taught, with_error
from kt.figures import published, style
from kt.figures.style import BLUE, COLUMN, GREY, INK, MANY, ORANGE, PAGE, PURPLE, Drawing
from kt.figures.tables import Tables

NOTHING = "no transfer finished"
WEAKER, STRONGER, CONTROL = "weaker teacher", "equal or stronger teacher", "student of a control"
TEACHERS = {WEAKER: ("v", ORANGE), STRONGER: ("o", BLUE), CONTROL: ("D", GREY)}
PUBLISHED = "published mean (FG, ImageNet)"


def delta_by_method(tables: Tables) -> Drawing:
    """Transfer deltas of every method over all pairs and over those with a weaker teacher, controls marked."""
    data = pair_deltas(tables.transfers, tables.complementarity)
    if data.empty:
        return style.nothing(NOTHING, data)
    data["group"] = group_of(data["acc_difference"], tables.equal_within)
    summary = tables.methods
    names = summary.loc[summary["group"] == "all", "method"].tolist()
    within = f" by over {amount(tables.equal_within, tables.task)}" if tables.equal_within else ""
    blocks = [("all", "All pairs", data)]
    if (weaker := data[data["group"] == "weaker"]).size and (summary["group"] == "weaker").any():
        blocks.append(("weaker", f"Only pairs whose teacher is weaker{within}", weaker))

    height = 0.36 * len(names)
    figure = Figure(figsize=(PAGE, 1.5 + (height + 0.45) * len(blocks)), layout="constrained")
    panels = figure.subplots(len(blocks), 2, sharex="col", squeeze=False, width_ratios=(0.66, 0.34))
    for (group, title, rows), (axes, beside) in zip(blocks, panels, strict=True):
        _block(axes, rows, records(summary[summary["group"] == group]), names)
        _columns_of_text(beside, records(summary[summary["group"] == group]), names, decimals(tables.task))
        axes.set_title(title, pad=8)
    if landmarks := published.comparable(published.DELTA, tables):
        places = [names.index(name) for name in landmarks]
        panels[0, 0].plot(
            list(landmarks.values()),
            places,
            "*",
            markersize=8,
            markerfacecolor="white",
            color=PURPLE,
            zorder=5,
            label=PUBLISHED,
        )
    panels[-1, 0].set_xlabel(f"transfer delta ({tables.task.metric.difference})")
    style.legend_above(figure, panels[:, 0].tolist(), (*TEACHERS, PUBLISHED))
    style.footer(
        figure,
        f"{style.transferred(tables)}; a pair's delta is its mean over seeds. Box: quartiles; whiskers: 5–95 %.",
        "Square and bar: mean ± 1 standard error over pairs, robust to pairs that share a model.",
    )
    return Drawing(figure, data)


def _block(axes: Axes, data: pd.DataFrame, rows: list[dict[str, Any]], names: Sequence[str]) -> None:
    """One row per method: box, points, and mean with its error."""
    axes.axvline(0, color=GREY, linewidth=0.8)
    thin = {"color": GREY, "linewidth": 0.8}
    rng = np.random.default_rng(0)  # jitter only
    for row in rows:
        place = names.index(row["method"])
        of_method = data[data["method"] == row["method"]]
        axes.boxplot(
            [of_method["delta"]],
            positions=[place],
            widths=0.62,
            orientation="horizontal",
            whis=(5, 95),
            showfliers=False,
            manage_ticks=False,
            boxprops=thin,
            whiskerprops=thin,
            capprops=thin,
            medianprops=thin,
        )
        for kind, points in _by_teacher(of_method, row["control"]):
            marker, colour = TEACHERS[kind]
            height = place + rng.uniform(-0.22, 0.22, len(points))
            looks = style.marks(len(points) if row["control"] else len(of_method))
            axes.scatter(points["delta"], height, marker=marker, color=colour, zorder=2, label=kind, **looks)
        axes.errorbar(
            row["delta"],
            place,
            xerr=row["delta_se"],
            fmt="s",
            color=INK,
            markersize=4,
            markerfacecolor="white",
            elinewidth=1.6,
            capsize=2.5,
            zorder=4,
        )
    control = {row["method"]: row["control"] for row in rows}
    axes.set_yticks(range(len(names)), [style.label(name, control.get(name, False)) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first method on top
    axes.grid(visible=False, axis="y")


def _columns_of_text(axes: Axes, rows: list[dict[str, Any]], names: Sequence[str], digits: int) -> None:
    """Mean, success and n of every row, level with the rows of the panel to the left."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    columns = (
        (0.0, "mean ± SE", [with_error(row["delta"], row["delta_se"], digits) for row in rows]),
        (0.52, "success", [f"{number(row['success'], 0)} %" for row in rows]),
        (0.76, "n", [_counted(row) for row in rows]),
    )
    for x, title, texts in columns:
        axes.text(x, 1.02, title, transform=axes.transAxes, fontsize=7, color="#555555", va="bottom")
        for row, text in zip(rows, texts, strict=True):
            place = names.index(row["method"])
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


def success_by_method(tables: Tables) -> Drawing:
    """Success rates of every method: one dot per student over its teachers, and one per teacher over its students."""
    data = tables.analysis["by_model"]
    if data.empty:
        return style.nothing(tables.why_not("by_model", NOTHING), data)
    rows = records(tables.methods[tables.methods["group"] == "all"])
    names, landmarks = [row["method"] for row in rows], published.comparable(published.SUCCESS, tables)
    figure = Figure(figsize=(PAGE, 1.5 + 0.36 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    rng = np.random.default_rng(0)  # jitter only
    for axes, role in zip(panels, ("student", "teacher"), strict=True):
        for place, row in enumerate(rows):
            of_role = data[(data["method"] == row["method"]) & (data["role"] == role)]["success"]
            if of_role.empty:
                axes.text(2, place, "has no teacher", fontsize=7, va="center", color="#555555")
                continue
            low, middle, high = np.quantile(of_role, [0.25, 0.5, 0.75])
            colour = GREY if row["control"] else BLUE
            axes.hlines(place, low, high, color=colour, linewidth=7, alpha=0.3, zorder=1)
            axes.plot(middle, place, "|", color=INK, markersize=10, markeredgewidth=1.8, zorder=3)
            jitter = place + rng.uniform(-0.13, 0.13, len(of_role))
            marker = "D" if row["control"] else "o"
            axes.scatter(of_role, jitter, marker=marker, color=colour, zorder=2, **style.marks(len(of_role)))
            if role == "student" and row["method"] in landmarks:
                low, middle, high = landmarks[row["method"]]
                axes.hlines(place + 0.36, low, high, color=PURPLE, linewidth=1.2)
                axes.plot(middle, place + 0.36, "*", color=PURPLE, markerfacecolor="white", markersize=7, clip_on=False)
        models = data[data["role"] == role]["model"].nunique()
        axes.set_title(f"by {role} (dots: {counted(models, 'model')})")
        axes.set(xlim=(-3, 103), xlabel=f"pairs of the {role} with delta > 0 (%)")
        axes.grid(visible=False, axis="y")
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[0].set_yticks(range(len(names)), [style.label(row["method"], row["control"]) for row in rows])
    style.footer(
        figure,
        f"{style.transferred(tables)}. Stroke: median; bar: quartiles over models (their spread, no standard error).",
        f"Hollow star and line: median and quartiles published over students ({published.DESIGN})."
        if landmarks
        else "",
    )
    return Drawing(figure, data)


ACROSS = 3
"""Panels in a row of small multiples."""

SHADE = "#F3F3F3"
"""Behind pairs whose teacher is the weaker model."""

MOST_SHARES = 6
"""Methods whose teacher's share is drawn."""


def delta_vs_accuracy(tables: Tables) -> Drawing:
    """Transfer delta of every pair against the lead of its teacher, one panel per method, with the best quarter."""
    data = pair_deltas(tables.transfers, tables.complementarity)
    if data.empty:
        return style.nothing(NOTHING, data)
    methods = records(tables.methods[tables.methods["group"] == "all"])
    down = math.ceil(len(methods) / ACROSS)
    across = min(ACROSS, len(methods))
    figure = Figure(figsize=(PAGE * max(across, 2) / ACROSS, max(3.0, 1.2 + 1.9 * down)), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    reach = (float(data["acc_difference"].abs().max()) or 1.0) * 1.06
    few, short = data.groupby("method").size().max() <= MANY, tables.task.metric.short
    bins = tables.analysis["groups"]
    bins = bins[bins["grouping"] == f"{tables.task.metric.name} difference"]
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
    error = data["delta_se"].fillna(0)
    low, high = float((data["delta"] - error).min()), float((data["delta"] + error).max())
    margin = 0.05 * (high - low or 1.0)
    panels[0, 0].set(xlim=(-reach, reach), ylim=(low - margin, high + margin))
    style.outer_labels(panels, len(methods), f"teacher − student ({short})", f"transfer delta ({short})")
    middle = f"Median standard error {number(data['delta_se'].median(), decimals(tables.task))} {short}"
    bars = f"{'Bars: ± 1 standard error' if few else f'{middle},'} over {over(tables.task)}"
    bars += ", mean over seeds." if few else "."
    if data["delta_se"].isna().all():
        bars = f"{style.no_error(tables.task).capitalize()}."
    within = f" by over {amount(tables.equal_within, tables.task)}" if tables.equal_within else ""
    quarter = " Orange: mean of the quarter of each bin's pairs that gains most." if len(bins) else ""
    style.footer(
        figure,
        f"Both axes in {tables.task.metric.difference}. Dashed: the student becomes as good as its teacher was. Shaded:"
        f" the teacher is weaker{within}.{quarter}",
        f"{style.transferred(tables)}. {bars}",
    )
    return Drawing(figure, data)


def _best_quarter(axes: Axes, bins: pd.DataFrame) -> None:
    """Mean delta of the quarter of the pairs that gains most in every bin of the teacher's lead, as steps."""
    for row in records(bins):
        ends = (row["low_end"], row["high_end"])
        for width, colour in ((2.6, "white"), (1.6, ORANGE)):
            axes.plot(ends, [row["top_quartile"]] * 2, color=colour, linewidth=width, zorder=3, solid_capstyle="butt")


def teacher_share(tables: Tables) -> Drawing:
    """Share of the transfer examples that the teacher teaches, against the difference of the two, for every method."""
    finished = tables.transfers[(tables.transfers["status"] == "ok") & tables.transfers["teacher_share"].notna()]
    shares = finished.groupby(["method", *PAIR], as_index=False, sort=False)["teacher_share"].mean()
    gap = tables.complementarity[[*PAIR, "acc_difference"]]
    data = shares.merge(gap, on=PAIR)
    varied = {name for name, rows in data.groupby("method") if np.ptp(rows["teacher_share"]) > 0}
    chosen = [name for name in tables.chosen(len(tables.methods)) if name in varied][:MOST_SHARES]
    if not chosen:
        return style.nothing(f"no method divides the {taught(tables.task)} between teacher and student", data)
    data = data[data["method"].isin(chosen)].reset_index(drop=True)
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    axes: Axes = figure.add_subplot()
    reach = (float(data["acc_difference"].abs().max()) or 1.0) * 1.06
    axes.axvspan(-reach, -tables.equal_within, color=SHADE, linewidth=0, zorder=0)
    axes.axhline(50, color=GREY, linewidth=0.8, zorder=1)
    looks = style.looks(chosen)
    for name in chosen:
        colour, marker = looks[name]
        rows = data[data["method"] == name]
        axes.scatter(
            rows["acc_difference"],
            rows["teacher_share"],
            marker=marker,
            color=colour,
            zorder=2,
            label=name,
            **style.marks(len(rows)),
        )
    axes.set(
        xlim=(-reach, reach),
        ylim=(-3, 103),
        xlabel=lead(tables.task),
        ylabel=f"{taught(tables.task)} that the teacher teaches (%)",
    )
    style.legend_above(figure, [axes], ncols=3)
    always = sorted(set(shares["method"]) - set(data["method"]))
    never = f" Share constant: {', '.join(always)}." if always else ""
    spread = float(finished.groupby(["method", *PAIR])["teacher_share"].sem().max())
    error = f"largest standard error over seeds {number(spread, 2)} %" if math.isfinite(spread) else "one seed"
    style.footer(figure, f"{style.transferred(tables)}. Points: pairs, mean over seeds; {error}.{never}")
    return Drawing(figure, data)
