"""``xekl``: distillation from the teacher mixed with cross-entropy on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from kt.transfer import losses
from kt.transfer.methods.kl import KL

if TYPE_CHECKING:
    from torch import Tensor


class XEKL(KL):
    """alpha · distillation + (1 − alpha) · cross-entropy.

    Source: FG section 4.1, alpha = 0.5. The published code hands softmax outputs to a cross-entropy that takes
    logits; here it gets the logits.
    """

    name: ClassVar[str] = "xekl"
    uses_labels: ClassVar[bool] = True
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the distillation loss")

    def loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """The mixed loss of each sample, float32 [B]."""
        distillation = super().loss(logits, targets, labels)
        return self.alpha * distillation + (1 - self.alpha) * losses.cross_entropy(logits, labels)
