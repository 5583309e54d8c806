"""Effects of a transfer on its student: pure functions of what was kept of the answers. Source: FG section 4."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.expertise import Areas, class_entropy
from kt.tables.of_study import SHARES
from kt.tasks.task import Array, Task

Right = NDArray[np.bool_]
Classes = NDArray[np.int64]


def change(task: Task, before: Array, after: Array) -> dict[str, float]:
    """Transfer delta, its standard error, knowledge gain and knowledge loss, on the same n examples.

    Args:
        task: whose metric is reported.
        before: scores of the student's answers before transfer, bool or float64 [n].
        after: scores of its answers now.

    Returns:
        ``acc_before``, ``acc_after``: values of the metric. ``knowledge_gain``, ``knowledge_loss``: what the examples
        that became better gained, and what the others lost, in units of the metric per example; of scores of 0 and 1
        the percentage of examples that are right now and were wrong, and the reverse. ``delta``, their difference, and
        ``delta_se``, the error of a mean of paired differences; of differences in {−1, 0, 1} that is
        sqrt((gain + loss − (gain − loss)²) / n).
    """
    n, scale = len(before), task.metric.scale
    values = {"acc_before": value(task, before), "acc_after": value(task, after)}
    if not task.metric.binary:
        differences = np.subtract(after, before, dtype=np.float64)
        return values | {
            "delta": scale * float(differences.mean()),
            "delta_se": scale * float(differences.std()) / math.sqrt(n),
            "knowledge_gain": scale * float(np.maximum(differences, 0).mean()),
            "knowledge_loss": scale * float(np.maximum(-differences, 0).mean()),
        }
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    gain, loss = gained / n, lost / n
    return values | {
        "delta": scale * (gained - lost) / n,
        "delta_se": scale * math.sqrt((gain + loss - (gain - loss) ** 2) / n),
        "knowledge_gain": scale * gain,
        "knowledge_loss": scale * loss,
    }


def value(task: Task, scores: Array) -> float:
    """The metric of some examples, from their scores [n]; of scores of 0 and 1 rounded only once."""
    return task.metric.scale * int(scores.sum()) / len(scores) if task.metric.binary else task.value(scores)


def error_of(task: Task, scores: Array) -> float:
    """Standard error of the metric's value over examples, from their scores [n]; of scores of 0 and 1 the binomial."""
    if not task.metric.binary:
        return task.metric.scale * float(np.std(scores)) / math.sqrt(len(scores))
    share = float(scores.mean())
    return task.metric.scale * math.sqrt(share * (1 - share) / len(scores))


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
