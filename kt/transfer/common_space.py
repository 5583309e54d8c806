"""The common feature space: every network's features, aligned and taken through one shared extractor. Source: CFL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt.zoo.stages import Grid, meet


class Residual(nn.Module):
    """ReLU of input plus two 3x3 convolutions with a ReLU between them; no bias, no BatchNorm.

    Where the widths differ the input passes a 1x1 convolution first. No normalisation: it would take the mean away from
    every network's features by itself, and with it a shift that the discrepancy is to see.

    Args:
        channels: of the input.
        width: of the output.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, width, H, W] of maps [B, channels, H, W]."""
        return F.relu(self.shortcut(x) + self.body(x))


class Space(nn.Module):
    """The common space of one stage, as in the code CommonFeatureLearning; no layer has a bias or a normalisation.

    Args:
        student: width of the student's features.
        teachers: widths of the teachers'.
        width: of the common space; align layers have twice as many outputs.
        blocks: residual blocks of the extractor; for vectors it is two linear layers.
        maps: whether features are maps [B, C, H, W], or else vectors [B, C], for which all layers are linear.
    """

    def __init__(self, student: int, teachers: Sequence[int], width: int, blocks: int, *, maps: bool) -> None:
        super().__init__()
        self.align_student = nn.Sequential(_layer(student, 2 * width, 1, maps), nn.ReLU())
        self.align_teachers = nn.ModuleList(nn.Sequential(_layer(c, 2 * width, 1, maps), nn.ReLU()) for c in teachers)
        self.extractor = nn.Sequential(
            *(Residual(width if i else 2 * width, width) for i in range(blocks))
            if maps
            else (_layer(2 * width, width, 1, maps), nn.ReLU(), _layer(width, width, 1, maps))
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(_layer(width, c, 3, maps), nn.ReLU(), _layer(c, c, 1, maps)) for c in teachers
        )

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """h_s, the h_t of every teacher, and the stage's L_R = Σ_t MSE(decode(h_t), f_t), a scalar, float32.

        Args:
            student: its features on the common grid, [B, C, h, w] or [B, C].
            teachers: theirs, without gradient.
        """
        h_student = self.extractor(self.align_student(student))
        h_teachers = [self.extractor(align(f)) for align, f in zip(self.align_teachers, teachers, strict=True)]
        rebuilt = [decode(h) for decode, h in zip(self.decoders, h_teachers, strict=True)]
        error = torch.stack([F.mse_loss(r.float(), f.float()) for r, f in zip(rebuilt, teachers, strict=True)]).sum()
        return h_student, h_teachers, error


def _layer(inputs: int, outputs: int, side: int, maps: bool) -> nn.Module:
    """A convolution that keeps the grid, or its linear counterpart for vectors, without bias."""
    if not maps:
        return nn.Linear(inputs, outputs, bias=False)
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)


class Output(NamedTuple):
    """Output of the learner for a batch.

    Attributes:
        logits: [B, K].
        common: by stage, h_s and the h_t of every teacher, [B, width, h, w] or [B, width] each.
        reconstruction: L_R, summed over stages; a mean over the batch.
    """

    logits: Tensor
    common: list[tuple[Tensor, list[Tensor]]]
    reconstruction: Tensor

    def mmd(self, sigmas: Sequence[float]) -> Tensor:
        """L_M = Σ_t MMD(h_s, h_t), summed over stages, of all images of the batch; a scalar, float32.

        Args:
            sigmas: widths of the kernels.
        """
        stages = [torch.stack([mmd(own, h, sigmas) for h in of_teachers]).sum() for own, of_teachers in self.common]
        return torch.stack(stages).sum()


class Learner(nn.Module):
    """The student with the common spaces, which are trained with it and left behind when it is done.

    Args:
        student: gives logits and features.
        spaces: one a stage.
        grids: on which the networks meet, one a stage.
    """

    def __init__(self, student: nn.Module, spaces: Sequence[Space], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.student, self.spaces, self.grids = student, nn.ModuleList(spaces), grids

    def forward(self, batch: tuple[Tensor, Sequence[Sequence[Tensor]]]) -> Output:
        """Logits, common features and the loss of rebuilding the teachers'.

        Args:
            batch: the student's images [B, C, S, S], and each teacher's features on the common grids, by stage.
        """
        images, teachers = batch
        logits, features = self.student(images)
        found = [
            space(meet(own, grid), [of_teacher[stage] for of_teacher in teachers])
            for stage, (space, own, grid) in enumerate(zip(self.spaces, features, self.grids, strict=True))
        ]
        common, errors = [(own, of_teachers) for own, of_teachers, _ in found], [error for _, _, error in found]
        return Output(logits, common, torch.stack(errors).sum())


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """−Σ softmax(target) · log softmax(logits), float32 [B]. Source: CFL, with T = 1.

    Args:
        target: the teachers' concatenated logits, [B, K]; −inf for a class that no teacher knows.
        logits: of the student, [B, K].
    """
    return -(target.float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1)


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Squared maximum mean discrepancy of two batches of features, biased estimate, clipped at 0; a scalar, float32.

    Features are flattened and scaled to length one; the kernel is Σ exp(−d² / 2σ²) over the sigmas. Source: CFL.

    Args:
        x: features of one network, [B, …].
        y: of the other, [B', …] with as many values an image.
        sigmas: widths of the Gaussian kernels.
    """
    x, y = (F.normalize(features.flatten(1).float()) for features in (x, y))
    return (_kernel(x, x, sigmas).mean() + _kernel(y, y, sigmas).mean() - 2 * _kernel(x, y, sigmas).mean()).clamp(min=0)


def _kernel(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Sum of Gaussian kernels of all pairs, [B, B']."""
    # From a matrix product, the distance of an image to itself would be off by more than the narrowest kernel's width.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.stack([(-distance / (2 * sigma**2)).exp() for sigma in sigmas]).sum(0)


def concatenate(parts: Sequence[Tensor], where: Sequence[Tensor], classes: int, absent: float) -> Tensor:
    """Scores of several teachers as scores of all classes, float32 [N, K]: the mean where several know a class.

    Args:
        parts: each teacher's scores, float32 [N, K'].
        where: where its classes stand among all, int64 [K'].
        classes: K.
        absent: the score of a class that none of them knows.
    """
    total, known = parts[0].new_zeros(len(parts[0]), classes), parts[0].new_zeros(classes)
    for scores, columns in zip(parts, where, strict=True):
        total[:, columns] += scores
        known[columns] += 1
    return torch.where(known > 0, total / known.clamp(min=1), absent)
