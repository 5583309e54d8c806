"""Figures of knowledge flow: what it is worth, and how the teachers fade. Source: KF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kt.analysis.deltas import records
from kt.analysis.wording import counted, counted_range
from kt.figures import style
from kt.figures.style import BLUE, ORANGE, PAGE, SERIES, Drawing
from kt.figures.tables import Tables

NOTHING = "no training of an experiment with knowledge flow finished"


def by_method(details: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each method by training images: mean and standard error over seeds, and their number.

    Args:
        details: the table ``flow``.

    Returns:
        Columns ``experiment``, ``images`` (NaN where all were used), ``name`` (the method, and the teacher where each
        takes the student's place), ``acc`` and ``se`` (percent, percentage points; NaN for one seed), ``seeds``, and
        ``gain`` and ``gain_se`` against training from scratch, paired by seed (percentage points; NaN without it).
    """
    trials = details.drop_duplicates("key")
    alone = trials["method"].eq("finetune_teacher")
    names = trials["method"].where(~alone, trials["method"] + " " + trials["teachers"].map(" ".join))
    scratch = trials[trials["method"] == "scratch"].set_index(["experiment", "seed"])["acc"]
    paired = scratch.reindex(pd.MultiIndex.from_frame(trials[["experiment", "seed"]])).to_numpy()
    gains = (trials["acc"] - paired).where(trials["method"] != "scratch")
    grouped = trials.assign(name=names, gain=gains).groupby(["experiment", "images", "name"], sort=False, dropna=False)
    found: pd.DataFrame = grouped.agg(
        acc=("acc", "mean"), se=("acc", "sem"), seeds=("acc", "count"), gain=("gain", "mean"), gain_se=("gain", "sem")
    ).reset_index()
    return found


def flow(tables: Tables) -> Drawing:
    """Accuracy by method and number of training images, and below it how the teachers fade and what that costs.

    The table beside the figure has the numbers of its upper part.
    """
    details = tables.details("flow")
    if details.empty:
        return style.nothing(NOTHING, details)
    data = by_method(details)
    over_time = details[details["method"] == "flow"].dropna(subset=["epoch"])
    experiments = list(over_time["experiment"].unique())
    heights = [2.4, 0.5 + 1.2 * len(experiments)] if experiments else [2.4]
    figure = Figure(figsize=(PAGE, 0.8 + sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _by_method(parts[0], data)
    for part in parts[1:]:
        _over_time(part, over_time, experiments)
    style.footer(
        figure,
        f"{counted(int(details['n'].max()), 'test image')}, last epoch. Bars and bands: ± 1 standard error over "
        f"{counted_range(data['seeds'], 'seed')}.",
        "Below: weights of the student's own features and of each teacher's, by stage of the student; at the right "
        "validation accuracy with what flows into the student, and by itself.",
    )
    return Drawing(figure, data)


def _by_method(figure: SubFigure, data: pd.DataFrame) -> None:
    sizes = records(data.drop_duplicates("experiment")[["experiment", "images"]])
    place = {row["experiment"]: i for i, row in enumerate(sizes)}
    names = list(data["name"].unique())
    axes: Axes = figure.subplots()
    for i, name in enumerate(names):
        colour, marker = SERIES[i % len(SERIES)]
        rows = data[data["name"] == name]
        x = rows["experiment"].map(place) + 0.09 * (i - (len(names) - 1) / 2)
        axes.errorbar(
            x, rows["acc"], yerr=rows["se"].fillna(0), fmt=marker, color=colour, markersize=4.5, elinewidth=1.4,
            capsize=2, label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(sizes)), [f"{row['experiment']}\n{_images(row['images'])}" for row in sizes])
    axes.set_ylabel("test accuracy (percent)")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.3)


def _images(images: float) -> str:
    return "all images" if math.isnan(images) else counted(int(images), "image")


def _over_time(figure: SubFigure, data: pd.DataFrame, experiments: Sequence[str]) -> None:
    """A row of panels an experiment: the weights at each stage, and the accuracies."""
    stages = list(data["stage"].unique())
    grid = figure.subplots(len(experiments), len(stages) + 1, squeeze=False, sharex="row")
    for name, panels in zip(experiments, grid, strict=True):
        rows = data[data["experiment"] == name]
        _weights(rows, panels, stages)
        _accuracies(rows, panels[-1])
        panels[0].set_ylabel(f"{name}\nweight")
        panels[-1].yaxis.tick_right()
    for panel, title in zip(grid[0], [*stages, "validation (percent)"], strict=True):
        panel.set_title(title)
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
    grid[0][0].legend(loc="center right", handlelength=1.2)
    grid[0][-1].legend(loc="lower right", fontsize=6, handlelength=0.8, handletextpad=0.3, borderaxespad=0)


def over_seeds(data: pd.DataFrame) -> pd.DataFrame:
    """Weights by experiment, stage, source and epoch: ``mean`` and ``sem`` over seeds, a teacher's stages summed."""
    each = data.groupby(["experiment", "stage", "source", "epoch", "seed"], sort=False)["weight"].sum()
    found: pd.DataFrame = each.groupby(["experiment", "stage", "source", "epoch"], sort=False).agg(["mean", "sem"])
    return found.reset_index()


def _weights(data: pd.DataFrame, panels: Sequence[Axes], stages: Sequence[str]) -> None:
    found = over_seeds(data)
    for panel, stage in zip(panels[: len(stages)], stages, strict=True):
        for i, source in enumerate(found["source"].unique()):
            rows = found[(found["stage"] == stage) & (found["source"] == source)]
            _band(panel, rows, SERIES[i % len(SERIES)][0], "-" if source == "self" else "--", source)
        panel.set_ylim(-0.03, 1.03)
        if panel is not panels[0]:
            panel.tick_params(labelleft=False)


def _accuracies(data: pd.DataFrame, panel: Axes) -> None:
    each = data.drop_duplicates(["key", "epoch"])
    for column, colour, line in (("attached", ORANGE, "--"), ("detached", BLUE, "-")):
        rows = each.groupby("epoch")[column].agg(["mean", "sem"]).reset_index()
        _band(panel, rows, colour, line, "with teachers" if column == "attached" else "alone")


def _band(panel: Axes, rows: pd.DataFrame, colour: str, line: str, name: str) -> None:
    error = rows["sem"].fillna(0.0)
    panel.plot(rows["epoch"], rows["mean"], line, color=colour, linewidth=1.2, label=name)
    if math.isfinite(error.max()) and error.max() > 0:
        panel.fill_between(
            rows["epoch"], rows["mean"] - error, rows["mean"] + error, color=colour, alpha=0.2, linewidth=0
        )
