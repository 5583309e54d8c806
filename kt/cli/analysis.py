"""Commands that need tables alone: ``kt analyse``, ``kt recommend`` and ``kt next``."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kt.cli.stages import number, whole

if TYPE_CHECKING:
    import pandas as pd

    from kt.analysis.inputs import Inputs
    from kt.analysis.recommend import Plan
    from kt.tasks.task import Words

log = logging.getLogger(__name__)


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; ``add`` takes a name, what runs, a description and an example."""
    example = "kt analyse --transfers transfers.parquet --zoo zoo.parquet --out analysis"
    sub = add("analyse", _analyse, "find which model properties predict gains", example)
    _add_tables(sub)
    sub.add_argument("--out", type=Path, help="folder to write (default: in the results folder)")
    sub.add_argument(
        "--bootstrap", type=whole(20), default=1000, help="bootstrap samples of models (default: %(default)s)"
    )
    sub.add_argument("--seed", type=whole(0), default=0, help="seed of folds and samples (default: %(default)s)")

    sub = add("recommend", _recommend, "rank teachers for a student, without training", "kt recommend --student resnet")
    sub.add_argument("--student", required=True, help="a name in the table zoo")
    sub.add_argument("--method", help="only this method (default: all)")
    sub.add_argument(
        "--level", type=number(0.01, 0.999), default=0.8, help="coverage of the intervals (default: %(default)s)"
    )
    sub.add_argument("--top", type=whole(1), default=10, help="rows to print (default: %(default)s)")
    _add_tables(sub)
    sub.add_argument("--out", type=Path, help="CSV file of all rows")

    sub = add("next", _next, "choose the pairs that would improve the predictor most", "kt next --budget 2")
    sub.add_argument("--budget", type=number(0, 1e9, "hours"), required=True, help="hours of training to spend")
    sub.add_argument("--method", help="the method to transfer by (default: the one with the highest mean delta)")
    _add_tables(sub)
    sub.add_argument("--out", type=Path, help="CSV file of the pairs")


def _add_tables(sub: argparse.ArgumentParser) -> None:
    for name in ("transfers", "zoo", "complementarity"):
        about = f"table {name}, Parquet or CSV (default: in the results folder)"
        if name == "complementarity":
            about = "table complementarity (default: in the results folder, or none where --transfers is given)"
        sub.add_argument(f"--{name}", type=Path, help=about)


def _load(args: argparse.Namespace) -> tuple[Inputs, float]:
    """The tables, and how close a teacher counts as equal; the configuration is read only where it is needed."""
    from kt.analysis import inputs
    from kt.analysis.analyse import EQUAL_WITHIN

    transfers, zoo, scores, equal_within = args.transfers, args.zoo, args.complementarity, EQUAL_WITHIN
    if not (transfers and zoo):
        from kt.study.load import load

        study = load(args.config)
        layout, equal_within = study.layout, study.analysis.equal_within
        scores = scores or (None if transfers else layout.table("complementarity"))
        transfers, zoo = transfers or layout.table("transfers"), zoo or layout.table("zoo")
    return inputs.load(transfers, zoo, scores), equal_within


def _analyse(args: argparse.Namespace) -> None:
    from kt.analysis.analyse import analyse

    out = args.out
    if out is None:
        from kt.study.load import load

        out = load(args.config).layout.analysis
    data, equal_within = _load(args)
    analyse(data, equal_within, args.bootstrap, seed=args.seed).write(out)
    log.info("analysis: tables and summary.md in %s", out)


def _recommend(args: argparse.Namespace) -> None:
    from kt.analysis.recommend import recommend

    data, _ = _load(args)
    rows = recommend(data, args.student, args.method, args.level)
    print(recommended_text(rows, args.student, args.level, args.top, data.task))
    if args.out:
        _write_csv(args.out, rows)


def _next(args: argparse.Namespace) -> None:
    from kt.analysis.recommend import choose

    data, _ = _load(args)
    plan = choose(data, args.budget, args.method)
    print(plan_text(plan, data.task))
    if args.out:
        _write_csv(args.out, plan.pairs)


def recommended_text(rows: pd.DataFrame, student: str, level: float, top: int, task: Words) -> str:
    """The first rows of ``kt recommend`` as a plain table, and how well each method is predicted."""
    from kt.analysis.deltas import records
    from kt.analysis.wording import decimals, number, predictor_words, signed

    digits = decimals(task)
    cells = [("teacher", "method", "predicted", f"{100 * level:g} % interval", "harm", "measured")]
    for row in records(rows.head(top)):
        known = math.isfinite(row["low"]) and math.isfinite(row["high"])
        interval = f"{signed(row['low'], digits)} to {signed(row['high'], digits)}" if known else "too few students"
        predicted, harm = signed(row["predicted"], digits), f"{number(100 * row['p_harm'], 0)} %"
        cells.append((row["teacher"], row["method"], predicted, interval, harm, signed(row["measured"], digits)))
    unit = task.metric.difference
    text = [f"{student}: predicted transfer delta in {unit}, best of {len(rows):,} teachers and methods first"]
    text += aligned(cells)
    for method, of_method in rows.groupby("method", sort=False):
        first = of_method.iloc[0]
        warning = "" if first["r2"] > 0.1 else ": hardly better than the mean"
        how = f"{predictor_words(first['rung'], task)}, R² {number(first['r2'], 2)} on students left out of the fit"
        text.append(f"{method}: predicted by {how}{warning}")
    return "\n".join(text)


def plan_text(plan: Plan, task: Words, most: int = 20) -> str:
    """The plan of ``kt next`` as a plain table, and what it brings."""
    from kt.analysis.deltas import records
    from kt.analysis.wording import counted, decimals, number

    digits = decimals(task)
    cells = [("teacher", "student", "hours", "error after it")]
    cells += [
        (row["teacher"], row["student"], f"{row['hours']:.3g}", number(row["error"], digits))
        for row in records(plan.pairs.head(most))
    ]
    text = aligned(cells)
    if len(plan.pairs) > most:
        text.append(f"… and {len(plan.pairs) - most:,} more")
    after = number(plan.pairs["error"].iloc[-1], digits)
    text.append(
        f"{counted(len(plan.pairs), 'pair')} of {plan.left:,} by {plan.method}, {plan.hours:.3g} hours: the expected"
        f" error of a predicted delta falls from {number(plan.error, digits)} to {after} {task.metric.difference}"
    )
    text.append("criterion: mean variance of the predicted deltas of all pairs not yet done, lowered most per hour")
    return "\n".join(text)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a plain table as lines."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Write rows as CSV, atomically; what is infinite is left empty."""
    from kt.store import atomic

    with atomic(path) as temporary:
        rows.replace([math.inf, -math.inf], math.nan).to_csv(temporary, index=False)
