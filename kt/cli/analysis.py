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

    from kt.analysis.design import Plan
    from kt.analysis.inputs import Inputs
    from kt.tasks.task import Words

log = logging.getLogger(__name__)


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; ``add`` takes a name, what runs, a description and an example."""
    example = "kt analyse --transfers transfers.parquet --zoo zoo.parquet --out analysis"
    sub = add("analyse", _analyse, "find which model properties predict gains", example)
    _add_tables(sub)
    about = "table pairs, whose rounds tell which pairs were chosen by results (default: as for complementarity)"
    sub.add_argument("--pairs", type=Path, help=about)
    sub.add_argument("--out", type=Path, help="folder to write (default: in the results folder)")
    sub.add_argument(
        "--bootstrap", type=whole(20), default=1000, help="bootstrap samples of models (default: %(default)s)"
    )
    sub.add_argument("--seed", type=whole(0), default=0, help="seed of folds and samples (default: %(default)s)")

    sub = add(
        "recommend",
        _recommend,
        "rank teachers for a student, measured ones first",
        "kt recommend --student resnet",
    )
    sub.add_argument("--student", required=True, help="a name in the table zoo")
    sub.add_argument("--method", help="only this method (default: all)")
    sub.add_argument(
        "--level", type=number(0.01, 0.999), default=0.8, help="coverage of the intervals (default: %(default)s)"
    )
    sub.add_argument(
        "--top", type=whole(1), default=10, help="rows to print, measured and predicted (default: %(default)s)"
    )
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


def _load(args: argparse.Namespace, drawn: bool = False) -> tuple[Inputs, float]:
    """The tables, and how close a teacher counts as equal; the configuration is read only where it is needed.

    With ``drawn`` without the pairs that were chosen by results.
    """
    from kt.analysis import inputs
    from kt.analysis.analyse import EQUAL_WITHIN

    transfers, zoo, scores, equal_within = args.transfers, args.zoo, args.complementarity, EQUAL_WITHIN
    pairs = args.pairs if drawn else None
    if not (transfers and zoo):
        from kt.study.load import load

        study = load(args.config)
        layout, equal_within = study.layout, study.analysis.equal_within
        scores = scores or (None if transfers else layout.table("complementarity"))
        pairs = pairs or (layout.table("pairs") if drawn and not transfers else None)
        transfers, zoo = transfers or layout.table("transfers"), zoo or layout.table("zoo")
    return inputs.load(transfers, zoo, scores, pairs), equal_within


def _analyse(args: argparse.Namespace) -> None:
    from kt.analysis.analyse import analyse

    out = args.out
    if out is None:
        from kt.study.load import load

        out = load(args.config).layout.analysis
    data, equal_within = _load(args, drawn=True)
    analyse(data, equal_within, args.bootstrap, seed=args.seed).write(out)
    log.info("analysis: tables and summary.md in %s", out)


def _recommend(args: argparse.Namespace) -> None:
    from kt.analysis.recommend import recommend

    data, _ = _load(args)
    rows = recommend(data, args.student, args.method, args.level, _judgement(args))
    print(recommended_text(rows, args.student, args.level, args.top, data.task))
    if args.out:
        _write_csv(args.out, rows)


def _judgement(args: argparse.Namespace) -> dict[str, pd.DataFrame] | None:
    """The study's own analysis, so that report and command tell the same; None for tables from elsewhere."""
    if args.transfers or args.zoo or args.complementarity:
        return None
    from kt.analysis.recommend import JUDGEMENT
    from kt.study.load import load
    from kt.tables import schema

    layout = load(args.config).layout
    paths = {name: layout.analysis / f"{name}.parquet" for name in JUDGEMENT}
    there = all(path.exists() for path in paths.values())
    return {name: schema.read_frame(path, name) for name, path in paths.items()} if there else None


def _next(args: argparse.Namespace) -> None:
    from kt.analysis.design import choose

    data, _ = _load(args)
    plan = choose(data, args.budget, args.method)
    print(plan_text(plan, data.task))
    if args.out:
        _write_csv(args.out, plan.pairs)


def recommended_text(rows: pd.DataFrame, student: str, level: float, top: int, task: Words) -> str:
    """What ``kt recommend`` prints: measured teachers, predicted ones, and what the pairs do not tell."""
    from kt.analysis.recommend import CANNOT_TELL, LITTLE, open_question
    from kt.analysis.wording import counted, number, predictor_words

    known, told = rows[rows["measured"].notna()], rows[rows["predicted"].notna()]
    text = []
    if len(known):
        text += [f"{student}, measured: transfer delta in {task.metric.difference}, mean over seeds ± standard error"]
        text += _shortened(_measured_cells(known, task), top)
    if len(told):
        text += [f"{student}, not measured yet: predicted transfer delta in {task.metric.difference}"]
        text += _shortened(_predicted_cells(told, level, task), top)
    for method, of_method in rows.groupby("method", sort=True):
        left, first = int(of_method["measured"].isna().sum()), of_method.iloc[0]
        if reason := open_question(of_method):
            text.append(f"{method}: {counted(left, 'teacher')} not measured: {CANNOT_TELL}, since {reason}")
            text.append(
                f"  `kt next --budget HOURS --method {method}` names the pairs whose transfer would change that most"
            )
        elif left:
            how = f"{predictor_words(first['rung'], task)}, R² {number(first['r2'], 2)} on students left out of the fit"
            text.append(
                f"{method}: predicted by {how}{'' if first['r2'] > LITTLE else ': hardly better than the average gain'}"
            )
    return "\n".join(text)


Cells = list[tuple[str, ...]]


def _shortened(cells: Cells, top: int) -> list[str]:
    """The heading and the first rows as lines, and the number of those left out."""
    more = len(cells) - 1 - top
    return aligned(cells[: top + 1]) + ([f"… and {more:,} more"] if more > 0 else [])


def _measured_cells(rows: pd.DataFrame, task: Words) -> Cells:
    from kt.analysis.deltas import records
    from kt.analysis.wording import decimals, with_error

    digits = decimals(task)
    cells: Cells = [("teacher", "method", "delta", "seeds", "beyond its control")]
    for row in records(rows):
        beyond = with_error(row["beyond"], row["beyond_se"], digits)
        delta = with_error(row["measured"], row["measured_se"], digits)
        control = f"{beyond} over {row['against']}" if isinstance(row["against"], str) else "–"
        cells.append((row["teacher"], row["method"], delta, f"{row['seeds']:.0f}", control))
    return cells


def _predicted_cells(rows: pd.DataFrame, level: float, task: Words) -> Cells:
    from kt.analysis.deltas import records
    from kt.analysis.wording import decimals, number, signed

    digits = decimals(task)
    cells: Cells = [("teacher", "method", "predicted", f"{100 * level:g} % interval", "P(delta < 0)")]
    for row in records(rows):
        known = math.isfinite(row["low"]) and math.isfinite(row["high"])
        interval = f"{signed(row['low'], digits)} to {signed(row['high'], digits)}" if known else "too few students"
        predicted, harm = signed(row["predicted"], digits), number(row["p_harm"], 2)
        cells.append((row["teacher"], row["method"], predicted, interval, harm))
    return cells


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
