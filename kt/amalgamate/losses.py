"""The losses of amalgamation: pure functions of features and logits, in float32. Source: CFL section 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """−Σ softmax(target) · log softmax(logits), float32 [B]. Source: CFL, with T = 1.

    Args:
        target: the teachers' concatenated logits, [B, K]; −inf for a class that no teacher knows.
        logits: of the student, [B, K].
    """
    return -(target.float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1)


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Squared maximum mean discrepancy of two batches of features, biased estimate, clipped at 0; a scalar, float32.

    Features are flattened and scaled to length one; the kernel is Σ exp(−d² / 2σ²) over the sigmas. Source: CFL.

    Args:
        x: features of one network, [B, …].
        y: of the other, [B', …] with as many values an image.
        sigmas: widths of the Gaussian kernels.
    """
    x, y = (F.normalize(features.flatten(1).float()) for features in (x, y))
    return (_kernel(x, x, sigmas).mean() + _kernel(y, y, sigmas).mean() - 2 * _kernel(x, y, sigmas).mean()).clamp(min=0)


def _kernel(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Sum of Gaussian kernels of all pairs, [B, B']."""
    # From a matrix product, the distance of an image to itself would be off by more than the narrowest kernel's width.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.stack([(-distance / (2 * sigma**2)).exp() for sigma in sigmas]).sum(0)


def concatenate(parts: Sequence[Tensor], where: Sequence[Tensor], classes: int, absent: float) -> Tensor:
    """Scores of several teachers as scores of all classes, float32 [N, K]: the mean where several know a class.

    Args:
        parts: each teacher's scores, float32 [N, K'].
        where: where its classes stand among all, int64 [K'].
        classes: K.
        absent: the score of a class that none of them knows.
    """
    total, known = parts[0].new_zeros(len(parts[0]), classes), parts[0].new_zeros(classes)
    for scores, columns in zip(parts, where, strict=True):
        total[:, columns] += scores
        known[columns] += 1
    return torch.where(known > 0, total / known.clamp(min=1), absent)
