"""Answers of every model on every split, computed once and shared by scoring and transfer.

One safetensors file per model, memory-mappable, with the model's fingerprint, the data set's hash and a content hash in
its header. Of each split it holds

- ``<split>.logits``: the answers, floats [N, …]; of classification logits float16 [N, C]. Those of a dense task are
  only kept where they are small (``kt.costs.keeps_answers``), else computed when they are needed,
- ``<split>.predicted``: what a task keeps of each answer to score it, [N, …]; of classification the predicted classes,
  so that scoring reads two bytes per image,
- ``<split>.top``, where answers are logits: the likeliest classes [N, k], likeliest first; of a dense task the
  predicted class of every element, [N, H, W], of the splits that are scored alone,
- ``<split>.ids``: int64 [N],
- ``<split>.features``, where the study needs them: penultimate features float16 [N, D].

Both ``predicted`` and ``top`` come from answers in float32 (``kt.zoo.inference``), never from rounded ones. Of the
transfer split, where the study asks for that, there are only the largest logits and what the others share
(``kt.compression``). Nothing here holds more than ``BLOCK`` bytes of answers at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kt import store
from kt.compression import PARTS, Largest
from kt.errors import KtError

Answers = NDArray[Any] | Largest
"""Answers [N, …], memory-mapped; of compressed logits, rows of them as an array are made by an index of rows."""

VERSION = "2"
"""Of the files; those of an older one are not read. Version 1 took classes from rounded logits."""

SPLITS = ("transfer", "validation", "test")
"""Every model runs on these; the zoo split only trains."""

RECOMPUTED = "recomputed"
"""Fact of a file that names the splits whose answers it does not hold."""

BLOCK = 1 << 22
"""Bytes of an array that are handled at once."""

_CODES = {"float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"}
_CODES |= {"int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16", "uint32": "U32"}
"""safetensors' names of dtypes."""
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}


class Outputs(NamedTuple):
    """Outputs of a model for the images of a split.

    Attributes:
        answers: floats [N, …], or the largest logits alone; None where they are computed when they are needed.
        kept: what the task keeps of each answer to score it, [N, …]; of classification the predicted class.
        ids: image ids, int64 [N].
        top: where answers are logits, the likeliest classes of each image, likeliest first, integers [N, k]; of a dense
            task the predicted class of every element, uint8 [N, H, W].
        features: penultimate features float16 [N, D], where they are kept.
    """

    answers: Answers | None
    kept: NDArray[Any]
    ids: NDArray[np.int64]
    top: NDArray[np.integer] | None = None
    features: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Prediction:
    """One model's predictions on one split.

    Attributes:
        answers: floats [N, …], memory-mapped, or the largest logits alone; None where they are not kept.
        kept: what the task keeps of each answer to score it, [N, …]; of classification the predicted class, int64.
        ids: image ids, int64 [N].
        fingerprint: the model that made them.
        data: hash of the data set.
        features: penultimate features, float16 [N, D], memory-mapped; None where the file has none.
    """

    answers: Answers | None
    kept: NDArray[Any]
    ids: NDArray[np.int64]
    fingerprint: str
    data: str
    features: NDArray[np.float16] | None = None


class _Tensor(NamedTuple):
    """Place of a tensor in a file."""

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


def _tensors(outputs: Outputs) -> dict[str, NDArray[Any]]:
    """The tensors of one split, by their names in a file."""
    answers, kept, top = outputs.answers, outputs.kept, outputs.top
    found: dict[str, NDArray[Any]] = {"ids": outputs.ids}
    if isinstance(answers, Largest):
        found |= {part: getattr(answers, part) for part in PARTS}
    elif answers is not None:
        found["logits"] = answers
    if top is not None and kept.ndim == 1:
        assert answers is not None, "a class per image is predicted from logits that are kept"
        classes = np.min_scalar_type(answers.shape[1] - 1)  # the smallest integers that hold all classes
        kept, top = kept.astype(classes), top.astype(classes)
    if top is not None:
        found["top"] = top
    if outputs.features is not None:
        found["features"] = outputs.features
    return found | {"predicted": kept}


def write(path: str | os.PathLike[str], splits: Mapping[str, Outputs], fingerprint: str, data: str) -> None:
    """Write one model's outputs on every split, atomically.

    Args:
        path: the .safetensors file.
        splits: outputs on each split; arrays may be memory-mapped.
        fingerprint: the model's.
        data: the data set's hash.
    """
    tensors = {f"{split}.{name}": array for split, of in splits.items() for name, array in _tensors(of).items()}
    described = {name: (str(array.dtype), array.shape, blocks(array)) for name, array in tensors.items()}
    facts = {"version": VERSION, "fingerprint": fingerprint, "data": data}
    if compressed := [of.answers for of in splits.values() if isinstance(of.answers, Largest)]:
        facts["classes"] = str(compressed[0].width)
    if recomputed := [split for split, of in splits.items() if of.answers is None]:
        facts[RECOMPUTED] = " ".join(recomputed)
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


