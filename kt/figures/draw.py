"""The figures: each a function from tables to a drawing, and the one that draws them into files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context

from kt.errors import KtError, unknown
from kt.figures import complementarity, experiments, models, pictures, policies, prediction, transfer
from kt.figures.captions import CAPTIONS, chosen
from kt.figures.style import RC, Drawing, save
from kt.figures.tables import Tables
from kt.tables.of_experiments import OPTIONAL

Draw = Callable[[Tables], Drawing]


def _named(name: str) -> Draw:
    """The function of a figure: it has its name."""
    modules = (complementarity, transfer, models, prediction, experiments, pictures, policies)
    found: Draw = next(getattr(module, name) for module in modules if hasattr(module, name))
    return found


FIGURES: dict[str, Draw] = {name: _named(name) for name in CAPTIONS}


def draw(tables: Path, out: Path, names: Sequence[str] | None = None, analysis: Path | None = None) -> None:
    """Draw figures from the tables in a folder, as ``NAME.png`` (200 dpi), ``NAME.pdf`` and ``NAME.csv``.

    A CSV file has the names of columns that the study's own files have, as ``miou_after``.

    Args:
        tables: folder of ``zoo``, ``complementarity``, ``pairs``, ``transfers`` and ``methods`` as Parquet.
        out: folder of the figures.
        names: which figures; where None all, those of experiments only where the study has such.
        analysis: folder of the analysis; figures that need it say so where None.

    Raises:
        KtError: a figure is unknown, or a table is missing or does not fit its schema.
    """
    for name in names or ():
        if name not in FIGURES:
            raise KtError(unknown("figure", name, FIGURES))
    data = Tables.read(tables, analysis)
    there = chosen(data.experiments, OPTIONAL, data.task.plays)
    with rc_context(RC):
        for name in there if names is None else names:
            save(FIGURES[name](data), out, name, data.task.metric.key)
