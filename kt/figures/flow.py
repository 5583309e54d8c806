"""Figures of knowledge flow: what it is worth, and how the teachers fade. Source: KF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import records
from kt.analysis.wording import counted
from kt.figures import style
from kt.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PAGE, Drawing

NOTHING = "no training of an experiment with knowledge flow finished"
LOOKS = (("o", BLUE), ("s", ORANGE), ("^", GREEN), ("D", GREY), ("v", INK), ("P", "#CC79A7"), ("X", "#56B4E9"))
"""Marks and colours, one a series."""


def by_method(flow: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each method by training images: mean and standard error over seeds, and their number.

    Args:
        flow: the table ``flow``.

    Returns:
        Columns ``experiment``, ``images`` (NaN where all were used), ``name`` (the method, and the teacher where each
        takes the student's place), ``acc`` and ``se`` (percent, percentage points; NaN for one seed), ``seeds``, and
        ``gain`` and ``gain_se`` against training from scratch, paired by seed (percentage points; NaN without it).
    """
    trials = flow.drop_duplicates("key")
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


def flow_accuracy(flow: pd.DataFrame) -> Drawing:
    """Test accuracy by method and number of training images, with standard errors over seeds."""
    data = by_method(flow)
    if data.empty:
        return Drawing(style.empty(NOTHING), data)
    sizes = records(data.drop_duplicates("experiment")[["experiment", "images"]])
    labels = [f"{row['experiment']}\n{_images(row['images'])}" for row in sizes]
    place = {row["experiment"]: i for i, row in enumerate(sizes)}
    names = list(dict.fromkeys(data["name"]))

    figure = Figure(figsize=(PAGE, 3.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    for i, name in enumerate(names):
        marker, colour = LOOKS[i % len(LOOKS)]
        rows = data[data["name"] == name]
        x = rows["experiment"].map(place) + 0.09 * (i - (len(names) - 1) / 2)
        axes.errorbar(
            x, rows["acc"], yerr=rows["se"].fillna(0), fmt=marker, color=colour, markersize=4.5, elinewidth=1.4,
            capsize=2, label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("test accuracy (percent)")
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handletextpad=0.3)
    n, seeds = int(flow["n"].max()), sorted({int(s) for s in data["seeds"]})
    said = " or ".join(map(str, seeds))
    style.footer(figure, f"{counted(n, 'test image')}; mean ± 1 standard error over {said} seeds; last epoch.")
    return Drawing(figure, data)


def _images(images: float) -> str:
    return "all images" if math.isnan(images) else counted(int(images), "image")


def flow_weights(flow: pd.DataFrame) -> Drawing:
    """Normalised weights over time at every stage, and what the student is worth with and without its teachers."""
    data = flow[flow["method"] == "flow"].dropna(subset=["epoch"])
    if data.empty:
        return Drawing(style.empty(NOTHING), data)
    experiments, stages = (list(dict.fromkeys(data[column])) for column in ("experiment", "stage"))
    figure = Figure(figsize=(PAGE, 0.9 + 1.35 * len(experiments)), layout="constrained")
    grid = figure.subplots(len(experiments), len(stages) + 1, squeeze=False, sharex="row")
    weights = [
        _weights(data[data["experiment"] == name], panels, stages)
        for name, panels in zip(experiments, grid, strict=True)
    ]
    for name, panels in zip(experiments, grid, strict=True):
        _accuracies(data[data["experiment"] == name], panels[-1])
        panels[0].set_ylabel(f"{name}\nweight")
        panels[-1].yaxis.tick_right()
    for panel, title in zip(grid[0], [*stages, "validation (percent)"], strict=True):
        panel.set_title(title)
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
    once: dict[str, Any] = {}
    for panel in (grid[0][0], grid[0][-1]):
        handles, names = panel.get_legend_handles_labels()
        once |= dict(zip(names, handles, strict=True))
    figure.legend(list(once.values()), list(once), loc="outside upper left", ncols=6, columnspacing=1)
    seeds = data["seed"].nunique()
    style.footer(
        figure,
        f"Mean over {counted(seeds, 'seed')}, band: ± 1 standard error. A teacher's weight is the sum over its stages.",
        "Last column: validation accuracy of the student with what flows into it, and by itself.",
    )
    return Drawing(figure, pd.concat(weights, ignore_index=True))


def _weights(data: pd.DataFrame, panels: Sequence[Axes], stages: Sequence[str]) -> pd.DataFrame:
    """Draw the weights of one experiment, a panel a stage; returns what is drawn."""
    each = data.groupby(["experiment", "stage", "source", "epoch", "seed"], sort=False)["weight"].sum()
    found: pd.DataFrame = (
        each.groupby(["experiment", "stage", "source", "epoch"], sort=False).agg(["mean", "sem"]).reset_index()
    )
    sources = list(dict.fromkeys(found["source"]))
    for panel, stage in zip(panels[: len(stages)], stages, strict=True):
        for i, source in enumerate(sources):
            rows = found[(found["stage"] == stage) & (found["source"] == source)]
            _band(panel, rows, LOOKS[i % len(LOOKS)][1], "-" if source == "self" else "--", source)
        panel.set_ylim(-0.03, 1.03)
        if panel is not panels[0]:
            panel.tick_params(labelleft=False)
    return found


def _accuracies(data: pd.DataFrame, panel: Axes) -> None:
    each = data.drop_duplicates(["key", "epoch"])
    for column, colour, line in (("attached", ORANGE, "--"), ("detached", BLUE, "-")):
        rows = each.groupby("epoch")[column].agg(["mean", "sem"]).reset_index()
        _band(panel, rows, colour, line, "with teachers" if column == "attached" else "student alone")


def _band(panel: Axes, rows: pd.DataFrame, colour: str, line: str, name: str) -> None:
    error = rows["sem"].fillna(0.0)
    panel.plot(rows["epoch"], rows["mean"], line, color=colour, linewidth=1.2, label=name)
    if math.isfinite(error.max()) and error.max() > 0:
        panel.fill_between(
            rows["epoch"], rows["mean"] - error, rows["mean"] + error, color=colour, alpha=0.2, linewidth=0
        )
