"""The ``kt`` command: reads the configuration, calls one stage, and turns errors into one line each.

Every stage of the workflow is a sub-command here, with the same files; the tables it reads and writes lie in the
results folder unless their paths are given, so that somebody else's table can be fed in at any point.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kt
from kt import analysis_commands
from kt.errors import Interrupted, KtError

if TYPE_CHECKING:
    from kt.config import Study
    from kt.layout import Layout

Run = Callable[[argparse.Namespace], None]


def _study(args: argparse.Namespace) -> tuple[Study, Layout]:
    """The configuration and where its files lie."""
    from kt.config import load
    from kt.layout import Layout

    study = load(args.config)
    return study, Layout(Path(study.results))


def _stage(call: Callable[[Any, Any, Any, argparse.Namespace], None]) -> Run:
    """A command that needs the study: ``call`` gets the stages, the study, its layout and the arguments."""

    def run(args: argparse.Namespace) -> None:
        from kt import stages

        call(stages, *_study(args), args)

    return run


def _config(args: argparse.Namespace) -> None:
    from kt.config import json_schema, load

    if args.action == "schema":
        print(json.dumps(json_schema(), indent=1))
    else:
        study = load(args.config)
        print(f"{args.config}: fine, {len(study.names)} models, methods {', '.join(study.transfer.methods.chosen())}")


def _tables_docs(args: argparse.Namespace) -> None:
    from kt.schema import markdown

    print(markdown(), end="")


def _figures(args: argparse.Namespace) -> None:
    from kt.figures import draw

    tables, analysis, out = args.tables, args.analysis, args.out
    if not (tables and out):  # tables from anywhere need no configuration
        _, layout = _study(args)
        analysis = analysis or (None if tables else layout.analysis)
        tables, out = tables or layout.tables, out or layout.figures
    draw(tables, out, args.names or None, analysis)
    logging.getLogger(__name__).info("figures: drawn into %s", out)


def _status(args: argparse.Namespace) -> None:
    from datetime import datetime

    from kt.status import jobs, screen

    (study, layout), logs = _study(args), args.logs or jobs.log_folder()

    def report() -> list[str]:
        return screen.lines(study, layout, logs, args.config, datetime.now().astimezone())

    if args.watch is not None:
        screen.watch(report, args.watch)
    print("\n".join(report()))


def _retry(args: argparse.Namespace) -> None:
    from kt import status

    study, layout = _study(args)
    keys = status.survey(study, layout).retriable
    made_again = status.forget(layout, keys, damaged=False)
    print(f"{len(keys)} failed trainings will be tried again by the next run ({len(made_again)} jobs)")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a name in `zoo.models`")
    _threads(parser)


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")


def _seconds(text: str) -> float:
    """A pause between two looks."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds from 0.1 to 86400 are allowed")
    return value


def _out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, help=f"{what} to write (default: in the results folder)")


def _analysis(parser: argparse.ArgumentParser) -> None:
    about = "folder of the analysis (default: in the results folder, or none where --tables is given)"
    parser.add_argument("--analysis", type=Path, help=about)


