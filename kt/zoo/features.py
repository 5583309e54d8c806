"""Classifier and features of a model: the one place that finds them, for linear probing, predictions and transfer.

timm's models name their classifier (``get_classifier``) and run in two halves (``forward_features``, ``forward_head``).
A model in training is tapped at the input of its classifier instead, which works for any model that has a linear one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kt.errors import KtError


def classifiers(model: nn.Module) -> list[nn.Module]:
    """Layers that turn features into answers, as timm's models name them; distilled models have two."""
    ask = getattr(model, "get_classifier", None)
    found = ask() if ask else None
    return [head for head in (found if isinstance(found, tuple | list) else [found]) if isinstance(head, nn.Module)]


def classifier(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer that turns penultimate features into logits: timm's classifier, or else the last linear layer.

    Raises:
        KtError: the model has neither.
    """
    named = classifiers(model)
    if len(named) == 1 and isinstance(named[0], nn.Linear | nn.Conv2d):
        return named[0]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise KtError(f"{type(model).__name__} has no linear classifier, so no penultimate features")
    return linear[-1]


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """Penultimate features of a timm model, [B, D]: ``forward_head(…, pre_logits=True)``; few models give more axes.

    Raises:
        KtError: the model has no such features.
    """
    return _halves(model, x)[1]


def answer_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a timm model and its penultimate features [B, D], by one forward pass.

    Raises:
        KtError: the model has no such features.
    """
    hidden, features = _halves(model, x)
    timm_model: Any = model
    return timm_model.forward_head(hidden), features.flatten(1)


def _halves(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a timm model's first half, and the penultimate features that its second half makes of it."""
    for part in ("forward_features", "forward_head"):
        if not hasattr(model, part):
            raise KtError(f"{type(model).__name__} has no {part}, so no penultimate features")
    timm_model: Any = model
    hidden = timm_model.forward_features(x)
    return hidden, timm_model.forward_head(hidden, pre_logits=True)


class Featured(nn.Module):
    """A model that also gives its penultimate features: the input of its classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """Number of features."""
        layer = classifier(self.model)
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and features [B, D]."""
        caught: list[Tensor] = []
        handle = classifier(self.model).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        return logits, caught[-1].flatten(1)


class Pooled(Featured):
    """A model that also gives its penultimate features, as the only one of its stages."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        """Logits [B, K], and a list of the features [B, D]."""
        logits, features = super().forward(x)
        return logits, [features]


class Staged(nn.Module):
    """A model that also gives feature maps; tokens become maps, without class and other extra tokens.

    Args:
        model: a timm model.
        stages: of the model, counted from 0, in increasing order; all where None.
    """

    def __init__(self, model: nn.Module, stages: list[int] | None) -> None:
        super().__init__()
        self.model, self.stages = model, stages

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, K], and a map [B, C, H, W] per stage."""
        timm_model: Any = self.model
        final, maps = timm_model.forward_intermediates(x, indices=self.stages, output_fmt="NCHW")
        return timm_model.forward_head(final), maps


def with_features(model: nn.Module, variant: str, stages: Sequence[int], shape: tuple[int, ...]) -> nn.Module:
    """The model as one that gives logits and features of its stages.

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
    count = len(feature_shapes(Staged(model, None), shape))
    if wrong := [stage for stage in stages if not -count <= stage < count]:
        raise KtError(f"{name} has no feature stage {wrong[0]}; allowed: 0 to {count - 1}, or −{count} to −1")
    chosen = sorted({stage % count for stage in stages})
    if len(chosen) < len(stages):
        raise KtError(f"{name} has {count} feature stages; {list(stages)} names one of them twice")
    staged = Staged(model, chosen)
    if flat := [shape for shape in feature_shapes(staged, shape) if len(shape) != 3]:
        raise KtError(f"{name} gives features of shape {list(flat[0])}, no map; `variant: vector` takes any")
    return staged


def feature_shapes(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a model's features of one image, stage by stage; the model's mode and statistics are left.

    Args:
        model: as ``with_features`` gives it.
        shape: channels, height and width of its images.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        found = model(torch.zeros(1, *shape, device=device))[1]
    model.train(training)
    return [tuple(features.shape[1:]) for features in found]
