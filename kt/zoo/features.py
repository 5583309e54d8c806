"""Classifier and features of a model: the one place that finds them, for linear probing, predictions and transfer.

timm's models name their classifier (``get_classifier``) and run in two halves (``forward_features``, ``forward_head``).
A model in training is tapped at the input of its classifier instead, which works for any model that has a linear one.
"""

from __future__ import annotations

from typing import Any

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
