"""The report's tables as cells: what is shown, how it is printed, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from kt.analysis.deltas import pair_deltas, records
from kt.analysis.wording import number, signed, with_error
from kt.figures.style import Tables

TOP = 10
MOST_FAILURES = 50


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


def _name(column: str) -> Show:
    return lambda row: Cell(row[column] if isinstance(row[column], str) else "–")


def _number(column: str, digits: int = 1, scale: float = 1.0) -> Show:
    return lambda row: Cell(number(row[column] / scale, digits), float(row[column]))


def _error(column: str, digits: int = 2) -> Show:
    return lambda row: Cell(with_error(row[column], row[f"{column}_se"], digits), float(row[column]))


def _signed(column: str, digits: int = 2) -> Show:
    return lambda row: Cell(signed(row[column], digits), float(row[column]))


def _count(column: str) -> Show:
    return lambda row: Cell("–" if pd.isna(row[column]) else f"{int(row[column]):,}", float(row[column]))


def _grid(caption: str, frame: pd.DataFrame, columns: Sequence[tuple[str, Show]]) -> Grid:
    rows = [[show(row) for _, show in columns] for row in records(frame)]
    return Grid(caption, tuple(heading for heading, _ in columns), rows)


def summary(tables: Tables) -> Grid:
    """The methods: all pairs, and those with a weaker and with a stronger teacher."""
    wide = tables.methods[tables.methods["group"] == "all"].set_index("method", drop=False)
    for group in ("weaker", "stronger"):
        of_group = tables.methods[tables.methods["group"] == group].set_index("method")
        for column in ("delta", "delta_se", "success", "pairs"):
            wide = wide.assign(**{f"{group}_{column}": of_group[column].reindex(wide.index)})
    wide["shown"] = [f"{m} (control)" if c else m for m, c in zip(wide["method"], wide["control"], strict=True)]

    columns: list[tuple[str, Show]] = [("method", _name("shown"))]
    for group, prefix in (("all pairs", ""), ("weaker teacher", "weaker_"), ("stronger teacher", "stronger_")):
        columns += [
            (f"{group}, points", _error(f"{prefix}delta")),
            (f"{group}: success, %", _number(f"{prefix}success", 0)),
            (f"{group}: n", _count(f"{prefix}pairs")),
        ]
    if wide["failed"].any():
        columns.append(("failed trainings", _count("failed")))
    return _grid("Transfer delta in percentage points: mean ± standard error, success rate and pairs.", wide, columns)


def zoo(tables: Tables) -> Grid:
    """The models, most accurate first."""
    frame = tables.zoo.sort_values("acc", ascending=False, kind="stable")
    frame = frame.assign(recipe=[" ".join(tags) or "–" for tags in frame["recipe"]])
    return _grid(
        "The zoo. Accuracy and calibration error on the test images, ± binomial standard error.",
        frame,
        [
            ("model", _name("name")),
            ("architecture", _name("arch")),
            ("kind", _name("kind")),
            ("parameters, thousand", _number("params", 1, 1e3)),
            ("MACs, million", _number("macs", 2, 1e6)),
            ("input, pixels", _count("input_size")),
            ("accuracy, %", lambda row: Cell(f"{number(row['acc'])} ± {number(row['acc_se'])}", float(row["acc"]))),
            ("calibration error, %", _number("ece")),
            ("trained on, images", _count("train_images")),
            ("training, seconds", _number("train_seconds")),
            ("pretraining", _name("pretraining")),
            ("recipe", _name("recipe")),
            ("licence", _name("licence")),
        ],
    )


def top_pairs(tables: Tables) -> list[Grid]:
    """The most complementary pairs, and the pairs that gained and lost most."""
    flips = tables.complementarity.sort_values("pos_flips", ascending=False, kind="stable")
    weaker = flips[flips["acc_difference"] < 0]
    pair: list[tuple[str, Show]] = [("teacher", _name("teacher")), ("student", _name("student"))]
    scores: list[tuple[str, Show]] = [
        *pair,
        ("teacher − student, points", _signed("acc_difference", 1)),
        (
            "positive flips, % of images",
            lambda row: Cell(f"{number(row['pos_flips'])} ± {number(row['pos_flips_se'])}", float(row["pos_flips"])),
        ),
        ("negative flips, % of images", _number("neg_flips")),
        ("class entropy, nats", _number("class_entropy", 2)),
    ]
    deltas = pair_deltas(tables.transfers, tables.complementarity)
    deltas = deltas[~deltas["control"].astype(bool)].sort_values("delta", ascending=False, kind="stable")
    transfers: list[tuple[str, Show]] = [
        *pair,
        ("method", _name("method")),
        ("teacher − student, points", _signed("acc_difference", 1)),
        ("transfer delta, points", _error("delta")),
        ("transfer rate, %", _number("transfer_rate", 0)),
    ]
    over_images = "averaged over seeds, ± standard error over test images"
    grids = [
        _grid("Most positive flips.", flips.head(TOP), scores),
        _grid("Most positive flips from a less accurate teacher.", weaker.head(TOP), scores),
        _grid(f"Largest gains, {over_images}.", deltas.head(TOP), transfers),
        _grid(f"Lowest deltas, {over_images}.", deltas.tail(TOP).iloc[::-1], transfers),
    ]
    return [grid for grid in grids if grid.rows]


def failures(tables: Tables) -> Grid | None:
    """Failed trainings with their reasons; None where there is none."""
    failed = tables.transfers[tables.transfers["status"] != "ok"].drop_duplicates("key")
    if failed.empty:
        return None
    shown = failed.head(MOST_FAILURES).assign(
        teacher=lambda frame: frame["teacher"].where(~frame["control"].astype(bool), "none (control)")
    )
    more = f" The first {MOST_FAILURES} are shown." if len(failed) > MOST_FAILURES else ""
    return _grid(
        f"{len(failed):,} failed trainings.{more}",
        shown,
        [
            ("teacher", _name("teacher")),
            ("student", _name("student")),
            ("method", _name("method")),
            ("seed", _count("seed")),
            ("reason", _name("reason")),
        ],
    )
