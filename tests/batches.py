"""Batches and examples for tests of losses: given tensors, or a method's own targets."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kt.tasks.classification import Classification
from kt.tasks.task import Task
from kt.transfer.batch import Examples
from kt.transfer.method import Method

CPU = torch.device("cpu")


class Given(NamedTuple):
    """A batch, or all images, of which everything is given."""

    targets: Tensor
    truth: Tensor
    taught: Tensor
    positions: Tensor

    def at(self, positions: Tensor) -> Given:
        return Given(*(rows[positions] for rows in self))


def all_taught(targets: Tensor, truth: Tensor) -> Given:
    """Images that are all taught."""
    return Given(targets, truth, torch.ones(len(truth), dtype=torch.bool), torch.arange(len(truth)))


def taught_by(
    method: Method,
    teacher: Tensor,
    frozen: Tensor,
    labels: Tensor,
    features: Tensor | None = None,
    task: Task | None = None,
) -> Examples:
    """Images with the targets of a method; answers [N, C, …], of several teachers [K, N, C, …]."""
    task = task or Classification()
    teachers = [] if method.control else [z.numpy() for z in (teacher if teacher.ndim > frozen.ndim else [teacher])]
    known = None if features is None else features.numpy()
    return Examples(CPU, labels.numpy(), teachers, frozen.numpy(), known, partial(method.merge, task), task)
