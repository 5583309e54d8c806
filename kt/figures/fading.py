"""How teachers fade in knowledge flow (KF): weights at each stage over time, and the metric with teachers and alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator

from kt.figures import style
from kt.figures.style import BLUE, GREY, INK, SERIES
from kt.tasks.task import Words

MOST_STAGES, LONGEST_STAGE = 6, 16
"""Stages side by side, and letters of their names above a panel."""


def shown_stages(data: pd.DataFrame) -> list[str]:
    """Names of the stages that are drawn: all, or some that are spread evenly."""
    found = list(data["stage"].unique())
    return (
        [found[i * (len(found) - 1) // (MOST_STAGES - 1)] for i in range(MOST_STAGES)]
        if len(found) > MOST_STAGES
        else found
    )


def over_time(figure: SubFigure, data: pd.DataFrame, experiments: Sequence[str], task: Words) -> None:
    """One row of panels per experiment: the weights at each stage, and the validation metric."""
    stages = shown_stages(data)
    sources = [name for name in data["source"].unique() if name != "self"]
    looks = {"self": (BLUE, "-")} | {name: (SERIES[1:][i % len(SERIES[1:])][0], "--") for i, name in enumerate(sources)}
    grid = figure.subplots(len(experiments), len(stages) + 1, squeeze=False, sharex="row")
    for name, panels in zip(experiments, grid, strict=True):
        rows = data[data["experiment"] == name]
        _weights(rows, panels, stages, looks)
        _with_and_without(rows, panels[-1])
        panels[0].set_ylabel(f"{name}\nweight")
        panels[-1].yaxis.tick_right()
        panels[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    unit = f" ({task.metric.unit})" if task.metric.unit else ""
    titles = [f"…{name[1 - LONGEST_STAGE :]}" if len(name) > LONGEST_STAGE else name for name in stages]
    for panel, title in zip(grid[0], [*titles, f"validation{unit}"], strict=True):
        panel.set_title(title)
    for panel in grid[-1]:
        panel.set_xlabel("evaluation" if task.plays else "epoch")
    style.legend_above(figure, list(grid.ravel()), [*looks, *RETURNS.values()], 6, 0.5)


def weights_over_seeds(data: pd.DataFrame) -> pd.DataFrame:
    """Weights by experiment, stage, source and epoch: ``mean`` and ``sem`` over seeds, a teacher's stages summed."""
    each = data.groupby(["experiment", "stage", "source", "epoch", "seed"], sort=False)["weight"].sum()
    found: pd.DataFrame = each.groupby(["experiment", "stage", "source", "epoch"], sort=False).agg(["mean", "sem"])
    return found.reset_index()


RETURNS = {"detached": "alone", "attached": "with teachers"}
"""Columns of the metric on validation, and their names."""


def of_all(data: pd.DataFrame) -> pd.DataFrame:
    """Weights of teachers, and the metric with them and without, by evaluation.

    Args:
        data: trainings with teachers inside, of the table ``flow``.

    Returns:
        ``experiment``, ``shown`` (``weight`` or ``validation``), ``stage``, ``source`` (of a weight: the student
        itself or a teacher; else `alone` or `with teachers`), ``epoch``, ``mean``, ``se`` (over seeds; NaN of one),
        ``seeds``.
    """
    keys = ["experiment", "stage", "source", "epoch"]
    weights = data.groupby([*keys, "seed"], sort=False)["weight"].sum().reset_index(name="value")
    each = data.drop_duplicates(["key", "epoch"]).rename(columns=RETURNS)
    returns = each.melt(["experiment", "epoch", "seed"], list(RETURNS.values()), "source", "value").assign(stage="")
    both = pd.concat([weights.assign(shown="weight"), returns.assign(shown="validation")])
    found: pd.DataFrame = (
        both.groupby([keys[0], "shown", *keys[1:]], sort=False)["value"]
        .agg(mean="mean", se="sem", seeds="count")
        .reset_index()
        .astype({"epoch": int})
    )
    return found


def _weights(
    data: pd.DataFrame, panels: Sequence[Axes], stages: Sequence[str], looks: dict[str, tuple[str, str]]
) -> None:
    found = weights_over_seeds(data)
    for panel, stage in zip(panels[: len(stages)], stages, strict=True):
        here = found[found["stage"] == stage]
        if here.empty:  # a stage of another experiment's student; the label of the row stays
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        for source in here["source"].unique():
            _band(panel, here[here["source"] == source], *looks[source], source)
        panel.set_ylim(-0.03, 1.03)
        if panel is not panels[0]:
            panel.tick_params(labelleft=False)


def _with_and_without(data: pd.DataFrame, panel: Axes) -> None:
    each = data.drop_duplicates(["key", "epoch"])
    for column, colour, line in (("attached", GREY, "--"), ("detached", INK, "-")):
        rows = each.groupby("epoch")[column].agg(["mean", "sem"]).reset_index()
        _band(panel, rows, colour, line, RETURNS[column])


def _band(panel: Axes, rows: pd.DataFrame, colour: str, line: str, name: str) -> None:
    error = rows["sem"].fillna(0.0)
    few = "o" if len(rows) < 3 else None
    panel.plot(rows["epoch"], rows["mean"], line, marker=few, markersize=3, color=colour, linewidth=1.2, label=name)
    if math.isfinite(error.max()) and error.max() > 0:
        panel.fill_between(
            rows["epoch"], rows["mean"] - error, rows["mean"] + error, color=colour, alpha=0.2, linewidth=0
        )
