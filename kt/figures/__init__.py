"""The figures: each a function from tables to a drawing, and the one that draws them into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from kt import schema
from kt.errors import KtError, unknown
from kt.figures.amalgamation import amalgamation
from kt.figures.complementarity import flips_by_class, flips_heatmap, flips_vs_accuracy
from kt.figures.flow import flow
from kt.figures.style import RC, Drawing, Tables, save
from kt.figures.transfer import delta_by_method, delta_vs_accuracy

FIGURES: dict[str, Callable[[Tables], Drawing]] = {
    function.__name__: function
    for function in (delta_by_method, delta_vs_accuracy, flips_vs_accuracy, flips_heatmap, flips_by_class)
}


EXPERIMENTS: dict[str, Callable[[pd.DataFrame], Drawing]] = {"amalgamation": amalgamation, "flow": flow}
"""Figures of experiments, each from the detail table of its name; drawn where that is there."""


def draw(tables: Path, out: Path, names: Sequence[str] | None = None) -> None:
    """Draw figures from the tables in a folder, as ``NAME.png`` (200 dpi), ``NAME.pdf`` and ``NAME.csv``.

    Args:
        tables: folder of ``zoo``, ``complementarity``, ``pairs``, ``transfers`` and ``methods`` as Parquet.
        out: folder of the figures.
        names: which figures; all where None.

    Raises:
        KtError: a figure is unknown, or a table is missing or does not fit its schema.
    """
    for name in names or ():
        if name not in (*FIGURES, *EXPERIMENTS):
            raise KtError(unknown("figure", name, (*FIGURES, *EXPERIMENTS)))
    data = Tables.read(tables)
    there = [name for name in EXPERIMENTS if (tables / f"{name}.parquet").exists()]
    with rc_context(RC):
        for name in (*FIGURES, *there) if names is None else names:
            if name in EXPERIMENTS:
                drawing = EXPERIMENTS[name](schema.read_frame(tables / f"{name}.parquet", name))
            else:
                drawing = FIGURES[name](data)
            save(drawing, out, name)
