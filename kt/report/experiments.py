"""What the report says of experiments, and its tables of them, from their detail tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kt.analysis.deltas import clear_sign
from kt.analysis.wording import counted, counted_range, number, signed
from kt.figures import amalgamation as amalgamated
from kt.figures import flow as flowed
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, Show, count, error, grid, name

IMAGES = "all"
"""What stands in place of a number of images where all were used."""


def answer(tables: Tables) -> str:
    """What the experiments show, each beside its control; method names stand in backticks. Empty without any."""
    return " ".join([*_amalgamation(tables.details("amalgamation")), *_flow(tables.details("flow"))])


def _amalgamation(details: pd.DataFrame) -> Iterator[str]:
    if details.empty:
        return
    rows = amalgamated.summary(details)
    gains = rows[(rows["part"] == "all") & rows["gain"].notna()].set_index("method")
    if "cfl" in gains.index:
        yield f"One student of several specialists: against plain distillation (`kd`), `cfl` is {_tally(gains, 'cfl')}."
    if "supervised" in gains.index:
        yield f"With labels, which they do not have, `supervised` is {_tally(gains, 'supervised')}."


def _flow(details: pd.DataFrame) -> Iterator[str]:
    if details.empty:
        return
    gains = flowed.by_method(details).dropna(subset="gain").set_index("name")
    if "flow" in gains.index:
        yield f"Knowledge flow: against training from `scratch`, `flow` is {_tally(gains, 'flow')}."
    if "flow_untrained" in gains.index:
        yield f"With teachers that know nothing, `flow_untrained` is {_tally(gains, 'flow_untrained')}."


def _tally(gains: pd.DataFrame, method: str) -> str:
    """In how many experiments a method is clearly ahead and behind: by more than two standard errors over seeds."""
    rows = gains.loc[[method]]
    signs = [clear_sign(gain, se) for gain, se in zip(rows["gain"], rows["gain_se"], strict=True)]
    least, most = signed(rows["gain"].min()), signed(rows["gain"].max())
    return (
        f"clearly better in {signs.count(1)} of {counted(len(rows), 'experiment')} and clearly worse in"
        f" {signs.count(-1)} ({least}{f' to {most}' * (least != most)} points; {counted_range(rows['seeds'], 'seed')})"
    )


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
