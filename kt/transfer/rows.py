"""Rows of ``transfers``, the effects that they report, and the columns that all detail tables of experiments share.

Effects are pure functions of what was kept of the answers. No torch here. Source: FG section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.expertise import Areas, class_entropy
from kt.tables.columns import SHARES
from kt.tasks.task import Array, Scored, Task, standard_error
from kt.transfer.ledger import Record, unpack
from kt.transfer.unit import Unit

Right = NDArray[np.bool_]
Classes = NDArray[np.int64]

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
    shared |= change(task, before, after, task.clusters(truth))
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
    if task.classifies:
        found |= gains(best, before, after, truth)
        found["taught_errors"] = taught_errors(teachers, before, last, truth)
    return found


def of_experiment(task: Scored, unit: Unit, key: str, outcome: Record, truth: Array, epochs: int) -> dict[str, Any]:
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


def flowing(unit: Unit, outcome: Record) -> list[dict[str, Any]]:
    """Parts of rows of the table ``flow``: one for each epoch, stage and source of a training with teachers inside."""
    over_time = zip(outcome["weights"], outcome["attached"], outcome["validation"], strict=True)
    return [
        {
            "epoch": epoch,
            "stage": stage,
            "source": "self" if teacher is None else unit.teachers[teacher],
            "source_stage": source_stage,
            "weight": weight,
            "attached": attached,
            "detached": detached,
        }
        for epoch, (weights, attached, detached) in enumerate(over_time, start=1)
        for (stage, candidates), of_stage in zip(outcome["inlets"], weights, strict=True)
        for (teacher, source_stage), weight in zip([(None, stage), *candidates], of_stage, strict=True)
    ]


def measured(task: Scored, kept: Array, truth: Array) -> dict[str, float]:
    """``n``, the metric and its standard error of some examples, n > 0, from what was kept of the answers."""
    scores = task.scores(kept, truth)
    return {"n": len(scores), "acc": task.value(scores), "acc_se": task.error(scores, task.clusters(truth))}


def change(task: Task, before: Array, after: Array, clusters: Classes | None = None) -> dict[str, float]:
    """Transfer delta, its standard error, knowledge gain and knowledge loss, on the same n examples.

    Args:
        task: whose metric is reported.
        before: scores of the student's answers before transfer, bool or float64 [n].
        after: scores of its answers now.
        clusters: of the examples, int64 [n], where they are not independent.

    Returns:
        ``acc_before``, ``acc_after``: values of the metric. ``knowledge_gain``, ``knowledge_loss``: what the examples
        that became better gained, and what the others lost, in units of the metric per example; of scores of 0 and 1
        the percentage of examples that are right now and were wrong, and the reverse. ``delta``, their difference, and
        ``delta_se``, the error of a mean of paired differences; of differences in {−1, 0, 1} that is
        sqrt((gain + loss − (gain − loss)²) / n), and unknown, NaN, of one example.
    """
    n, scale = len(before), task.metric.scale
    values = {"acc_before": value(task, before), "acc_after": value(task, after)}
    if not task.metric.binary or clusters is not None:
        differences = np.subtract(after, before, dtype=np.float64)
        return values | {
            "delta": scale * float(differences.mean()),
            "delta_se": scale * float(standard_error(differences, clusters)),
            "knowledge_gain": scale * float(np.maximum(differences, 0).mean()),
            "knowledge_loss": scale * float(np.maximum(-differences, 0).mean()),
        }
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    gain, loss = gained / n, lost / n
    return values | {
        "delta": scale * (gained - lost) / n,
        "delta_se": scale * math.sqrt((gain + loss - (gain - loss) ** 2) / n) if n > 1 else math.nan,
        "knowledge_gain": scale * gain,
        "knowledge_loss": scale * loss,
    }


def value(task: Task, scores: Array) -> float:
    """The metric of some examples, from their scores [n]; of scores of 0 and 1 rounded only once."""
    return task.metric.scale * int(scores.sum()) / len(scores) if task.metric.binary else task.value(scores)


def transfer_rate(teacher: Array, before: Array, after: Array) -> float | None:
    """Share of what the teacher does better than the student did that the student has now learnt, percent.

    Of scores of 0 and 1: of the examples that the teacher got right and the student wrong, the percentage that the
    student now gets right. Of others the gain on the examples where the teacher is better, at most the teacher's lead,
    over that lead. Counted on the very same examples. None where the teacher is nowhere better.

    Args:
        teacher: scores of the teacher's answers, [n].
        before: scores of the student's answers before transfer.
        after: scores of its answers now.
    """
    if teacher.dtype != bool:
        lead = np.maximum(np.subtract(teacher, before, dtype=np.float64), 0)
        learnt = np.clip(np.subtract(after, before, dtype=np.float64), 0, lead)
        return 100 * float(learnt.sum() / lead.sum()) if lead.any() else None
    flips = teacher & ~before
    return 100 * float((flips & after).sum() / flips.sum()) if flips.any() else None


def gains(teacher: Right, before: Right, after: Right, labels: Classes) -> dict[str, float | None]:
    """In which classes the student gained, beside those in which the teacher could help it.

    Args:
        teacher: which images the teacher got right, bool [n].
        before: which the student got right before transfer, bool [n].
        after: which it gets right now, bool [n].
        labels: of the images, int64 [n].

    Returns:
        ``transfer_rate_published``: all gained images of the classes in which the teacher has a positive flip, over the
        positive flips, percent; above 100 where the student gains more than the teacher knew better. ``gain_entropy``:
        of the distribution of the gained images over the classes, nats. ``gain_in_2`` … ``gain_in_50``: of the gained
        images, those in the teacher's areas of expertise, percent. None where there are no gains, or no flips.

    Source: the code published with FG, whose areas have one class more than hold their share; that is not done here.
    """
    found: dict[str, float | None] = dict.fromkeys(
        ("transfer_rate_published", "gain_entropy", *(f"gain_in_{share}" for share in SHARES))
    )
    classes = int(labels.max()) + 1
    flips = np.bincount(labels[teacher & ~before], minlength=classes).astype(np.uint64)
    gained = np.bincount(labels[after & ~before], minlength=classes).astype(np.uint64)
    if flips.any():
        found["transfer_rate_published"] = 100 * float(gained[flips > 0].sum() / flips.sum())
    if gained.any():
        found["gain_entropy"] = float(class_entropy(gained[None])[0])
    if flips.any() and gained.any():
        areas = Areas.of(flips[None])
        for i, share in enumerate(SHARES):
            found[f"gain_in_{share}"] = 100 * float(gained[areas.members(i)[0]].sum() / gained.sum())
    return found


def taught_errors(teachers: Sequence[Classes], before: Right, after: Classes, labels: Classes) -> float | None:
    """Of the images that the student got right and a teacher gets wrong, the percentage now wrong in a teacher's way.

    Args:
        teachers: the classes that each teacher says, int64 [n].
        before: which images the student got right before transfer, bool [n].
        after: the classes that it says now, int64 [n].
        labels: of the images, int64 [n].

    Returns:
        Percent; None where there is no such image. The control `self` has some too, by chance and because images are
        hard for all: what a teacher taught is what goes beyond it.

    Source: after Mason-Williams et al. 2025, arXiv 2510.12615: what is transferred are mostly the teacher's errors.
    """
    wrong = np.stack([said != labels for said in teachers])
    likewise = np.stack([said == after for said in teachers]) & wrong
    could = before & wrong.any(0)
    return 100 * float((likewise.any(0) & could).sum() / could.sum()) if could.any() else None
