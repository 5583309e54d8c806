"""``finetune``: the control that shows what the labels of the transfer images do without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.transfer import losses
from kt.transfer.method import Method

if TYPE_CHECKING:
    from torch import Tensor


class Finetune(Method):
    """Cross-entropy on the labels: the supervised control owed to every method that uses labels."""

    name: ClassVar[str] = "finetune"
    uses_labels: ClassVar[bool] = True
    control: ClassVar[bool] = True

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits; the loss does not use them."""
        return frozen, labels.new_zeros(len(labels)).bool()

    def loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each sample, float32 [B]."""
        return losses.cross_entropy(logits, labels)
