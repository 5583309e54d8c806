"""Training of zoo members on the zoo split: from random weights, or fitting given ones; resumable.

AdamW with decoupled weight decay and a one-cycle schedule. The loop knows nothing of files or images: it requests
batches. Killed at any step and resumed from its checkpoint, it gives bit-identical weights on the CPU. Linear probing
(``linear``) trains a classifier on the features of a model that stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint, random_state, set_random_state
from kt.costs import EVALUATED
from kt.data.clips import Videos
from kt.data.inputs import AUGMENTATIONS, as_clips, normalise, to_unit
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.tasks.segmentation import IGNORED
from kt.tasks.task import Array
from kt.zoo.features import classifiers, penultimate
from kt.zoo.inference import autocast, channels_last
from kt.zoo.spec import Recipe

WARM_UP = 0.2
"""Share of the steps in which the one-cycle learning rate rises."""

MOVES = ("shift", "erase", "flip")
"""Augmentations that move pixels or take them away; they do the same to masks."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of each example, float32 [b], from answers and truths [b, …]."""

Truths = Callable[[NDArray[np.int64]], Tensor]
"""Truths of the training examples at some positions, [b, …]."""

Drawn = Callable[[int], NDArray[np.int64]]
"""Positions of the examples that an epoch shows, int64 [n]."""

Batches = Callable[[NDArray[np.int64], torch.Generator], tuple[Tensor, Tensor]]
"""Inputs of a model for the training examples at some positions, and their truths; anything random comes from the
generator."""


def choose(labels: Array, recipe: Recipe, classes: int | None = None) -> NDArray[np.int64]:
    """Positions of the images that a recipe trains on, int64 [n], in increasing order.

    First ``recipe.images`` are drawn, then the share ``thin.keep`` of every thinned class is kept.

    Args:
        labels: of the zoo split, int64 [N]; anything [N, …] where no images are thinned out.
        recipe: which images it takes.
        classes: number of classes of a dense task, whose images all stay: ``masks`` thins out pixels.

    Raises:
        KtError: it requests more images than the zoo split has, thins a class that is not there, or leaves fewer than
            one batch.
    """
    generator = np.random.default_rng(recipe.seed)
    wanted = recipe.images or len(labels)
    if wanted > len(labels):
        raise KtError(f"train.images: {wanted} asked for, but the zoo split has {len(labels)} of the model's classes")
    chosen = np.sort(generator.permutation(len(labels))[:wanted])
    if recipe.thin and classes is not None:
        if absent := set(recipe.thin.classes) - set(range(classes)):
            raise KtError(f"train.thin.classes: no class {min(absent)}; the data set's classes are 0 to {classes - 1}")
    elif recipe.thin:
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


def in_memory(truth: Array, device: torch.device) -> Truths:
    """Truths [n, …] that are all on the device."""
    y = torch.from_numpy(np.array(truth)).to(device)
    return lambda positions: y[torch.from_numpy(positions).to(device)]


def masks(
    truth: NDArray[np.uint8], rows: NDArray[np.int64], recipe: Recipe, spec: InputSpec, device: torch.device
) -> Truths:
    """Masks at the size of a model's input, uint8 [b, height, width]; read on demand.

    Pixels of a thinned class have a truth in a drawn share ``thin.keep`` of the images, of the others none.

    Args:
        truth: of all images, uint8 [N, H, W], memory-mapped or in memory; the input shows whole images.
        rows: the training images, int64 [n].
        recipe: which classes are thinned out.
        spec: the model's input.
        device: of the masks.
    """
    hidden = _hidden(len(rows), recipe)

    def read(positions: NDArray[np.int64]) -> Tensor:
        found = np.array(truth[rows[positions]])
        for label, where in hidden.items():
            found[where[positions, None, None] & (found == label)] = IGNORED
        y = torch.from_numpy(found).to(device)
        return y if y.shape[1:] == spec.sides else F.interpolate(y[:, None], spec.sides, mode="nearest-exact")[:, 0]

    return read


