"""How weights move: the optimiser, its learning rate, and which weights stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from kt.errors import KtError, nearest
from kt.transfer.training import Training


def learning_rate(step: int, steps: int, training: Training) -> float:
    """The rate of a step, counted from 0, of ``steps``.

    It rises linearly over the share ``warm_up`` of the steps, is ``lr`` at the first step after them, and then follows
    the schedule: a cosine or a line to zero after the last step, a constant, or a factor every few epochs, as torch's
    ``StepLR``.
    """
    warm = round(training.warm_up * steps)
    if step < warm:
        return training.lr * (step + 1) / (warm + 1)
    done = (step - warm) / (steps - warm)
    if training.schedule == "constant":
        return training.lr
    if training.schedule == "step":
        epochs = (step - warm) * training.epochs // steps
        return training.lr * training.step_factor ** (epochs // training.step_epochs)
    return training.lr * (0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1 - done)


Rates = Sequence[tuple[nn.Module, float]]
"""Parts of a learner, and how many times the learning rate of the rest theirs is; of nested parts the first counts."""


def by_rate(learner: nn.Module, rates: Rates) -> list[tuple[list[nn.Parameter], float]]:
    """A learner's parameters in groups, with how many times the learning rate theirs is; the rest comes last."""
    groups, left = [], {id(parameter): parameter for parameter in learner.parameters()}
    for part, times in [*rates, (learner, 1.0)]:
        if own := [left.pop(id(parameter)) for parameter in part.parameters() if id(parameter) in left]:
            groups.append((own, times))
    return groups


def optimiser_of(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], training: Training
) -> torch.optim.Optimizer:
    """The optimiser that a training asks for, at its highest rate, of parameters or groups of them."""
    shared: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimiser == "sgd":
        return torch.optim.SGD(parameters, momentum=training.momentum, **shared)
    return (torch.optim.Adam if training.optimiser == "adam" else torch.optim.AdamW)(parameters, **shared)


@contextmanager
def frozen(learner: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Take the parameters that match a pattern out of training; a layer without any other is in eval mode too.

    A pattern may leave out what a learner puts in front of its student's names.

    Raises:
        KtError: a pattern matches no parameter.
    """
    named = dict(learner.named_parameters())
    chosen = []
    for pattern in patterns:
        matching = [p for name, p in named.items() if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matching:
            raise KtError(f"transfer.training.freeze: {pattern!r} matches no parameter{nearest(pattern, named)}")
        chosen += [p for p in matching if p.requires_grad]
    learner.train()
    for parameter in chosen:
        parameter.requires_grad_(False)
    still = {id(parameter) for parameter in chosen}
    for module in learner.modules():
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if own and still.issuperset(own):
            module.eval()
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)