def _add_stages(add: Callable[..., argparse.ArgumentParser]) -> None:
    run = _stage(lambda s, study, lay, a: s.data(study, lay, a.threads))
    _threads(add("data", run, "split and decode the data set", "kt data --threads 8"))

    run = _stage(lambda s, study, lay, a: s.weights(study, lay, a.model, a.threads))
    _model(add("weights", run, "train a zoo member or import its checkpoint", "kt weights --model resnet"))

    run = _stage(lambda s, study, lay, a: s.predict(study, lay, a.model, a.threads))
    _model(add("predictions", run, "run a model once over every split", "kt predictions --model resnet"))

    run = _stage(
        lambda s, study, lay, a: (
            print(s.preview(study, lay, a.tera_macs)) if a.preview else s.zoo(study, lay, a.out or lay.table("zoo"))
        )
    )
    sub = add("zoo", run, "make the table of models, or preview what they will cost", "kt zoo --preview")
    sub.add_argument(
        "--preview", action="store_true", help="list models, sizes, download and GPU time; needs no weights"
    )
    speed = "trillions of multiply-adds a second that a GPU is taken to do in the preview (default: %(default)s)"
    sub.add_argument("--tera-macs", type=float, default=10.0, help=speed)
    _out(sub, "table")

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
    sub.add_argument("--scores", type=Path, help="complementarity table that the rules `top` and `stratified` go by")
    sub.add_argument("--models", type=Path, help="table of models, whose families `stratified` goes by")
    _out(sub, "table")

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
    sub = add("transfer", run, "transfer to one student", "kt transfer --student resnet --chunk 0")
    sub.add_argument("--student", required=True, help="a name in `zoo.models`")
    sub.add_argument("--chunk", type=int, default=0, help="which part of its teachers (default: %(default)s)")
    sub.add_argument("--pairs", type=Path, help="table of pairs (default: as the rule in the configuration chooses)")
    _threads(sub)
    _out(sub, "table")

    run = _stage(
        lambda s, study, lay, a: s.groups(study, lay, a.student, a.out or lay.transfer(a.student, "groups"), a.threads)
    )
    sub = add("groups", run, "transfer from groups of teachers to one student", "kt groups --student resnet")
    sub.add_argument("--student", required=True, help="a name in `zoo.models`")
    _threads(sub)
    _out(sub, "table")

    run = _stage(
        lambda s, study, lay, a: s.search(study, lay, a.student, a.out or lay.transfer(a.student, "search"), a.threads)
    )
    sub = add("search", run, "train one student's candidates of the search", "kt search --student resnet")
    sub.add_argument("--student", required=True, help="a name in `zoo.models`")
    _threads(sub)
    _out(sub, "table")

    run = _stage(lambda s, study, lay, a: s.choose(study, lay, a.out or lay.table("search")))
    _out(add("choose", run, "choose parameters from all students' candidates", "kt choose"), "table")

    _add_experiments(add)

    run = _stage(lambda s, study, lay, a: s.gather(study, lay, a.out or lay.tables))
    _out(add("tables", run, "gather the final tables, as Parquet and CSV", "kt tables"), "folder")

    sub = add("figures", _figures, "draw figures from tables", "kt figures delta_by_method")
    sub.add_argument("names", nargs="*", help="which figures (default: all)")
    sub.add_argument("--tables", type=Path, help="folder of tables (default: in the results folder)")
    _analysis(sub)
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
    sub.add_argument("--tables", type=Path, help="folder of tables (default: in the results folder)")
    _analysis(sub)
    sub.add_argument("--figures", type=Path, help="folder of figures (default: in the results folder)")
    _out(sub, "page")


EXPERIMENTS = {
    "amalgamate": "amalgamate teachers of some classes each into one student",
    "flow": "let teachers' features flow into a student that learns a task of its own",
}
"""Kinds of experiments, which are sections of the configuration, and what they do."""


def _experiment(rule: str, stages: Any, study: Study, layout: Layout, args: argparse.Namespace) -> None:
    stages.experiment(study, layout, rule, args.experiment, args.threads)


def _add_experiments(add: Callable[..., argparse.ArgumentParser]) -> None:
    for rule, about in EXPERIMENTS.items():
        run = _stage(partial(_experiment, rule))
        sub = add(rule, run, about, f"kt {rule} --experiment halves")
        sub.add_argument("--experiment", required=True, help=f"a name in `{rule}`")
        _threads(sub)


def _add_tools(add: Callable[..., argparse.ArgumentParser]) -> None:
    about = "say what is done, running, queued, failed and left, and how long it will take"
    sub = add("status", _status, about, "kt status --watch")
    sub.add_argument(
        "--watch", type=_seconds, nargs="?", const=10.0, metavar="SECONDS", help="again and again until Ctrl-C (10)"
    )
    about = "folder that the cluster's jobs log to (default: `submitit-logdir` in slurm/config.yaml, else slurm_logs)"
    sub.add_argument("--logs", type=Path, help=about)

    add("retry", _retry, "let the next run try failed trainings again", "kt retry && snakemake")

    sub = add("config", _config, "check the configuration, or print its JSON schema", "kt config check")
    sub.add_argument("action", choices=("check", "schema"), help="what to do")

    add("schema", _tables_docs, "print the reference of all tables", "kt schema > tables.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kt", description=kt.__doc__, epilog="example: kt status --config config.yaml")
    parser.add_argument("--version", action="version", version=f"kt {kt.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Run, about: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about.capitalize() + ".", epilog=f"example: {example}")
        default = os.environ.get("KT_CONFIG", "config.yaml")
        about_config = "the study (default: $KT_CONFIG, else config.yaml)"
        sub.add_argument("--config", type=Path, default=Path(default), help=about_config)
        sub.add_argument("--log", type=Path, help="also write messages to this file")
        sub.set_defaults(run=run)
        return sub

    _add_stages(add)
    analysis_commands.add_commands(add)
    _add_tools(add)
    return parser


def _set_up_logging(file: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, "w", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    for library in ("matplotlib", "fontTools", "timm", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is success, 1 an error that was printed as one line; as shells have it, 130 is Ctrl-C, and 143 a signal to stop
    after which the same command goes on where it was.
    """
    args = _parser().parse_args(argv)
    _set_up_logging(args.log)
    try:
        args.run(args)
        sys.stdout.flush()
    except KtError as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    except Interrupted as reason:
        logging.getLogger(__name__).warning("%s", reason)
        return 143
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `kt config schema | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
