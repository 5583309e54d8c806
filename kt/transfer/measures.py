"""What a transfer did to a student: pure functions of who gets which test image right. Source: FG section 4."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Right = NDArray[np.bool_]


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
