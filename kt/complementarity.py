"""Complementary knowledge of every ordered pair of models, all pairs at once. Source: FG section 3.

Counts come from matrix products over correctness and prediction matrices, one class at a time and in blocks of
teachers, so memory does not grow with classes × models².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Counts = NDArray[np.float32]
"""Numbers of images; float32 holds them exactly below 2^24 and multiplies fast."""

SHARES = (2, 5, 20, 50)
BLOCK_BYTES = 1 << 28


def flips_by_class(right: NDArray[np.bool_], labels: NDArray[np.int64], classes: int, teachers: slice) -> Counts:
    """Positive flips per class of a block of teachers over every student.

    Args:
        right: which model gets which image right, bool [M, N].
        labels: int64 [N].
        classes: number of classes C.
        teachers: the block, B of the M models.

    Returns:
        float32 [B, M, C]: images of the class that the teacher gets right and the student wrong.
    """
    r = right.astype(np.float32)
    counts = np.empty((len(r[teachers]), len(r), classes), np.float32)
    for c in range(classes):
        of_class = r[:, labels == c]
        counts[:, :, c] = of_class[teachers] @ (1 - of_class).T
    return counts


def agreement(predicted: NDArray[np.int64], classes: int) -> Counts:
    """Number of images on which two models predict the same class, float32 [M, M], from classes int64 [M, N]."""
    total = np.zeros((len(predicted), len(predicted)), np.float32)
    for c in range(classes):
        says_c = (predicted == c).astype(np.float32)
        total += says_c @ says_c.T
    return total


def kappa(accuracy: NDArray[np.float64], both: NDArray[np.float64]) -> NDArray[np.float64]:
    """Error consistency of every pair, [M, M]: agreement on right and wrong beyond what accuracies alone give.

    Args:
        accuracy: share of images right, [M].
        both: share of images on which both are right or both are wrong, [M, M].

    Returns:
        Cohen's kappa in [−1, 1]; NaN where both models are always right (or always wrong).

    Source: Geirhos et al. 2020, arXiv 2006.16736, equation 3.
    """
    expected = np.outer(accuracy, accuracy) + np.outer(1 - accuracy, 1 - accuracy)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = np.where(expected < 1, (both - expected) / (1 - expected), np.nan)
    return result


def class_entropy(flips: Counts) -> NDArray[np.float64]:
    """Shannon entropy in nats of the distribution of flips over classes, from counts [..., C]; NaN without flips."""
    counts = flips.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(-1, keepdims=True)
        entropy: NDArray[np.float64] = -np.where(share > 0, share * np.log(share), 0.0 * share).sum(-1) + 0.0
    return entropy


def expertise(flips: Counts, share: float) -> list[list[int]]:
    """The fewest classes that hold at least ``share`` of the flips, most flips first; ties by class number.

    Args:
        flips: counts per class, [P, C].
        share: in (0, 1].

    Returns:
        A list of classes for each of the P rows, empty where a row has no flips.

    Source: FG section 3.2; the published code returns one class more.
    """
    order = np.argsort(-flips, axis=-1, kind="stable")
    reached = np.cumsum(np.take_along_axis(flips, order, -1), -1, dtype=np.float64)
    total = reached[:, -1:]
    needed = np.where(total[:, 0] > 0, (reached < share * total - 1e-9).sum(-1) + 1, 0)
    return [row[:k].tolist() for row, k in zip(order, needed, strict=True)]


def score(
    names: Sequence[str], predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int, split: str
) -> pd.DataFrame:
    """The table ``complementarity``: every ordered pair of distinct models, by teacher and then by student.

    Args:
        names: of the M models.
        predicted: predicted classes, int64 [M, N].
        labels: int64 [N].
        classes: number of classes C.
        split: name of the split, for the table.
    """
    right = predicted == labels
    models, n = right.shape
    accuracy = right.mean(1)
    same = agreement(predicted, classes).astype(np.float64) / n
    r = right.astype(np.float32)
    both = ((r @ r.T) + ((1 - r) @ (1 - r).T)).astype(np.float64) / n
    consistency = kappa(accuracy, both)
    block = max(1, BLOCK_BYTES // (4 * models * classes))
    frames = []
    for start in range(0, models, block):
        teachers = np.arange(start, min(start + block, models))
        flips = flips_by_class(right, labels, classes, slice(start, start + block))
        t, s = (index.ravel() for index in np.meshgrid(teachers, np.arange(models), indexing="ij"))
        distinct = t != s
        t, s, flips = t[distinct], s[distinct], flips.reshape(-1, classes)[distinct]
        positive = flips.sum(1, dtype=np.float64)
        gap = (right.sum(1)[t] - right.sum(1)[s]).astype(np.float64)
        rate = positive / n
        frames.append(
            pd.DataFrame(
                {
                    "teacher": np.asarray(names)[t],
                    "student": np.asarray(names)[s],
                    "split": split,
                    "n": n,
                    "acc_teacher": 100 * accuracy[t],
                    "acc_student": 100 * accuracy[s],
                    "acc_difference": 100 * gap / n,
                    "pos_flips": 100 * positive / n,
                    "pos_flips_se": 100 * np.sqrt(rate * (1 - rate) / n),
                    "neg_flips": 100 * (positive - gap) / n,
                    "agreement": 100 * same[t, s],
                    "kappa": consistency[t, s],
                    "class_entropy": class_entropy(flips),
                    "flips_by_class": list(flips.astype(np.int32)),
                    **{f"expertise_{share}": expertise(flips, share / 100) for share in SHARES},
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
