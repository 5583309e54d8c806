"""``xekl``: distillation from the teacher mixed with cross-entropy on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kt.transfer.methods.finetune import Supervised
from kt.transfer.methods.kl import KL
from kt.transfer.samples import Samples

if TYPE_CHECKING:
    from torch import Tensor


class XEKL(KL, Supervised):
    """alpha · distillation + (1 − alpha) · cross-entropy.

    Source: FG section 4.1, alpha = 0.5. The published code hands softmax outputs to a cross-entropy that takes
    logits; here it gets the logits.
    """

    name: ClassVar[str] = "xekl"
    uses_labels: ClassVar[bool] = True
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the distillation loss")

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """The mixed loss of each sample, float32 [B]."""
        distillation = super().loss(output, batch)
        return self.alpha * distillation + (1 - self.alpha) * self.cross_entropy(output, batch.labels)
