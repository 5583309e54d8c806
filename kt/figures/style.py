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
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.typing import NDArray

from kt import schema
from kt.analysis.deltas import of_pairs, on_test
from kt.analysis.wording import counted
from kt.store import atomic

COLUMN, PAGE = 3.5, 7.0
"""Width in inches of one column of a paper, and of its page."""

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#7A7A7A", "#222222"

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
"""What fits at 7 points."""

MANY = 150
"""Points in one panel above which error bars are left out and marks shrink."""


@dataclass(frozen=True)
class Tables:
    """The tables that figures are drawn from: of pairs of models, ``complementarity`` on the test split."""

    zoo: pd.DataFrame
    complementarity: pd.DataFrame
    pairs: pd.DataFrame
    transfers: pd.DataFrame
    methods: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Tables:
        """Read ``NAME.parquet`` for every table.

        Raises:
            KtError: a table is missing or does not fit its schema.
        """
        frames = {name: schema.read_frame(folder / f"{name}.parquet", name) for name in cls.__dataclass_fields__}
        scores = on_test(frames["complementarity"]).reset_index(drop=True)
        return cls(**{**frames, "complementarity": scores, "transfers": of_pairs(frames["transfers"])})


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers drawn in it as a table."""

    figure: Figure
    data: pd.DataFrame


def footer(figure: Figure, *parts: str) -> None:
    """Say under the figure what it rests on: counts, and what the error bars are."""
    letters = int(figure.get_figwidth() * LETTERS_PER_INCH)
    lines = [line for part in parts for line in textwrap.wrap(part, letters)]
    figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left", color="#555555")


def scored(tables: Tables) -> str:
    """Scored pairs and test images, in words."""
    n = int(tables.complementarity["n"].max()) if len(tables.complementarity) else 0
    return f"{counted(len(tables.complementarity), 'ordered pair')}, {counted(n, 'test image')}"


def transferred(tables: Tables) -> str:
    """Pairs with a finished transfer, seeds, test images and failures, in words."""
    ok = tables.transfers[tables.transfers["status"] == "ok"]
    n = int(ok["n"].max()) if len(ok) else 0
    failed = tables.transfers.loc[tables.transfers["status"] != "ok", "key"].nunique()
    parts = [
        counted(ok.groupby(["teacher", "student"]).ngroups, "ordered pair"),
        counted(ok["seed"].nunique(), "seed"),
        counted(n, "test image"),
    ]
    return ", ".join([*parts, f"{counted(failed, 'failed training')} left out"] if failed else parts)


def label(method: str, control: bool) -> str:
    """A method's name as axes show it."""
    return f"{method} (control)" if control else method


def marks(points: int) -> dict[str, Any]:
    """Size, opacity and rasterisation for so many points: dots of a few thousand pairs must not become a blot."""
    return {
        "s": float(np.clip(600 / max(points, 1), 2, 16)),
        "alpha": float(np.clip(60 / max(points, 1) ** 0.6, 0.15, 0.9)),
        "linewidths": 0,
        "rasterized": points > 1000,
    }


def legend_marks(legend: Legend) -> None:
    """Marks in a legend must be seen, however small they are in the figure."""
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([16])
            handle.set_alpha(1)


def thinned(names: Sequence[str], most: int) -> tuple[NDArray[np.intp], list[str]]:
    """Positions and labels of at most ``most`` ticks, evenly spread."""
    step = -(-len(names) // most) if names else 1
    positions = np.arange(0, len(names), step)
    return positions, list(names[::step])


def empty(message: str) -> Figure:
    """A figure that says why nothing is drawn."""
    figure = Figure(figsize=(COLUMN, 1.5))
    axes: Axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure


def save(drawing: Drawing, out: Path, name: str) -> None:
    """Write ``NAME.png``, ``NAME.pdf`` and ``NAME.csv``; equal drawings give equal bytes."""
    nameless: dict[str, dict[str, str | None]] = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    for kind, metadata in nameless.items():
        with atomic(out / f"{name}.{kind}") as temporary:
            drawing.figure.savefig(temporary, format=kind, metadata=metadata)
    with atomic(out / f"{name}.csv") as temporary:
        drawing.data.to_csv(temporary, index=False)
