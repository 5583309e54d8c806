"""A model's predictions on all splits, streamed to disk; a killed run goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt import compression, predictions
from kt.data.views import Inputs
from kt.errors import KtError
from kt.growing import Growing
from kt.progress import Progress
from kt.zoo.inference import batches, forward

log = logging.getLogger(__name__)

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
    width = classes + (probe.features.shape[1] if probe.features is not None else 0)
    parts = {
        split: Growing(path.with_name(f".{path.stem}.{split}.part"), f"{fingerprint} {data}", np.float16, (width,))
        for split in inputs
    }
    for split, growing in parts.items():
        _fill(growing, model, inputs[split], ids[split], features, f"predict {path.stem} on {split}")
    rows = {split: np.memmap(part.path, np.float16, "r", 0, (part.rows, width)) for split, part in parts.items()}
    predictions.write(
        path,
        {split: (array[:, :classes], ids[split]) for split, array in rows.items()},
        fingerprint,
        data,
        {split: array[:, classes:] for split, array in rows.items()} if features else None,
        {"transfer": _largest(rows["transfer"][:, :classes], top, path.stem)} if top else None,
    )
    for growing in parts.values():
        growing.remove()


def _largest(logits: predictions.Logits, top: int, name: str) -> compression.Largest:
    """The largest logits; what that costs is measured and said."""
    kept = compression.largest(logits, top)
    lost = compression.divergence(logits, kept)
    said = f"{top} of {logits.shape[1]} logits kept: KL divergence {lost.mean():.2g} nats on average"
    log.info("predict %s on transfer: %s, %.2g at the 99th percentile", name, said, np.quantile(lost, 0.99))
    return kept


def _fill(
    growing: Growing, model: nn.Module, inputs: Inputs, ids: NDArray[np.int64], features: bool, what: str
) -> None:
    """Append the outputs of the images that are still missing; features lie to the right of the logits."""
    progress = Progress(what, len(inputs) - growing.rows)
    waiting: list[NDArray[np.float16]] = []
    for found in batches(model, inputs, growing.rows, features):
        logits = found.logits.cpu().numpy()
        finite = np.isfinite(logits).all(1)
        if not finite.all():
            first = ids[growing.rows + sum(map(len, waiting)) + int(np.argmin(finite))]
            raise KtError(f"{what}: logits of {(~finite).sum()} images are not finite, the first is image {first}")
        waiting.append(logits if found.features is None else np.hstack([logits, found.features.cpu().numpy()]))
        progress.step("images", len(logits))
        if sum(part.nbytes for part in waiting) >= PART_BYTES:
            growing.append(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        growing.append(np.concatenate(waiting))
