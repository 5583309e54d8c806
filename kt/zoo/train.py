"""Train a zoo member without weights on the zoo split: AdamW, one-cycle schedule, cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from kt.data.spec import InputSpec
from kt.data.views import AUGMENTATIONS, normalise, to_unit
from kt.errors import KtError
from kt.zoo.spec import Recipe

WARM_UP = 0.2
"""Share of the steps in which the one-cycle learning rate rises."""


def choose(labels: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Positions of the images that a recipe trains on, int64 [n], in increasing order.

    First ``recipe.images`` are drawn, then the share ``thin.keep`` of every thinned class is kept.

    Args:
        labels: classes of the zoo split, int64 [N].
        recipe: which images it takes.

    Raises:
        KtError: it asks for more images than the zoo split has, thins a class that is not there, or leaves fewer than
            one batch.
    """
    generator = np.random.default_rng(recipe.seed)
    wanted = recipe.images or len(labels)
    if wanted > len(labels):
        raise KtError(f"train.images: {wanted} asked for, but the zoo split has {len(labels)}")
    chosen = np.sort(generator.permutation(len(labels))[:wanted])
    if recipe.thin:
        if absent := set(recipe.thin.classes) - set(labels.tolist()):
            raise KtError(
                f"train.thin.classes: no class {min(absent)} in the zoo split; its classes end at {labels.max()}"
            )
        thinned = np.isin(labels[chosen], recipe.thin.classes)
        keep = ~thinned
        for c in recipe.thin.classes:
            of_class = np.flatnonzero(labels[chosen] == c)
            keep[of_class[: round(len(of_class) * recipe.thin.keep)]] = True
        chosen = chosen[keep]
    if len(chosen) < recipe.batch_size:
        raise KtError(f"train: {len(chosen)} images are left, fewer than one batch of {recipe.batch_size}")
    return chosen


def train(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    recipe: Recipe,
    spec: InputSpec,
    device: torch.device,
    report: Callable[[int, float], None],
) -> nn.Module:
    """Train ``model`` in place and return it in eval mode.

    Args:
        model: a freshly built classifier with one output a class.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        recipe: epochs, learning rate, augmentation, seed.
        spec: the model's input.
        device: where to train.
        report: called after each epoch with the epoch, counted from 1, and its mean loss.

    Raises:
        KtError: the loss is not finite.
    """
    order = torch.Generator().manual_seed(recipe.seed)
    augmenting = torch.Generator(device).manual_seed(recipe.seed)
    augment = AUGMENTATIONS[recipe.augment]
    steps = len(labels) // recipe.batch_size
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=recipe.epochs * steps, pct_start=WARM_UP
    )
    y = torch.from_numpy(labels).to(device)
    for epoch in range(1, recipe.epochs + 1):
        total = torch.zeros((), device=device)
        batches = torch.randperm(len(labels), generator=order)[: steps * recipe.batch_size].view(steps, -1)
        for batch in batches:
            x = normalise(augment(to_unit(images[batch.numpy()], spec, device), augmenting), spec)
            loss = F.cross_entropy(model(x).float(), y[batch.to(device)])
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            total += loss.detach()
        if not torch.isfinite(total):
            raise KtError(f"training diverged in epoch {epoch}: the loss is not finite; lower train.lr ({recipe.lr})")
        report(epoch, float(total) / steps)
    return model.eval()
