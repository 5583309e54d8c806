"""Predictions of all models on one split, read a slice of one model's at a time; and the pairs still to measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kt import predictions, store
from kt.errors import KtError


class Source(Protocol):
    """Predictions of M models on the same N images; ``rows`` is a slice of the images."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""

    @property
    def images(self) -> int:
        """Number of images N."""

    def predicted(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """Predicted classes of one model, [n], in the smallest integers that hold all classes."""

    def top(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """The likeliest classes of one model, likeliest first, [n, k]."""

    def logits(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Logits of one model, [n, C]."""

    def features(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Penultimate features of one model, [n, D]."""

    def content(self, model: int) -> str:
        """Hash of all that one model predicts."""


class Files:
    """Predictions in the files that ``kt.predictions`` writes; only the bytes asked for are read.

    Args:
        paths: file of every model.
        split: which split.

    Raises:
        KtError: a file cannot be read, is of an older version, has no such split, or two are about different images.
    """

    def __init__(self, paths: Mapping[str, Path], split: str) -> None:
        self.names = list(paths)
        self._paths, self._split = list(paths.values()), split
        self._contents: list[str] = []
        first: tuple[str, NDArray[np.int64]] | None = None
        for name, path in paths.items():
            with self._open(path) as file:
                header, ids = file.metadata() or {}, file.get_tensor(f"{split}.ids")
                predictions.check_version(path, header)
                self._contents.append(header["content"])
            first = first or (header["data"], ids)
            if header["data"] != first[0] or not np.array_equal(ids, first[1]):
                raise KtError(f"predictions of {name!r} and {self.names[0]!r} on {split!r} are about different images")
            self.images = len(ids)

    @contextmanager
    def _open(self, path: Path) -> Any:
        try:
            with safe_open(path, framework="numpy") as file:
                have = sorted({name.rsplit(".", 1)[0] for name in file.keys()})  # noqa: SIM118 (not a mapping)
                if self._split not in have:
                    text = f"{path}: no predictions for the split {self._split!r}; it has: {', '.join(have)}"
                    raise KtError(text)
                yield file
        except (SafetensorError, OSError, KeyError) as error:
            raise KtError(f"{path}: predictions cannot be read ({error})") from error

    def _slice(self, model: int, kind: str, rows: slice) -> NDArray[Any] | None:
        """Rows of a tensor; None where the file has no such tensor."""
        with self._open(self._paths[model]) as file:
            name = f"{self._split}.{kind}"
            found: NDArray[Any] | None = file.get_slice(name)[rows] if name in file.keys() else None  # noqa: SIM118
            return found

    def predicted(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """Predicted classes of one model, [n]."""
        return self._needed(model, "predicted", rows)

    def top(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """The likeliest classes of one model, likeliest first, [n, k]."""
        return self._needed(model, "top", rows)

    def logits(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Logits of one model, [n, C]."""
        return self._needed(model, "logits", rows)

    def _needed(self, model: int, kind: str, rows: slice) -> NDArray[Any]:
        found = self._slice(model, kind, rows)
        if found is None:
            raise KtError(f"{self._paths[model]}: no {kind} for the split {self._split!r}; delete it and run again")
        return found

    def features(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Penultimate features of one model, [n, D].

        Raises:
            KtError: the file has none.
        """
        found = self._slice(model, "features", rows)
        if found is None:
            raise KtError(
                f"{self._paths[model]}: no features for the split {self._split!r}, which the measure 'cka' needs; "
                "delete the file and run again"
            )
        return found

    def content(self, model: int) -> str:
        """Hash of all that one model predicts."""
        return self._contents[model]


def key_of(predicted: NDArray[np.unsignedinteger]) -> str:
    """Hash of predicted classes, whatever their integer type."""
    return hashlib.sha256(predicted.astype(np.uint32).tobytes()).hexdigest()


def labels_key(labels: NDArray[np.int64], classes: int, split: str) -> str:
    """Hash of what predictions are compared with."""
    return store.digest([hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest(), classes, split])


def new_pairs(models: int, changed: Sequence[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every unordered pair of distinct models with a changed one, once: a changed model and its partners."""
    left = np.ones(models, bool)
    for model in changed:
        left[model] = False
        yield model, np.flatnonzero(left)
