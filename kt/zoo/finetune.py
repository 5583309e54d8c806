"""Linear probing: a classifier on the features of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.costs import EVALUATED
from kt.errors import KtError
from kt.zoo.features import classifiers, penultimate
from kt.zoo.inference import autocast
from kt.zoo.spec import Recipe
from kt.zoo.train import Batches, train


def linear(
    model: nn.Module,
    batch: Batches,
    labels: NDArray[np.int64],
    recipe: Recipe,
    device: torch.device,
    report: Callable[[int, float], None],
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train the classifier of ``model`` in place and return the model in eval mode.

    Without augmentation, and where the classifier is one linear layer on the pooled features, the features are computed
    once (float32 [n, F] in memory) and an epoch costs next to nothing; else every epoch runs the whole model. Both ways
    train the same classifier. Arguments and errors are those of ``kt.zoo.train.train``.

    Raises:
        KtError: the model does not say which part is its classifier.
    """
    heads = classifiers(model)
    if not any(True for head in heads for _ in head.parameters()):
        raise KtError(f"{type(model).__name__} has no get_classifier() with weights, which `mode: linear` trains")
    model = model.to(device).eval()
    if recipe.augment == "none" and len(heads) == 1 and _is_last(model, heads[0], batch, device):
        features = _features(model, batch, len(labels), device)

        def kept(positions: NDArray[np.int64], _: torch.Generator) -> Tensor:
            return features[torch.from_numpy(positions).to(device)]

        train(heads[0], kept, labels, recipe, device, report, checkpoint)
    else:
        train(model, batch, labels, recipe, device, report, checkpoint, only=heads)
    return model.eval()


def _is_last(model: nn.Module, head: nn.Module, batch: Batches, device: torch.device) -> bool:
    """Whether the head is a linear layer that turns the model's pooled features into its logits."""
    if not isinstance(head, nn.Linear) or not hasattr(model, "forward_head"):
        return False
    with torch.inference_mode():
        x = batch(np.arange(1), torch.Generator(device))
        features = penultimate(model, x)
        return (
            features.ndim == 2
            and features.shape[1] == head.in_features
            and torch.allclose(head(features), model(x), rtol=1e-3, atol=1e-3)
        )


def _features(model: nn.Module, batch: Batches, n: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device)  # without augmentation nothing is drawn from it
    with torch.no_grad(), autocast(device):
        parts = [
            penultimate(model, batch(np.arange(i, min(i + EVALUATED, n)), generator)).float()
            for i in range(0, n, EVALUATED)
        ]
    return torch.cat(parts)
