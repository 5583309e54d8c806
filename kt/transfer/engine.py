"""The one training loop of all transfer methods.

Answers of teachers and frozen student are cached, so a step is one forward and one backward pass of the learner: the
student, as a rule. The loop knows nothing of papers, files or tables. Interrupted at any step and resumed from its
checkpoint, it gives bit-identical results on the CPU: the order of images depends on seed and epoch alone, the learning
rate on the step alone, and everything random on a state that the checkpoint holds.

A batch that does not fit in memory is cut into parts whose gradients add up: images, order, steps, and the mean of the
losses over the batch stay the same. What changes is BatchNorm, which normalises each part by its own statistics, and
the stream of random numbers. A loss that compares the images of its batch still sees all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint, random_state, set_random_state
from kt.errors import KtError, nearest
from kt.transfer.batch import Batch, Examples, forward
from kt.transfer.training import SlowWeights, Training
from kt.zoo.inference import autocast

State = dict[str, Tensor]


class Diverged(Exception):
    """The training loss, or a weight, is not finite."""


class Images(Protocol):
    """The transfer images as the learner sees them, by position."""

    device: torch.device

    def __len__(self) -> int: ...

    def __getitem__(self, positions: NDArray[np.int64], /) -> Any: ...


@dataclass(frozen=True)
class History:
    """Outcome of a training beside the learner's last weights.

    Attributes:
        loss: mean training loss of each epoch.
        validation: the metric on validation after each epoch.
        steps: optimiser steps taken.
        best_epoch: first epoch with the highest of these, counted from 1.
        best: the learner's weights after that epoch.
        pieces: number of parts that a batch was cut into.
    """

    loss: list[float]
    validation: list[float]
    steps: int
    best_epoch: int
    best: State
    pieces: int = 1


def weights_of(learner: nn.Module) -> State:
    """A copy of a learner's weights and statistics, by name."""
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Order of ``n`` images in an epoch, int64 [n]; the same for all methods and teachers of a seed."""
    # torch's CPU generator takes 32 bits of a seed, too few for both numbers
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


class Shown(NamedTuple):
    """Which of the images an epoch shows.

    Attributes:
        n: how many.
        drawn: their positions, int64 [n], by seed and epoch.
    """

    n: int
    drawn: Callable[[int, int], NDArray[np.int64]]

    @classmethod
    def views(cls, images: int, views: int = 1) -> Shown:
        """Of so many images, which are views of images / views, view after view: one view of each, in turn."""
        n = images // views
        return cls(n, lambda _, epoch: np.arange(n) + n * (epoch % views))

    def order(self, seed: int, epoch: int) -> Tensor:
        """Positions of the images in the order in which an epoch shows them, int64 [n]."""
        return torch.from_numpy(self.drawn(seed, epoch))[epoch_order(self.n, seed, epoch)]


def train(
    learner: nn.Module,
    images: Images,
    examples: Examples,
    loss: Callable[[Any, Batch], Tensor],
    validate: Callable[[nn.Module], float],
    training: Training,
    seed: int,
    checkpoint: Checkpoint,
    slow: SlowWeights | None = None,
    pieces: int = 1,
    shown: Shown | None = None,
    whole: bool = False,
    rates: Rates = (),
) -> History:
    """Train ``learner`` in place; it ends with the weights of the last epoch, or with the slow ones, if any.

    Args:
        learner: on the images' device, with the weights to start from.
        images: the n transfer images.
        examples: their truths and cached answers, for batches on the same device.
        loss: of each image, [B], from the learner's output for a batch, and the batch.
        validate: the metric on validation; may not touch random state or the learner's mode.
        training: epochs, batch size, optimiser, schedule.
        seed: of the order of images and of anything random in the learner.
        checkpoint: where progress is kept; its state, if any, is where training starts.
        slow: weights that follow the learner's; validation, the best and the last weights are then theirs.
        pieces: cut every batch into so many parts, to save memory; a checkpoint with more of them goes on with those.
        shown: which images an epoch shows; all where None.
        whole: ``loss`` compares the images of its batch, so that it needs all parts at once.
        rates: parts of the learner that move faster or slower than the rest.

    Raises:
        Diverged: the loss of an epoch, or a weight after it, is not finite.
        KtError: a pattern in ``training.freeze`` or ``training.rates`` matches nothing.
    """
    device, batch = images.device, training.batch_size
    shown = shown or Shown.views(len(images))
    per_epoch = shown.n // batch
    torch.manual_seed(seed)
    patterned = [(matching(learner, pattern, "rates"), times) for pattern, times in training.rates]
    groups = by_rate(learner, [*rates, *patterned])
    optimiser = optimiser_of([{"params": parameters} for parameters, _ in groups], training)
    optimiser.zero_grad()  # a training that failed in its backward pass leaves gradients behind
    progress = Progress(torch.zeros((), device=device), pieces)
    if slow:
        progress.slow = weights_of(learner)
    if (state := checkpoint.load(device)) and state["progress"]["pieces"] >= pieces:
        restore(state, learner, optimiser, progress)
    with frozen(learner, training.freeze):
        for epoch in range(progress.epoch, training.epochs):
            order = shown.order(seed, epoch)
            for step in range(progress.step, per_epoch):
                done = epoch * per_epoch + step
                rate = learning_rate(done, training.epochs * per_epoch, training)
                for group, (_, times) in zip(optimiser.param_groups, groups, strict=True):
                    group["lr"] = times * rate
                parts = order[step * batch : (step + 1) * batch].tensor_split(progress.pieces)
                for together in [parts] if whole else [(part,) for part in parts]:
                    positions = torch.cat(together)
                    with autocast(device):
                        output = forward(learner, [images[part.numpy()] for part in together])
                    mean = loss(output, examples.at(positions)).mean() * (len(positions) / batch)
                    torch.autograd.backward(mean)
                    progress.total += mean.detach()
                if training.clip:
                    nn.utils.clip_grad_norm_(learner.parameters(), training.clip)
                optimiser.step()
                optimiser.zero_grad()
                if slow and (stays := slow.stays(done, step)) is not None:
                    _follow(progress.slow, learner.state_dict(), stays)
                if checkpoint.due():
                    progress.epoch, progress.step = epoch, step + 1
                    checkpoint.save(state_of(learner, optimiser, progress, device))
            progress.step = 0
            end_epoch(learner, progress, per_epoch, validate, bool(slow and slow.overwrites))
    if slow:
        learner.load_state_dict(progress.slow)
    steps = training.epochs * per_epoch
    return History(progress.loss, progress.validation, steps, progress.best_epoch, progress.best, progress.pieces)


def _follow(slow: State, fast: State, tau: float) -> None:
    """Slow ← tau · slow + (1 − tau) · fast, in place; whole numbers are copied."""
    for name, tensor in slow.items():
        if tensor.is_floating_point():
            tensor.lerp_(fast[name], 1 - tau)
        else:
            tensor.copy_(fast[name])


@dataclass
class Progress:
    """Progress of a training; ``total`` is the running sum of the epoch's losses."""

    total: Tensor
    pieces: int
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0

    def __post_init__(self) -> None:
        self.loss: list[float] = []
        self.validation: list[float] = []
        self.best: State = {}
        self.slow: State = {}


