"""Commands of the stages, one per step of the workflow and with the same files; and the types of arguments.

The tables that a command reads and writes lie in the results folder unless their paths are given, so that somebody
else's table can be fed in at any point.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt.errors import quoted

if TYPE_CHECKING:
    from kt.layout import Layout
    from kt.study.study import Study


EXPERIMENTS = {
    "amalgamate": "amalgamate teachers of some classes each into one student",
    "flow": "let teachers' features flow into a student that learns a task of its own",
}
"""Kinds of experiments, which are sections of the configuration, and what they do."""

log = logging.getLogger(__name__)

Add = Callable[..., argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add the commands in the workflow's order; ``add`` takes a name, what runs, a description and an example."""
    _add_members(add)
    _add_pairs(add)
    _add_transfers(add)
    _add_experiments(add)
    _add_results(add)


def _stage(call: Callable[[Any, Any, Any, argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A command that needs the study: ``call`` gets the stages, the study, its layout and the arguments."""

    def run(args: argparse.Namespace) -> None:
        from kt import stages
        from kt.study.load import load_any

        study = load_any(args.config)
        call(stages.of(study), study, study.layout, args)

    return run


def _add_members(add: Add) -> None:
    run = _stage(lambda s, study, lay, a: s.data(study, lay, a.threads))
    _threads(add("data", run, "split and decode the data set", "kt data --threads 8"))

    run = _stage(lambda s, study, lay, a: s.member(study, lay, a.model, a.threads))
    about = "make a zoo member's weights, where they are not there yet, and its predictions"
    _model(add("member", run, about, "kt member --model resnet"))

    run = _stage(lambda s, study, lay, a: s.weights(study, lay, a.model, a.threads))
    _model(add("weights", run, "train a zoo member or import its checkpoint", "kt weights --model resnet"))

    run = _stage(lambda s, study, lay, a: s.predict(study, lay, a.model, a.threads))
    _model(add("predictions", run, "run a model once over every split", "kt predictions --model resnet"))

    run = _stage(
        lambda s, study, lay, a: (
            print(s.preview(study, lay, a.tera_macs)) if a.preview else s.zoo(study, lay, a.out or lay.table("zoo"))
        )
    )
    sub = add("zoo", run, "make the table of models, or preview their cost", "kt zoo --preview")
    sub.add_argument(
        "--preview", action="store_true", help="list models, sizes, download and GPU time; needs no weights"
    )
    speed = "assumed speed of a GPU in the preview, trillions of multiply-adds per second (default: %(default)s)"
    sub.add_argument("--tera-macs", type=number(1e-3, 1e6), default=10.0, help=speed)
    _out(sub, "table")


def _add_pairs(add: Add) -> None:
    run = _stage(
        lambda s, study, lay, a: s.complementarity(
            study, lay, a.split, a.out or lay.complementarity(a.split), a.threads
        )
    )
    sub = add("complementarity", run, "score all ordered pairs", "kt complementarity --split test")
    sub.add_argument("--split", default="test", help="transfer, validation or test (default: %(default)s)")
    _threads(sub)
    _out(sub, "table")

    run = _stage(lambda s, study, lay, a: s.pairs(study, lay, a.scores, a.models, a.out or lay.table("pairs")))
    sub = add("pairs", run, "choose the pairs that get a transfer", "kt pairs --out my-pairs.parquet")
    sub.add_argument("--scores", type=Path, help="complementarity table that the rules `top` and `stratified` use")
    sub.add_argument("--models", type=Path, help="table of models, whose families `stratified` uses")
    _out(sub, "table")

    run = _stage(lambda s, study, lay, a: s.choose_round(study, lay, a.round, a.out or lay.round(a.round)))
    sub = add("round", run, "choose one round's pairs for the rule `adaptive`", "kt round --round 1")
    sub.add_argument("--round", type=whole(0), required=True, help="its number; round 0 is drawn at random")
    _out(sub, "table")


def _add_transfers(add: Add) -> None:
    run = _stage(
        lambda s, study, lay, a: s.transfer(
            study,
            lay,
            a.student,
            a.chunk,
            a.pairs,
            a.out or lay.transfer(a.student, a.chunk),
            a.threads,
        )
    )
    sub = add(
        "transfer",
        run,
        "transfer to one student from each of its teachers",
        "kt transfer --student resnet --chunk 0",
    )
    _student(sub)
    sub.add_argument(
        "--chunk", type=whole(0), default=0, help="number of the part of its teachers (default: %(default)s)"
    )
    sub.add_argument("--pairs", type=Path, help="table of pairs (default: chosen by the rule in the configuration)")
    _threads(sub)
    _out(sub, "table")

    run = _stage(
        lambda s, study, lay, a: s.groups(study, lay, a.student, a.out or lay.transfer(a.student, "groups"), a.threads)
    )
    sub = add("groups", run, "transfer from groups of teachers to one student", "kt groups --student resnet")
    _student(sub)
    _threads(sub)
    _out(sub, "table")

    run = _stage(
        lambda s, study, lay, a: s.search(study, lay, a.student, a.out or lay.transfer(a.student, "search"), a.threads)
    )
    sub = add("search", run, "train the search's candidates for one student", "kt search --student resnet")
    _student(sub)
    _threads(sub)
    _out(sub, "table")

    run = _stage(lambda s, study, lay, a: s.choose(study, lay, a.out or lay.table("search")))
    _out(add("choose", run, "choose parameters by the candidates of all students", "kt choose"), "table")


def _add_experiments(add: Add) -> None:
    for rule, about in EXPERIMENTS.items():
        run = _stage(partial(_experiment, rule))
        sub = add(rule, run, about, f"kt {rule} --experiment halves")
        sub.add_argument("--experiment", required=True, help=f"a name in `{rule}`")
        _threads(sub)


def _experiment(rule: str, stages: Any, study: Study, layout: Layout, args: argparse.Namespace) -> None:
    stages.experiment(study, layout, rule, args.experiment, args.threads)


def _add_results(add: Add) -> None:
    run = _stage(lambda s, study, lay, a: s.gather(study, lay, a.out or lay.tables))
    _out(add("tables", run, "gather the final tables, as Parquet and CSV", "kt tables"), "folder")

    sub = add("figures", _figures, "draw figures from tables", "kt figures delta_by_method")
    sub.add_argument("names", nargs="*", help="names of figures (default: all)")
    _tables(sub)
    _out(sub, "folder")

    run = _stage(
        lambda s, study, lay, a: s.report(
            study,
            a.config,
            a.tables or lay.tables,
            a.analysis or (None if a.tables else lay.analysis),
            a.figures or lay.figures,
            a.out or lay.report,
        )
    )
    sub = add("report", run, "write the HTML report from tables and figures", "kt report --out report.html")
    _tables(sub)
    sub.add_argument("--figures", type=Path, help="folder of figures (default: in the results folder)")
    _out(sub, "page")

    run = _stage(lambda s, study, lay, a: s.explore(study, a.tables or lay.tables, a.out or lay.explore))
    sub = add("explore", run, "write the HTML page to explore models and pairs with", "kt explore --out explore.html")
    sub.add_argument("--tables", type=Path, help="folder of tables (default: in the results folder)")
    _out(sub, "page")


def _figures(args: argparse.Namespace) -> None:
    from kt.figures.draw import draw

    tables, analysis, out = args.tables, args.analysis, args.out
    if not (tables and out):  # tables from anywhere need no configuration
        from kt.study.load import load_any

        study = load_any(args.config)
        layout = study.layout
        analysis = analysis or (None if tables or study.plays else layout.analysis)
        tables, out = tables or layout.tables, out or layout.figures
    draw(tables, out, args.names or None, analysis)
    log.info("figures: drawn into %s", out)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a name in `zoo.models`")
    _threads(parser)


def _student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", required=True, help="a name in `zoo.models`")


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole(1, 4096), default=1, help="CPU threads (default: %(default)s)")


def _tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", type=Path, help="folder of tables (default: in the results folder)")
    about = "folder of the analysis (default: in the results folder, or none where --tables is given)"
    parser.add_argument("--analysis", type=Path, help=about)


def _out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, help=f"{what} to write (default: in the results folder)")


def whole(least: int, most: int = (1 << 32) - 1) -> Callable[[str], int]:
    """A type for whole numbers in a range."""
    return lambda text: int(_number(text, int, least, most, f"a whole number from {least} to {most}"))


def number(least: float, most: float, unit: str = "a number") -> Callable[[str], float]:
    """A type for numbers in a range, both ends included."""
    return lambda text: _number(text, float, least, most, f"{unit} from {least:g} to {most:g}")


def _number(text: str, convert: Callable[[str], float], least: float, most: float, allowed: str) -> float:
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{quoted(text)}: allowed is {allowed}")
    return value
