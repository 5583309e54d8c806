"""Tables of the report that come from the study and its experiments, and the experiments in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kt.analysis.deltas import clear_sign, pair_deltas
from kt.analysis.wording import counted, counted_range, number, signed
from kt.figures import experiments as drawn
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, Show, count, error, grid, name, plain, signed_number

TOP = 10
MOST_FAILURES = 50


def summary(tables: Tables) -> Grid:
    """The methods: all pairs, and those with a weaker and with a stronger teacher."""
    wide = tables.methods[tables.methods["group"] == "all"].set_index("method", drop=False)
    for group in ("weaker", "stronger"):
        of_group = tables.methods[tables.methods["group"] == group].set_index("method")
        for column in ("delta", "delta_se", "success", "pairs"):
            wide = wide.assign(**{f"{group}_{column}": of_group[column].reindex(wide.index)})
    wide["shown"] = [f"{m} (control)" if c else m for m, c in zip(wide["method"], wide["control"], strict=True)]

    columns: list[tuple[str, Show]] = [("method", name("shown"))]
    for group, prefix in (("all pairs", ""), ("weaker teacher", "weaker_"), ("stronger teacher", "stronger_")):
        columns += [
            (f"{group}, points", error(f"{prefix}delta")),
            (f"{group}: success, %", plain(f"{prefix}success", 0)),
            (f"{group}: n", count(f"{prefix}pairs")),
        ]
    if wide["taught_errors_beyond"].notna().any():
        columns.append(("taught errors beyond `self`, points", error("taught_errors_beyond")))
    if wide["failed"].any():
        columns.append(("failed trainings", count("failed")))
    return grid("Transfer delta in percentage points: mean ± standard error, success rate and pairs.", wide, columns)


def zoo(tables: Tables) -> Grid:
    """The models, most accurate first."""
    frame = tables.zoo.sort_values("acc", ascending=False, kind="stable")
    frame = frame.assign(recipe=[" ".join(tags) or "–" for tags in frame["recipe"]])
    return grid(
        "The zoo. Accuracy and calibration error on the test images, ± binomial standard error.",
        frame,
        [
            ("model", name("name")),
            ("architecture", name("arch")),
            ("kind", name("kind")),
            ("parameters, thousand", plain("params", 1, 1e3)),
            ("MACs, million", plain("macs", 2, 1e6)),
            ("input, pixels", count("input_size")),
            ("accuracy, %", lambda row: Cell(f"{number(row['acc'])} ± {number(row['acc_se'])}", float(row["acc"]))),
            ("calibration error, %", plain("ece")),
            ("trained on, images", count("train_images")),
            ("training, seconds", plain("train_seconds")),
            ("pretraining", name("pretraining")),
            ("recipe", name("recipe")),
            ("licence", name("licence")),
        ],
    )


def top_pairs(tables: Tables) -> list[Grid]:
    """The most complementary pairs, and the pairs that gained and lost most."""
    flips = tables.complementarity.sort_values("pos_flips", ascending=False, kind="stable")
    weaker = flips[flips["acc_difference"] < 0]
    pair: list[tuple[str, Show]] = [("teacher", name("teacher")), ("student", name("student"))]
    scores: list[tuple[str, Show]] = [
        *pair,
        ("teacher − student, points", signed_number("acc_difference", 1)),
        (
            "positive flips, % of images",
            lambda row: Cell(f"{number(row['pos_flips'])} ± {number(row['pos_flips_se'])}", float(row["pos_flips"])),
        ),
        ("negative flips, % of images", plain("neg_flips")),
        ("class entropy, nats", plain("class_entropy", 2)),
    ]
    deltas = pair_deltas(tables.transfers, tables.complementarity)
    deltas = deltas[~deltas["control"].astype(bool)].sort_values("delta", ascending=False, kind="stable")
    transfers: list[tuple[str, Show]] = [
        *pair,
        ("method", name("method")),
        ("teacher − student, points", signed_number("acc_difference", 1)),
        ("transfer delta, points", error("delta")),
        ("transfer rate, %", plain("transfer_rate", 0)),
    ]
    over_images = "averaged over seeds, ± standard error over test images"
    grids = [
        grid("Most positive flips.", flips.head(TOP), scores),
        grid("Most positive flips from a less accurate teacher.", weaker.head(TOP), scores),
        grid(f"Largest gains, {over_images}.", deltas.head(TOP), transfers),
        grid(f"Lowest deltas, {over_images}.", deltas.tail(TOP).iloc[::-1], transfers),
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
    return grid(
        f"{len(failed):,} failed trainings.{more}",
        shown,
        [
            ("teacher", name("teacher")),
            ("student", name("student")),
            ("method", name("method")),
            ("seed", count("seed")),
            ("reason", name("reason")),
        ],
    )


IMAGES = "all"
"""What stands in place of a number of images where all were used."""


def answer(tables: Tables) -> str:
    """What the experiments show, each beside its control; method names stand in backticks. Empty without any."""
    return " ".join([*_amalgamation(tables.details("amalgamation")), *_flow(tables.details("flow"))])


def _amalgamation(details: pd.DataFrame) -> Iterator[str]:
    if details.empty:
        return
    rows = drawn.by_part(details)
    gains = rows[(rows["part"] == "all") & rows["gain"].notna()].set_index("method")
    if "cfl" in gains.index:
        yield f"One student of several specialists: against plain distillation (`kd`), `cfl` is {_tally(gains, 'cfl')}."
    if "supervised" in gains.index:
        yield f"With labels, which they do not have, `supervised` is {_tally(gains, 'supervised')}."


def _flow(details: pd.DataFrame) -> Iterator[str]:
    if details.empty:
        return
    gains = drawn.by_method(details).dropna(subset="gain").set_index("name")
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
        f" was trained); the difference to `{drawn.REFERENCE}` is paired by seed.",
        drawn.by_part(details),
        [
            ("experiment", name("experiment")),
            ("method", name("method")),
            ("classes of", name("part")),
            ("accuracy, %", _accuracy("acc", "acc_se")),
            (f"more than {drawn.REFERENCE}, points", error("gain")),
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
        drawn.by_method(details),
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
