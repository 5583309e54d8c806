"""The transfer stage: the missing trainings of one job, and the rows of all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kt import predictions, progress, status, store
from kt.data.datasets import Dataset
from kt.data.spec import InputSpec
from kt.errors import KtError
from kt.layout import Layout
from kt.pairs import select
from kt.progress import Progress
from kt.stages.common import build, known_model, metadata, pick_device
from kt.study.study import Study
from kt.tables import schema
from kt.transfer import choice
from kt.transfer import groups as grouping
from kt.transfer.card import card
from kt.transfer.ledger import Ledger, Record
from kt.transfer.units import Task, Unit, enumerate_units, group_units, refusal, rows, tasks_of

if TYPE_CHECKING:
    from torch import nn

    from kt.transfer.workbench import Workbench

log = logging.getLogger(__name__)


def transfer(
    study: Study, layout: Layout, student: str, chunk: int, table: Path | None, out: Path, threads: int
) -> None:
    """Do the missing trainings of one job and write the rows of all of them.

    ``table`` holds the pairs; without one they are chosen anew, which needs no file but for the rule ``top``.

    A job is one chunk of a student's teachers; its first chunk also trains the student's controls.
    """
    plan = study.transfer
    chosen = schema.read_frame(table, "pairs") if table else select(study.names, study.pairs, plan.pairs_per_job)
    mine = chosen[chosen["student"] == known_model(study, student)]
    teachers = mine.loc[mine["chunk"] == chunk, "teacher"].tolist()
    first = chunk == 0 and len(mine) > 0
    methods = choice.resolve(plan.methods.chosen(), plan.candidates(), layout.table("search"))
    units = enumerate_units(methods.values(), teachers, plan.seeds, first)
    done = _do(study, layout, student, units, mine["teacher"].tolist() if first else teachers, threads)
    _write(study, out, "transfers", [row for _, rows in done for row in rows])


def groups(study: Study, layout: Layout, student: str, out: Path, threads: int) -> None:
    """Do the missing trainings of one student's groups of teachers and write the rows of all of them.

    Raises:
        KtError: the configuration has no groups, or none for this student.
    """
    if study.groups is None or known_model(study, student) not in grouping.count(study.names, study.groups.choose):
        raise KtError(f"groups: the configuration has no group of teachers for {student!r}")
    rule, accuracy = study.groups.choose, None
    if isinstance(rule, grouping.Ranked):
        dataset = Dataset.open(layout.data)
        labels = dataset.labels[dataset.rows("validation")]
        found = predictions.read_all({name: layout.predictions(name) for name in study.names}, "validation")
        accuracy = {name: float((p.kept == labels).mean()) for name, p in found.items()}
    sets = grouping.choose(student, study.names, rule, accuracy)
    units = group_units(study.groups.methods.chosen().values(), sets, study.transfer.seeds)
    done = _do(study, layout, student, units, sorted({name for teachers in sets for name in teachers}), threads)
    _write(study, out, "transfers", [row for _, rows in done for row in rows])


def search(study: Study, layout: Layout, student: str, out: Path, threads: int) -> None:
    """Do the missing trainings of one student's candidates and write a row for each.

    Raises:
        KtError: the configuration has no search, or no pair of it with this student.
    """
    teachers = study.transfer.trial_pairs(study.names, study.pairs).get(known_model(study, student))
    if teachers is None:
        raise KtError(f"search: the configuration tries no candidate on {student!r}")
    done = _do(study, layout, student, study.transfer.trials(teachers), teachers, threads, "validation")
    found = study.transfer.candidates().values()
    texts = {method: text for of_method in found for text, method in of_method.items()}
    columns = schema.arrow_schema("trials").names
    trials = []
    for unit, (row, *_) in done:  # a control's rows differ by their teacher alone
        facts = {**row, "teacher": next(iter(unit.teachers), None), "parameters": texts[unit.method]}
        trials.append({name: facts.get(name) for name in columns})
    _write(study, out, "trials", trials)


def _write(study: Study, out: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    schema.write(out, table, schema.build(table, rows), metadata(study))


def _do(
    study: Study,
    layout: Layout,
    student: str,
    units: Sequence[Unit],
    teachers: Sequence[str],
    threads: int,
    split: str = "test",
) -> list[tuple[Unit, list[dict[str, Any]]]]:
    """Train the units that the ledger does not have and give the rows of all; a control's for each of ``teachers``.

    ``split`` is the one that the units are measured on.
    """
    dataset, training = Dataset.open(layout.data), study.transfer.training
    models = status.fingerprints(layout, [student, *teachers])
    tasks = tasks_of(units, student, models, study.shown(dataset.hash), training)
    labels = dataset.labels[dataset.rows(split)]
    found = predictions.read_all({name: layout.predictions(name) for name in [student, *teachers]}, split)
    said = {name: p.kept for name, p in found.items()}
    before = said.pop(student)

    def rows_of(key: str, outcome: Record) -> list[dict[str, Any]]:
        task = tasks[key]
        epochs = task.unit.method.trained(training).epochs
        return rows(task, key, outcome, student, said, before, labels, epochs)

    def kept(key: str, outcome: Record) -> bool:
        """Whether the unit's student lies in the folder of exported students, or need not."""
        export, (row, *_) = study.transfer.export, rows_of(key, outcome)
        wanted = export != "none" and split == "test" and row["trains"] and row["status"] == "ok"
        wanted = wanted and (export == "all" or row["delta"] > 0)
        return not wanted or layout.improved(student, key).with_suffix(".md").exists()

    ledger = Ledger(layout.ledger)
    outcomes = {key: outcome for key in tasks if (outcome := ledger.get(key)) and kept(key, outcome)}
    for key, task in tasks.items():
        if key not in outcomes and (outcome := refusal(task)):
            ledger.add(task.description, outcome)
            outcomes[key] = outcome
    missing = {key: task for key, task in tasks.items() if key not in outcomes}
    teaching = {name for task in missing.values() for name in task.unit.teachers}
    counts = len(tasks), len(outcomes), len(missing), len(teaching)
    log.info("transfer to %s: %d trainings, %d in the ledger, %d to do from %d teachers", student, *counts)
    if missing:
        from kt.transfer.session import compute

        bench = _bench(study, layout, dataset, student, missing, threads)
        bench.memory()
        progress = Progress(f"transfer to {student}", len(missing))
        for key, task in missing.items():
            outcomes[key] = compute(bench, task.unit, key)
            if not kept(key, outcomes[key]):
                _keep(study, layout, dataset, bench.student, task, rows_of(key, outcomes[key])[0])
            ledger.add(task.description, outcomes[key])
            names = " and ".join(task.unit.teachers) or "nobody"
            progress.step(f"{task.unit.method.name} from {names}, seed {task.unit.seed}")
    causes = [outcome["cause"] for outcome in outcomes.values() if outcome["status"] != "ok"]
    if same := causes.count("same_model"):
        log.warning("transfer to %s: %d trainings left out: a teacher is the student under another name", student, same)
    if failed := len(causes) - same:
        log.warning("transfer to %s: %d of %d trainings failed; `kt retry` tries again", student, failed, len(tasks))
    return [(task.unit, rows_of(key, outcomes[key])) for key, task in tasks.items()]


