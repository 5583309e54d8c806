"""Stages that train students: the missing units of one job, and the rows of all of them.

A job is a chunk of a student's pairs, its groups of teachers, its candidates in the search, or an experiment.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt import predictions, progress, status
from kt.costs import write_needs
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.pairs import select
from kt.stages.common import FreshZoo, ZooFiles, channels, channels_of, known_model, metadata, pick_device, truth_of
from kt.study import units as requested
from kt.study.study import Study
from kt.tables import schema
from kt.tasks.task import Array
from kt.transfer import export, rows
from kt.transfer import groups as grouping
from kt.transfer.experiments import Experiment, Problem, Student
from kt.transfer.ledger import Ledger, Record
from kt.transfer.unit import Unit, by_key, refusal

if TYPE_CHECKING:
    from torch import nn

    from kt.transfer.bench import Begun, Bench

log = logging.getLogger(__name__)

Row = dict[str, Any]


def transfer(
    study: Study, layout: Layout, student: str, chunk: int, table: Path | None, out: Path, threads: int
) -> None:
    """Do the missing units of one chunk of a student's teachers, and write the rows of all of them.

    ``table`` holds the pairs; without one they are chosen anew, which needs no file but for the rule ``top``. The first
    chunk also has the student's controls.
    """
    chosen = (
        schema.read_frame(table, "pairs") if table else select(study.names, study.pairs, study.transfer.pairs_per_job)
    )
    mine = chosen[chosen["student"] == known_model(study, student)]
    teachers = mine.loc[mine["chunk"] == chunk, "teacher"].tolist()
    first = chunk == 0 and len(mine) > 0
    methods, plans = requested.methods(study, layout), requested.plans(study, Dataset.open(layout.data).hash)
    units = requested.of_student(study, plans, methods, student, teachers, controls=first)
    job = Pairs(study, layout, student, mine["teacher"].tolist() if first else teachers)
    _write(study, out, "transfers", [row for _, found in job.run(units, threads) for row in found])


def groups(study: Study, layout: Layout, student: str, out: Path, threads: int) -> None:
    """Do the missing units of one student's groups of teachers, and write the rows of all of them.

    Raises:
        KtError: the configuration has no groups, or none for this student.
    """
    if study.groups is None or known_model(study, student) not in grouping.count(study.names, study.groups.choose):
        raise KtError(f"groups: the configuration has no group of teachers for {student!r}")
    rule, value, dataset = study.groups.choose, None, Dataset.open(layout.data)
    if isinstance(rule, grouping.Ranked):
        task, truth = study.task, truth_of(dataset, "validation", study.task)
        found = predictions.read_all({name: layout.predictions(name) for name in study.names}, "validation")
        value = {name: task.value(task.scores(p.kept, truth)) for name, p in found.items()}
    sets = grouping.choose(student, study.names, rule, value)
    units = requested.of_sets(study, requested.plans(study, dataset.hash), student, sets)
    job = Pairs(study, layout, student, sorted({name for teachers in sets for name in teachers}))
    _write(study, out, "transfers", [row for _, found in job.run(units, threads) for row in found])


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


class Job(ABC):
    """The units of one job: those that the ledger has, those that are left, and the rows of all.

    Args:
        study: the study.
        layout: where its files lie.
        at: the student, or the experiment as ``section.name``.
        models: members of the zoo whose fingerprints the units need.

    Attributes:
        outcomes: of the units that ``run`` has been through, by key.
    """

    def __init__(self, study: Study, layout: Layout, at: str, models: Sequence[str]) -> None:
        self.study, self.layout, self.at = study, layout, at
        self.dataset, self.task = Dataset.open(layout.data), study.task
        self.prints = status.fingerprints(layout, list(models))
        if absent := [name for name in models if name not in self.prints]:
            raise KtError(f"{at}: {absent[0]!r} has no weights yet; run: kt weights --model {absent[0]}")
        self.outcomes: dict[str, Record] = {}

    @property
    def title(self) -> str:
        """Its name in the log."""
        return self.at

    @abstractmethod
    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """Rows of the table ``transfers`` that a unit gives."""

    @abstractmethod
    def exported(self, row: Row) -> bool:
        """Whether the student of a finished training is to be kept."""

    @abstractmethod
    def path(self, key: str) -> Path:
        """Where the weights of an exported student lie."""

    @abstractmethod
    def begin(self, threads: int) -> Bench:
        """The bench for the missing units."""

    def run(self, units: Sequence[Unit], threads: int) -> list[tuple[Unit, list[Row]]]:
        """Do the units that the ledger does not have, and give the rows of all."""
        keyed, ledger = by_key(units, self.prints), Ledger(self.layout.ledger)
        self.outcomes = {
            key: outcome
            for key, unit in keyed.items()
            if (outcome := ledger.get(key)) and self._kept(unit, key, outcome)
        }
        for key, unit in keyed.items():
            if key not in self.outcomes and (outcome := refusal(unit, self.prints)):
                ledger.add(unit.describe(self.prints), outcome)
                self.outcomes[key] = outcome
        missing = {key: unit for key, unit in keyed.items() if key not in self.outcomes}
        counts = len(keyed), len(self.outcomes), len(missing)
        log.info("%s: %d trainings, %d in the ledger, %d to do", self.title, *counts)
        if missing:
            self._do(missing, ledger, threads)
        causes = [outcome["cause"] for outcome in self.outcomes.values() if outcome["status"] != "ok"]
        if same := causes.count("same_model"):
            log.warning("%s: %d trainings left out: a teacher is the student under another name", self.title, same)
        if failed := len(causes) - same:
            log.warning("%s: %d of %d trainings failed; `kt retry` tries again", self.title, failed, len(keyed))
        return [(unit, self.rows(unit, key, self.outcomes[key])) for key, unit in keyed.items()]

    def _do(self, missing: Mapping[str, Unit], ledger: Ledger, threads: int) -> None:
        from kt.transfer.session import compute

        for name in {name for unit in missing.values() for name in (unit.student, *unit.teachers)} & set(self.prints):
            if name in self.study.zoo.models:
                predictions.verify(self.layout.predictions(name))
        bench = self.begin(threads)
        done = progress.Progress(self.title, len(missing))
        for key, unit in missing.items():
            outcome, left = compute(bench, unit, key)
            description = unit.describe(self.prints)
            if left and not self._kept(unit, key, outcome):
                (row, *_) = self.rows(unit, key, outcome)
                export.write(self.path(key), left, row, description, bench.outputs)
            ledger.add(description, outcome)
            self.outcomes[key] = outcome
            done.step(unit.title)

    def _kept(self, unit: Unit, key: str, outcome: Record) -> bool:
        """Whether the unit's student lies in the folder of exported students, or need not."""
        (row, *_) = self.rows(unit, key, outcome)
        wanted = outcome["status"] == "ok" and outcome["steps"] > 0 and unit.split == "test" and self.exported(row)
        return not wanted or self.path(key).with_suffix(".md").exists()


