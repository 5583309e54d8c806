"""``finetune``: the control that shows what the labels of the transfer images do without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kt.tasks import losses
from kt.transfer.method import Method
from kt.transfer.samples import Samples

if TYPE_CHECKING:
    from torch import Tensor


class Supervised(Method):
    """Methods with cross-entropy on the labels somewhere in their loss.

    Label smoothing smooths the labels. FG's published code, whose default is none, smooths the predicted probabilities.
    """

    uses_labels: ClassVar[bool] = True
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each sample, float32 [B]."""
        return losses.cross_entropy(logits, labels, self.label_smoothing)


class Finetune(Supervised):
    """Cross-entropy on the labels: the supervised control owed to every method that uses labels."""

    name: ClassVar[str] = "finetune"
    control: ClassVar[bool] = True

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """Cross-entropy of each sample, float32 [B]."""
        return self.cross_entropy(output, batch.labels)
