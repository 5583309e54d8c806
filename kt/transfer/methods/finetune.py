"""``finetune``: the control that shows the effect of the transfer images' labels without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kt.errors import KtError
from kt.transfer.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch


class Supervised(Method):
    """Base class of methods with a loss against the truth: in classification, cross-entropy on the labels.

    Label smoothing smooths the labels. FG's published code, whose default is none, smooths the predicted probabilities.
    """

    uses_labels: ClassVar[bool] = True
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")

    def supervised(self, task: Task, answer: Tensor, truth: Tensor) -> Tensor:
        """Loss per image against the truth, float32 [B]."""
        if self.label_smoothing:
            return task.mean(task.smoothed(answer, truth, self.label_smoothing), truth)
        return task.mean(task.supervised(answer, truth), truth)

    def check(self, task: Task, at: str) -> None:
        """Refuse label smoothing too where there are no classes to spread a target over."""
        super().check(task, at)
        if self.label_smoothing and not task.has_classes:
            why = f"{self.label_smoothing} spreads the target over classes, and the task {task.name!r} has none"
            raise KtError(f"{at}.label_smoothing: {why}; allowed: 0")


class Finetune(Supervised):
    """The loss against the truth alone: the supervised control of all methods that use labels."""

    name: ClassVar[str] = "finetune"
    control: ClassVar[bool] = True

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Loss per image against the truth, float32 [B]."""
        return self.supervised(task, output, batch.truth)
