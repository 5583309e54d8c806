"""The one training loop of all transfer methods.

Targets are merged before it starts, so a step is one forward and one backward pass of the student. The loop knows
nothing of papers, files or tables. Interrupted at any step and resumed from its checkpoint, it gives bit-identical
results on the CPU: the order of images depends on seed and epoch alone, the learning rate on the step alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.views import Inputs
from kt.transfer.spec import Training
from kt.zoo.inference import autocast


class Diverged(Exception):
    """The training loss is not finite."""


@dataclass(frozen=True)
class History:
    """What a training leaves beside the student's weights.

    Attributes:
        loss: mean training loss of each epoch.
        validation: validation accuracy after each epoch, percent.
        steps: optimiser steps taken.
        best_epoch: first epoch with the highest validation accuracy, counted from 1.
        best: the student's weights after that epoch.
    """

    loss: list[float]
    validation: list[float]
    steps: int
    best_epoch: int
    best: dict[str, Tensor]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Cosine from ``peak`` at step 0 to zero after the last of ``steps``."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of ``n`` images in an epoch, int64 [n]; the same for all methods and teachers of a seed."""
    # torch's CPU generator takes 32 bits of a seed, too few for both numbers
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def train(
    student: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    validate: Callable[[nn.Module], float],
    training: Training,
    seed: int,
    checkpoint: Checkpoint,
) -> History:
    """Train ``student`` in place; it ends with the weights of the last epoch.

    Args:
        student: on the inputs' device, with the weights to start from.
        inputs: the n transfer images.
        targets: merged target logits, [n, C], on the same device.
        labels: int64 [n], on the same device.
        loss: of each sample, from logits [B, C], targets [B, C] and labels [B] to [B].
        validate: validation accuracy of the student, percent; may not touch random state.
        training: epochs, batch size, learning rate.
        seed: of the order of images and of anything random in the student.
        checkpoint: where progress is kept; its state, if any, is where training starts.

    Raises:
        Diverged: the loss of an epoch is not finite.
    """
    device, batch = inputs.device, training.batch_size
    per_epoch = len(inputs) // batch
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(student.parameters(), training.lr, weight_decay=training.weight_decay, fused=True)
    optimiser.zero_grad()  # a training that failed in its backward pass leaves gradients behind
    progress = _Progress(torch.zeros((), device=device))
    if state := checkpoint.load(device):
        _restore(state, student, optimiser, progress)
    student.train()
    for epoch in range(progress.epoch, training.epochs):
        order = epoch_order(len(inputs), seed, epoch)
        for step in range(progress.step, per_epoch):
            rate = learning_rate(epoch * per_epoch + step, training.epochs * per_epoch, training.lr)
            for group in optimiser.param_groups:
                group["lr"] = rate
            positions = order[step * batch : (step + 1) * batch]
            on_device = positions.to(device)
            with autocast(device):
                logits = student(inputs[positions.numpy()])
            mean = loss(logits, targets[on_device], labels[on_device]).mean()
            torch.autograd.backward(mean)
            optimiser.step()
            optimiser.zero_grad()
            progress.total += mean.detach()
            if checkpoint.due():
                progress.epoch, progress.step = epoch, step + 1
                checkpoint.save(_state(student, optimiser, progress, device))
        progress.step = 0
        _end_epoch(student, progress, per_epoch, validate)
    return History(progress.loss, progress.validation, training.epochs * per_epoch, progress.best_epoch, progress.best)


@dataclass
class _Progress:
    """How far a training has come; ``total`` is the running sum of the epoch's losses."""

    total: Tensor
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0

    def __post_init__(self) -> None:
        self.loss: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] = {}


def _end_epoch(student: nn.Module, progress: _Progress, steps: int, validate: Callable[[nn.Module], float]) -> None:
    mean = float(progress.total) / steps
    if not math.isfinite(mean):
        raise Diverged(f"the loss is not finite in epoch {len(progress.loss) + 1}")
    progress.loss.append(mean)
    progress.total.zero_()
    accuracy = validate(student)
    if not progress.validation or accuracy > max(progress.validation):
        progress.best_epoch = len(progress.loss)
        progress.best = copy.deepcopy(student.state_dict())
    progress.validation.append(accuracy)


def _state(
    student: nn.Module, optimiser: torch.optim.Optimizer, progress: _Progress, device: torch.device
) -> dict[str, Any]:
    return {
        "student": student.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress),
        "random": torch.get_rng_state(),
        "random_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _restore(state: dict[str, Any], student: nn.Module, optimiser: torch.optim.Optimizer, progress: _Progress) -> None:
    student.load_state_dict(state["student"])
    optimiser.load_state_dict(state["optimiser"])
    vars(progress).update(state["progress"])
    torch.set_rng_state(state["random"].cpu())
    if state["random_device"] is not None:
        torch.cuda.set_rng_state(state["random_device"].cpu())