@dataclass(frozen=True)
class File:
    """A file of predictions: its facts, and the places of its tensors; only bytes that are looked at are read.

    Attributes:
        path: of the file.
        facts: version, fingerprint, data and content hash.
        tensors: by name.
    """

    path: str | os.PathLike[str]
    facts: Mapping[str, str]
    tensors: Mapping[str, _Tensor]

    @classmethod
    def open(cls, path: str | os.PathLike[str], split: str | None = None) -> File:
        """Read a file's header.

        Args:
            path: the file.
            split: one that it must have.

        Raises:
            KtError: the file is missing or damaged, an older version wrote it, or it has no such split.
        """
        try:
            with safe_open(path, framework="numpy"):  # checks the header and the file's length
                pass
            with Path(path).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            facts = header.pop("__metadata__", {})
            tensors = {
                name: _Tensor(_DTYPES[of["dtype"]], tuple(of["shape"]), *(8 + length + at for at in of["data_offsets"]))
                for name, of in header.items()
            }
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise KtError(f"{path}: predictions cannot be read ({error})") from error
        if facts.get("version") != VERSION and "fingerprint" in facts:
            text = "predictions of an older version, which took classes from rounded logits"
            raise KtError(f"{path}: {text}; make them again: kt predictions --model {Path(path).stem}")
        have = sorted({name.rsplit(".", 1)[0] for name in tensors})
        if split is not None and split not in have:
            raise KtError(f"{path}: no predictions for the split {split!r}; it has: {', '.join(have)}")
        return cls(path, facts, tensors)

    def fact(self, name: str) -> str:
        """One of the facts; raises ``KtError`` where it is not there."""
        if name not in self.facts:
            raise KtError(f"{self.path}: predictions cannot be read (no {name!r} in the header)")
        return self.facts[name]

    def has(self, name: str) -> bool:
        """Whether there is a tensor."""
        return name in self.tensors

    def map(self, name: str) -> NDArray[Any]:
        """A tensor, memory-mapped; changes to it are not written to the file.

        Raises:
            KtError: there is none, or it cannot be mapped.
        """
        if name not in self.tensors:
            raise KtError(f"{self.path}: no {name!r} in these predictions; delete the file and run again")
        tensor = self.tensors[name]
        try:
            return np.memmap(self.path, tensor.dtype, "c", tensor.start, tensor.shape)
        except (ValueError, OSError) as error:
            raise KtError(f"{self.path}: predictions cannot be read ({error})") from error

    def answers(self, split: str) -> Answers | None:
        """Answers to a split, [N, …]; None where they are not kept."""
        if split in self.facts.get(RECOMPUTED, "").split():
            return None
        if self.has(f"{split}.logits") or not self.has(f"{split}.values"):
            return self.map(f"{split}.logits")
        values, classes, rest = (self.map(f"{split}.{part}") for part in PARTS)
        return Largest(values, classes, rest, int(self.fact("classes")))

    def bytes(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, a block at a time."""
        tensor = self.tensors[name]
        with Path(self.path).open("rb") as file:
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while block := file.read(min(left, BLOCK)):
                left -= len(block)
                yield block


def current(path: str | os.PathLike[str]) -> bool:
    """Whether there is a readable file of this version."""
    try:
        File.open(path)
    except KtError:
        return False
    return True


def read(path: str | os.PathLike[str], split: str) -> Prediction:
    """Open one split of a model's predictions; only bytes that are looked at are read.

    Raises:
        KtError: the file is missing or damaged, of an older version, or has no such split.
    """
    file = File.open(path, split)
    kept = np.array(file.map(f"{split}.predicted"))
    return Prediction(
        file.answers(split),
        kept.astype(np.int64) if kept.dtype.kind == "u" else kept,
        np.array(file.map(f"{split}.ids")),
        file.fact("fingerprint"),
        file.fact("data"),
        file.map(f"{split}.features") if file.has(f"{split}.features") else None,
    )


def verify(path: str | os.PathLike[str]) -> None:
    """Compare a file's tensors and facts with the content hash in its header.

    Raises:
        KtError: they differ, or the file cannot be read.
    """
    file = File.open(path)
    described = {name: (str(t.dtype), t.shape, file.bytes(name)) for name, t in file.tensors.items()}
    facts = [
        file.facts[name] for name in ("version", "fingerprint", "data", "classes", RECOMPUTED) if name in file.facts
    ]
    if _content(facts, described) != file.facts.get("content"):
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
