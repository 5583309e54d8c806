"""``flip_teacher``, ``flip_student`` and ``flip_mean``: distillation partitioned by who is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.transfer import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor


class ByFlips(Distillation):
    """The teacher teaches positive flips, the frozen student negative ones; subclasses say who teaches the neutral.

    Source: FG appendix, ablations of data partitioning, T = 1.
    """

    uses_labels: ClassVar[bool] = True


class FlipTeacher(ByFlips):
    """Teacher on positive flips, frozen student on negative ones; where both are right or both wrong the teacher."""

    name: ClassVar[str] = "flip_teacher"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits on negative flips, the teacher's elsewhere."""
        _, negative = partition.flips(teacher, frozen, labels)
        return partition.merge(~negative, teacher, frozen), ~negative


class FlipStudent(ByFlips):
    """Teacher on positive flips, frozen student everywhere else."""

    name: ClassVar[str] = "flip_student"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits on positive flips, the frozen student's elsewhere."""
        positive, _ = partition.flips(teacher, frozen, labels)
        return partition.merge(positive, teacher, frozen), positive


class FlipMean(ByFlips):
    """Teacher on positive flips, frozen student on negative ones; where both are right or both wrong their mean.

    The mean is that of probabilities, at temperature 1: the target is its logarithm, whose softmax it is.
    """

    name: ClassVar[str] = "flip_mean"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher's logits, frozen student's logits or the logarithm of their mean probability; neutral is taught."""
        positive, negative = partition.flips(teacher, frozen, labels)
        mean = partition.mean_probability(teacher, frozen)
        return partition.merge(positive, teacher, partition.merge(negative, frozen, mean)), ~negative