def _keep(study: Study, layout: Layout, dataset: Dataset, model: nn.Module, task: Task, row: Mapping[str, Any]) -> None:
    """Write a student's weights, and then its card."""
    from kt.zoo import weights

    path, member = layout.improved(row["student"], row["key"]), study.zoo.models[row["student"]]
    weights.save(model, path)
    text = card(row, task.description, path.name, member.arch, member.args, dataset.classes, dataset.channels)
    store.write_text(path.with_suffix(".md"), text)


@dataclass(frozen=True)
class ZooFiles:
    """The zoo as a job reads it: predictions and weights."""

    study: Study
    layout: Layout
    dataset: Dataset

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return status.fingerprints(self.layout, self.study.members)

    def fingerprint(self, name: str) -> str:
        """Identifies architecture, input and weights."""
        return self._fingerprints[name]

    def logits(self, name: str, split: str) -> predictions.Logits:
        """Cached logits, float16 [N, C]."""
        return np.asarray(predictions.read(self.layout.predictions(name), split).answers)

    def predicted(self, name: str, split: str) -> NDArray[np.int64]:
        """The classes that the model said, int64 [N]."""
        return predictions.read(self.layout.predictions(name), split).kept

    def features(self, name: str, split: str) -> NDArray[np.float16]:
        """Cached penultimate features, float16 [N, D]; raises ``KtError`` where there are none."""
        path = self.layout.predictions(name)
        found = predictions.read(path, split).features
        if found is None:
            raise KtError(f"{path}: holds no features; `kt predictions --model {name}` makes it again with them")
        return found

    def load(self, name: str) -> nn.Module:
        """The model with its weights."""
        from kt.zoo import weights

        return weights.load(build(self.study, name, self.dataset), self.layout.weights(name))

    def fresh(self, name: str) -> nn.Module:
        """The architecture with fresh weights, from torch's global generator."""
        return build(self.study, name, self.dataset)

    def architecture(self, name: str) -> tuple[str, dict[str, Any]]:
        """Its ``arch`` and ``args``."""
        member = self.study.zoo.models[name]
        return member.arch, member.args

    def input_of(self, name: str) -> InputSpec:
        """What the model sees of an image."""
        return self.study.zoo.input_of(name)


class FreshZoo(ZooFiles):
    """The same before any weights are there."""

    def load(self, name: str) -> nn.Module:
        """The architecture with fresh weights."""
        return self.fresh(name)


def _bench(
    study: Study, layout: Layout, dataset: Dataset, student: str, missing: Mapping[str, Task], threads: int
) -> Workbench:
    """The bench for the missing units, on verified predictions; a signal stops it."""
    from kt.transfer.workbench import Workbench

    device, stop = pick_device(study.device, threads), progress.on_signal()
    for name in {student} | {name for task in missing.values() for name in task.unit.teachers}:
        predictions.verify(layout.predictions(name))
    return Workbench.set_up(
        student, ZooFiles(study, layout, dataset), dataset, study.transfer.training, layout.checkpoints,
        study.transfer.checkpoint_seconds, device, stop, study.transfer.views,
    )  # fmt: skip
