"""Tables of the report as cells: a printed text each, and the number that sorts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from kt.analysis.deltas import records
from kt.analysis.wording import number, signed, with_error


class Cell(NamedTuple):
    """A printed value and the number it is sorted by (None: by its text)."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table of the report: a caption, headings with their units, and rows of cells; the first cell names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]


Show = Callable[[dict[str, Any]], Cell]


def name(column: str) -> Show:
    """A text; a dash where there is none."""
    return lambda row: Cell(row[column] if isinstance(row[column], str) else "–")


def plain(column: str, digits: int = 1, scale: float = 1.0) -> Show:
    """A number with fixed decimals, divided by ``scale`` for the eye only."""

    def show(row: dict[str, Any]) -> Cell:
        value = _float(row[column])
        return Cell(number(value / scale, digits), value)

    return show


def error(column: str, digits: int = 2) -> Show:
    """A signed number and its standard error, from the column with ``_se`` behind its name."""
    return lambda row: Cell(with_error(_float(row[column]), _float(row[f"{column}_se"]), digits), _float(row[column]))


def signed_number(column: str, digits: int = 2) -> Show:
    """A number with its sign."""
    return lambda row: Cell(signed(_float(row[column]), digits), _float(row[column]))


def count(column: str) -> Show:
    """A whole number."""
    return lambda row: Cell("–" if pd.isna(row[column]) else f"{int(row[column]):,}", _float(row[column]))


def grid(caption: str, frame: pd.DataFrame, columns: Sequence[tuple[str, Show]]) -> Grid:
    """A table from a frame, with one heading and one way to print its cells per column."""
    rows = [[show(row) for _, show in columns] for row in records(frame)]
    return Grid(caption, tuple(heading for heading, _ in columns), rows)


def _float(value: Any) -> float:
    return float("nan") if pd.isna(value) else float(value)
