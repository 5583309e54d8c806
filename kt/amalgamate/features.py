"""Features of any timm model at chosen stages, as maps or as one vector an image, beside its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt.errors import KtError
from kt.zoo.features import Featured

Grid = tuple[int, int]


class Staged(nn.Module):
    """A classifier that also gives feature maps; tokens become maps, without class and other extra tokens.

    Args:
        model: a timm model.
        stages: of the model, counted from 0, in increasing order; all where None.
    """

    def __init__(self, model: nn.Module, stages: list[int] | None) -> None:
        super().__init__()
        self.model, self.stages = model, stages

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, K], and for each stage a map [B, C, H, W]."""
        timm_model: Any = self.model
        final, maps = timm_model.forward_intermediates(x, indices=self.stages, output_fmt="NCHW")
        return timm_model.forward_head(final), maps


class Pooled(Featured):
    """A classifier that also gives its penultimate features, as the only one of its stages."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        """Logits [B, K], and a list of the features [B, D]."""
        logits, features = super().forward(x)
        return logits, [features]


def with_features(model: nn.Module, variant: str, stages: Sequence[int], shape: tuple[int, ...]) -> nn.Module:
    """The model as one that gives logits and features.

    Args:
        model: a timm model.
        variant: `map` or `vector`.
        stages: of a map; the order does not matter.
        shape: channels, height and width of its images.

    Raises:
        KtError: the model has no feature stages, or not these, or no maps there.
    """
    name = type(model).__name__
    if variant == "vector":
        return Pooled(model)
    if not hasattr(model, "forward_intermediates"):
        raise KtError(f"{name} has no feature stages (timm's forward_intermediates); `variant: vector` needs none")
    count = len(features_of(Staged(model, None), shape))
    if wrong := [stage for stage in stages if not -count <= stage < count]:
        raise KtError(f"{name} has no feature stage {wrong[0]}; allowed: 0 to {count - 1}, or −{count} to −1")
    chosen = sorted({stage % count for stage in stages})
    if len(chosen) < len(stages):
        raise KtError(f"{name} has {count} feature stages; {list(stages)} names one of them twice")
    staged = Staged(model, chosen)
    if flat := [shape for shape in features_of(staged, shape) if len(shape) != 3]:
        raise KtError(f"{name} gives features of shape {list(flat[0])}, no map; `variant: vector` takes any")
    return staged


def features_of(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a model's features of one image, stage by stage; the model's mode and statistics are left."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        found = model(torch.zeros(1, *shape, device=device))[1]
    model.train(training)
    return [tuple(features.shape[1:]) for features in found]


def common_grids(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[Grid]:
    """For each stage the height and width on which the networks meet: the smallest of theirs; (1, 1) for vectors.

    Args:
        shapes: of each network's features, stage by stage: (C, H, W), or (C,).
    """
    sides = [[(*shape, 1, 1)[1:3] for shape in of_stage] for of_stage in zip(*shapes, strict=True)]
    return [(min(height for height, _ in of_stage), min(width for _, width in of_stage)) for of_stage in sides]


def meet(features: Tensor, grid: Grid) -> Tensor:
    """A map [B, C, H, W] averaged to a grid that is no larger, [B, C, h, w]; vectors [B, C] stay as they are."""
    return features if features.ndim == 2 or features.shape[2:] == grid else F.adaptive_avg_pool2d(features, grid)
