"""Which model teaches a sample: boolean masks over samples from cached logits.

Like the losses, they use tensor methods only and import torch for its types alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def by_label(teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """True where the teacher gives the true class a higher probability than the frozen student; ties are False.

    Args:
        teacher: teacher logits, [N, C].
        frozen: logits of the student before transfer, [N, C].
        labels: int64 [N].

    Returns:
        bool [N].

    Source: FG section 4.3, supervised data partitioning.
    """
    at_label = labels[:, None]
    log_p_teacher = teacher.float().log_softmax(-1).gather(-1, at_label)
    log_p_frozen = frozen.float().log_softmax(-1).gather(-1, at_label)
    return (log_p_teacher > log_p_frozen)[:, 0]


def by_confidence(teacher: Tensor, frozen: Tensor) -> Tensor:
    """True where the teacher's largest probability exceeds the frozen student's; ties are False; bool [N].

    Args:
        teacher: teacher logits, [N, C].
        frozen: logits of the student before transfer, [N, C].

    Source: FG section 4.3, unsupervised data partitioning.
    """
    confidence = teacher.float().log_softmax(-1).amax(-1)
    return confidence > frozen.float().log_softmax(-1).amax(-1)


def flips(teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the teacher alone is right, and where the frozen student alone is; two times bool [N].

    Args:
        teacher: teacher logits, [N, C].
        frozen: logits of the student before transfer, [N, C].
        labels: int64 [N].

    Source: FG section 3, positive and negative flips.
    """
    teacher_right, frozen_right = teacher.argmax(-1) == labels, frozen.argmax(-1) == labels
    return teacher_right & ~frozen_right, ~teacher_right & frozen_right


def best_by_label(models: Tensor, labels: Tensor) -> Tensor:
    """Which model gives the true class the highest probability, int64 [N]; the first of equals.

    Args:
        models: logits of several models, [M, N, C].
        labels: int64 [N].

    Source: FG section 4.4, parallel transfer.
    """
    log_p = models.float().log_softmax(-1)
    return log_p.gather(-1, labels[None, :, None].expand(len(models), -1, 1))[..., 0].argmax(0)


def best_by_confidence(models: Tensor) -> Tensor:
    """Which model has the largest probability of any class, int64 [N]; the first of equals; from [M, N, C]."""
    return models.float().log_softmax(-1).amax(-1).argmax(0)


def pick(models: Tensor, which: Tensor) -> Tensor:
    """Row i of the model ``which[i]``: [N, C] from [M, N, C] and int64 [N]."""
    return models.gather(0, which[None, :, None].expand(1, -1, models.shape[-1]))[0]


def mean_probability(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the mean of two models' probabilities, float32 [N, C], from logits [N, C]."""
    return first.float().log_softmax(-1).logaddexp(second.float().log_softmax(-1)) - math.log(2)


def merge(taught: Tensor, teacher: Tensor, frozen: Tensor) -> Tensor:
    """The teacher's logits where ``taught`` (bool [N]) is true, the frozen student's elsewhere; [N, C]."""
    return teacher.where(taught[:, None], frozen)
