"""Stages that train students: the missing units of one job, and the rows of all of them.

A job is a chunk of a student's pairs, its groups of teachers, its candidates in the search, or an experiment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kt import predictions
from kt.data.datasets import Dataset
from kt.errors import KtError, listed, unknown
from kt.layout import Layout
from kt.pairs import Adaptive, select
from kt.spec import shown
from kt.stages.common import FreshZoo, known_model, metadata, truth_of
from kt.stages.jobs import Alone, Job, Pairs, inspected
from kt.status.survey import duration
from kt.study import units as requested
from kt.study.study import Study
from kt.tables import schema
from kt.tasks.task import Metric
from kt.transfer import export, rows
from kt.transfer import groups as grouping
from kt.transfer.ledger import Record
from kt.transfer.unit import Unit, by_key

log = logging.getLogger(__name__)


def transfer(
    study: Study, layout: Layout, student: str, chunk: int, table: Path | None, out: Path, threads: int
) -> None:
    """Do the missing units of one chunk of a student's teachers, and write the rows of all of them.

    ``table`` holds the pairs; without one they are chosen anew, which needs no file but for the rule ``top``. The first
    chunk also has the student's controls. Of the rule ``adaptive`` each has them for its own teachers: none knows those
    of later rounds, and the trainings are in the ledger from the first.
    """
    chosen = (
        schema.read_frame(table, "pairs") if table else select(study.names, study.pairs, study.transfer.pairs_per_job)
    )
    mine = chosen[chosen["student"] == known_model(study, student)]
    teachers = mine.loc[mine["chunk"] == chunk, "teacher"].tolist()
    rounds = isinstance(study.pairs, Adaptive)
    named = mine["teacher"].tolist() if chunk == 0 and not rounds else teachers
    controls = len(named) > 0 and (chunk == 0 or rounds)
    methods, plans = requested.methods(study, layout), requested.plans(study, Dataset.open(layout.data).hash)
    units = requested.of_student(study, plans, methods, student, teachers, controls=controls)
    job = Pairs(study, layout, student, named)
    _write(study, out, "transfers", [row for _, found in job.run(units, threads) for row in found])


def groups(study: Study, layout: Layout, student: str, out: Path, threads: int) -> None:
    """Do the missing units of one student's groups of teachers, and write the rows of all of them.

    Raises:
        KtError: the configuration has no groups, or none for this student.
    """
    if study.groups is None or known_model(study, student) not in grouping.count(study.names, study.groups.choose):
        raise KtError(f"groups: the configuration has no group of teachers for {student!r}")
    sets = _group_sets(study, layout, student)
    units = requested.of_sets(study, requested.plans(study, Dataset.open(layout.data).hash), student, sets)
    job = Pairs(study, layout, student, sorted({name for teachers in sets for name in teachers}))
    _write(study, out, "transfers", [row for _, found in job.run(units, threads) for row in found])


def _group_sets(study: Study, layout: Layout, student: str) -> list[tuple[str, ...]]:
    """A student's groups of teachers."""
    assert study.groups is not None
    rule, value, dataset = study.groups.choose, None, Dataset.open(layout.data)
    if isinstance(rule, grouping.Ranked):
        task, truth = study.task, truth_of(dataset, "validation", study.task)
        found = predictions.read_all({name: layout.predictions(name) for name in study.names}, "validation")
        value = {name: task.value(task.scores(p.kept, truth)) for name, p in found.items()}
    return grouping.choose(student, study.names, rule, value)


def search(study: Study, layout: Layout, student: str, out: Path, threads: int) -> None:
    """Do the missing units of one student's candidates, and write a row for each.

    Raises:
        KtError: the configuration has no search, or no pair of it with this student.
    """
    teachers = study.transfer.trial_pairs(study.names, study.pairs).get(known_model(study, student))
    if teachers is None:
        raise KtError(f"search: the configuration tries no candidate on {student!r}")
    units = requested.of_search(study, requested.plans(study, Dataset.open(layout.data).hash), student)
    found = study.transfer.candidates().values()
    texts = {method: text for of_method in found for text, method in of_method.items()}
    columns = schema.arrow_schema("trials").names
    made = []
    for unit, (row, *_) in Pairs(study, layout, student, teachers, "validation").run(units, threads):
        # the rows of a control differ by their teacher alone
        facts = {**row, "teacher": next(iter(unit.teachers), None), "parameters": texts[unit.method]}
        made.append({name: facts.get(name) for name in columns})
    _write(study, out, "trials", made)


