"""``bikd``: models that train together and teach each other, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kt.tasks import partition
from kt.transfer.method import Partitioned
from kt.transfer.methods.finetune import Supervised

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch, Examples


class BiKD(Partitioned, Supervised):
    """The running model that fits the truth best teaches the others; each keeps its own loss against the truth.

    Per image, with models j and teacher t: Σ_j CE_j + weight · Σ_j≠t D_T(z_t, z_j). Of two models that fit equally
    well, the second teaches; of three and more, none does unless the best is unique. The published second model is the
    student. Here one training serves the pair in both directions, so the order of the models cannot depend on the
    student: the second has the larger fingerprint.

    All models are trained: a unit belongs to the set of models, and its outcome serves the pair in both directions.
    The best epoch is that with the highest mean validation score.

    Source: BiKD section 3, T = 1, weight 1. The published code lets the gradient flow into the teaching model too, so
    that it moves towards the models that it teaches; ``stop_gradient`` prevents that.
    """

    name: ClassVar[str] = "bikd"
    takes: ClassVar[Literal["both"]] = "both"
    joint: ClassVar[bool] = True
    temperature: PositiveFloat = Field(1.0, description="softmax temperature T")
    weight: NonNegativeFloat = Field(1.0, description="of the distillation loss; cross-entropy has weight 1")
    stop_gradient: bool = Field(False, description="true: no gradient reaches a model through what it teaches")

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's answers, which the loss does not use, and the images that it would be taught at first.

        Args:
            task: what is learnt.
            teacher: answers of the other models, float32 [M − 1, N, …].
            frozen: the student's, float32 [N, …].
            truth: [N, …].
        """
        best = partition.best_by_fit(task, teacher, truth, self.level)
        return frozen, partition.by_fit(task, partition.pick(teacher, best), frozen, truth, self.level)

    def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
        """All models as one; its output is their answers, M of [B, …]."""
        from kt.transfer.learners import Together

        return Together(students)

    def loss(self, task: Task, output: Sequence[Tensor], batch: Batch) -> Tensor:
        """Sum of all models' losses per image, float32 [B], from M answers [B, …]."""
        import torch

        answers = [task.aligned(own, batch.truth) for own in output]
        total = answers[0].new_zeros(len(batch.truth))
        for own in answers:
            total = total + self.supervised(task, own, batch.truth)
        for teaching, target in zip(
            self.masks(task, torch.stack(answers), batch.truth, self.level), answers, strict=True
        ):
            for own in answers:
                if own is not target:
                    taught = task.imitate(target.detach() if self.stop_gradient else target, own, self.temperature)
                    where = teaching.reshape(*teaching.shape, *[1] * (taught.ndim - teaching.ndim))
                    taught = task.mean(taught.where(where, taught.new_zeros(())), batch.truth)
                    total = total + self.weight * taught
        return total

    @staticmethod
    def masks(task: Task, output: Tensor, truth: Tensor, level: partition.Level = "image") -> Tensor:
        """The model that teaches each image, bool [M, B], or each pixel: at most one, and exactly one of two."""
        fits = partition.fits(task, output.detach(), truth, level)
        best = fits == fits.amax(0)
        if len(output) == 2:
            best[0] = ~best[1]
        return best & (best.sum(0) == 1)

    def budget(self, teachers: int) -> int:
        """As many trainings as there are models."""
        return teachers + 1