class Pairs(Job):
    """Units of a student of the zoo.

    Args:
        study: the study.
        layout: where its files lie.
        student: its name.
        teachers: a control has a row for each of them.
        split: the examples that the units are measured on.
    """

    def __init__(
        self, study: Study, layout: Layout, student: str, teachers: Sequence[str], split: str = "test"
    ) -> None:
        super().__init__(study, layout, student, [student, *teachers])
        self.truth = truth_of(self.dataset, split, self.task)
        found = predictions.read_all({name: layout.predictions(name) for name in [student, *teachers]}, split)
        self.answers: dict[str, Array] = {name: p.kept for name, p in found.items()}
        self.before = self.answers.pop(student)

    @property
    def title(self) -> str:
        """Its name in the log."""
        return f"transfer to {self.at}"

    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """One row, or of a control one per teacher."""
        epochs = unit.method.trained(self.study.transfer.training).epochs
        own = self.prints[unit.student]
        return rows.of_pair(self.task, unit, key, outcome, own, self.answers, self.before, self.truth, epochs)

    def exported(self, row: Row) -> bool:
        """All, or those that gained."""
        wanted = self.study.transfer.export
        return wanted == "all" or (wanted == "improved" and row["delta"] > 0)

    def path(self, key: str) -> Path:
        """In the student's folder."""
        return self.layout.improved(self.at, key)

    def begin(self, threads: int) -> Bench:
        """The bench of the student, which begins with its weights."""
        from kt.transfer.bench import Begun

        zoo = ZooFiles(self.study, self.layout, self.dataset)
        colours = channels(self.study, self.at, self.dataset)
        begun = Begun(self.at, zoo.architecture(self.at), zoo.input_of(self.at), colours, member=True)
        bench = _bench(self.study, self.layout, begun, zoo, None, threads)
        bench.memory()
        return bench