def experiment(study: Study, layout: Layout, rule: str, name: str, threads: int) -> None:
    """Do the missing units of one experiment, and write its rows of ``transfers`` and of its detail table."""
    section = study.experiments.get(rule, {})
    if name not in section:
        raise KtError(f"{rule}: {unknown('experiment', name, section)}")
    at, chosen = f"{rule}.{name}", section[name]
    job = Alone(study, layout, at, chosen)
    done = job.run(requested.of_experiment(study, at, chosen, job.problem, job.dataset.hash), threads)
    _write(study, layout.experiment(rule, name), "transfers", [row for _, (row,) in done])
    details = [
        {**rows.detail(unit, row["key"], chosen.student.arch), **part}
        for unit, (row,) in done
        if row["status"] == "ok"
        for part in chosen.details(job.task, unit, job.outcomes[row["key"]], job.problem)
    ]
    _write(study, layout.details(rule, name), chosen.table, details)


def _write(study: Study, out: Path, table: str, found: Sequence[Mapping[str, Any]]) -> None:
    schema.write(out, table, schema.build(table, found), metadata(study))


def inspect_experiments(study: Study, layout: Layout, threads: int) -> None:
    """Find the needs of every experiment before anything is trained; raises ``KtError`` where one cannot run."""
    dataset = Dataset.open(layout.data)
    for rule, name, chosen in study.each_experiment():
        at = f"{rule}.{name}"
        problem = requested.problem_of(study, at, chosen, dataset)
        inspected(study, layout, at, chosen, problem, FreshZoo(study, layout, dataset), threads)


# export


class Wanted(NamedTuple):
    """Students of one model, or of an experiment, that are to be exported.

    Attributes:
        teacher: only those of this teacher alone; of all and of controls where None.
        method: only those of this method.
        seed: only those of this seed.
        everything: all of these; else the one that is best on validation.
    """

    teacher: str | None = None
    method: str | None = None
    seed: int | None = None
    everything: bool = False


class Exports(NamedTuple):
    """Students that were asked for.

    Attributes:
        job: trains them.
        chosen: their units by key.
        again: those of them that are not exported yet, and have to be trained again.
        lines: what is done, and how long it takes, in words.
    """

    job: Job
    chosen: dict[str, Unit]
    again: dict[str, Unit]
    lines: list[str]


def plan_export(study: Study, layout: Layout, student: str, wanted: Wanted) -> Exports:
    """Choose students to export among the finished trainings of a model or an experiment; trains nothing.

    Raises:
        KtError: a name is unknown, or no finished training is what is wanted.
    """
    job, units = _job_of(study, layout, student)
    return exports(study.task.metric, job, units, student, wanted)


def exports(metric: Metric, job: Job, units: Sequence[Unit], student: str, wanted: Wanted) -> Exports:
    """The same, of a job with all its units; ``metric`` is the study's."""
    from kt.analysis.wording import counted

    keyed = by_key(units, job.prints)
    outcomes = {key: outcome for key in keyed if (outcome := job.ledger.get(key))}
    job.outcomes = outcomes
    matching = _matching(keyed, wanted)
    done = {key: unit for key, unit in matching.items() if _trained(outcomes.get(key))}
    if not done:
        failed = [outcomes[key]["reason"] for key in matching if outcomes.get(key, {}).get("status") == "failed"]
        why = f"failed: {failed[0]}" if failed else "not finished yet; run: snakemake"
        raise KtError(f"export: {student}: none of {counted(len(matching), 'training')} to export: {why}")
    lines = [f"{student}: {counted(len(done), 'finished training')}"]
    if not wanted.everything and len(done) > 1:
        key, said = _best(metric, job, done)
        done, lines = {key: done[key]}, [*lines, *said]
    again = {key: unit for key, unit in done.items() if export.key_in(job.folder(unit)) != key}
    seconds = sum(float(outcomes[key].get("seconds") or 0) for key in again)
    devices = " and ".join(sorted({str(outcomes[key].get("device")) for key in again}))
    for key, unit in done.items():
        state = "train again" if key in again else "is there"
        lines.append(f"{state}: {unit.title} -> {shown(job.folder(unit))}")
    if again:
        took = duration(seconds)
        lines.append(f"{counted(len(again), 'training')} to do again; the first time took {took} on {devices}")
    return Exports(job, done, again, lines)


