"""``bikd``: models that train together and teach each other, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kt.tasks import losses, partition
from kt.transfer.methods.finetune import Supervised
from kt.transfer.samples import Samples

if TYPE_CHECKING:
    from torch import Tensor, nn


class BiKD(Supervised):
    """The running model that gives the label the highest probability teaches the others; each keeps its cross-entropy.

    Per sample, with models j and teacher t: Σ_j CE_j + weight · Σ_j≠t D_T(z_t, z_j). With two models a tie is taught
    by the second; with more, an image whose best model is not unique has no teacher. The published second model is the
    student. Here one training serves the pair in both directions, so that the second cannot depend on who the student
    is: it is the one with the larger fingerprint.

    All models end trained: a unit belongs to the set of models, and its outcome serves the pair in both directions.
    The best epoch is that of the highest mean validation accuracy.

    Source: BiKD section 3, T = 1, weight 1. The published code lets the gradient flow into the teaching model too, so
    that it moves towards those that it teaches; ``stop_gradient`` keeps it out.
    """

    name: ClassVar[str] = "bikd"
    takes: ClassVar[Literal["both"]] = "both"
    joint: ClassVar[bool] = True
    temperature: PositiveFloat = Field(1.0, description="softmax temperature T")
    weight: NonNegativeFloat = Field(1.0, description="of the distillation loss; cross-entropy has weight 1")
    stop_gradient: bool = Field(False, description="true: no gradient reaches a model through what it teaches")

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits, which the loss does not use, and who would teach at the start.

        Args:
            teacher: logits of the other models, float32 [M − 1, N, C].
            frozen: of the student, float32 [N, C].
            labels: int64 [N].
        """
        best = partition.best_by_label(teacher, labels)
        return frozen, partition.by_label(partition.pick(teacher, best), frozen, labels)

    def learner(self, students: Sequence[nn.Module], samples: Samples) -> nn.Module:
        """All models as one; its output is their logits, [M, B, C]."""
        from kt.transfer.learners import Together

        return Together(students)

    def loss(self, output: Tensor, batch: Samples) -> Tensor:
        """Sum of all models' losses of each sample, float32 [B], from logits [M, B, C]."""
        logits = output.unbind()
        total = output.new_zeros(len(batch.labels))
        for own in logits:
            total = total + self.cross_entropy(own, batch.labels)
        for teaching, target in zip(self.masks(output, batch.labels), logits, strict=True):
            for own in logits:
                if own is not target:
                    taught = losses.distillation(
                        target.detach() if self.stop_gradient else target, own, self.temperature
                    )
                    total = total + self.weight * taught.where(teaching, taught.new_zeros(()))
        return total

    @staticmethod
    def masks(output: Tensor, labels: Tensor) -> Tensor:
        """Which model teaches each sample, bool [M, B]; none or one of them, and always one of two."""
        at_label = labels[None, :, None].expand(len(output), -1, 1)
        log_p = output.detach().float().log_softmax(-1).gather(-1, at_label)[..., 0]
        best = log_p == log_p.amax(0)
        if len(output) == 2:
            best[0] = ~best[1]
        return best & (best.sum(0) == 1)

    def budget(self, teachers: int) -> int:
        """As many trainings as there are models."""
        return teachers + 1
