"""Predictions of all models on one split, read a slice of one model's at a time; and the pairs still to measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kt.errors import KtError
from kt.predictions import File


class Source(Protocol):
    """Predictions of M models on the same N images; ``rows`` is a slice of the images."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""

    @property
    def images(self) -> int:
        """Number of images N."""

    def kept(self, model: int, rows: slice) -> NDArray[Any]:
        """Kept parts of one model's answers, [n, …]; of classification the predicted classes."""

    def top(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """The likeliest classes of one model, likeliest first, [n, k]; of dense tasks that of each pixel, [n, H, W]."""

    def has_answers(self, model: int) -> bool:
        """Whether one model's answers are kept."""

    def logits(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Answers of one model, where they are kept; logits [n, C], or maps [n, h, w]."""

    def features(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Penultimate features of one model, [n, D]."""

    def content(self, model: int) -> str:
        """Hash of all that one model predicts."""


class Files:
    """Predictions in files; only the bytes asked for are read.

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
            file = File.open(path, split)
            data, ids = file.fact("data"), np.array(file.map(f"{split}.ids"))
            self._contents.append(file.fact("content"))
            first = first or (data, ids)
            if data != first[0] or not np.array_equal(ids, first[1]):
                raise KtError(f"predictions of {name!r} and {self.names[0]!r} on {split!r} are about different images")
            self.images = len(ids)

    def _rows(self, model: int, name: str, rows: slice) -> NDArray[Any]:
        return np.array(File.open(self._paths[model], self._split).map(f"{self._split}.{name}")[rows])

    def kept(self, model: int, rows: slice) -> NDArray[Any]:
        """Kept parts of one model's answers, [n, …]."""
        return self._rows(model, "predicted", rows)

    def top(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """The likeliest classes of one model, [n, k], or that of each pixel, [n, H, W]."""
        return self._rows(model, "top", rows)

    def has_answers(self, model: int) -> bool:
        """Whether one model's answers are kept."""
        return File.open(self._paths[model], self._split).answers(self._split) is not None

    def logits(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Answers of one model, where they are kept; logits [n, C], or maps [n, h, w]."""
        return self._rows(model, "logits", rows)

    def features(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Penultimate features of one model, [n, D].

        Raises:
            KtError: the file has none.
        """
        if not File.open(self._paths[model]).has(f"{self._split}.features"):
            raise KtError(
                f"{self._paths[model]}: no features for the split {self._split!r}, which the measure 'cka' needs; "
                "delete the file and run again"
            )
        return self._rows(model, "features", rows)

    def content(self, model: int) -> str:
        """Hash of all that one model predicts."""
        return self._contents[model]


def key_of(kept: NDArray[Any]) -> str:
    """Hash of kept parts or scores of one model's answers; of predicted classes whatever their integer type."""
    classes = kept.dtype.kind == "u"
    return hashlib.sha256((kept.astype(np.uint32) if classes else kept).tobytes()).hexdigest()


def new_pairs(models: int, changed: Sequence[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every unordered pair of distinct models with a changed one, once: a changed model and its partners."""
    left = np.ones(models, bool)
    for model in changed:
        left[model] = False
        yield model, np.flatnonzero(left)