@contextmanager
def _holding(learner: nn.Module, weights: State, overwrites: bool) -> Iterator[None]:
    """Put other weights, where there are any, into the learner for a while, or for good."""
    if not weights:
        yield
        return
    own = weights_of(learner)
    learner.load_state_dict(weights)
    yield
    if not overwrites:
        learner.load_state_dict(own)


def end_epoch(
    learner: nn.Module, progress: Progress, steps: int, validate: Callable[[nn.Module], float], overwrites: bool
) -> None:
    """Note the epoch's loss and validation, and the weights where it is the best.

    Args:
        learner: after the epoch.
        progress: of the training.
        steps: of the epoch.
        validate: the metric on validation.
        overwrites: the fast weights go on from the slow ones, where there are any.

    Raises:
        Diverged: the loss, or a weight, is not finite.
    """
    mean, epoch = float(progress.total) / steps, len(progress.loss) + 1
    if not math.isfinite(mean):
        raise Diverged(f"the loss is not finite in epoch {epoch}")
    if not nn.utils.get_total_norm(learner.parameters(), math.inf).isfinite():
        raise Diverged(f"a weight is not finite after epoch {epoch}")
    with _holding(learner, progress.slow, overwrites):
        accuracy = validate(learner)
        if not progress.validation or accuracy > max(progress.validation):
            progress.best_epoch = epoch
            progress.best = weights_of(learner)
    progress.loss.append(mean)
    progress.total.zero_()
    progress.validation.append(accuracy)


def state_of(
    learner: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, device: torch.device
) -> dict[str, Any]:
    """All that a training goes on from, for a checkpoint."""
    return {
        "learner": learner.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress),
        **random_state(device),
    }


def restore(state: dict[str, Any], learner: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Go back to such a state."""
    learner.load_state_dict(state["learner"])
    optimiser.load_state_dict(state["optimiser"])
    vars(progress).update(state["progress"])
    set_random_state(state, progress.total.device)


def learning_rate(step: int, steps: int, training: Training) -> float:
    """The rate of a step, counted from 0, of ``steps``.

    It rises linearly over the share ``warm_up`` of the steps, is ``lr`` at the first step after them, and then follows
    the schedule: a cosine, a line or a power of it to zero after the last step, a constant, or a factor every few
    epochs, as torch's ``StepLR``.
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
    if training.schedule == "poly":
        return training.lr * float((1 - done) ** training.power)
    return training.lr * (0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1 - done)


Rates = Sequence[tuple[nn.Module | Sequence[nn.Parameter], float]]
"""Parts of a learner, and how many times the learning rate of the rest theirs is; of nested parts the first counts."""


def by_rate(learner: nn.Module, rates: Rates) -> list[tuple[list[nn.Parameter], float]]:
    """A learner's parameters in groups, with how many times the learning rate theirs is; the rest comes last."""
    groups, left = [], {id(parameter): parameter for parameter in learner.parameters()}
    for part, times in [*rates, (learner, 1.0)]:
        parameters = part.parameters() if isinstance(part, nn.Module) else part
        if own := [left.pop(id(parameter)) for parameter in parameters if id(parameter) in left]:
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


def matching(learner: nn.Module, pattern: str, key: str) -> list[nn.Parameter]:
    """The parameters that match a pattern, which may leave out what a learner puts in front of its student's names.

    Raises:
        KtError: there is none; ``key`` of the training names the pattern.
    """
    named = dict(learner.named_parameters())
    found = [p for name, p in named.items() if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
    if not found:
        raise KtError(f"transfer.training.{key}: {pattern!r} matches no parameter{nearest(pattern, named)}")
    return found


@contextmanager
def frozen(learner: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Take the parameters that match a pattern out of training; a layer without any other is in eval mode too.

    Raises:
        KtError: a pattern matches no parameter.
    """
    chosen = [p for pattern in patterns for p in matching(learner, pattern, "freeze") if p.requires_grad]
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
