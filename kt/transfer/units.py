"""Units of work: what a transfer job has to do, each unit's key, and the table rows that finished units give.

A unit is one training: a method, a seed, a student and, unless the method is a control, a teacher. Nothing here
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
from kt.transfer.measures import Right, change, transfer_rate
from kt.transfer.method import Method
from kt.transfer.spec import Training

ENGINE_VERSION = 2
"""Raise it when the training loop's results change: finished units of older versions are not reused."""

FINAL_CAUSES = ("diverged",)
"""Causes of failure that another try would only repeat."""


@dataclass(frozen=True)
class Unit:
    """One training of a student; ``teacher`` is None for the controls."""

    method: Method
    teacher: str | None
    seed: int


def enumerate_units(
    methods: Iterable[Method], teachers: Sequence[str], seeds: Sequence[int], controls: bool
) -> list[Unit]:
    """The units of one job, teacher by teacher; the student's controls come first where this job does them."""
    methods = list(methods)
    own = [Unit(m, None, seed) for m in methods if m.control and controls for seed in seeds]
    return own + [Unit(m, teacher, seed) for teacher in teachers for m in methods if not m.control for seed in seeds]


def describe(unit: Unit, student: str, fingerprints: Mapping[str, str], data: str, training: Training) -> Record:
    """All that determines a unit's result, as plain JSON; its hash is the unit's key.

    Args:
        unit: the unit.
        student: its student's name.
        fingerprints: of every model by name.
        data: the data set's hash, splits included.
        training: how students are trained.
    """
    return {
        "data": data,
        "student": fingerprints[student],
        "teacher": fingerprints[unit.teacher] if unit.teacher else None,
        "method": {"name": unit.method.name, "version": unit.method.version, **unit.method.plain()},
        "training": {"version": ENGINE_VERSION, **training.plain()},
        "seed": unit.seed,
    }


class Task(NamedTuple):
    """A unit and its description, whose hash is its key."""

    unit: Unit
    description: Record


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
    tasks = {}
    for unit in enumerate_units(methods, teachers, seeds, controls):
        description = describe(unit, student, fingerprints, data, training)
        tasks[ledger_key(description)] = Task(unit, description)
    return tasks


def rows(
    task: Task,
    key: str,
    outcome: Record,
    student: str,
    teachers: Mapping[str, Right],
    before: Right,
    labels: NDArray[np.int64],
    epochs: int,
) -> list[dict[str, Any]]:
    """The rows of the table ``transfers`` that a finished unit gives: one, or one a teacher for a control.

    Args:
        task: the unit and its description.
        key: its key.
        outcome: what the ledger holds of it.
        student: its student's name.
        teachers: which test images each teacher gets right, bool [n]; a control gives a row for each of them.
        before: which test images the student got right before transfer, bool [n].
        labels: of the test images, int64 [n].
        epochs: epochs of the training.
    """
    unit = task.unit
    shared = {
        "student": student,
        "method": unit.method.name,
        "seed": unit.seed,
        "control": unit.method.control,
        "uses_labels": unit.method.uses_labels,
        "status": outcome["status"],
        "reason": outcome.get("reason"),
        "n": len(labels),
        "acc_before": 100 * int(before.sum()) / len(before),
        "epochs": epochs,
        "key": key,
        **{name: outcome.get(name) for name in ("best_epoch", "steps", "seconds", "device", "teacher_share")},
    }
    names = [unit.teacher] if unit.teacher else list(teachers)
    if outcome["status"] != "ok":
        return [{"teacher": name, **shared} for name in names]
    after = unpack(outcome["last"]) == labels
    shared |= change(before, after)
    shared["delta_best"] = change(before, unpack(outcome["best"]) == labels)["delta"]
    return [
        {"teacher": name, **shared, "transfer_rate": transfer_rate(teachers[name], before, after)} for name in names
    ]
