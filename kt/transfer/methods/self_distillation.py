"""``self``: the control that shows what training on the transfer images does without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor


class SelfDistillation(Distillation):
    """The student as it was before transfer teaches every image; its loss starts at zero."""

    name: ClassVar[str] = "self"
    control: ClassVar[bool] = True

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits, for every image."""
        return frozen, labels.new_zeros(len(labels)).bool()
