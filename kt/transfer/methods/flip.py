"""``flip_teacher``, ``flip_student`` and ``flip_mean``: distillation partitioned by who is right."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kt.tasks import losses, partition
from kt.transfer.methods.kl import Distillation
from kt.transfer.samples import Samples

if TYPE_CHECKING:
    from torch import Tensor


class ByFlips(Distillation):
    """The teacher teaches positive flips, the frozen student negative ones; subclasses say who teaches the neutral.

    Whether an image is a flip is judged by the frozen student, as ``kl_dp`` judges, so that these methods differ from
    it in the rule alone. With ``student: running`` it is judged in each step by the student as it answers then, in
    train mode, as the published code does: an image that the student has learnt is no positive flip any more, and
    dropout and BatchNorm have a say. ``teacher_share`` is then the share at the start.

    Source: FG appendix, ablations of data partitioning, T = 1.
    """

    uses_labels: ClassVar[bool] = True
    student: Literal["frozen", "running"] = Field("frozen", description="who is right or wrong beside the teacher")

    @property
    def uses_frozen(self) -> bool:
        """The running student's flips need the logits of both that may teach."""
        return self.student == "running"

    @abstractmethod
    def shared_out(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Target logits [N, C], and bool [N] where the teacher has a part in them.

        Args:
            teacher: its logits, [N, C].
            frozen: logits of the student before transfer, [N, C].
            student: logits of the student that is right or wrong, [N, C].
            labels: int64 [N].
        """

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The targets, or the teacher's logits where each step shares the images out; and who is taught at the start.

        Args:
            teacher: its logits, [N, C].
            frozen: logits of the student before transfer, [N, C].
            labels: int64 [N].
        """
        targets, taught = self.shared_out(teacher, frozen, frozen, labels)
        return (teacher if self.uses_frozen else targets), taught

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """Distillation loss of each sample, float32 [B]."""
        if not self.uses_frozen:
            return super().loss(output, batch)
        assert batch.frozen is not None
        targets, _ = self.shared_out(batch.targets, batch.frozen, output.float(), batch.labels)
        return losses.distillation(targets, output, self.temperature)


class FlipTeacher(ByFlips):
    """Teacher on positive flips, frozen student on negative ones; where both are right or both wrong the teacher."""

    name: ClassVar[str] = "flip_teacher"

    def shared_out(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits on negative flips, the teacher's elsewhere."""
        _, negative = partition.flips(teacher, student, labels)
        return partition.merge(~negative, teacher, frozen), ~negative


class FlipStudent(ByFlips):
    """Teacher on positive flips, frozen student everywhere else."""

    name: ClassVar[str] = "flip_student"

    def shared_out(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits on positive flips, the frozen student's elsewhere."""
        positive, _ = partition.flips(teacher, student, labels)
        return partition.merge(positive, teacher, frozen), positive


class FlipMean(ByFlips):
    """Teacher on positive flips, frozen student on negative ones; where both are right or both wrong their mean.

    The mean is that of logits, as published: of the teacher's and of those of the student that is right or wrong. With
    ``student: running`` the gradient flows into the student's part of it too.
    """

    name: ClassVar[str] = "flip_mean"
    version: ClassVar[int] = 2

    def shared_out(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher's logits, frozen student's logits, or the mean of teacher and student; neutral is taught."""
        positive, negative = partition.flips(teacher, student, labels)
        mean = (teacher + student) / 2
        return partition.merge(positive, teacher, partition.merge(negative, frozen, mean)), ~negative
