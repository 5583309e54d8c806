"""Batches of transfer images: truths and cached answers, read from mapped files; and a forward pass in parts.

Nothing here holds more than a batch, or a block, of answers. Where a loss compares the images of a batch that is cut
into parts, all outputs must be there before there is a gradient, but what the passes keep for it need not be: the pass
of each part is repeated in the backward pass. That takes about a third more time, and the memory of one part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kt.tasks.task import Task

BLOCK = 1 << 19
"""Values of one model's answers that are handled at once where all images are gone through."""


class Rows(Protocol):
    """A row per image, [N, …]: an array, mapped or not, or whatever makes rows when they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images, and the shape of a row."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any] | Tensor: ...


@dataclass(frozen=True)
class Chosen:
    """Rows of some images: row i is that of image ``images[i]``."""

    rows: Rows
    images: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all rows."""
        return len(self.images), *self.rows.shape[1:]

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any] | Tensor:
        return self.rows[self.images[rows]]


def mapped(parts: Iterable[NDArray[Any]], folder: Path) -> NDArray[Any]:
    """Rows, given part by part, in a mapped file that has no name: it is gone with the process or the array.

    Args:
        parts: at least one, of one dtype and shape but for their length.
        folder: where there is space for the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    with TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            rows += len(part)
        file.flush()
        return np.memmap(file, part.dtype, "r", shape=(rows, *part.shape[1:]))


class Batch:
    """Some of the transfer images. All that is known of them is read when it is first used, and then kept.

    Args:
        examples: all transfer images.
        rows: positions of these, int64 [B].
    """

    def __init__(self, examples: Examples, rows: NDArray[np.int64]) -> None:
        self._examples, self._rows = examples, rows

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def positions(self) -> Tensor:
        """Positions among the transfer images, int64 [B]."""
        return self._on_device(self._rows)

    @cached_property
    def truth(self) -> Tensor:
        """Truths, [B, …]."""
        return self._on_device(self._examples.truth[self._rows])

    @cached_property
    def teachers(self) -> list[Tensor]:
        """Each teacher's cached answers, float32 [B, …]."""
        return [self._answers(answers) for answers in self._examples.teachers]

    @cached_property
    def frozen(self) -> Tensor:
        """Answers of the student before transfer, float32 [B, …]."""
        return self._answers(self._examples.frozen)

    @cached_property
    def features(self) -> Tensor:
        """The teacher's penultimate features, float32 [B, D]."""
        return self._floats(self._examples.features)

    @cached_property
    def _merged(self) -> tuple[Tensor, Tensor]:
        assert self._examples.merge is not None, "this training has no targets"
        return self._examples.merge(self)

    @property
    def targets(self) -> Tensor:
        """Answers to imitate, float32 [B, …]."""
        return self._merged[0]

    @property
    def taught(self) -> Tensor:
        """Whether the target comes from a teacher, bool [B]; [B, H, W] where that is decided for each pixel."""
        return self._merged[1]

    def _answers(self, rows: Rows | None) -> Tensor:
        answers, task = self._floats(rows), self._examples.task
        return task.aligned(answers, self.truth) if task else answers

    def _floats(self, rows: Rows | None) -> Tensor:
        assert rows is not None, "this training has no such answers"
        return self._on_device(rows[self._rows]).float()

    def _on_device(self, array: NDArray[Any] | Tensor) -> Tensor:
        if isinstance(array, Tensor):
            return array.to(self._examples.device)
        tensor = torch.from_numpy(array)
        if self._examples.device.type == "cuda":  # a copy from pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(self._examples.device, non_blocking=True)


@dataclass(frozen=True)
class Examples:
    """All N transfer images of a training.

    Attributes:
        device: where batches are used.
        truth: [N, …].
        teachers: each teacher's cached answers, [N, …].
        frozen: answers of the student before transfer, [N, …].
        features: the teacher's penultimate features, [N, D].
        merge: gives the targets of a batch, [B, …], and a mask bool [B] of those that come from a teacher; or
            [B, H, W] where each pixel has a teacher of its own.
        task: what is learnt; None where answers have the shape of their truths in any case.
    """

    device: torch.device
    truth: Rows
    teachers: Sequence[Rows] = ()
    frozen: Rows | None = None
    features: Rows | None = None
    merge: Callable[[Batch], tuple[Tensor, Tensor]] | None = None
    task: Task | None = None

    def __len__(self) -> int:
        return self.truth.shape[0]

    def at(self, positions: Tensor) -> Batch:
        """The images at some positions, int64 [B] on the CPU."""
        return Batch(self, positions.numpy())

    def blocks(self) -> Iterator[Batch]:
        """All images in order, in batches of about ``BLOCK`` values of a model's answers."""
        widths = [self._width(rows) for rows in (*self.teachers, self.frozen) if rows is not None]
        step = max(1, BLOCK // max(1, *widths, 1))
        for start in range(0, len(self), step):
            yield self.at(torch.arange(start, min(start + step, len(self))))

    def _width(self, rows: Rows) -> int:
        """Values of an answer; where it is a map, at the size of its truth."""
        spatial = self.task is not None and self.task.spatial
        return math.prod((*rows.shape[1:-2], *self.truth.shape[-2:]) if spatial else rows.shape[1:])

    def share(self) -> float:
        """Percentage of the images, or of their pixels, whose targets come from a teacher."""
        return 100 * (sum(self._taught(batch) for batch in self.blocks()) / len(self))

    def _taught(self, batch: Batch) -> float:
        if self.task is None or batch.taught.ndim == 1:
            return int(batch.taught.sum())
        return float(self.task.mean(batch.taught.float(), batch.truth).sum())


def forward(learner: nn.Module, parts: Sequence[Any]) -> Any:
    """Outputs of a learner for a batch, those of its parts joined; one part is an ordinary forward pass.

    Args:
        learner: in train mode; its BatchNorm statistics follow each part once.
        parts: of a batch, as the learner takes them, with one image or more each.
    """
    if len(parts) == 1:
        return learner(parts[0])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(learner)

    outputs = [checkpoint(learner, part, use_reentrant=False, context_fn=contexts) for part in parts]
    return join(outputs, [_images(part) for part in parts])


def join(outputs: Sequence[Any], images: Sequence[int]) -> Any:
    """Outputs for the parts of a batch as one: tensors one after another, numbers as their mean over the images.

    Args:
        outputs: of every part: a tensor with a row per image, a number that is a mean over images, a tuple or list of
            these, or anything else, which is taken to be the same for all parts.
        images: number of images in each part.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if first.ndim:
            return torch.cat(list(outputs))
        return torch.stack(list(outputs)) @ (first.new_tensor(images) / sum(images))
    if isinstance(first, tuple | list):
        joined = [join(of_part, images) for of_part in zip(*outputs, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    return first


def _images(x: Any) -> int:
    """Number of images in the input of a learner."""
    return len(x) if isinstance(x, Tensor) else _images(x[0])


@contextmanager
def _statistics_kept(learner: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics, and their count, as they are, in train mode too."""
    layers = [module for module in learner.modules() if isinstance(module, _BatchNorm)]
    counts = [layer.num_batches_tracked for layer in layers]
    before = [(layer.momentum, None if n is None else n.clone()) for layer, n in zip(layers, counts, strict=True)]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, now, (momentum, count) in zip(layers, counts, before, strict=True):
            layer.momentum = momentum
            if now is not None and count is not None:  # None where a layer keeps no statistics
                now.copy_(count)
