"""Inference: answers and features of a model on images, before and after transfer; predictions on disk.

Answers are in float32 until the task turns them into what is stored. Predictions of all splits are streamed to disk; a
killed run continues where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt import compression, predictions
from kt.costs import EVALUATED
from kt.data.inputs import Inputs
from kt.errors import KtError
from kt.progress import Progress
from kt.store import Growing
from kt.tasks.task import Array, Task
from kt.zoo.features import answer_and_features

log = logging.getLogger(__name__)

CPU_BYTES = 1 << 24
"""Bytes of the largest batch on the CPU, which gives no error when its memory is full."""

PART_BYTES = 1 << 24
"""Approximate bytes of outputs that are lost when a run is killed."""


class Truth(Protocol):
    """Truth of images in order, whole or read on demand."""

    def __getitem__(self, some: slice, /) -> Array: ...


class Found(NamedTuple):
    """Outputs of a model for one batch.

    Attributes:
        answer: float32 [b, …].
        features: penultimate features [b, D], where they are needed.
    """

    answer: Tensor
    features: Tensor | None = None


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where it pays (CUDA), plain float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def forward(model: nn.Module, x: Tensor, features: bool = False) -> Found:
    """A batch through a model in eval mode.

    Raises:
        KtError: the model has no penultimate features, which are needed.
    """
    with torch.inference_mode(), autocast(x.device):
        if not features:
            return Found(model(x).float())
        answer, penultimate = answer_and_features(model, x)
        return Found(answer.float(), penultimate)


def batches(model: nn.Module, inputs: Inputs, start: int = 0, features: bool = False) -> Iterator[Found]:
    """A model's outputs, batch by batch in order; a batch that does not fit into memory is halved.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images.
        start: position of the first image.
        features: whether penultimate features are needed.

    Raises:
        torch.OutOfMemoryError: a single image does not fit.
    """
    size = EVALUATED
    if inputs.device.type == "cpu" and len(inputs):
        size = max(1, min(EVALUATED, CPU_BYTES // (inputs[slice(0, 1)].nbytes)))
    while start < len(inputs):
        found = None
        try:
            found = forward(model, inputs[slice(start, start + size)], features)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if found is None:  # outside of `except`, whose error holds the batch's memory
            size //= 2
            torch.cuda.empty_cache()
            log.info("out of memory: batches of %d images from here on", size)
            continue
        start += len(found.answer)
        yield found


def kept(model: nn.Module, inputs: Inputs, truth: Truth, task: Task) -> Array:
    """Parts of a model's answers that the task needs to score them, [n, …]; the model's mode is left as it was.

    Args:
        model: on the inputs' device.
        inputs: the images.
        truth: of each, [n, …].
        task: what is learnt.
    """
    training, parts, done = model.training, list[Tensor](), 0
    model.eval()
    for found in batches(model, inputs):
        n = len(found.answer)
        known = _at(truth, slice(done, done + n), inputs.device)
        parts.append(task.kept(task.aligned(found.answer, known), known))
        done += n
    model.train(training)
    return torch.cat(parts).cpu().numpy()


class Recomputed:
    """Answers of a model, computed when they are read and rounded as cached ones; its rows are those of the inputs.

    Args:
        model: in eval mode, on the inputs' device; nothing else may train or move it.
        inputs: the images.
        task: what is learnt.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, task: Task) -> None:
        self._model, self._inputs, self._task = model, inputs, task

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of images, and the shape of an answer."""
        return len(self._inputs), *self[np.zeros(1, np.int64)].shape[1:]

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Answers to some images, float16 [b, …] on the inputs' device."""
        return self._task.cached(forward(self._model, self._inputs[rows]).answer)


def _at(truth: Truth, some: slice, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(truth[some])).to(device)


