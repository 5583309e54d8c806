"""``kl``: plain distillation from the teacher on every image, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat

from kt.tasks import losses
from kt.transfer.method import Method
from kt.transfer.samples import Samples

if TYPE_CHECKING:
    from torch import Tensor


class Distillation(Method):
    """Methods whose loss is the distillation loss towards their targets."""

    temperature: PositiveFloat = Field(1.0, description="softmax temperature T")

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """Distillation loss of each sample, float32 [B]."""
        return losses.distillation(batch.targets, output, self.temperature)


class KL(Distillation):
    """The teacher teaches every image. Source: FG section 4.1, T = 1."""

    name: ClassVar[str] = "kl"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, for every image."""
        return teacher, labels.new_ones(len(labels)).bool()
