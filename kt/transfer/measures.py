"""What a transfer did to a student: pure functions of what is said of the test images. Source: FG section 4."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.expertise import Areas, class_entropy
from kt.tables.of_study import SHARES

Right = NDArray[np.bool_]
Classes = NDArray[np.int64]


def change(before: Right, after: Right) -> dict[str, float]:
    """Transfer delta, its standard error, knowledge gain and knowledge loss, on the same n images.

    Args:
        before: which images the student got right before transfer, bool [n].
        after: which it gets right now, bool [n].

    Returns:
        ``acc_before``, ``acc_after``, ``knowledge_gain``, ``knowledge_loss`` in percent of images, ``delta`` (their
        difference) and ``delta_se`` in percentage points. The error is that of a mean of paired differences in
        {−1, 0, 1}: sqrt((gain + loss − (gain − loss)²) / n).
    """
    n = len(before)
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    gain, loss = gained / n, lost / n
    return {
        "acc_before": 100 * int(before.sum()) / n,
        "acc_after": 100 * int(after.sum()) / n,
        "delta": 100 * (gained - lost) / n,
        "delta_se": 100 * math.sqrt((gain + loss - (gain - loss) ** 2) / n),
        "knowledge_gain": 100 * gain,
        "knowledge_loss": 100 * loss,
    }


def transfer_rate(teacher: Right, before: Right, after: Right) -> float | None:
    """Of the images that the teacher got right and the student wrong, the percentage that the student now gets right.

    Counted on the very same images. None where the teacher has no positive flip.
    """
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