def maps(truth: NDArray[np.uint8], rows: NDArray[np.int64], spec: InputSpec, device: torch.device) -> Truths:
    """Maps of numbers at the size of a model's input, float32 [b, 1, height, width] in [0, 1]; read on demand.

    Args:
        truth: of all images, uint8 [N, H, W], memory-mapped or in memory; the input shows whole images.
        rows: the training images, int64 [n].
        spec: the model's input.
        device: of the maps.
    """

    def read(positions: NDArray[np.int64]) -> Tensor:
        y = torch.from_numpy(np.array(truth[rows[positions]])).to(device)[:, None].float().div_(255)
        return y if y.shape[2:] == spec.sides else F.interpolate(y, spec.sides, mode="bilinear", antialias=True)

    return read


def _hidden(n: int, recipe: Recipe) -> dict[int, NDArray[np.bool_]]:
    """Whether each of n images lacks the truth of each thinned class, bool [n]."""
    generator = np.random.default_rng(recipe.seed)
    thin = recipe.thin
    return {int(label): generator.permutation(n) >= round(n * thin.keep) for label in thin.classes} if thin else {}


def batches(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    truths: Truths,
    augment: str,
    spec: InputSpec,
    device: torch.device,
    spatial: bool = False,
    videos: Videos | None = None,
) -> Batches:
    """Batches of augmented images as a model sees them, float32 [b, C, height, width], and truths; read on demand.

    All frames of a clip [b, C, T, height, width] change alike.

    Args:
        images: uint8 [N, H, W, C], memory-mapped or in memory.
        rows: the training images, int64 [n].
        truths: of these.
        augment: a name in ``AUGMENTATIONS``.
        spec: the model's input.
        device: of the batches.
        spatial: whether truths are masks or maps, which move with the images.
        videos: whose frames the images are, where the input is a clip.
    """
    change = AUGMENTATIONS[augment]

    def batch(positions: NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = rows[positions]
        shown = videos.clips(own, spec.clip).ravel() if videos and spec.clip else own
        x, y = to_unit(images[shown], spec, device), truths(positions)
        x = x.reshape(len(own), -1, *spec.sides)
        x, y = _moved(x, y, change, generator) if spatial and augment in MOVES else (change(x, generator), y)
        frames = normalise(x.reshape(len(shown), -1, *spec.sides), spec)
        return as_clips(frames, spec.clip.frames) if spec.clip else frames, y

    return batch


def _moved(x: Tensor, y: Tensor, change: Callable[..., Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and their truths changed together; where an image is black now, its truth is none, or 0 on a map.

    Args:
        x: images float32 [b, C, H, W].
        y: masks uint8 [b, H, W], or maps float32 [b, 1, H, W].
        change: an augmentation.
        generator: its source of anything random.
    """
    maps = y if y.is_floating_point() else (y + 1).to(x.dtype)[:, None]  # in bytes: no truth becomes 0, as black is
    both = change(torch.cat([x, maps], 1), generator)
    return both[:, :-1], both[:, -1:] if y.is_floating_point() else both[:, -1].to(torch.uint8) - 1


@dataclass
class _Run:
    """State that changes while a model trains, except torch's own random state."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    order: torch.Generator
    augmenting: torch.Generator
    total: Tensor
    epoch: int = 1
    step: int = 0
    epoch_order: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """State that a resumed training needs, as tensors and plain values."""
        device = self.total.device
        return {
            **{name: getattr(self, name).state_dict() for name in ("model", "optimiser", "schedule")},
            **{name: getattr(self, name).get_state() for name in ("order", "augmenting")},
            **{name: getattr(self, name) for name in ("total", "epoch", "step", "epoch_order")},
            **random_state(device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        for name in ("model", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("order", "augmenting"):
            getattr(self, name).set_state(state[name].cpu())
        for name in ("total", "epoch", "step", "epoch_order"):
            setattr(self, name, state[name])
        set_random_state(state, self.total.device)


def train(
    model: nn.Module,
    batch: Batches,
    n: int,
    loss: Loss,
    recipe: Recipe,
    device: torch.device,
    report: Callable[[int, float], None],
    checkpoint: Checkpoint | None = None,
    only: Sequence[nn.Module] = (),
    drawn: Drawn | None = None,
) -> nn.Module:
    """Train ``model`` in place and return it in eval mode.

    Args:
        model: whose answers have the shape that the loss takes.
        batch: examples by their position.
        n: number of examples.
        loss: of the task.
        recipe: epochs, learning rate, seed.
        device: where to train.
        report: called after each epoch with the epoch, counted from 1, and its mean loss.
        checkpoint: where progress is kept, the end too; its state, if any, is where training starts.
        only: parts of the model that learn, while all others stay in eval mode; the whole model if empty.
        drawn: where an example stands for several, as a video for its frames, which one an epoch shows of each.

    Raises:
        KtError: the loss is not finite.
        Interrupted: the training was asked to stop; its state is saved.
    """
    size, steps = recipe.batch_size, n // recipe.batch_size
    model = channels_last(model.to(device)).train(not only)
    if only:
        model.requires_grad_(False)
    for part in only:
        part.requires_grad_(True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, recipe.lr, weight_decay=recipe.weight_decay)
    run = _Run(
        model,
        optimiser,
        torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.epochs * steps, pct_start=WARM_UP),
        torch.Generator().manual_seed(recipe.seed),
        torch.Generator(device).manual_seed(recipe.seed),
        torch.zeros((), device=device),
    )
    if checkpoint and (state := checkpoint.load(device)):
        run.restore(state)
    while run.epoch <= recipe.epochs:
        if run.epoch_order is None:
            run.epoch_order = torch.randperm(n, generator=run.order)
            if drawn:
                run.epoch_order = torch.from_numpy(drawn(run.epoch))[run.epoch_order]
        while run.step < steps:
            chosen = run.epoch_order[run.step * size : (run.step + 1) * size].cpu()
            x, y = batch(chosen.numpy(), run.augmenting)
            with autocast(device):
                answer = model(x)
            mean = loss(answer.float(), y).mean()
            torch.autograd.backward(mean)
            optimiser.step()
            run.schedule.step()
            optimiser.zero_grad()
            run.total += mean.detach()
            run.step += 1
            if checkpoint and checkpoint.due():
                checkpoint.save(run.state())
        _end_epoch(run, steps, recipe, report)
    if checkpoint:
        checkpoint.save(run.state())
    return model.requires_grad_(True).eval()


def _end_epoch(run: _Run, steps: int, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    if not torch.isfinite(run.total):
        raise KtError(f"training diverged in epoch {run.epoch}: the loss is not finite; lower train.lr ({recipe.lr})")
    report(run.epoch, float(run.total) / steps)
    run.total.zero_()
    run.epoch, run.step, run.epoch_order = run.epoch + 1, 0, None


def linear(
    model: nn.Module,
    batch: Batches,
    n: int,
    loss: Loss,
    recipe: Recipe,
    device: torch.device,
    report: Callable[[int, float], None],
    checkpoint: Checkpoint | None = None,
    drawn: Drawn | None = None,
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
    if recipe.augment == "none" and len(heads) == 1 and not drawn and _is_last(model, heads[0], batch, device):
        features, truth = _features(model, batch, n, device)

        def kept(positions: NDArray[np.int64], _: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = torch.from_numpy(positions).to(device)
            return features[chosen], truth[chosen]

        train(heads[0], kept, n, loss, recipe, device, report, checkpoint)
    else:
        train(model, batch, n, loss, recipe, device, report, checkpoint, heads, drawn)
    return model.eval()


def _is_last(model: nn.Module, head: nn.Module, batch: Batches, device: torch.device) -> bool:
    """Whether the head is a linear layer that turns the model's pooled features into its logits."""
    if not isinstance(head, nn.Linear) or not hasattr(model, "forward_head"):
        return False
    with torch.inference_mode():
        x, _ = batch(np.arange(1), torch.Generator(device))
        features = penultimate(model, x)
        return (
            features.ndim == 2
            and features.shape[1] == head.in_features
            and torch.allclose(head(features), model(x), rtol=1e-3, atol=1e-3)
        )


def _features(model: nn.Module, batch: Batches, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features float32 [n, F] of all examples, and their truths."""
    generator = torch.Generator(device)  # without augmentation nothing is drawn from it
    features, truths = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        for start in range(0, n, EVALUATED):
            x, y = batch(np.arange(start, min(start + EVALUATED, n)), generator)
            with autocast(device):
                features.append(penultimate(model, x).float())
            truths.append(y)
    return torch.cat(features), torch.cat(truths)
