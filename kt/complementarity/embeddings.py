"""Vectors of classes: how alike the classes of an area of expertise are. Source: FG section 3.2."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array

from kt.complementarity.sources import Source
from kt.errors import KtError, listed
from kt.store import digest

ROWS = 4096
"""Images at a time."""


@dataclass(frozen=True)
class ClassVectors:
    """Class vectors of length one; a class of which nothing is known has the zero vector, and is left out.

    Attributes:
        unit: float32 [C, D].
        digest: hash of where they come from.
    """

    unit: NDArray[np.float32]
    digest: str

    @classmethod
    def of(cls, vectors: NDArray[np.floating], digest: str) -> ClassVectors:
        """From vectors of any length, [C, D]."""
        vectors = vectors.astype(np.float64)
        length = np.sqrt((vectors**2).sum(1, keepdims=True))
        return cls((vectors / np.where(length > 0, length, 1)).astype(np.float32), digest)

    def mean(self) -> float:
        """Mean cosine of all pairs of distinct classes; NaN below two classes."""
        return float(self.similarity(np.ones((1, len(self.unit)), bool))[0])

    def similarity(self, members: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean cosine of all pairs of distinct classes in each set, float64 [P]; NaN below two classes.

        The sum of all cosines is the squared length of the sum of the vectors: no loop over pairs of classes.

        Args:
            members: which classes are in each set, bool [P, C].
        """
        sets = members.astype(np.float32)
        size = (sets @ self.unit.any(1).astype(np.float32)).astype(np.float64)
        total = sets @ self.unit
        squared = np.einsum("pd,pd->p", total, total, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(size > 1, (squared - size) / (size * (size - 1)), np.nan)


def mean_logits(source: Source, model: int, labels: NDArray[np.int64], classes: int) -> ClassVectors:
    """The default class vectors: a model's mean logits over the images of each class, less their mean over classes.

    Classes that the model takes for one another have like vectors. It needs no download and no text, and works for any
    data set; one model serves for all pairs, so that they are compared on one scale.

    Args:
        source: predictions.
        model: which model.
        labels: int64 [N].
        classes: number of classes C.
    """
    total = np.zeros((classes, classes))
    for start in range(0, len(labels), ROWS):
        rows = slice(start, min(start + ROWS, len(labels)))
        total += of_class(labels[rows], classes) @ source.logits(model, rows).astype(np.float32)
    sizes = np.bincount(labels, minlength=classes)
    present = sizes > 0
    means = total / np.maximum(sizes, 1)[:, None]
    centred = np.where(present[:, None], means - means[present].mean(0), 0)
    return ClassVectors.of(centred, digest(["mean logits", source.content(model)]))


def of_class(labels: NDArray[np.integer], classes: int) -> csr_array:
    """The matrix that sums rows by class, float32 [C, n], from labels [n]."""
    return csr_array((np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))), (classes, len(labels)))


def load(path: str | Path, classes: int) -> ClassVectors:
    """Class vectors from a file: .npz with ``vectors`` [C, D], or Parquet with the columns ``class`` and ``vector``.

    Raises:
        KtError: the file cannot be read, or is not about the classes 0 … C − 1.
    """
    at = f"complementarity.class_embeddings: {path}"
    try:
        vectors = _from_npz(path) if str(path).endswith(".npz") else _from_parquet(path)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise KtError(f"{at}: cannot be read ({str(error).splitlines()[0]})") from error
    if vectors.ndim != 2 or len(vectors) != classes or not np.issubdtype(vectors.dtype, np.number):
        raise KtError(f"{at}: {list(vectors.shape)} {vectors.dtype}, but [{classes}, width] numbers are needed")
    length = np.abs(vectors).sum(1)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise KtError(f"{at}: a zero vector, or one that is not finite, for the classes {listed(map(str, bad))}")
    return ClassVectors.of(vectors, hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest())


def _from_npz(path: str | Path) -> NDArray[np.floating]:
    with np.load(Path(path), allow_pickle=False) as file:  # a path of the configuration has a `read` of its own
        vectors: NDArray[np.floating] = file["vectors"]
    return vectors


def _from_parquet(path: str | Path) -> NDArray[np.floating]:
    table = pq.read_table(path, columns=["class", "vector"]).sort_by("class")
    numbers = table["class"].to_pylist()
    if numbers != list(range(len(numbers))):
        raise ValueError("the column `class` needs every number from 0 on, once")
    return np.array(table["vector"].to_pylist())