def run_export(plan: Exports, layout: Layout, threads: int) -> None:
    """Train again what the plan says, keep its students, and write the index.

    Raises:
        KtError: a training failed.
    """
    from kt.analysis.wording import counted

    if plan.again:
        plan.job.train(plan.again, threads, keep=True)
    count = export.write_index(layout.students)
    if lost := [unit.title for key, unit in plan.chosen.items() if export.key_in(plan.job.folder(unit)) != key]:
        raise KtError(f"export: {listed(lost)}: the training failed")
    log.info("export: %s in %s", counted(count, "student"), layout.students / export.INDEX)


def _job_of(study: Study, layout: Layout, student: str) -> tuple[Job, list[Unit]]:
    """The job of a model or experiment with all its units, but for those of a search."""
    named = {f"{rule}.{name}": chosen for rule, name, chosen in study.each_experiment()}
    if student in named:
        alone = Alone(study, layout, student, named[student])
        return alone, requested.of_experiment(study, student, named[student], alone.problem, alone.dataset.hash)
    if student not in study.names:
        raise KtError(f"export: {unknown('student', student, [*study.names, *named])}")
    made, teachers = requested.plans(study, Dataset.open(layout.data).hash), requested.teachers_of(study, layout)
    units = requested.of_student(
        study, made, requested.methods(study, layout), student, teachers.get(student, []), controls=student in teachers
    )
    if study.groups and student in grouping.count(study.names, study.groups.choose):
        units += requested.of_sets(study, made, student, _group_sets(study, layout, student))
    names = dict.fromkeys(name for unit in units for name in unit.teachers)
    return Pairs(study, layout, student, list(names)), units


def _matching(keyed: Mapping[str, Unit], wanted: Wanted) -> dict[str, Unit]:
    """The units that are asked for; raises ``KtError`` where a name is none of theirs."""
    found = {key: unit for key, unit in keyed.items() if unit.method.trains}
    parts: list[tuple[str, str | None, Callable[[Unit], str]]] = [
        ("teacher", wanted.teacher, lambda unit: unit.teachers[0] if len(unit.teachers) == 1 else ""),
        ("method", wanted.method, lambda unit: unit.method.name),
        ("seed", None if wanted.seed is None else str(wanted.seed), lambda unit: str(unit.seed)),
    ]
    for what, value, of in parts:
        if value is not None:
            allowed = dict.fromkeys(filter(None, map(of, found.values())))
            found = {key: unit for key, unit in found.items() if of(unit) == value}
            if not found:
                raise KtError(f"export: {unknown(what, value, allowed)}")
    return found


def _trained(outcome: Record | None) -> bool:
    return outcome is not None and outcome["status"] == "ok" and outcome["steps"] > 0


def _best(metric: Metric, job: Job, done: Mapping[str, Unit]) -> tuple[str, list[str]]:
    """The key of the best student on validation, the first of equals, and sentences on the choice."""
    from kt.analysis.wording import counted

    values = {key: value for key in done if (value := export.on_validation(job.outcomes[key])) is not None}
    if not values:
        raise KtError("export: the ledger has no value on validation of these; name one, or export them with --all")
    key = max(values, key=values.__getitem__)
    equal = sum(value == values[key] for value in values.values()) - 1
    before = job.before()
    said = f"{metric.name} {metric.shown(values[key])} {metric.unit}".rstrip()
    text = f"the best on validation is {done[key].title}: {said}"
    lines = [text + (f", before {metric.shown(before)}" if before is not None else "")]
    if equal:
        lines[0] += f"; {counted(equal, 'other')} {'is' if equal == 1 else 'are'} equal there"
    if before is not None and values[key] <= before:
        lines.append(f"no student is better on validation than {job.at} was before")
    if done[key].method.control:
        lines.append("it is a control, which had no teacher")
    if left := sorted({unit.method.name for k, unit in done.items() if k not in values}):
        lines.append(f"left out of the choice, without a value of their own on validation: {', '.join(left)}")
    return key, lines
