"""Which model teaches a sample: boolean masks over samples from cached logits.

Like the losses, they use tensor methods only and import torch for its types alone.
"""

from __future__ import annotations

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


def merge(taught: Tensor, teacher: Tensor, frozen: Tensor) -> Tensor:
    """The teacher's logits where ``taught`` (bool [N]) is true, the frozen student's elsewhere; [N, C]."""
    return teacher.where(taught[:, None], frozen)
