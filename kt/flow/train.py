"""One training with knowledge flow, of any student and teachers on any images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.flow.network import Flow
from kt.flow.network import inlets as pair_up
from kt.flow.stages import Stage
from kt.transfer import engine
from kt.transfer.engine import History
from kt.transfer.learners import Views
from kt.transfer.samples import Samples
from kt.transfer.training import Training


def attach(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    takes: Sequence[Stage],
    gives: Sequence[Sequence[Stage]],
    classes: int,
    images: int,
    training: Training,
    every: bool,
    alone: float,
    rate: float,
    views: int = 1,
) -> Flow:
    """The student with its teachers attached, before training.

    Args:
        student: on its device.
        teachers: on the same device.
        takes: the student's stages that take something.
        gives: of each teacher the stages that may give something.
        classes: outputs of the student.
        images: transfer images.
        training: epochs and batch size.
        every: whether all stages of a teacher are candidates, or the one of nearest depth.
        alone: share of the training, at its end, in which the student is on its own.
        rate: how much faster the free scalars move.
        views: of every image.
    """
    steps, batch = images // training.batch_size, training.batch_size
    chosen = pair_up(takes, gives, every)
    return Flow(student, teachers, chosen, images * views, classes, training.epochs, steps, batch, 1 - alone, rate)


def train(
    network: Flow,
    views: Sequence[Inputs],
    labels: NDArray[np.int64],
    validate: Callable[[nn.Module], float],
    attached: Callable[[], float],
    training: Training,
    seed: int,
    checkpoint: Checkpoint,
    dependency: float,
    stability: float,
    shown: int = 1,
    pieces: int = 1,
) -> History:
    """Train the student in place, with its teachers attached; their weights over time are in the network's ``trace``.

    Args:
        network: the student with its teachers.
        views: the n transfer images as the student sees them, and as each teacher does.
        labels: int64 [n].
        validate: validation accuracy of the student by itself, percent.
        attached: that of the student with its teachers, as it is; asked for while they have a say.
        training: epochs, batch size, optimiser, schedule.
        seed: of the order of images and of anything random in the student.
        checkpoint: where progress is kept.
        dependency: λ1 at its largest.
        stability: λ2.
        shown: views of every image, of which an epoch shows one; the n images are view after view.
        pieces: cut every batch into so many, to save memory.

    Raises:
        Diverged: the loss of an epoch, or a weight after it, is not finite.
    """
    device = views[0].device
    y = torch.from_numpy(labels).to(device)
    known = Samples(
        torch.empty(len(y), 0, device=device), y, torch.ones_like(y).bool(), torch.arange(len(y), device=device)
    )

    def loss(logits: Tensor, batch: Samples) -> Tensor:
        return network.loss(logits, batch.truth, batch.positions, dependency, stability)

    def alone(_: nn.Module) -> float:
        accuracy = validate(network.student)
        network.record(attached() if network.open else accuracy)
        return accuracy

    return engine.train(
        network, Views(views), known, loss, alone, training, seed, checkpoint, pieces=pieces, views=shown
    )
