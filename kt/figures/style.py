"""One look for all figures: sizes, fonts, colours and marks, and how a figure becomes files.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every series has its own marker or
hatch too, so that figures survive a grey print. Figures are made without pyplot: no backend and no global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from kt.analysis.wording import counted, measured_on
from kt.figures.tables import HEADLINE, Tables
from kt.store import atomic
from kt.tables import schema
from kt.tables.columns import METRIC, with_metric
from kt.tasks.task import Words

COLUMN, PAGE = 3.5, 7.0
"""Width in inches of one column of a paper, and of its page."""

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#7A7A7A", "#222222"
PURPLE = "#7B3294"
"""Published numbers, always hollow: another design than ours."""

SERIES = (
    (BLUE, "o"),
    (ORANGE, "^"),
    (GREEN, "s"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#B8860B", "P"),
    (INK, "X"),
)
"""Colour and marker of the first, second, … series of a figure."""

RC: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "pdf.fonttype": 42,
}

LETTERS_PER_INCH = 17
"""Letters of 7 points that fit."""

MANY = 150
"""Points in one panel above which error bars are left out and marks shrink."""


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers drawn in it as a table.

    Attributes:
        figure: the figure.
        data: the numbers drawn, one row per mark.
        missing: why nothing could be drawn; None for a real figure.
    """

    figure: Figure
    data: pd.DataFrame
    missing: str | None = None


def nothing(why: str, data: pd.DataFrame) -> Drawing:
    """A small figure that says why nothing is drawn, and a table without rows."""
    figure = Figure(figsize=(COLUMN, 1.5))
    axes: Axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(why, 50), ha="center", va="center", transform=axes.transAxes)
    return Drawing(figure, data.iloc[:0], why)


def footer(figure: Figure, *parts: str) -> None:
    """Say under the figure what it rests on: counts, and what the error bars are."""
    letters = int(figure.get_figwidth() * LETTERS_PER_INCH)
    lines = [line for part in parts for line in textwrap.wrap(part, letters)]
    figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left", color="#555555")


def scored(tables: Tables) -> str:
    """Scored pairs and test examples, in words."""
    n = int(tables.complementarity["n"].max()) if len(tables.complementarity) else 0
    return f"{counted(len(tables.complementarity), 'ordered pair')}, {measured_on(n, tables.task, tables.clusters)}"


def transferred(tables: Tables) -> str:
    """Pairs with a finished transfer, seeds, test examples and failures, in words."""
    ok = tables.transfers[tables.transfers["status"] == "ok"]
    return _rests_on(tables, tables.transfers, counted(ok.groupby(["teacher", "student"]).ngroups, "ordered pair"))


def no_error(task: Words) -> str:
    """That errors over examples are unknown, where there is one of them."""
    return f"standard errors are unknown: one {task.cluster or task.example} gives none"


def of_groups(tables: Tables) -> str:
    """The same of students with several teachers."""
    ok = tables.several[tables.several["status"] == "ok"]
    return _rests_on(tables, tables.several, counted(ok["student"].nunique(), "student"))


def _rests_on(tables: Tables, transfers: pd.DataFrame, what: str) -> str:
    ok = transfers[transfers["status"] == "ok"]
    n = int(ok["n"].max()) if len(ok) else 0
    failed = transfers.loc[transfers["status"] != "ok", "key"].nunique()
    parts = [what, counted(ok["seed"].nunique(), "seed"), measured_on(n, tables.task, tables.clusters)]
    return ", ".join([*parts, f"{counted(failed, 'failed training')} left out"] if failed else parts)


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method; the headline methods have the same ones in all figures."""
    ordered = [*HEADLINE, *sorted(set(names) - set(HEADLINE))]
    return {name: SERIES[place % len(SERIES)] for place, name in enumerate(ordered)}


def label(method: str, control: bool) -> str:
    """A method's name as axes show it."""
    return f"{method} (control)" if control else method


