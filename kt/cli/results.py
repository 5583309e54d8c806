"""Commands on finished results: ``kt pair``, ``kt export``, ``kt publish`` and ``kt track``."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt.cli.analysis import aligned
from kt.cli.stages import whole
from kt.errors import KtError

if TYPE_CHECKING:
    import pandas as pd

    from kt.stages.one_pair import Found
    from kt.tasks.task import Words

log = logging.getLogger(__name__)


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; ``add`` takes a name, what runs, a description and an example."""
    sub = add("pair", _pair, "show what is known of one teacher and one student", "kt pair resnet vit")
    sub.add_argument("teacher", metavar="TEACHER", help="a name in `zoo.models`")
    sub.add_argument("student", metavar="STUDENT", help="another one")
    sub.add_argument("--top", type=whole(1), default=20, help="classes to print (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="print everything as JSON, all classes included")
    sub.add_argument(
        "--images", type=Path, metavar="FOLDER", help="write some images that one of them alone gets right"
    )

    about = "write students as folders that timm loads; they are trained again, as no weights are kept"
    sub = add("export", _export, about, "kt export --student vit --best")
    sub.add_argument("--student", help="a name in `zoo.models`, or an experiment as `flow.NAME`")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="only the best on the validation split (the default)")
    which.add_argument("--all", action="store_true", help="all that finished")
    about = "only from this teacher; the student may be named here, too"
    sub.add_argument("--pair", nargs="+", metavar=("TEACHER", "STUDENT"), help=about)
    sub.add_argument("--method", help="only by this method")
    sub.add_argument("--seed", type=whole(0), help="only with this seed")
    about = "only say what would be trained, and how long it takes"
    sub.add_argument("-n", "--dry-run", action="store_true", help=about)
    sub.add_argument("--threads", type=whole(1, 4096), default=1, help="CPU threads (default: %(default)s)")

    about = "push an exported student to the Hugging Face hub, or show what would be pushed"
    example = "kt publish --student vit.from-resnet.kl_dp.seed0 --repo me/vit-digits"
    sub = add("publish", _publish, about, example)
    sub.add_argument("--student", required=True, help="its name in results/students/index.csv")
    sub.add_argument("--repo", required=True, help="repository on the hub, as owner/name")
    sub.add_argument("--push", action="store_true", help="push it; without this nothing leaves the machine")

    about = "add finished trainings to an experiment tracker, offline; what it has already is left alone"
    sub = add("track", _track, about, "kt track --to tensorboard")
    about = "tensorboard, mlflow, wandb or trackio; `pip install` it first"
    sub.add_argument("--to", required=True, metavar="TRACKER", help=about)


def _pair(args: argparse.Namespace) -> None:
    from kt import stages
    from kt.study.load import load

    study = load(args.config)
    found = stages.pair(study, study.layout, args.teacher, args.student)
    print(json.dumps(found.plain(), indent=1, allow_nan=False) if args.json else pair_text(found, args.top))
    if args.images:
        count = stages.write_images(study, study.layout, args.teacher, args.student, args.images)
        log.info("pair: %d %ss in %s", count, study.task.example, args.images)


def _export(args: argparse.Namespace) -> None:
    from kt import stages as steps
    from kt.study.load import load_any

    teacher, *more = args.pair or [None]
    named = {name for name in (args.student, *more) if name}
    if len(named) != 1 or len(more) > 1:
        raise KtError("export: name one student, by `--student NAME` or by `--pair TEACHER STUDENT`")
    study = load_any(args.config)
    stages: Any = steps.of(study)
    wanted = stages.Wanted(teacher, args.method, args.seed, args.all)
    plan = stages.plan_export(study, study.layout, named.pop(), wanted)
    print("\n".join(plan.lines), flush=True)
    if not args.dry_run:
        stages.run_export(plan, study.layout, args.threads)


def _publish(args: argparse.Namespace) -> None:
    from kt.study.load import load_any
    from kt.transfer.export import publish

    print("\n".join(publish(load_any(args.config).layout.students, args.student, args.repo, args.push)))


def _track(args: argparse.Namespace) -> None:
    from kt.stages.tracking import track
    from kt.study.load import load_any

    study = load_any(args.config)
    print(track(study, study.layout, args.to))


