"""Inference: logits, classes and features of a model on images, before and after transfer; predictions on disk.

The class of an image is that of the largest of its logits in float32, the lowest class number of equals. Only then are
logits rounded to float16, which makes ties: where these would let a lower class number win, its logit goes down by the
smallest step, so that the largest rounded logit, first of equals, is the class too. Predictions of all splits are
streamed to disk; a killed run continues where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

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
from kt.zoo.features import answer_and_features

log = logging.getLogger(__name__)

CPU_BYTES = 1 << 24
"""Bytes of the largest batch on the CPU, whose memory does not say when it is full."""


TOP = 5
"""Likeliest classes of each image that are kept."""


class Outputs(NamedTuple):
    """What a model says of one batch.

    Attributes:
        logits: float16 [b, C].
        top: the min(``TOP``, C) likeliest classes, likeliest first, int64 [b, k]; the first is the predicted class.
        features: penultimate features float16 [b, D], where they were asked for.
    """

    logits: Tensor
    top: Tensor
    features: Tensor | None

    @classmethod
    def of(cls, exact: Tensor, features: Tensor | None = None) -> Outputs:
        """From logits as the model gives them, [b, C], in any precision."""
        exact = exact.float()
        top = exact.sort(dim=1, descending=True, stable=True).indices[:, :TOP].contiguous()
        return cls(rounded(exact, top[:, :1]), top, None if features is None else features.to(torch.float16))


def rounded(exact: Tensor, predicted: Tensor) -> Tensor:
    """Logits in float16 whose largest, the first of equals, is the predicted class.

    Args:
        exact: logits float32 [b, C].
        predicted: the class of the largest of them, int64 [b, 1].
    """
    logits = exact.to(torch.float16)
    before = torch.arange(logits.shape[1], device=logits.device) < predicted
    ties = before & (logits == logits.gather(1, predicted))
    return torch.where(ties, _next_below(logits), logits)


def _next_below(x: Tensor) -> Tensor:
    """The largest float16 below each: their bits count up from zero on either side."""
    bits = x.view(torch.int16)
    smallest = torch.full_like(bits, -0x7FFF)  # below zero, of either sign, lies −2⁻²⁴
    return torch.where(x == 0, smallest, torch.where(x > 0, bits - 1, bits + 1)).view(torch.float16)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where it pays (CUDA), plain float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def forward(model: nn.Module, x: Tensor, features: bool) -> Outputs:
    """A batch through a model in eval mode; the features are timm's ``forward_head(…, pre_logits=True)``.

    Raises:
        KtError: the model has no such features.
    """
    with torch.inference_mode(), autocast(x.device):
        if not features:
            return Outputs.of(model(x))
        return Outputs.of(*answer_and_features(model, x))


def batches(model: nn.Module, inputs: Inputs, start: int = 0, features: bool = False) -> Iterator[Outputs]:
    """A model's outputs, batch by batch in order; a batch that does not fit into memory is halved.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images.
        start: position of the first image.
        features: whether penultimate features are wanted.

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
        start += len(found.logits)
        yield found


def logits(model: nn.Module, inputs: Inputs) -> NDArray[np.float16]:
    """Logits float16 [n, C] of a model on the inputs' device; the model's mode is left as it was."""
    return torch.cat([found.logits for found in _evaluated(model, inputs)]).cpu().numpy()


def classes(model: nn.Module, inputs: Inputs) -> NDArray[np.int64]:
    """Predicted classes int64 [n] of a model on the inputs' device; the model's mode is left as it was."""
    return torch.cat([found.top[:, 0] for found in _evaluated(model, inputs)]).cpu().numpy()


def _evaluated(model: nn.Module, inputs: Inputs) -> Iterator[Outputs]:
    """A model's outputs in eval mode, batch by batch; at the end its mode is what it was."""
    training = model.training
    model.eval()
    yield from batches(model, inputs)
    model.train(training)


PART_BYTES = 1 << 24
"""Bytes of outputs after which they are safely on disk, about."""


def predict(
    model: nn.Module,
    inputs: Mapping[str, Inputs],
    ids: Mapping[str, NDArray[np.int64]],
    path: Path,
    fingerprint: str,
    data: str,
    features: bool,
    top: int | None = None,
) -> None:
    """Write a model's predictions on every split.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images of each split.
        ids: their ids, int64 [n].
        path: the .safetensors file; finished parts lie beside it until it is whole.
        fingerprint: the model's.
        data: the data set's hash.
        features: whether penultimate features are kept.
        top: how many of each transfer image's logits are kept; all if None.

    Raises:
        KtError: logits are not finite, the model has no features, or it has no more classes than ``top``.
    """
    first = next(iter(inputs.values()))
    if first.device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    probe = forward(model, first[slice(0, 1)], features)
    classes = probe.logits.shape[1]
    if top is not None and top >= classes:
        raise KtError(f"transfer.top_k: {top}, but {path.stem} has {classes} classes; allowed: fewer than that")
    row = np.dtype(
        [
            ("logits", np.float16, classes),
            ("top", np.uint32, probe.top.shape[1]),
            ("features", np.float16, 0 if probe.features is None else probe.features.shape[1]),
        ]
    )
    parts = {
        split: Growing(path.with_name(f".{path.stem}.{split}.part"), f"{fingerprint} {data} {row.descr}", row, ())
        for split in inputs
    }
    for split, growing in parts.items():
        _fill(growing, model, inputs[split], ids[split], features, f"predict {path.stem} on {split}")
    rows = {split: np.memmap(part.path, row, "r", 0, (part.rows,)) for split, part in parts.items()}
    predictions.write(
        path,
        {
            split: predictions.Outputs(
                _largest(array["logits"], top, path.stem) if top and split == "transfer" else array["logits"],
                array["top"][:, 0],
                ids[split],
                array["top"],
                array["features"] if features else None,
            )
            for split, array in rows.items()
        },
        fingerprint,
        data,
    )
    for growing in parts.values():
        growing.remove()


def _largest(logits: compression.Logits, top: int, name: str) -> compression.Largest:
    """The largest logits; what that costs is measured and said."""
    kept = compression.largest(logits, top)
    lost = compression.divergence(logits, kept)
    said = f"{top} of {logits.shape[1]} logits kept: KL divergence {lost.mean():.2g} nats on average"
    log.info("predict %s on transfer: %s, %.2g at the 99th percentile", name, said, np.quantile(lost, 0.99))
    return kept


def _fill(
    growing: Growing, model: nn.Module, inputs: Inputs, ids: NDArray[np.int64], features: bool, what: str
) -> None:
    """Append the outputs of the images that are still missing."""
    progress = Progress(what, len(inputs) - growing.rows)
    waiting: list[NDArray[np.void]] = []
    for found in batches(model, inputs, growing.rows, features):
        rows = np.empty(len(found.logits), growing.dtype)
        rows["logits"], rows["top"] = found.logits.cpu().numpy(), found.top.cpu().numpy()
        if found.features is not None:
            rows["features"] = found.features.cpu().numpy()
        finite = np.isfinite(rows["logits"]).all(1)
        if not finite.all():
            first = ids[growing.rows + sum(map(len, waiting)) + int(np.argmin(finite))]
            raise KtError(f"{what}: logits of {(~finite).sum()} images are not finite, the first is image {first}")
        waiting.append(rows)
        progress.step("images", len(rows))
        if sum(part.nbytes for part in waiting) >= PART_BYTES:
            growing.append(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        growing.append(np.concatenate(waiting))
