"""Units of work: what a transfer job has to do, each unit's key, and the table rows that finished units give.

A unit is one transfer: a method, a seed, a student and, unless the method is a control, its teachers. Nothing here
imports torch, so that a job with nothing left to do ends in a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.transfer.ledger import Record, unpack
from kt.transfer.ledger import key as ledger_key
from kt.transfer.measures import change, gains, taught_errors, transfer_rate
from kt.transfer.method import Method
from kt.transfer.training import Training

ENGINE_VERSION = 2
"""Raise it when the training loop's results change: finished units of older versions are not reused."""

EVALUATION_VERSION = 2
"""Raise it when the classes of a finished unit would be others; version 1 took them from rounded logits."""

FROM_LEDGER = ("best_epoch", "steps", "budget", "pieces", "seconds", "device", "teacher_share")
"""Columns of the table ``transfers`` that the ledger holds as they are."""

FINAL_CAUSES = ("diverged", "same_model")
"""Causes of failure that another try would only repeat."""


@dataclass(frozen=True)
class Unit:
    """One transfer to a student.

    Attributes:
        method: how.
        teachers: none for the controls, one for a pair, several for a group.
        seed: of the training.
        split: the images that its outcome is measured on; `validation` for trials of the search.
    """

    method: Method
    teachers: tuple[str, ...]
    seed: int
    split: str = "test"


def enumerate_units(
    methods: Iterable[Method], teachers: Sequence[str], seeds: Sequence[int], controls: bool
) -> list[Unit]:
    """The units of one job, teacher by teacher; the student's controls come first where this job does them."""
    methods = list(methods)
    own = [Unit(m, (), seed) for m in methods if m.control and controls for seed in seeds]
    return own + _seeded([(m, (teacher,)) for teacher in teachers for m in methods if not m.control], seeds)


def group_units(methods: Iterable[Method], groups: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[Unit]:
    """The units of a student's groups of teachers, group by group."""
    methods = list(methods)
    return _seeded([(method, tuple(teachers)) for teachers in groups for method in methods], seeds)


def _seeded(work: Iterable[tuple[Method, tuple[str, ...]]], seeds: Sequence[int]) -> list[Unit]:
    return [Unit(method, teachers, seed) for method, teachers in work for seed in seeds_of(method, seeds)]


def seeds_of(method: Method, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that a method has units for: all of them, or one where nothing is trained and so nothing random."""
    return seeds if method.trains else seeds[:1]


def describe(unit: Unit, student: str, fingerprints: Mapping[str, str], data: str, training: Training) -> Record:
    """All that determines a unit's result, as plain JSON; its hash is the unit's key.

    Args:
        unit: the unit.
        student: its student's name.
        fingerprints: of every model by name.
        data: the data set's hash, splits included.
        training: how students are trained, but for what the method changes of it.
    """
    first, *others = [fingerprints[name] for name in (student, *unit.teachers)]
    if unit.method.joint:  # one unit for the set of models, whoever of them is the student
        first, *others = sorted([first, *others])
    return {
        "data": data,
        "student": first,
        **({"teachers": others} if len(others) > 1 else {"teacher": others[0] if others else None}),
        "method": {"name": unit.method.name, "version": unit.method.version, **unit.method.parameters()},
        "training": {"version": ENGINE_VERSION, **unit.method.trained(training).plain()} if unit.method.trains else {},
        "evaluation": {"version": EVALUATION_VERSION},
        "seed": unit.seed,
        **({"split": unit.split} if unit.split != "test" else {}),
    }


class Task(NamedTuple):
    """A unit, its description, whose hash is its key, and the fingerprint of its student."""

    unit: Unit
    description: Record
    student: str


def tasks_of(
    units: Iterable[Unit], student: str, fingerprints: Mapping[str, str], data: str, training: Training
) -> dict[str, Task]:
    """Units by their keys; arguments as for ``describe``."""
    tasks = {}
    for unit in units:
        description = describe(unit, student, fingerprints, data, training)
        tasks[ledger_key(description)] = Task(unit, description, fingerprints[student])
    return tasks


def refusal(task: Task) -> Record | None:
    """The outcome of a unit that is not worth a training: a teacher is its student under another name."""
    unit = task.description
    teachers = unit["teachers"] if "teachers" in unit else [unit["teacher"]]
    if [unit["student"], *teachers].count(task.student) < 2:
        return None
    reason = "same_model: a teacher has the student's architecture, input and weights, under another name"
    return {"status": "failed", "cause": "same_model", "reason": reason}


def enumerate_tasks(
    student: str,
    teachers: Sequence[str],
    controls: bool,
    methods: Sequence[Method],
    seeds: Sequence[int],
    training: Training,
    fingerprints: Mapping[str, str],
    data: str,
) -> dict[str, Task]:
    """A job's tasks by their keys; arguments as for ``enumerate_units`` and ``describe``."""
    return tasks_of(enumerate_units(methods, teachers, seeds, controls), student, fingerprints, data, training)


def rows(
    task: Task,
    key: str,
    outcome: Record,
    student: str,
    teachers: Mapping[str, NDArray[np.int64]],
    said: NDArray[np.int64],
    labels: NDArray[np.int64],
    epochs: int,
) -> list[dict[str, Any]]:
    """The rows of the table ``transfers`` that a finished unit gives: one, or one a teacher for a control.

    Args:
        task: the unit and its description.
        key: its key.
        outcome: what the ledger holds of it.
        student: its student's name.
        teachers: the classes that each teacher says of the images of the unit's split, int64 [n]; a control gives a row
            for each.
        said: those that the student said before transfer, int64 [n].
        labels: of these images, int64 [n].
        epochs: epochs of the training.
    """
    unit, before = task.unit, said == labels
    outcome = {**outcome, **outcome.get("models", {}).get(task.student, {})}
    shared = {
        "student": student,
        "method": unit.method.name,
        "seed": unit.seed,
        "control": unit.method.control,
        "uses_labels": unit.method.labelled,
        "trains": unit.method.trains,
        "status": outcome["status"],
        "reason": outcome.get("reason"),
        "n": len(labels),
        "acc_before": 100 * int(before.sum()) / len(before),
        "epochs": epochs,
        "key": key,
        **{name: outcome.get(name) for name in FROM_LEDGER},
    }
    sets = [unit.teachers] if unit.teachers else [(name,) for name in teachers]
    named = [{"teacher": names[0] if len(names) == 1 else None, "teachers": list(names)} for names in sets]
    if outcome["status"] != "ok":
        return [{**names, **shared} for names in named]
    last = unpack(outcome["last"])
    after = last == labels
    shared |= change(before, after)
    shared["delta_best"] = change(before, unpack(outcome["best"]) == labels)["delta"]
    found = []
    for names, of_set in zip(named, sets, strict=True):
        right = np.any([teachers[name] == labels for name in of_set], axis=0)
        of_teachers = {
            "transfer_rate": transfer_rate(right, before, after),
            **gains(right, before, after, labels),
            "taught_errors": taught_errors([teachers[name] for name in of_set], before, last, labels),
        }
        found.append({**names, **shared, **of_teachers})
    return found
