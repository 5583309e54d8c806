"""The commands that answer from tables alone: ``kt analyse``, ``kt recommend`` and ``kt next``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kt.cli.stages import number, whole

if TYPE_CHECKING:
    from kt.analysis.inputs import Inputs

log = logging.getLogger(__name__)


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; ``add`` takes a name, what runs, a description and an example."""
    example = "kt analyse --transfers transfers.parquet --zoo zoo.parquet --out analysis"
    sub = add("analyse", _analyse, "say which model properties predict gains", example)
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

    sub = add("next", _next, "pick the pairs that would teach the predictor most", "kt next --budget 2")
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
    """The tables, and within how many points teachers count as equal; the configuration is read only where needed."""
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
    from kt.analysis import recommend

    data, _ = _load(args)
    rows = recommend.recommend(data, args.student, args.method, args.level)
    print(recommend.as_text(rows, args.student, args.level, args.top))
    if args.out:
        recommend.write_csv(args.out, rows)


def _next(args: argparse.Namespace) -> None:
    from kt.analysis import recommend
    from kt.analysis.recommend import choose, plan_text

    data, _ = _load(args)
    plan = choose(data, args.budget, args.method)
    print(plan_text(plan))
    if args.out:
        recommend.write_csv(args.out, plan.pairs)
