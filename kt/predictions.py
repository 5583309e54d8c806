"""Logits of every model on every split, computed once and shared by scoring and transfer.

One safetensors file a model: ``<split>.logits`` float16 [N, C], ``<split>.predicted`` [N] (the predicted classes, so
that scoring reads two bytes an image), ``<split>.top`` [N, k] (the likeliest classes, likeliest first),
``<split>.ids`` int64 [N] and, where the study asks for them, penultimate features ``<split>.features`` float16 [N, D];
memory-mappable, with the model's fingerprint, the data set's hash and a content hash in the header. Classes are what
the model said in float32 (``kt.zoo.inference``), and never taken from the rounded logits. Of the transfer split, where
the study asks for that, there are only the largest logits and what the others share (``kt.compression``). Nothing here
holds more than ``BLOCK`` bytes of logits at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kt import compression, store
from kt.errors import KtError

Logits = NDArray[np.float16]

VERSION = "2"
"""Of the files; those of an older one are not read. Version 1 took classes from rounded logits."""

SPLITS = ("transfer", "validation", "test")
"""Every model runs on these; the zoo split only trains."""

BLOCK = 1 << 22
"""Bytes of an array that are handled at once."""

_CODES = {"float16": "F16", "int64": "I64", "uint8": "U8", "uint16": "U16", "uint32": "U32"}
"""safetensors' names of dtypes."""
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}


class Outputs(NamedTuple):
    """What a model says of the images of a split.

    Attributes:
        logits: float16 [N, C].
        top: the likeliest classes of each image, likeliest first, integers [N, k]; the first is the predicted class.
        ids: image ids, int64 [N].
    """

    logits: Logits
    top: NDArray[np.integer]
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """One model's predictions on one split.

    Attributes:
        logits: float16 [N, C], memory-mapped; where only the largest are kept, in memory.
        predicted: the classes that the model said, int64 [N].
        ids: image ids, int64 [N].
        fingerprint: the model that made them.
        data: hash of the data set.
        features: penultimate features, float16 [N, D], memory-mapped; None where the file has none.
    """

    logits: Logits
    predicted: NDArray[np.int64]
    ids: NDArray[np.int64]
    fingerprint: str
    data: str
    features: NDArray[np.float16] | None = None


