"""Jobs that train students: the units that the ledger has, those that are left, the rows of all, and kept students."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kt import predictions, progress, status, store
from kt.control.study import ControlStudy
from kt.costs import write_needs
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.layout import Layout
from kt.stages import workers
from kt.stages.common import ZooFiles, channels, channels_of, check_predictions, pick_device, truth_of
from kt.study import units as requested
from kt.study.check import check_task
from kt.study.study import Study
from kt.tasks.task import Array, Scored, Task
from kt.transfer import export, rows
from kt.transfer.experiments import Experiment, Problem, Student
from kt.transfer.ledger import Ledger, Record
from kt.transfer.unit import Unit, by_key, refusal

if TYPE_CHECKING:
    from torch import nn

    from kt.transfer.bench import Begun, Bench
    from kt.transfer.session import Left

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Job(ABC):
    """The units of one job: those that the ledger has, those that are left, and the rows of all.

    Args:
        study: the study.
        layout: where its files lie.
        at: the student, or the experiment as ``section.name``.
        models: members of the zoo whose fingerprints the units need.

    Attributes:
        outcomes: of the units that ``run`` has been through, by key.
        again: makes the same job in another process.
    """

    again: Callable[[], Job]

    def __init__(self, study: Study | ControlStudy, layout: Layout, at: str, models: Sequence[str]) -> None:
        self.study, self.layout, self.at = study, layout, at
        self.task: Scored = study.task
        self.ledger = Ledger(layout.ledger)
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
    def before(self) -> float | None:
        """The student's metric on validation before a unit; None where it is new."""

    @abstractmethod
    def about(self, bench: Any, unit: Unit, left: Left, outcome: Record) -> export.About:
        """What a card tells of the study that a unit's student comes from."""

    @abstractmethod
    def begin(self, threads: int) -> Any:
        """The bench for the missing units."""

    @abstractmethod
    def compute(self, bench: Any, unit: Unit, key: str) -> tuple[Record, Left | None]:
        """The outcome of a unit, and the student that it leaves."""

    @abstractmethod
    def check_files(self, names: set[str]) -> None:
        """Fail where files of members that are read are damaged."""

    def run(self, units: Sequence[Unit], threads: int) -> list[tuple[Unit, list[Row]]]:
        """Do the units that the ledger does not have, or whose students are to be kept and are not; give all rows."""
        keyed = by_key(units, self.prints)
        self.outcomes = {key: outcome for key in keyed if (outcome := self.ledger.get(key))}
        for key, unit in keyed.items():
            if key not in self.outcomes and (outcome := refusal(unit, self.prints)):
                self.ledger.add(unit.describe(self.prints), outcome)
                self.outcomes[key] = outcome
        left = {key: unit for key, unit in keyed.items() if key not in self.outcomes or self._again(unit, key)}
        counts = len(keyed), len(keyed) - len(left), len(left)
        log.info("%s: %d trainings, %d in the ledger, %d to do", self.title, *counts)
        if left:
            self.train(left, threads)
        causes = [outcome["cause"] for outcome in self.outcomes.values() if outcome["status"] != "ok"]
        if same := causes.count("same_model"):
            log.warning("%s: %d trainings left out: a teacher is the student under another name", self.title, same)
        if failed := len(causes) - same:
            log.warning("%s: %d of %d trainings failed; `kt retry` tries again", self.title, failed, len(keyed))
        return [(unit, self.rows(unit, key, self.outcomes[key])) for key, unit in keyed.items()]

    def train(self, units: Mapping[str, Unit], threads: int, keep: bool = False) -> None:
        """Train units by their keys; a record that the ledger has stays as it is.

        Args:
            units: missing ones, or those whose students are to be kept.
            threads: CPU threads.
            keep: keep all students; else those that the configuration asks for.
        """
        named = {name for unit in units.values() for name in (unit.student, *unit.teachers)}
        self.check_files(named & set(self.prints) & set(self.study.zoo.models))
        processes = min(self.study.transfer.processes, len(units))
        if processes > 1:
            workers.run(self, units, threads, keep, processes)
            self.outcomes |= {key: outcome for key in units if (outcome := self.ledger.get(key))}
            return
        bench = self.begin(threads)
        done = progress.Progress(self.title, len(units))
        for key, unit in units.items():
            self.unit(bench, unit, key, keep)
            done.step(unit.title)

    def unit(self, bench: Any, unit: Unit, key: str, keep: bool) -> None:
        """Train a unit; write its record where the ledger has none, and its student where that is to be kept."""
        outcome, left = self.compute(bench, unit, key)
        known = self.outcomes.get(key) or self.ledger.get(key)
        if known is not None and _answers(outcome) != _answers(known):
            why = outcome.get("reason") or "other answers than at first, as on another processor"
            log.warning("%s: trained again, and the ledger keeps its record: %s", unit.title, why)
        if left and outcome["status"] == "ok" and (keep or self._wanted(unit, known or outcome)):
            self._export(unit, key, outcome, left, bench)
        if known is None:
            self.ledger.add(unit.describe(self.prints), outcome)
        self.outcomes[key] = known or outcome

    def folder(self, unit: Unit) -> Path:
        """Where the student of a unit lies, once it is exported."""
        return self.layout.students / export.name_of(unit)

    def _export(self, unit: Unit, key: str, outcome: Record, left: Left, bench: Any) -> None:
        (row, *_) = self.rows(unit, key, outcome)
        shown = {**row, "student": unit.student}
        export.write(self.folder(unit), left, shown, unit.describe(self.prints), self.about(bench, unit, left, outcome))

    def _wanted(self, unit: Unit, outcome: Record) -> bool:
        """Whether the configuration asks for the student of a finished unit."""
        trained = outcome["status"] == "ok" and outcome["steps"] > 0 and unit.split == "test"
        mode = self.study.transfer.export
        return trained and mode != "none" and export.wanted(mode, export.on_validation(outcome), self.before())

    def _again(self, unit: Unit, key: str) -> bool:
        return self._wanted(unit, self.outcomes[key]) and export.key_in(self.folder(unit)) != key