def pair_text(found: Found, top: int) -> str:
    """What is known of a pair, as plain text."""
    return "\n\n".join("\n".join(part) for part in (_head(found), *_parts(found, top)) if part)


def _head(found: Found) -> Iterator[str]:
    from kt.analysis.wording import decimals, flips_unit, measured_on, over, value_with_error

    task, digits = found.task, decimals(found.task, 1)
    metric, unit = task.metric, flips_unit(task)

    def shown(value: float, se: float) -> str:
        return value_with_error(value, se, digits)

    about = measured_on(found.n, task, found.clusters)
    yield f"teacher {found.teacher}, student {found.student}: {about} of {found.data}"
    for role, value in found.acc.items():
        yield f"{metric.name} of the {role}: {shown(*value)} {metric.unit}".rstrip()
    for sign, role, other, flips in (
        ("positive", "teacher", "student", found.pos_flips),
        ("negative", "student", "teacher", found.neg_flips),
    ):
        why = f"the {role} is right, the {other} wrong" if metric.binary else f"the {role}’s lead where it does better"
        yield f"{sign} flips: {shown(*flips)} {unit} ({why})"
    if found.clusters:
        yield f"± is one standard error over {over(task)}"


def _parts(found: Found, top: int) -> Iterator[list[str]]:
    if found.classes is not None:
        yield list(_classes(found.classes, found.task, top))
    if found.measures:
        yield list(_measures(found.measures, found.task))
    if len(found.measured):
        yield list(_measured(found.measured, found.task, found.clusters))
    yield found.missing


def _classes(classes: pd.DataFrame, task: Words, top: int) -> Iterator[str]:
    from kt.analysis.deltas import records
    from kt.analysis.wording import counted, plural

    of = plural("pixel" if task.dense else task.example)
    cells: list[tuple[str, ...]] = [("class", of, "teacher right", "student right", "positive flips", "negative flips")]
    columns = ("n", "teacher_right", "student_right", "pos_flips", "neg_flips")
    cells += [(row["class"], *(_count(row[name]) for name in columns)) for row in records(classes.head(top))]
    yield f"classes, those first that the teacher knows better, in numbers of test {of}"
    yield from aligned(cells)
    if len(classes) > top:
        yield f"… and {counted(len(classes) - top, 'more class')}; `--top` and `--json` show them"


def _count(value: float) -> str:
    return "–" if math.isnan(value) else f"{int(value):,}"


def _measures(measures: dict[str, float], task: Words) -> Iterator[str]:
    from kt.analysis.wording import told
    from kt.tables.columns import with_metric
    from kt.tables.of_study import STUDY

    about = {with_metric(column.name, task.metric.key): column for column in STUDY["complementarity"]}
    yield "measures (docs/measures.md)"
    cells = []
    for name, value in measures.items():
        unit, meaning = told(about[name], task)
        cells.append((name, f"{value:.4g}".replace("-", "−"), unit, meaning.split(";")[0]))
    yield from aligned(cells)


def _measured(measured: pd.DataFrame, task: Words, clusters: int) -> Iterator[str]:
    from kt.analysis.deltas import records
    from kt.analysis.wording import decimals, measured_on, number, over, with_error

    digits = decimals(task)
    cells: list[tuple[str, ...]] = [
        ("method", "labels", "delta", "seeds", "transfer rate", "beyond its control", "common seeds")
    ]
    for row in records(measured):
        control = f"{with_error(row['beyond'], row['beyond_se'], digits)} over {row['against']}"
        labels = {True: "yes", False: "no"}.get(row["uses_labels"], "?")
        name = f"{row['method']} (control)" if row["control"] else row["method"]
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        rate = "–" if row["control"] or math.isnan(row["transfer_rate"]) else f"{number(row['transfer_rate'], 0)} %"
        beyond = (control, str(row["common_seeds"])) if row["common_seeds"] else ("–", "–")
        delta = with_error(row["delta"], row["delta_se"], digits)
        cells.append((name, labels, delta, f"{row['seeds']}{failed}", rate, *beyond))
    n = measured["n"].max()
    those = measured_on(int(n), task) if n == n and not clusters else over(task)
    yield f"transfer delta in {task.metric.difference} ± standard error over {those}, mean over seeds"
    yield from aligned(cells)
    yield "beyond its control: paired by seed, ± standard error over the common seeds; a control has no teacher"