class _Tensor(NamedTuple):
    """Where a tensor lies in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array in stretches of rows of at most ``BLOCK`` bytes (or one row), in order."""
    step = max(1, BLOCK // max(1, array[:1].nbytes))
    return (np.ascontiguousarray(array[i : i + step]) for i in range(0, len(array), step))


def _content(facts: Sequence[str], tensors: Mapping[str, tuple[str, tuple[int, ...], Iterator[Any]]]) -> str:
    """Hash of the facts and of every tensor's name, dtype, shape and bytes."""
    content = hashlib.sha256(store.canonical(list(facts)))
    for name in sorted(tensors):
        dtype, shape, parts = tensors[name]
        content.update(store.canonical([name, dtype, shape]))
        for part in parts:
            content.update(part)
    return content.hexdigest()


def write(
    path: str | os.PathLike[str],
    splits: Mapping[str, Outputs],
    fingerprint: str,
    data: str,
    features: Mapping[str, NDArray[np.float16]] | None = None,
    kept: Mapping[str, compression.Largest] | None = None,
) -> None:
    """Write what one model says of every split, atomically.

    Args:
        path: the .safetensors file.
        splits: logits, classes and ids of each split; arrays may be memory-mapped.
        fingerprint: the model's.
        data: the data set's hash.
        features: penultimate features float16 [N, D] of each split.
        kept: of some splits the largest logits, which are written in place of all.
    """
    tensors: dict[str, NDArray[Any]] = {f"{split}.features": array for split, array in (features or {}).items()}
    for split, (logits, top, ids) in splits.items():
        top = top.astype(np.min_scalar_type(logits.shape[1] - 1))  # the smallest integers that hold all classes
        tensors |= {f"{split}.predicted": top[:, 0], f"{split}.top": top, f"{split}.ids": ids}
        if kept and split in kept:
            tensors |= {f"{split}.{part}": array for part, array in kept[split]._asdict().items()}
        else:
            tensors[f"{split}.logits"] = logits
    described = {name: (str(array.dtype), array.shape, blocks(array)) for name, array in tensors.items()}
    facts = {"version": VERSION, "fingerprint": fingerprint, "data": data}
    if kept:
        facts["classes"] = str(next(of_split.logits.shape[1] for of_split in splits.values()))
    facts["content"] = _content(list(facts.values()), described)
    header: dict[str, Any] = {"__metadata__": facts}
    order, end = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)), 0  # all begin at their alignment
    for name in order:
        array, start = tensors[name], end
        end += array.nbytes
        header[name] = {"dtype": _CODES[str(array.dtype)], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with store.atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for block in blocks(tensors[name]):
                file.write(block.data)


def _open(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, _Tensor]]:
    """The facts in a file's header, and where its tensors lie.

    Raises:
        KtError: the file is missing or damaged, or an older version wrote it.
    """
    try:
        with safe_open(path, framework="numpy"):  # checks the header and the file's length
            pass
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        facts = header.pop("__metadata__", {})
        tensors = {
            name: _Tensor(
                _DTYPES[entry["dtype"]], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"])
            )
            for name, entry in header.items()
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise KtError(f"{path}: predictions cannot be read ({error})") from error
    check_version(path, facts)
    return facts, tensors


def check_version(path: str | os.PathLike[str], facts: Mapping[str, str]) -> None:
    """Fail on the facts of a file that an older version wrote."""
    if "fingerprint" in facts and facts.get("version") != VERSION:
        text = "predictions of an older version, which took classes from rounded logits"
        raise KtError(f"{path}: {text}; make them again: kt predictions --model {Path(path).stem}")


def current(path: str | os.PathLike[str]) -> bool:
    """Whether there is a readable file of this version."""
    try:
        _open(path)
    except KtError:
        return False
    return True


def _map(path: str | os.PathLike[str], tensor: _Tensor) -> NDArray[Any]:
    """A tensor in a file, memory-mapped; what is written to it is not written to the file."""
    return np.memmap(path, tensor.dtype, "c", tensor.start, tensor.shape)


def read(path: str | os.PathLike[str], split: str) -> Prediction:
    """Open one split of a model's predictions; only bytes that are looked at are read.

    Raises:
        KtError: the file is missing or damaged, of an older version, or has no such split.
    """
    facts, tensors = _open(path)
    if not {f"{split}.logits", f"{split}.values"} & set(tensors):
        have = ", ".join(sorted({name.rsplit(".", 1)[0] for name in tensors}))
        raise KtError(f"{path}: no predictions for the split {split!r}; it has: {have}")
    try:
        features = tensors.get(f"{split}.features")
        if f"{split}.logits" in tensors:
            logits = _map(path, tensors[f"{split}.logits"])
        else:
            parts = (_map(path, tensors[f"{split}.{part}"]) for part in compression.Largest._fields)
            logits = compression.expand(compression.Largest(*parts), int(facts["classes"]))
        return Prediction(
            logits,
            np.array(_map(path, tensors[f"{split}.predicted"]), np.int64),
            np.array(_map(path, tensors[f"{split}.ids"])),
            facts["fingerprint"],
            facts["data"],
            _map(path, features) if features else None,
        )
    except (KeyError, ValueError, OSError) as error:
        raise KtError(f"{path}: predictions cannot be read ({error})") from error


def verify(path: str | os.PathLike[str]) -> None:
    """Compare a file's tensors and facts with the content hash in its header.

    Raises:
        KtError: they differ, or the file cannot be read.
    """
    facts, tensors = _open(path)
    described = {name: (str(t.dtype), t.shape, _bytes(path, t)) for name, t in tensors.items()}
    said = [facts[name] for name in ("version", "fingerprint", "data", "classes") if name in facts]
    if _content(said, described) != facts.get("content"):
        raise KtError(f"{path}: its content is not what was written; delete it and run again")


def _bytes(path: str | os.PathLike[str], tensor: _Tensor) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while block := file.read(min(left, BLOCK)):
            left -= len(block)
            yield block


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


def calibration_error(logits: Logits, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error in percent: mean |confidence − accuracy| over equal-width bins, weighted by size.

    Args:
        logits: [N, C].
        right: which images the model gets right, bool [N].
        bins: number of equal-width confidence bins.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    gap, start = np.zeros(bins), 0
    for block in blocks(logits):
        z = block.astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        confidence = p.max(1) / p.sum(1)
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        gap += np.bincount(which, confidence - right[start : start + len(block)], minlength=bins)
        start += len(block)
    return float(100 * np.abs(gap).sum() / len(right))


def sharpness(logits: Logits) -> dict[str, float | None]:
    """How sharp a model's probabilities are, from logits [N, C].

    Returns:
        ``log_ratio``: mean over the images of ln(p₁/p₂), of the first and the second probability, nats; None for one
        class. ``entropy``: mean entropy of the probabilities, nats.

    Source: Gosal et al. 2026, arXiv 2605.15689, whose Ratio 1-2 is the mean of p₁/p₂ itself. That mean is made by the
    few images of which a model is surest, as p₁/p₂ grows exponentially with the logits; its logarithm is not.
    """
    ratio = entropy = 0.0
    for block in blocks(logits):
        z = block.astype(np.float64)
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        total = p.sum(1)
        entropy += float((np.log(total) - (p * z).sum(1) / total).sum())
        ratio -= float(np.partition(z, -2, 1)[:, -2].sum()) if z.shape[1] > 1 else 0
    return {"log_ratio": ratio / len(logits) if logits.shape[1] > 1 else None, "entropy": entropy / len(logits)}


def agrees(measured: float, published: float, n: int) -> bool:
    """Whether a measured accuracy is within three binomial standard errors of the published one.

    Args:
        measured: accuracy on n images, percent.
        published: accuracy as published, percent.
        n: number of images.
    """
    share = published / 100
    return abs(measured - published) <= 300 * math.sqrt(share * (1 - share) / n)
