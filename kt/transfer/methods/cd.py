"""``cd``: distillation of the similarities between the images of a batch, as the teacher's features give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat

from kt.tasks import losses
from kt.transfer.methods.finetune import Supervised

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch, Examples


class CD(Supervised):
    """label_weight · cross-entropy + weight · KL between the similarities of the batch's images, teacher to student.

    S and T are the B × B cosines of the raw penultimate features of the running student and of the teacher, whose
    widths may differ; the loss is the sum over the batch of KL(softmax of T's row ‖ softmax of S's row). There are no
    heads and no temperature. The sum is not divided by B: a larger batch gives the similarities more weight.

    Source: FG's published code, weights 0.1 and 10; the paper only names the method. FG: does not transfer.
    """

    name: ClassVar[str] = "cd"
    version: ClassVar[int] = 2
    of_classes: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True
    weight: NonNegativeFloat = Field(10.0, description="of the similarities' loss, a sum over the batch")
    label_weight: NonNegativeFloat = Field(0.1, description="of the cross-entropy, a mean over the batch")

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits, which the loss does not use; the teacher's features teach every image."""
        return frozen, truth.new_ones(len(truth)).bool()

    def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
        """The student; its output is logits [B, C] and features [B, D]."""
        from kt.zoo.features import Featured

        return Featured(students[0])

    def loss(self, task: Task, output: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Loss per image, float32 [B]; its mean over the batch is the method's loss."""
        logits, features = output
        contrast = losses.distillation(losses.cosines(batch.features), losses.cosines(features), 1.0)
        entropy = self.supervised(task, logits, batch.truth)
        return self.label_weight * entropy + self.weight * len(entropy) * contrast
