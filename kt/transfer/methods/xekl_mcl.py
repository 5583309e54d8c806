"""``xekl_mcl``: distillation that guards what the student knows by momentum: slow weights follow fast ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from kt.transfer import partition
from kt.transfer.methods.xekl import XEKL
from kt.transfer.samples import Samples, SlowWeights

if TYPE_CHECKING:
    from torch import Tensor


class XEKLMCL(XEKL):
    """alpha · distillation, except on negative flips, + (1 − alpha) · cross-entropy; the slow weights are the student.

    Every ``every`` steps θ_slow ← tau · θ_slow + (1 − tau) · θ_fast, buffers of BatchNorm included; the fast weights
    train on. Evaluation and the improved student take the slow weights. The closer tau is to 1 and the fewer the
    steps, the less the student can change: the paper's tau of 0.9999 needs its 10,000 steps.

    Source: FG section 4.2, alpha = 0.68, tau = 0.9999, every 2 steps, at a learning rate of 0.01. As with ``xekl``,
    the published cross-entropy gets softmax outputs; here it gets logits.
    """

    name: ClassVar[str] = "xekl_mcl"
    alpha: float = Field(0.68, ge=0, le=1, description="weight of the distillation loss")
    tau: float = Field(0.9999, ge=0, le=1, description="share of the slow weights that stays at each update")
    every: PositiveInt = Field(2, description="steps between two updates of the slow weights")

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits for every image that is no negative flip, the frozen student's elsewhere."""
        _, negative = partition.flips(teacher, frozen, labels)
        return partition.merge(~negative, teacher, frozen), ~negative

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """The mixed loss of each sample, float32 [B]; on negative flips the cross-entropy's part alone."""
        mixed, own = super().loss(output, batch), (1 - self.alpha) * self.cross_entropy(output, batch.labels)
        return mixed.where(batch.taught, own)

    def slow_weights(self) -> SlowWeights:
        """How the slow weights follow the student's."""
        return SlowWeights(self.tau, self.every)
