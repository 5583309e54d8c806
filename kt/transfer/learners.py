"""Learners that are more than one student: several models together, or a student with heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.data.inputs import Inputs
from kt.errors import KtError
from kt.transfer.batch import Batch
from kt.zoo.features import Featured


class Together(nn.Module):
    """Several models as one: from each one's view of the same images to their answers."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Answers of all models, M of float32 [B, …]; of a dense task they may differ in size."""
        return [model(x).float() for model, x in zip(self.models, views, strict=True)]


class Views:
    """The same images as several models see them, by position."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self.inputs, self.device = inputs, inputs[0].device

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __getitem__(self, positions: NDArray[np.int64] | slice) -> list[Tensor]:
        """One batch per model."""
        return [inputs[positions] for inputs in self.inputs]


class Contrast(Featured):
    """A student with heads that compare its penultimate features with the teacher's.

    Its output is the logits [B, C], the features [B, D] and the heads, which give the contrastive loss per image,
    float32 [B], when called with features and batch.
    """

    def __init__(self, student: nn.Module, heads: nn.Module) -> None:
        super().__init__(student)
        self.heads = heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, nn.Module]:  # type: ignore[override]
        """Logits, features and heads."""
        return *super().forward(x), self.heads


class InBatch(nn.Module):
    """Contrast with the other images of the batch: the two networks' embeddings of an image identify each other.

    Args:
        student: width of the student's features.
        teacher: width of the teacher's.
        dim: width of the common embedding.
        temperature: of the softmax over the batch.
    """

    def __init__(self, student: int, teacher: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(student, dim), nn.Linear(teacher, dim)
        self.temperature = temperature

    def embed(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of length one of student and teacher, float32 [B, dim] each."""
        return F.normalize(self.student(features.float())), F.normalize(self.teacher(batch.features))

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """Mean of the cross-entropies of identifying the teacher's embedding and the student's; float32 [B]."""
        student, teacher = self.embed(features, batch)
        similar = student @ teacher.T / self.temperature
        own = similar.diagonal()
        return (similar.logsumexp(0) + similar.logsumexp(1)) / 2 - own


class MemoryBank(InBatch):
    """Contrast with stored embeddings of images of other classes, one entry per image and network.

    The loss is noise-contrastive estimation in both directions: h = x / (x + K / N) with x the exponential of the
    similarity over its normaliser, which is set once, by the first batch. The memory follows the embeddings with
    momentum 0.5. Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, and its code.

    Args:
        student: width of the student's features.
        teacher: width of the teacher's.
        dim: width of the common embedding.
        temperature: of the similarities.
        labels: of all N images, int64 [N].
        negatives: K; fewer where fewer images are of other classes than the largest one.

    Raises:
        KtError: all images are of one class.
    """

    MOMENTUM = 0.5

    def __init__(
        self, student: int, teacher: int, dim: int, temperature: float, labels: Tensor, negatives: int
    ) -> None:
        super().__init__(student, teacher, dim, temperature)
        counts = torch.bincount(labels.cpu())
        self.negatives = min(negatives, len(labels) - int(counts.max()))
        if not self.negatives:
            raise KtError("crd: all transfer images are of one class, so that there are no negatives")
        bound = 1 / math.sqrt(dim / 3)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(len(labels), dim).uniform_(-bound, bound))
            self.register_buffer(f"{name}_normaliser", torch.zeros(()))
        # images sorted by class: those of a class lie between `first` and `first + count`
        self.register_buffer("sorted", labels.cpu().argsort(stable=True), persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("count", counts, persistent=False)

    student_memory: Tensor
    teacher_memory: Tensor
    sorted: Tensor
    first: Tensor
    count: Tensor

    def draw(self, labels: Tensor) -> Tensor:
        """Positions of images of other classes, uniformly with replacement, int64 [B, K] for labels int64 [B]."""
        others = (len(self.sorted) - self.count[labels])[:, None]
        place = (torch.rand(len(labels), self.negatives, device=labels.device) * others).long().clamp_(max=others - 1)
        skip = torch.where(place >= self.first[labels][:, None], self.count[labels][:, None], 0)
        return self.sorted[place + skip]

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """Loss per image, float32 [B]; the memory then follows the embeddings."""
        student, teacher = self.embed(features, batch)
        which = torch.cat([batch.positions[:, None], self.draw(batch.truth)], 1)
        loss = self._estimate(student, "teacher_memory", which) + self._estimate(teacher, "student_memory", which)
        self._remember("student_memory", batch.positions, student)
        self._remember("teacher_memory", batch.positions, teacher)
        return loss

    def _estimate(self, embedding: Tensor, memory: str, which: Tensor) -> Tensor:
        bank, normaliser = getattr(self, memory), getattr(self, f"{memory}_normaliser")
        x = (embedding @ bank.T).gather(1, which).div(self.temperature).exp()
        if not normaliser:
            normaliser.copy_(x.detach().mean() * len(bank))
        x = x / normaliser
        noise = self.negatives / len(bank)
        loss: Tensor = -(x[:, 0] / (x[:, 0] + noise)).log() - (noise / (x[:, 1:] + noise)).log().sum(1)
        return loss

    def _remember(self, memory: str, positions: Tensor, embedding: Tensor) -> None:
        bank = getattr(self, memory)
        followed = F.normalize(self.MOMENTUM * bank[positions] + (1 - self.MOMENTUM) * embedding.detach())
        setattr(self, memory, bank.index_copy(0, positions, followed))  # backward still needs the old memory
