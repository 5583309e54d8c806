"""The common feature space: every network's features, aligned and taken through one shared extractor. Source: CFL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt.amalgamate.features import Grid, meet
from kt.amalgamate.losses import mmd


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to their input, as in ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape, [B, C, H, W]."""
        return F.relu(x + self.body(x))


class Space(nn.Module):
    """The common space of one stage.

    Args:
        student: width of the student's features.
        teachers: widths of the teachers'.
        width: of the common space.
        blocks: residual blocks of the extractor; for vectors it is two linear layers.
        maps: whether features are maps [B, C, H, W], or else vectors [B, C].
    """

    def __init__(self, student: int, teachers: Sequence[int], width: int, blocks: int, *, maps: bool) -> None:
        super().__init__()
        layer = (lambda i, o: nn.Conv2d(i, o, 1)) if maps else nn.Linear
        self.align_student = nn.Sequential(layer(student, width), nn.ReLU())
        self.align_teachers = nn.ModuleList(nn.Sequential(layer(c, width), nn.ReLU()) for c in teachers)
        if maps:
            self.extractor = nn.Sequential(*(Residual(width) for _ in range(blocks)))
            first: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1) for _ in teachers]
        else:
            self.extractor = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            first = [nn.Linear(width, width) for _ in teachers]
        self.decoders = nn.ModuleList(
            nn.Sequential(begin, nn.ReLU(), layer(width, c)) for begin, c in zip(first, teachers, strict=True)
        )

    def forward(self, student: Tensor, teachers: Sequence[Tensor], sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The stage's L_M = Σ_t MMD(h_s, h_t) and L_R = Σ_t MSE(decode(h_t), f_t), scalars, float32.

        Args:
            student: its features on the common grid, [B, C, h, w] or [B, C].
            teachers: theirs, without gradient.
            sigmas: widths of the MMD's kernels.
        """
        h_student = self.extractor(self.align_student(student))
        h_teachers = [self.extractor(align(f)) for align, f in zip(self.align_teachers, teachers, strict=True)]
        rebuilt = [decode(h) for decode, h in zip(self.decoders, h_teachers, strict=True)]
        discrepancy = torch.stack([mmd(h_student, h, sigmas) for h in h_teachers]).sum()
        error = torch.stack([F.mse_loss(r.float(), f.float()) for r, f in zip(rebuilt, teachers, strict=True)]).sum()
        return discrepancy, error


class Output(NamedTuple):
    """What the learner gives for a batch: logits [B, K], and L_M and L_R, summed over stages."""

    logits: Tensor
    mmd: Tensor
    reconstruction: Tensor


class Learner(nn.Module):
    """The student with the common spaces, which are trained with it and left behind when it is done.

    Args:
        student: gives logits and features.
        spaces: one a stage.
        grids: on which the networks meet, one a stage.
        sigmas: widths of the MMD's kernels.
    """

    def __init__(self, student: nn.Module, spaces: Sequence[Space], grids: Sequence[Grid], sigmas: Sequence[float]):
        super().__init__()
        self.student, self.spaces, self.grids, self.sigmas = student, nn.ModuleList(spaces), grids, sigmas

    def forward(self, batch: tuple[Tensor, Sequence[Sequence[Tensor]]]) -> Output:
        """Logits and losses.

        Args:
            batch: the student's images [B, C, S, S], and each teacher's features on the common grids, by stage.
        """
        images, teachers = batch
        logits, features = self.student(images)
        losses = [
            space(meet(own, grid), [of_teacher[stage] for of_teacher in teachers], self.sigmas)
            for stage, (space, own, grid) in enumerate(zip(self.spaces, features, self.grids, strict=True))
        ]
        discrepancy, error = (torch.stack(parts).sum() for parts in zip(*losses, strict=True))
        return Output(logits, discrepancy, error)
