"""``kl``: plain distillation from the teacher on every image; and its control ``self``, from the student as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat

from kt.transfer.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch


class Distillation(Method):
    """Base class of methods whose loss is the distillation loss towards their targets."""

    temperature: PositiveFloat = Field(1.0, description="softmax temperature T")

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Distillation loss per image, float32 [B]."""
        return task.mean(task.imitate(batch.targets, output, self.temperature), batch.truth)


class KL(Distillation):
    """The teacher teaches every image. Source: FG section 4.1, T = 1."""

    name: ClassVar[str] = "kl"

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's answers, for every image."""
        return teacher, truth.new_ones(len(truth)).bool()


class SelfDistillation(Distillation):
    """The student as it was before transfer teaches every image; its loss starts at zero."""

    name: ClassVar[str] = "self"
    control: ClassVar[bool] = True