def _answers(outcome: Record) -> Any:
    """What a record keeps of the answers after the last epoch."""
    models = outcome.get("models", {})
    return {name: of["last"] for name, of in models.items()} if models else outcome.get("last")


class OfImages(Job):
    """Units of students of images or videos.

    Attributes:
        dataset: the images.
    """

    study: Study
    task: Task

    def __init__(self, study: Study, layout: Layout, at: str, models: Sequence[str]) -> None:
        check_task(study)  # imports the module that defines it
        super().__init__(study, layout, at, models)
        self.dataset = Dataset.open(layout.data)

    @abstractmethod
    def controls(self, seed: int) -> list[Row]:
        """Rows of the controls with a seed that are finished."""

    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes behind the student's outputs."""

    def compute(self, bench: Bench, unit: Unit, key: str) -> tuple[Record, Left | None]:
        """The outcome of its training."""
        from kt.transfer.session import compute

        return compute(bench, unit, key)

    def check_files(self, names: set[str]) -> None:
        """Fail where predictions are damaged."""
        for name in names:
            predictions.verify(self.layout.predictions(name))

    def about(self, bench: Bench, unit: Unit, left: Left, outcome: Record) -> export.About:
        """The data set, its classes, and the controls."""
        return export.About(
            self.task.words,
            PurePath(self.study.data.source).name,
            self.classes(),
            bench.outputs,
            (self.before(), bench.value(left.model, "validation", left.spec)),
            [] if unit.method.control else self.controls(unit.seed),
            self._licences(unit),
        )

    def _licences(self, unit: Unit) -> dict[str, str | None]:
        """Licences of the members that a student came from, but for those that the study trained from fresh weights."""
        members = self.study.zoo.models
        names = [name for name in dict.fromkeys((unit.student, *unit.teachers)) if name in members]
        given = [name for name in names if members[name].train is None or members[name].args.get("encoder_weights")]
        return {name: store.read_json(self.layout.member(name)).get("licence") for name in given}


class Pairs(OfImages):
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
        self.again = partial(Pairs, study, layout, student, teachers, split)
        self.truth = truth_of(self.dataset, split, self.task)
        check_predictions(study, layout, self.dataset, [student, *teachers])
        found = predictions.read_all({name: layout.predictions(name) for name in [student, *teachers]}, split)
        self.answers: dict[str, Array] = {name: p.kept for name, p in found.items()}
        self.answered = self.answers.pop(student)

    @property
    def title(self) -> str:
        """Its name in the log."""
        return f"transfer to {self.at}"

    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """One row, or of a control one per teacher."""
        epochs = unit.method.trained(self.study.transfer.training).epochs
        own = self.prints[unit.student]
        return rows.of_pair(self.task, unit, key, outcome, own, self.answers, self.answered, self.truth, epochs)

    def before(self) -> float:
        """That of its predictions."""
        kept = predictions.read(self.layout.predictions(self.at), "validation").kept
        return self.task.value(self.task.scores(kept, truth_of(self.dataset, "validation", self.task)))

    def controls(self, seed: int) -> list[Row]:
        """Those of the student."""
        plans = requested.plans(self.study, self.dataset.hash)
        methods = requested.methods(self.study, self.layout)
        units = requested.of_student(self.study, plans, methods, self.at, [], controls=True)
        found = [
            (unit, key, outcome)
            for key, unit in by_key(units, self.prints).items()
            if unit.seed == seed and (outcome := self.ledger.get(key)) and outcome["status"] == "ok"
        ]
        return [self.rows(unit, key, outcome)[0] for unit, key, outcome in found]

    def classes(self) -> list[str]:
        """All of the data set."""
        return list(self.dataset.class_names)

    def begin(self, threads: int) -> Bench:
        """The bench of the student, which begins with its weights."""
        from kt.transfer.bench import Begun

        zoo = ZooFiles(self.study, self.layout, self.dataset)
        colours = channels(self.study, self.at, self.dataset)
        begun = Begun(self.at, zoo.architecture(self.at), zoo.input_of(self.at), colours, member=True)
        bench = _bench(self.study, self.layout, begun, zoo, None, threads)
        bench.memory()
        return bench


class Alone(OfImages):
    """Units of an experiment, whose student has a section of its own."""

    def __init__(self, study: Study, layout: Layout, at: str, chosen: Experiment) -> None:
        super().__init__(study, layout, at, chosen.teachers)
        self.again = partial(Alone, study, layout, at, chosen)
        self.chosen = chosen
        self.problem = requested.problem_of(study, at, chosen, self.dataset)
        self.prints[at] = requested.student_print(study, chosen)

    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """One row."""
        epochs = unit.method.trained(self.chosen.plan).epochs
        return [rows.of_experiment(self.task, unit, key, outcome, self.problem.truth, epochs)]

    def before(self) -> None:
        """None: the student is new."""

    def controls(self, seed: int) -> list[Row]:
        """None: methods of an experiment stand beside each other."""
        return []

    def classes(self) -> list[str]:
        """Those of its problem."""
        return [self.dataset.class_names[label] for label in self.problem.classes]

    def begin(self, threads: int) -> Bench:
        """The bench of the experiment; the needs of its trainings are kept for planning."""
        zoo = ZooFiles(self.study, self.layout, self.dataset)
        return inspected(self.study, self.layout, self.at, self.chosen, self.problem, zoo, threads)


def inspected(
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
        study.transfer.top_k,
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