def marks(points: int) -> dict[str, Any]:
    """Size, opacity and rasterisation for so many points: thousands of dots must not merge into a blot."""
    return {
        "s": float(np.clip(600 / max(points, 1), 2, 16)),
        "alpha": float(np.clip(60 / max(points, 1) ** 0.6, 0.15, 0.9)),
        "linewidths": 0,
        "rasterized": points > 1000,
    }


def legend_above(
    figure: Figure | SubFigure,
    panels: Sequence[Axes],
    order: Sequence[str] = (),
    ncols: int = 4,
    gap: float = 0.1,
) -> None:
    """One legend above all panels, each label once: those of ``order`` first; ``gap`` between a mark and its label."""
    once: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            once.setdefault(text, handle)
    shown = sorted(once, key=lambda text: order.index(text) if text in order else len(order))
    where: dict[str, Any] = {"loc": "outside upper left", "ncols": ncols, "handletextpad": gap, "columnspacing": 0.8}
    legend_marks(figure.legend([once[text] for text in shown], shown, **where))


def legend_marks(legend: Legend) -> None:
    """Marks in a legend must be seen, however small they are in the figure."""
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([16])
            handle.set_alpha(1)


def log_scale(axes: Axes, low: float, high: float, unit: float = 1.0, suffix: str = "") -> None:
    """A logarithmic x axis between two positive ends, with few and round numbers on it."""
    steps = (1.0, 2.0, 5.0) if high / low < 50 else (1.0,)
    ticks = [step * 10.0**power for power in range(-1, 13) for step in steps]
    shown = [tick for tick in ticks if low <= tick <= high][:: 1 if high / low < 3e4 else 2]
    shown = shown if len(shown) > 1 else [float(f"{end:.3g}") for end in (low, high)]
    axes.set(xscale="log", xlim=(low, high))
    axes.set_xticks(shown, [f"{tick / unit:g}{suffix}" for tick in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def outer_labels(panels: NDArray[np.object_], used: int, x: str, y: str) -> None:
    """Label the lowest and the leftmost of the first ``used`` panels of a grid, and hide the others."""
    across = panels.shape[1]
    for axes in panels.flat[used:]:
        axes.set_axis_off()
    for axes in panels.flat[max(0, used - across) : used]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x, fontsize=7)
    for axes in panels[:, 0]:
        axes.set_ylabel(y, fontsize=7)


def thinned(names: Sequence[str], most: int) -> tuple[NDArray[np.intp], list[str]]:
    """Positions and labels of at most ``most`` ticks, evenly spread."""
    step = -(-len(names) // most) if names else 1
    positions = np.arange(0, len(names), step)
    return positions, list(names[::step])


def save(drawing: Drawing, out: Path, name: str, metric: str = METRIC) -> None:
    """Write ``NAME.png``, ``NAME.pdf`` and ``NAME.csv``; equal drawings give equal bytes.

    Names in the CSV file, and values that are names of columns, have the key ``metric`` where those in memory have
    ``acc``.

    The PNG's text ``missing`` says why nothing is drawn, where that is so.
    """
    nameless: dict[str, dict[str, str | None]] = {
        "png": {"Software": None, **({"missing": drawing.missing} if drawing.missing else {})},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    for kind, metadata in nameless.items():
        with atomic(out / f"{name}.{kind}") as temporary:
            drawing.figure.savefig(temporary, format=kind, metadata=metadata)
    with atomic(out / f"{name}.csv") as temporary:
        _named(drawing.data, metric).to_csv(temporary, index=False)


def _named(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    if metric == METRIC:
        return data
    holding = {column.name for table in schema.TABLES.values() for column in table if column.holds_names}
    texts = {name: [text and with_metric(text, metric) for text in data[name]] for name in holding & {*data.columns}}
    return data.assign(**texts).rename(columns=lambda name: with_metric(name, metric))