class Alone(Job):
    """Units of an experiment, whose student has a section of its own."""

    def __init__(self, study: Study, layout: Layout, at: str, chosen: Experiment) -> None:
        super().__init__(study, layout, at, chosen.teachers)
        self.chosen = chosen
        self.problem = requested.problem_of(study, at, chosen, self.dataset)
        self.prints[at] = requested.student_print(study, chosen)

    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """One row."""
        epochs = unit.method.trained(self.chosen.plan).epochs
        return [rows.of_experiment(self.task, unit, key, outcome, self.problem.truth, epochs)]

    def exported(self, row: Row) -> bool:
        """All or none: there is no accuracy before."""
        return self.study.transfer.export == "all"

    def path(self, key: str) -> Path:
        """In the folder of the experiment."""
        return self.layout.improved(self.at.replace(".", "/", 1), key)

    def begin(self, threads: int) -> Bench:
        """The bench of the experiment; the needs of its trainings are kept for planning."""
        zoo = ZooFiles(self.study, self.layout, self.dataset)
        return _inspected(self.study, self.layout, self.at, self.chosen, self.problem, zoo, threads)


def inspect_experiments(study: Study, layout: Layout, threads: int) -> None:
    """Find the needs of every experiment before anything is trained; raises ``KtError`` where one cannot run."""
    dataset = Dataset.open(layout.data)
    for rule, name, chosen in study.each_experiment():
        at = f"{rule}.{name}"
        problem = requested.problem_of(study, at, chosen, dataset)
        _inspected(study, layout, at, chosen, problem, FreshZoo(study, layout, dataset), threads)


def _inspected(
    study: Study, layout: Layout, at: str, chosen: Experiment, problem: Problem, zoo: ZooFiles, threads: int
) -> Bench:
    """The bench of an experiment, whose needs are found and kept."""
    from kt.transfer.bench import Begun, inspect
    from kt.zoo import models

    models.import_modules(study.zoo.modules)
    student, spec = chosen.student, study.student_input(chosen)
    colours = channels_of(f"{at}.student", spec, zoo.dataset)
    given = partial(_given, study, at, student, colours) if student.given else None
    begun = Begun(at, (student.arch, student.args), spec, colours, given=given)
    bench = _bench(study, layout, begun, zoo, chosen, threads, problem)
    rule, name = at.split(".", 1)
    write_needs(layout.needs(rule, name), requested.size_hash(study, chosen), inspect(bench, chosen))
    return bench


def _bench(
    study: Study,
    layout: Layout,
    begun: Begun,
    zoo: ZooFiles,
    chosen: Experiment | None,
    threads: int,
    problem: Problem | None = None,
) -> Bench:
    """A bench; a signal stops it."""
    from kt.transfer.bench import Bench, Settings

    settings = Settings(
        chosen.plan if chosen else study.transfer.training,
        layout.checkpoints,
        study.transfer.checkpoint_seconds,
        pick_device(study.device, threads),
        progress.on_signal(),
        study.transfer.views,
        chosen.settings.get("images") if chosen else None,
    )
    return Bench(begun, zoo, study.task, zoo.dataset, settings, problem)


def _given(study: Study, at: str, student: Student, colours: int, classes: int) -> nn.Module:
    """A student with the weights that it begins with, and a fresh head where theirs has another class count."""
    from kt.zoo import models, registry, weights

    if student.checkpoint:
        build = partial(models.build, student.arch, student.args, channels=colours)
        return weights.given(f"{at}.student.checkpoint", build, student.checkpoint, classes, new_head=True)
    has = registry.load(study.zoo.modules).tags[student.arch].num_classes
    model = weights.pretrained(student.arch, student.args, colours, has)
    return model if has == classes else weights.with_new_head(model, classes)
