"""Logits of every model on every split, computed once and shared by scoring and transfer.

One safetensors file a model: ``<split>.logits`` float16 [N, C], ``<split>.predicted`` [N] (their classes, so that
scoring reads two bytes an image) and ``<split>.ids`` int64 [N], memory-mappable, with the model's fingerprint, the data
set's hash and a content hash in the header.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kt import store
from kt.errors import KtError

Logits = NDArray[np.float16]

SPLITS = ("transfer", "validation", "test")
"""Every model runs on these; the zoo split only trains."""


@dataclass(frozen=True)
class Prediction:
    """One model's logits on one split.

    Attributes:
        logits: float16 [N, C].
        ids: image ids, int64 [N].
        fingerprint: the model that made them.
        data: hash of the data set.
    """

    logits: Logits
    ids: NDArray[np.int64]
    fingerprint: str
    data: str


def _content(tensors: Mapping[str, NDArray[np.generic]], fingerprint: str, data: str) -> str:
    content = hashlib.sha256(store.canonical([fingerprint, data]))
    for name in sorted(tensors):
        content.update(store.canonical([name, str(tensors[name].dtype), tensors[name].shape]))
        content.update(np.ascontiguousarray(tensors[name]).data)
    return content.hexdigest()


def write(
    path: str | os.PathLike[str],
    splits: Mapping[str, tuple[Logits, NDArray[np.int64]]],
    fingerprint: str,
    data: str,
) -> None:
    """Write one model's logits and image ids of every split, atomically.

    Args:
        path: the .safetensors file.
        splits: logits float16 [N, C] and ids int64 [N] of each split.
        fingerprint: the model's.
        data: the data set's hash.
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    for split, (logits, ids) in splits.items():
        tensors |= {f"{split}.logits": logits, f"{split}.predicted": classes(logits), f"{split}.ids": ids}
    with store.atomic(path) as temporary:
        header = {"fingerprint": fingerprint, "data": data, "content": _content(tensors, fingerprint, data)}
        save_file(tensors, temporary, header)


def read(path: str | os.PathLike[str], split: str) -> Prediction:
    """Read one split of a model's predictions; only that split's bytes are read.

    Raises:
        KtError: the file is missing or damaged, or has no such split.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            if f"{split}.logits" not in names:
                have = ", ".join(sorted({name.rsplit(".", 1)[0] for name in names}))
                raise KtError(f"{path}: no predictions for the split {split!r}; it has: {have}")
            return Prediction(
                file.get_tensor(f"{split}.logits"),
                file.get_tensor(f"{split}.ids"),
                header["fingerprint"],
                header["data"],
            )
    except (SafetensorError, OSError, KeyError) as error:
        raise KtError(f"{path}: predictions cannot be read ({error})") from error


def verify(path: str | os.PathLike[str]) -> None:
    """Compare a file's tensors and facts with the content hash in its header.

    Raises:
        KtError: they differ, or the file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise KtError(f"{path}: predictions cannot be read ({error})") from error
    if _content(tensors, header.get("fingerprint", ""), header.get("data", "")) != header.get("content"):
        raise KtError(f"{path}: its content is not what was written; delete it and run again")


def read_all(paths: Mapping[str, str | os.PathLike[str]], split: str) -> dict[str, Prediction]:
    """Predictions of several models on one split, in the given order.

    Raises:
        KtError: one cannot be read, or two are about different images or data sets.
    """
    found = {name: read(path, split) for name, path in paths.items()}
    first_name, first = next(iter(found.items()))
    for name, prediction in found.items():
        if prediction.data != first.data or not np.array_equal(prediction.ids, first.ids):
            raise KtError(f"predictions of {name!r} and {first_name!r} on {split!r} are about different images")
    return found


def classes(logits: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
    """Predicted classes [N], in the smallest integers that hold all classes, from logits [N, C]."""
    smallest: NDArray[np.unsignedinteger] = logits.argmax(1).astype(np.min_scalar_type(logits.shape[1] - 1))
    return smallest


def correct(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images a model gets right: bool [N] from logits [N, C] and labels int64 [N]."""
    right: NDArray[np.bool_] = logits.argmax(1) == labels
    return right


def calibration_error(logits: Logits, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Expected calibration error in percent: mean |confidence − accuracy| over equal-width bins, weighted by size.

    Args:
        logits: [N, C].
        labels: int64 [N].
        bins: number of equal-width confidence bins.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    confidence = p.max(1) / p.sum(1)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, confidence - correct(logits, labels), minlength=bins)
    return float(100 * np.abs(gap).sum() / len(labels))
