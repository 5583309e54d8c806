"""Rows of the table ``transfers``, and the columns that all detail tables of experiments share. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kt.tasks.task import Array, Task
from kt.transfer.ledger import Record, unpack
from kt.transfer.measures import change, error_of, gains, taught_errors, transfer_rate, value
from kt.transfer.unit import Unit

FROM_LEDGER = ("best_epoch", "steps", "budget", "pieces", "seconds", "device", "teacher_share")
"""Columns that the ledger holds as they are."""


def of_pair(
    task: Task,
    unit: Unit,
    key: str,
    outcome: Record,
    own: str,
    teachers: Mapping[str, Array],
    before: Array,
    truth: Array,
    epochs: int,
) -> list[dict[str, Any]]:
    """Rows of a unit whose student is a member of the zoo: one, or one per teacher for a control.

    Args:
        task: what is learnt.
        unit: finished or failed.
        key: of the unit.
        outcome: its outcome in the ledger.
        own: fingerprint of the student, whose outcome is taken where several models trained together.
        teachers: what was kept of each teacher's answers to the examples of the unit's split, [n, …]; a control gives
            a row for each.
        before: the same of the student before transfer.
        truth: of these examples, [n, …].
        epochs: epochs of the training.
    """
    outcome = {**outcome, **outcome.get("models", {}).get(own, {})}
    before = task.scores(before, truth)
    shared = {
        **_shared(unit, key, outcome, len(truth), epochs),
        "student": unit.student,
        "control": unit.method.control,
        "uses_labels": unit.method.labelled,
        "acc_before": value(task, before),
    }
    sets = [unit.teachers] if unit.teachers else [(name,) for name in teachers]
    named = [{"teacher": names[0] if len(names) == 1 else None, "teachers": list(names)} for names in sets]
    if outcome["status"] != "ok":
        return [{**names, **shared} for names in named]
    last, best = unpack(outcome["last"]), unpack(outcome["best"])
    after = task.scores(last, truth)
    shared |= change(task, before, after)
    shared["delta_best"] = change(task, before, task.scores(best, truth))["delta"]
    return [
        {**names, **shared, **_from_teachers(task, [teachers[name] for name in of_set], before, after, last, truth)}
        for names, of_set in zip(named, sets, strict=True)
    ]


def _from_teachers(
    task: Task, teachers: Sequence[Array], before: Array, after: Array, last: Array, truth: Array
) -> dict[str, Any]:
    """Columns that say what the student has of its teachers."""
    of_each = [task.scores(kept, truth) for kept in teachers]
    best = np.max(of_each, axis=0)
    found: dict[str, Any] = {"transfer_rate": transfer_rate(best, before, after)}
    if task.has_classes:
        found |= gains(best, before, after, truth)
        found["taught_errors"] = taught_errors(teachers, before, last, truth)
    return found


def of_experiment(task: Task, unit: Unit, key: str, outcome: Record, truth: Array, epochs: int) -> dict[str, Any]:
    """The row of a unit of an experiment, whose student is none of the zoo; arguments as for ``of_pair``."""
    row = {
        **_shared(unit, key, outcome, len(truth), epochs if unit.method.trains else 0),
        "student": unit.student.partition(".")[2],
        "teachers": list(unit.teachers),
        "control": False,
        "uses_labels": unit.method.uses_labels,
    }
    if outcome["status"] == "ok":
        row["acc_after"] = task.value(task.scores(unpack(outcome["last"]), truth))
    return row


def _shared(unit: Unit, key: str, outcome: Record, n: int, epochs: int) -> dict[str, Any]:
    return {
        "method": unit.method.name,
        "seed": unit.seed,
        "trains": unit.method.trains,
        "status": outcome["status"],
        "reason": outcome.get("reason"),
        "n": n,
        "epochs": epochs,
        "key": key,
        **{name: outcome.get(name) for name in FROM_LEDGER},
    }


def detail(unit: Unit, key: str, arch: str) -> dict[str, Any]:
    """First columns of a detail table of experiments; ``arch`` is the student's architecture."""
    return {
        "experiment": unit.student.partition(".")[2],
        "method": unit.method.name,
        "seed": unit.seed,
        "student": arch,
        "teachers": list(unit.teachers),
        "uses_labels": unit.method.uses_labels,
        "trains": unit.method.trains,
        "key": key,
    }


def measured(task: Task, kept: Array, truth: Array) -> dict[str, float]:
    """``n``, the metric and its standard error of some examples, n > 0, from what was kept of the answers."""
    scores = task.scores(kept, truth)
    return {"n": len(scores), "acc": task.value(scores), "acc_se": error_of(task, scores)}
