"""Inference: answers and features of a model on images, before and after transfer; predictions on disk.

Answers are in float32 until the task turns them into what is stored. Predictions of all splits are streamed to disk; a
killed run continues where it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt import compression, predictions
from kt.costs import DENSE_BYTES, EVALUATED, answer_bytes, keeps_answers
from kt.data.inputs import Inputs
from kt.errors import KtError
from kt.progress import Progress
from kt.store import Growing
from kt.tasks.classification import next_below
from kt.tasks.task import Array, Task
from kt.zoo.features import answer_and_features

log = logging.getLogger(__name__)

Made = TypeVar("Made")

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


def channels_last(model: nn.Module) -> nn.Module:
    """A model with the channels last in memory; one with weights of five dimensions, for clips, as it is."""
    if any(tensor.ndim == 5 for tensor in model.state_dict().values()):  # torch has no such format for them
        return model
    return model.to(memory_format=torch.channels_last)


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
    """A model's outputs, batch by batch in order; arguments and errors are those of ``each``."""
    return each(model, inputs, lambda found, _: found, start, features)


def each(
    model: nn.Module,
    inputs: Inputs,
    use: Callable[[Found, int], Made],
    start: int = 0,
    features: bool = False,
    most: int = EVALUATED,
) -> Iterator[Made]:
    """What is made of a model's outputs, batch by batch in order; a batch that does not fit into memory is halved.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images.
        use: gives it from the outputs and the position of their first image. Answers of a dense task may take many
            times as much memory at the size of their truths as the forward pass does.
        start: position of the first image.
        features: whether penultimate features are needed.
        most: images of the largest batch.

    Raises:
        torch.OutOfMemoryError: a single image does not fit.
    """
    size = most
    if inputs.device.type == "cpu" and len(inputs):
        size = max(1, min(most, CPU_BYTES // (inputs[slice(0, 1)].nbytes)))
    while start < len(inputs):
        made = list[Made]()
        try:
            made.append(use(forward(model, inputs[slice(start, start + size)], features), start))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if not made:  # outside of `except`, whose error holds the batch's memory
            size //= 2
            torch.cuda.empty_cache()
            log.info("out of memory: batches of %d images from here on", size)
            continue
        start += size
        yield made.pop()


def at_once(model: nn.Module, inputs: Inputs, truth: Truth, task: Task) -> int:
    """Images of the largest batch: where answers are maps as few as keep them below ``DENSE_BYTES``.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images.
        truth: of each, [n, …].
        task: what is learnt.
    """
    if not task.spatial or not len(inputs):
        return EVALUATED
    answer, first = forward(model, inputs[slice(0, 1)]).answer, truth[slice(0, 1)]
    values = max(answer.numel(), math.prod(answer.shape[:-2]) * math.prod(first.shape[-2:]))
    return max(1, min(EVALUATED, DENSE_BYTES // (4 * values)))


def kept(model: nn.Module, inputs: Inputs, truth: Truth, task: Task) -> Array:
    """Parts of a model's answers that the task needs to score them, [n, …]; the model's mode is left as it was.

    Args:
        model: on the inputs' device.
        inputs: the images.
        truth: of each, [n, …].
        task: what is learnt.
    """

    def part(found: Found, start: int) -> Tensor:
        known = _at(truth, slice(start, start + len(found.answer)), inputs.device)
        return task.kept(task.aligned(found.answer, known), known)

    training = model.training
    model.eval()
    parts = list(each(model, inputs, part, most=at_once(model, inputs, truth, task)))
    model.train(training)
    return torch.cat(parts).cpu().numpy()


class Recomputed:
    """Answers of a model, computed when they are read and rounded as cached ones; its rows are those of the inputs.

    Args:
        model: in eval mode, on the inputs' device; nothing else may train or move it.
        inputs: the images.
        task: what is learnt.
        top: how many logits would be kept of each answer, so that all others are made equal; all if None.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, task: Task, top: int | None = None) -> None:
        self._model, self._inputs, self._task, self._top = model, inputs, task, top

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of images, and the shape of an answer."""
        return len(self._inputs), *self[np.zeros(1, np.int64)].shape[1:]

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Answers to some images, float16 [b, …] on the inputs' device."""
        answers = self._task.cached(forward(self._model, self._inputs[rows]).answer)
        if self._top is None:
            return answers
        return torch.cat([_cut(answer[None], self._top) for answer in answers])


def _cut(logits: Tensor, top: int) -> Tensor:
    """Logits float16 [b, C, …] as ``kt.compression.Largest`` gives them back."""
    order = logits.float().sort(dim=1, descending=True, stable=True).indices
    others = logits.gather(1, order[:, top:]).double()
    most = others[:, :1]
    rest = (most + (others - most).exp().mean(1, keepdim=True).log()).half()
    ties = (rest == logits.gather(1, order[:, :1])) & (order[:, :1] > 0)  # of equals the first class would win
    rest = torch.where(ties, next_below(rest), rest)
    largest = order[:, :top]
    return rest.expand_as(logits).scatter(1, largest, logits.gather(1, largest))


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
    rule: str = "kept",
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
        top: how many of each transfer image's logits (of a dense task of each pixel's) are kept; all if None.
        rule: which answers of a dense task are kept, as ``kt.costs.keeps_answers`` takes it.

    Raises:
        KtError: answers are not finite, the model has no features, or it has no more classes than ``top``.
    """
    first = next(iter(inputs.values()))
    if first.device.type == "cuda":
        channels_last(model)
    probe = forward(model, first[slice(0, 1)], features)
    if top is not None and top >= (classes := probe.answer.shape[1]):
        raise KtError(f"transfer.top_k: {top}, but {path.stem} has {classes} classes; allowed: fewer than that")
    parts: dict[str, Growing] = {}
    for split in inputs:
        largest = top if split == "transfer" else None
        answers = not task.spatial or _small(probe.answer, task, largest, rule)
        if not answers:
            log.info("predict %s: answers to %s are computed when they are needed", path.stem, split)
        keeping = _Keeping(task, truth[split], answers, largest, not (task.dense and split == "transfer"))
        row = keeping.row(probe)
        place = path.with_name(f".{path.stem}.{split}.part")
        parts[split] = Growing(place, f"{' '.join(facts)} {row.descr}", row, ())
        _fill(parts[split], model, inputs[split], ids[split], features, keeping, f"predict {path.stem} on {split}")
    rows = {split: np.memmap(part.path, part.dtype, "r", 0, (part.rows,)) for split, part in parts.items()}
    if "transfer" in rows and "lost" in (rows["transfer"].dtype.names or ()):
        _log_lost(rows["transfer"]["lost"], top, probe.answer.shape[1], path.stem)
    outputs = {split: _outputs(of, ids[split], probe.answer.shape[1]) for split, of in rows.items()}
    predictions.write(path, outputs, *facts)
    for growing in parts.values():
        growing.remove()


def _small(answer: Tensor, task: Task, top: int | None, rule: str) -> bool:
    """Whether answers like this one, [1, …], or their ``top`` largest logits, are kept on disk."""
    classes = answer.shape[1] if task.has_classes else 1
    return keeps_answers(rule, answer_bytes(classes, answer.numel() // classes, top))


def _log_lost(lost: NDArray[np.float64], top: int | None, classes: int, name: str) -> None:
    """Log the divergence that it costs to keep the largest logits alone."""
    share = f"{top} of {classes} logits kept: KL divergence {lost.mean():.2g} nats on average"
    log.info("predict %s on transfer: %s, %.2g at the 99th percentile", name, share, np.quantile(lost, 0.99))


def _outputs(rows: NDArray[np.void], ids: NDArray[np.int64], classes: int) -> predictions.Outputs:
    """The rows of a split as they are written; ``classes`` is the number of logits."""
    have = {name: rows[name] for name in rows.dtype.names or ()}
    answers: predictions.Answers | None = have.get("answers")
    if "values" in have:
        answers = compression.Largest(have["values"], have["classes"], have["rest"], classes)
    return predictions.Outputs(answers, have["kept"], ids, have.get("top"), have.get("features"))


@dataclass(frozen=True)
class _Keeping:
    """Parts of a model's outputs that are written.

    Attributes:
        task: what is learnt.
        truth: of the images, [n, …].
        answers: whether answers are.
        largest: how many logits of each answer; all where None.
        likeliest: whether the likeliest classes are, where answers are logits.
    """

    task: Task
    truth: Truth
    answers: bool
    largest: int | None
    likeliest: bool

    def row(self, probe: Found) -> np.dtype[np.void]:
        """Dtype of an image's row, from the outputs for the first one."""
        parts = self.parts(probe, 0)[0]
        return np.dtype([(name, part.dtype, part.shape[1:]) for name, part in parts.items()])

    def parts(self, found: Found, start: int) -> tuple[dict[str, Array], NDArray[np.bool_]]:
        """Arrays of a batch, from image ``start`` on, that are written, and whether each answer is finite."""
        answer = found.answer
        truth = _at(self.truth, slice(start, start + len(answer)), answer.device)
        aligned, cached = self.task.aligned(answer, truth), self.task.cached(answer)
        finite = (cached.isfinite() & (answer >= self.task.least)).flatten(1).all(1).cpu().numpy()
        tensors = {
            "answers": cached if self.answers and self.largest is None else None,
            "kept": self.task.kept(aligned, truth),
            "top": self.task.likeliest(aligned) if self.likeliest else None,
            "features": None if found.features is None else found.features.half(),
        }
        rows = {name: part.cpu().numpy() for name, part in tensors.items() if part is not None}
        if "top" in rows and not self.task.dense:
            rows["top"] = rows["top"].astype(np.uint32)
        if self.answers and self.largest and finite.all():
            logits = cached.cpu().numpy()
            kept = compression.largest(logits, self.largest)
            rows |= {part: getattr(kept, part) for part in compression.PARTS}
            rows["lost"] = compression.divergence(logits, kept).reshape(len(logits), -1).mean(1)
        return rows, finite


def _fill(
    growing: Growing,
    model: nn.Module,
    inputs: Inputs,
    ids: NDArray[np.int64],
    features: bool,
    keeping: _Keeping,
    what: str,
) -> None:
    """Append the outputs of the images that are still missing."""
    progress = Progress(what, len(inputs) - growing.rows)
    done, waiting = growing.rows, list[NDArray[np.void]]()
    most = at_once(model, inputs, keeping.truth, keeping.task)
    for parts, finite in each(model, inputs, keeping.parts, growing.rows, features, most):
        if not finite.all():
            first = ids[done + int(np.argmin(finite))]
            least = keeping.task.least
            what_not = "not finite in float16" + (f", or below {least:g}" if least > -math.inf else "")
            noun = keeping.task.example
            text = f"answers to {(~finite).sum()} {noun}s are {what_not}, the first is {noun} {first}"
            raise KtError(f"{what}: {text}")
        rows = np.empty(len(finite), growing.dtype)
        for name, part in parts.items():
            rows[name] = part
        waiting.append(rows)
        done += len(rows)
        progress.step(f"{keeping.task.example}s", len(rows))
        if sum(part.nbytes for part in waiting) >= PART_BYTES:
            growing.append(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        growing.append(np.concatenate(waiting))
