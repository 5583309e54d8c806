"""The ``kt`` command: runs one of its subcommands, and turns errors into one line each.

The commands of the stages and of the analysis have modules of their own; ``status``, ``retry``, ``config`` and
``schema`` are here.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import kt
from kt import compiler
from kt.cli import analysis, results, stages
from kt.cli.stages import number
from kt.errors import Interrupted, KtError, shortened, unknown


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each, in the words of ``kt.errors``."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and end with status 2."""
        line = shortened(" ".join(message.split()))
        self.exit(2, f"{self.prog}: {line}; `{self.prog} --help` says more\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if isinstance(action, argparse._SubParsersAction) else str(action.metavar or action.dest)
            raise argparse.ArgumentError(None, unknown(what, str(value), map(str, action.choices)))


def _config(args: argparse.Namespace) -> None:
    from kt.study.load import check_more, json_schema, load_any

    if args.action == "schema":
        print(json.dumps(json_schema(), indent=1))
    else:
        study = load_any(args.config)
        methods = check_more(study)
        print(f"{args.config}: fine, {len(study.names)} models, methods {', '.join(methods)}")


def _tables_docs(args: argparse.Namespace) -> None:
    from kt.tables.schema import markdown

    print(markdown(), end="")


def _status(args: argparse.Namespace) -> None:
    from datetime import datetime

    from kt.status import jobs, screen
    from kt.study.load import load_any

    study = load_any(args.config)
    logs = args.logs or jobs.log_folder(study.layout, args.config.absolute().parent)

    def report() -> list[str]:
        return screen.lines(study, study.layout, logs, args.config, datetime.now().astimezone())

    if args.watch is not None:
        screen.watch(report, args.watch)
    print("\n".join(report()))


def _retry(args: argparse.Namespace) -> None:
    from kt import status
    from kt.study.load import load_any

    study = load_any(args.config)
    keys = status.survey(study, study.layout).retriable
    made_again = status.forget(study.layout, keys)
    trainings, jobs = (
        f"{n} {what}{'s' * (n != 1)}" for n, what in ((len(keys), "failed training"), (len(made_again), "job"))
    )
    print(f"{trainings} will be tried again by the next run ({jobs})")


def _add_tools(add: Callable[..., argparse.ArgumentParser]) -> None:
    about = "show what is done, running, queued, failed and left, and how long it will take"
    sub = add("status", _status, about, "kt status --watch")
    sub.add_argument(
        "--watch",
        type=number(0.1, 86400, "seconds"),
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="repeat every so many seconds until Ctrl-C (default: 10)",
    )
    about = "log folder of the cluster's jobs (default: that of the latest run, else as in slurm/config.yaml)"
    sub.add_argument("--logs", type=Path, help=about)

    add("retry", _retry, "let the next run try failed trainings again", "kt retry && snakemake --cores 2")

    sub = add(
        "config", _config, "check the configuration, or print the JSON schema of all configurations", "kt config check"
    )
    sub.add_argument("action", choices=("check", "schema"), help="`check` it, or print its JSON `schema`")

    add("schema", _tables_docs, "print the reference of all tables, as Markdown", "kt schema > tables.md")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("kt", description=kt.__doc__, epilog="example: kt status --config config.yaml")
    parser.add_argument("--version", action="version", version=f"kt {kt.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], about: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=f"example: {example}"
        )
        default = os.environ.get("KT_CONFIG") or "config.yaml"
        about_config = "the study; paths in it are relative to its folder (default: $KT_CONFIG, else config.yaml)"
        sub.add_argument(
            "--config",
            "--configfile",
            dest="config",
            type=Path,
            default=Path(default),
            metavar="FILE",
            help=about_config,
        )
        sub.add_argument("--log", type=Path, help="also write messages to this file")
        sub.set_defaults(run=run)
        return sub

    stages.add_commands(add)
    analysis.add_commands(add)
    results.add_commands(add)
    _add_tools(add)
    return parser


def _set_up_logging(file: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(file, "w", encoding="utf-8"))
        except OSError as error:
            raise KtError(f"--log: {file}: cannot be written ({error.strerror})") from error
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    for library in ("matplotlib", "fontTools", "timm", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is success, 1 an error that was printed as one line; as in shells, 130 is Ctrl-C, and 143 a signal to stop, after
    which the same command continues where it was.
    """
    args = _parser().parse_args(argv)
    compiler.put_off()
    _set_up_logging(None)
    try:
        _set_up_logging(args.log)
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
