"""``flip_teacher``, ``flip_student`` and ``flip_mean``: distillation partitioned by which model is correct."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kt.tasks import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch


class ByFlips(Distillation):
    """The teacher teaches positive flips, the frozen student negative flips; subclasses decide on all other images.

    Flips are those of the frozen student, as in ``kl_dp``, so that these methods differ from it in the rule alone.
    With ``student: running`` they are those of the student in training, in train mode, judged anew in each step, as in
    the published code: an image that the student has learnt is no longer a positive flip, and dropout and BatchNorm
    have an effect. ``teacher_share`` is then the share at the start.

    Source: FG appendix, ablations of data partitioning, T = 1.
    """

    of_classes: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = True
    student: Literal["frozen", "running"] = Field("frozen", description="the student whose flips count")

    @abstractmethod
    def divided(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Target logits [N, C, …], and a mask bool [N, …] of the images, or pixels, where they depend on the teacher.

        Args:
            teacher: the teacher's logits, [N, C, …].
            frozen: logits of the student before transfer, [N, C, …].
            student: logits of the student whose flips count, [N, C, …].
            labels: integers [N, …].
        """

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and mask; where each step judges anew, the teacher's logits and the mask at the start.

        Args:
            task: what is learnt.
            teacher: the teacher's logits, [N, C].
            frozen: logits of the student before transfer, [N, C].
            truth: labels, int64 [N].
        """
        targets, taught = self.divided(teacher, frozen, frozen, truth)
        return (teacher if self.student == "running" else targets), taught

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Distillation loss per image, float32 [B]."""
        if self.student == "frozen":
            return super().loss(task, output, batch)
        targets, _ = self.divided(batch.targets, batch.frozen, output.float(), batch.truth)
        return task.mean(task.imitate(targets, output, self.temperature), batch.truth)


class FlipTeacher(ByFlips):
    """The teacher on positive flips, the frozen student on negative flips, the teacher on all other images."""

    name: ClassVar[str] = "flip_teacher"

    def divided(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits on negative flips, the teacher's elsewhere."""
        _, negative = partition.flips(teacher, student, labels)
        return partition.merge(~negative, teacher, frozen), ~negative


class FlipStudent(ByFlips):
    """The teacher on positive flips, the frozen student everywhere else."""

    name: ClassVar[str] = "flip_student"

    def divided(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits on positive flips, the frozen student's elsewhere."""
        positive, _ = partition.flips(teacher, student, labels)
        return partition.merge(positive, teacher, frozen), positive


class FlipMean(ByFlips):
    """The teacher on positive flips, the frozen student on negative flips, their mean on all other images.

    The mean is that of logits, as published: the teacher's and those of the student whose flips count. With
    ``student: running`` the gradient flows through the student's logits in it too.
    """

    name: ClassVar[str] = "flip_mean"
    version: ClassVar[int] = 2

    def divided(self, teacher: Tensor, frozen: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, the frozen student's, or the mean of teacher and student, which counts as taught."""
        positive, negative = partition.flips(teacher, student, labels)
        mean = (teacher + student) / 2
        return partition.merge(positive, teacher, partition.merge(negative, frozen, mean)), ~negative