def predict(
    model: nn.Module,
    inputs: Mapping[str, Inputs],
    truth: Mapping[str, Truth],
    ids: Mapping[str, NDArray[np.int64]],
    path: Path,
    facts: tuple[str, str],
    task: Task,
    features: bool = False,
    top: int | None = None,
) -> None:
    """Write a model's predictions on every split.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images of each split.
        truth: of each image, [n, …].
        ids: their ids, int64 [n].
        path: the .safetensors file; finished parts lie beside it until it is whole.
        facts: fingerprint of the model, and hash of the data set.
        task: what is learnt.
        features: whether penultimate features are kept.
        top: how many of each transfer image's logits are kept; all if None.

    Raises:
        KtError: answers are not finite, the model has no features, or it has no more classes than ``top``.
    """
    first = next(iter(inputs.values()))
    if first.device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    probe = _rows(task, forward(model, first[slice(0, 1)], features), next(iter(truth.values())), 0)
    row = np.dtype([(name, part.dtype, part.shape[1:]) for name, part in probe.items()])
    if top is not None and top >= (classes := probe["answers"].shape[1]):
        raise KtError(f"transfer.top_k: {top}, but {path.stem} has {classes} classes; allowed: fewer than that")
    parts = {
        split: Growing(path.with_name(f".{path.stem}.{split}.part"), f"{' '.join(facts)} {row.descr}", row, ())
        for split in inputs
    }
    for split, growing in parts.items():
        what = f"predict {path.stem} on {split}"
        _fill(growing, model, inputs[split], truth[split], ids[split], features, task, what)
    rows = {split: np.memmap(part.path, row, "r", 0, (part.rows,)) for split, part in parts.items()}
    predictions.write(
        path,
        {
            split: predictions.Outputs(
                _largest(array["answers"], top, path.stem) if top and split == "transfer" else array["answers"],
                array["kept"],
                ids[split],
                array["top"] if "top" in probe else None,
                array["features"] if features else None,
            )
            for split, array in rows.items()
        },
        *facts,
    )
    for growing in parts.values():
        growing.remove()


def _largest(logits: compression.Logits, top: int, name: str) -> compression.Largest:
    """The largest logits; the divergence that this costs is logged."""
    found = compression.largest(logits, top)
    lost = compression.divergence(logits, found)
    share = f"{top} of {logits.shape[1]} logits kept: KL divergence {lost.mean():.2g} nats on average"
    log.info("predict %s on transfer: %s, %.2g at the 99th percentile", name, share, np.quantile(lost, 0.99))
    return found


def _rows(task: Task, found: Found, truth: Truth, start: int) -> dict[str, Array]:
    """Arrays that are written of a batch: answers, what is kept of them, and likeliest classes and features, if any."""
    answer = found.answer
    parts = {
        "answers": task.cached(answer),
        "kept": task.kept(answer, _at(truth, slice(start, start + len(answer)), answer.device)),
        "top": task.likeliest(answer),
        "features": None if found.features is None else found.features.half(),
    }
    rows = {name: part.cpu().numpy() for name, part in parts.items() if part is not None}
    return rows | ({"top": rows["top"].astype(np.uint32)} if "top" in rows else {})


def _fill(
    growing: Growing,
    model: nn.Module,
    inputs: Inputs,
    truth: Truth,
    ids: NDArray[np.int64],
    features: bool,
    task: Task,
    what: str,
) -> None:
    """Append the outputs of the images that are still missing."""
    progress = Progress(what, len(inputs) - growing.rows)
    done, waiting = growing.rows, list[NDArray[np.void]]()
    for found in batches(model, inputs, growing.rows, features):
        parts = _rows(task, found, truth, done)
        rows = np.empty(len(found.answer), growing.dtype)
        for name, part in parts.items():
            rows[name] = part
        finite = np.isfinite(parts["answers"].reshape(len(rows), -1)).all(1)
        if not finite.all():
            first = ids[done + int(np.argmin(finite))]
            text = f"answers to {(~finite).sum()} images are not finite in float16, the first is image {first}"
            raise KtError(f"{what}: {text}")
        waiting.append(rows)
        done += len(rows)
        progress.step("images", len(rows))
        if sum(part.nbytes for part in waiting) >= PART_BYTES:
            growing.append(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        growing.append(np.concatenate(waiting))
