"""``xekl``: distillation from the teacher mixed with cross-entropy on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kt.transfer.methods.finetune import Supervised
from kt.transfer.methods.kl import KL

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch


class XEKL(KL, Supervised):
    """alpha · distillation + (1 − alpha) · the loss against the truth.

    Source: FG section 4.1, alpha = 0.5. The published code passes softmax outputs to a cross-entropy that takes
    logits; here it gets the logits.
    """

    name: ClassVar[str] = "xekl"
    uses_labels: ClassVar[bool] = True
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the distillation loss")

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Mixed loss per image, float32 [B]."""
        distillation = super().loss(task, output, batch)
        return self.alpha * distillation + (1 - self.alpha) * self.supervised(task, output, batch.truth)
