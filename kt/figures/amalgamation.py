"""Figure of experiments that amalgamate teachers. Source of the method: CFL."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import records
from kt.analysis.wording import counted, counted_range, number, signed
from kt.figures import style
from kt.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PAGE, Drawing
from kt.figures.tables import Tables

NOTHING = "no amalgamation finished"
REFERENCE = "kd"
PARTS = (("o", BLUE), ("^", ORANGE), ("D", GREEN), ("v", GREY))
"""Marks of the teachers' parts, over and over."""


def summary(details: pd.DataFrame) -> pd.DataFrame:
    """Accuracies by experiment, method and part: mean and standard error over seeds.

    Args:
        details: the table ``amalgamation``.

    Returns:
        ``experiment``, ``method``, ``part``, ``n`` (test images), ``seeds``, ``acc`` and ``acc_se`` (over seeds; that
        over test images where there is one seed), ``gain`` and ``gain_se``: against plain distillation of the same
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
            n=("n", "max"), seeds=("seed", "nunique"), acc=("acc", "mean"), acc_se=("acc", "sem"),
            over_images=("acc_se", "mean"), gain=("gain", "mean"), gain_se=("gain", "sem"),
        )
        .reset_index()
    )  # fmt: skip
    found["acc_se"] = found["acc_se"].fillna(found.pop("over_images"))
    return found


def amalgamation(tables: Tables) -> Drawing:
    """Accuracy by method with standard errors, a panel an experiment."""
    details = tables.details("amalgamation")
    if details.empty:
        return style.nothing(NOTHING, details)
    data = summary(details)
    names = list(data["experiment"].unique())
    methods = [list(data.loc[data["experiment"] == name, "method"].unique()) for name in names]
    heights = [0.7 + 0.34 * len(of_panel) for of_panel in methods]
    figure = Figure(figsize=(PAGE, 0.7 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, name, of_panel in zip(panels, names, methods, strict=True):
        _panel(axes, data[data["experiment"] == name], of_panel)
        axes.set_title(name)
    panels[-1].set_xlabel("accuracy on the test images (percent)")
    seeds = data.loc[data["seeds"] > 1, "seeds"]
    over = f"over {counted_range(seeds, 'seed')}, and " if len(seeds) else ""
    style.footer(
        figure,
        "Squares: all classes. Other marks: the images of one teacher's classes.",
        f"At the right: mean ± standard error, and the paired difference to {REFERENCE}.",
        f"{counted(int(data['n'].max()), 'test image')}. Bars: ± 1 standard error {over}over test images where nothing "
        "was trained.",
    )
    return Drawing(figure, data)


def _panel(axes: Axes, data: pd.DataFrame, methods: list[str]) -> None:
    """The methods of one experiment from top to bottom."""
    parts = [part for part in data["part"].unique() if part != "all"]
    looks = {part: PARTS[i % len(PARTS)] for i, part in enumerate(parts)}
    for row in records(data):
        place = methods.index(row["method"])
        marker, colour = looks.get(row["part"], ("s", INK))
        whole = row["part"] == "all"
        beside = 0 if whole else 0.14 + 0.3 * parts.index(row["part"]) / len(parts)
        axes.errorbar(
            row["acc"], place + beside, xerr=row["acc_se"], fmt=marker, color=colour, capsize=2,
            markersize=5 if whole else 3.5, markerfacecolor="white" if whole else colour, elinewidth=1.2,
            label=None if whole else row["part"], zorder=3 if whole else 2,
        )  # fmt: skip
        if whole:
            gain = f"  ({signed(row['gain'], 2)} ± {number(row['gain_se'], 2)})" if pd.notna(row["gain_se"]) else ""
            text = f"{number(row['acc'], 1)} ± {number(row['acc_se'], 1)}{gain}"
            axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), methods)
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(
        once.values(), once.keys(), loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(once), handletextpad=0.1,
        columnspacing=1,
    )  # fmt: skip
