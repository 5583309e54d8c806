"""The report's tables of experiments, from their detail tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kt.analysis.wording import number
from kt.figures import amalgamation as amalgamated
from kt.figures import flow as flowed
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, Show, count, error, grid, name

IMAGES = "all"
"""What stands in place of a number of images where all were used."""


def amalgamation(tables: Tables) -> Grid | None:
    """Accuracy of every method on all classes and on each teacher's; None without amalgamations."""
    details = tables.details("amalgamation")
    if details.empty:
        return None
    return grid(
        "Amalgamation: test accuracy after the last epoch, ± standard error over seeds (over test images where nothing"
        f" was trained); the difference to `{amalgamated.REFERENCE}` is paired by seed.",
        amalgamated.summary(details),
        [
            ("experiment", name("experiment")),
            ("method", name("method")),
            ("classes of", name("part")),
            ("accuracy, %", _accuracy("acc", "acc_se")),
            (f"more than {amalgamated.REFERENCE}, points", error("gain")),
            ("test images", count("n")),
            ("seeds", count("seeds")),
        ],
    )


def flow(tables: Tables) -> Grid | None:
    """Accuracy of every method by training images; None without knowledge flow."""
    details = tables.details("flow")
    if details.empty:
        return None
    return grid(
        "Knowledge flow: test accuracy after the last epoch, ± standard error over seeds; the difference to `scratch`"
        " is paired by seed.",
        flowed.by_method(details),
        [
            ("experiment", name("experiment")),
            ("method", name("name")),
            ("training images", _images),
            ("accuracy, %", _accuracy("acc", "se")),
            ("more than scratch, points", error("gain")),
            ("seeds", count("seeds")),
        ],
    )


def _accuracy(column: str, spread: str) -> Show:
    return lambda row: Cell(f"{number(row[column])} ± {number(row[spread])}", float(row[column]))


def _images(row: dict[str, Any]) -> Cell:
    return Cell(IMAGES, float("inf")) if pd.isna(row["images"]) else Cell(f"{int(row['images']):,}", row["images"])
