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
from kt.progress import Progress
from kt.store import Growing
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
        {split: predictions.Outputs(array["logits"], array["top"], ids[split]) for split, array in rows.items()},
        fingerprint,
        data,
        {split: array["features"] for split, array in rows.items()} if features else None,
        {"transfer": _largest(rows["transfer"]["logits"], top, path.stem)} if top else None,
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
