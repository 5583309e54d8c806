"""``infonce`` and ``crd``: contrastive distillation of penultimate features through trained embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kt.transfer.methods.finetune import Supervised

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch, Examples


class Contrastive(Supervised):
    """Cross-entropy on the labels and weight · a contrastive loss between embeddings of both networks' features.

    The embeddings are trained linear maps of the student's running and the teacher's cached features.
    """

    of_classes: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True
    weight: NonNegativeFloat = Field(0.8, description="of the contrastive loss; cross-entropy has weight 1")
    nce_t: PositiveFloat = Field(0.07, description="temperature of the similarities")
    dim: PositiveInt = Field(128, description="width of the embeddings")

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The frozen student's logits, which the loss does not use; the teacher's features teach every image."""
        return frozen, truth.new_ones(len(truth)).bool()

    @abstractmethod
    def heads(self, student: int, teacher: int, labels: Tensor) -> nn.Module:
        """The module that compares features, for the widths of the student's and the teacher's, and all labels [N]."""

    def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
        """The student with its heads; their output is logits [B, C], features [B, D] and the heads."""
        import torch

        from kt.transfer.learners import Contrast
        from kt.zoo.features import Featured

        assert examples.features is not None
        labels = torch.from_numpy(examples.truth)
        heads = self.heads(Featured(students[0]).width, examples.features.shape[1], labels)
        return Contrast(students[0], heads.to(examples.device))

    def loss(self, task: Task, output: Any, batch: Batch) -> Tensor:
        """Loss per image, float32 [B]."""
        logits, features, heads = output
        contrast: Tensor = heads(features, batch)
        return self.supervised(task, logits, batch.truth) + self.weight * contrast


class InfoNCE(Contrastive):
    """Contrast with the other images of the batch: the two embeddings of an image identify each other.

    Ours: the symmetric InfoNCE loss (van den Oord et al. 2018, arXiv 1807.03748) with the settings of ``crd``, but
    without its memory. No paper on this transfer has it.
    """

    name: ClassVar[str] = "infonce"
    whole_batch: ClassVar[bool] = True

    def heads(self, student: int, teacher: int, labels: Tensor) -> nn.Module:
        """In-batch contrast."""
        from kt.transfer.learners import InBatch

        return InBatch(student, teacher, self.dim, self.nce_t)


class CRD(Contrastive):
    """Contrast with stored embeddings of images of other classes.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, with FG's 4,096 negatives,
    nce_t 0.07 and dim 128; FG: does not transfer. The published code gathers the stored rows of every image; here the
    batch is multiplied with the whole memory, and the products of the negatives are picked. Negatives are drawn with
    replacement; the published code draws without it where there are enough.
    """

    name: ClassVar[str] = "crd"
    negatives: PositiveInt = Field(4096, description="per image; at most as many as there are images of other classes")

    def heads(self, student: int, teacher: int, labels: Tensor) -> nn.Module:
        """Contrast with a memory."""
        from kt.transfer.learners import MemoryBank

        return MemoryBank(student, teacher, self.dim, self.nce_t, labels, self.negatives)
