"""Spread of flips over the classes: entropy, areas of expertise and the similarity of their classes. Source: FG 3.2."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kt.complementarity.flips import Counts, Numbers
from kt.complementarity.sources import Source
from kt.errors import KtError, listed
from kt.store import digest
from kt.tables.columns import SHARES

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ROWS = 4096
"""Images at a time."""


LOOKED_UP = 1 << 20
"""Flips of a class up to which x ln x is looked up: images are few, pixels are not."""


def class_entropy(flips: Counts | Numbers) -> NDArray[np.float64]:
    """Shannon entropy in nats of the distribution of flips over classes, [P] from counts [P, C]; NaN without flips."""
    most = int(flips.max(initial=0))
    if most < LOOKED_UP:
        summed = np.take(_times_log(np.arange(most + 1)), flips, mode="clip").sum(-1)
    else:
        summed = _times_log(flips).sum(-1)
    total = flips.sum(-1, dtype=np.int64).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = np.log(total) - summed / total
    return np.where(total > 0, np.maximum(entropy, 0), np.nan)


def _times_log(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """The product x ln x of every count; 0 for 0."""
    found: NDArray[np.float64] = counts * np.log(np.maximum(counts, 1))
    return found


@dataclass(frozen=True)
class Areas:
    """Areas of expertise of P pairs: the fewest classes that hold 2, 5, 20 and 50 % of the positive flips.

    Classes are sorted by flips, ties by class number, so that every area begins with the smaller ones.

    Attributes:
        keys: flips and class number of every class in one integer, [P, C].
        ranked: the same, most flips first.
        bits: width of the class number in a key.
        sizes: number of classes in each area, int64 [P, 4]; 0 where a pair has no flips.

    Source: FG section 3.2; the published code returns one class more.
    """

    keys: NDArray[np.unsignedinteger]
    ranked: NDArray[np.unsignedinteger]
    bits: int
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, flips: Counts | Numbers) -> Areas:
        """From flips per class, [P, C]."""
        classes = flips.shape[1]
        bits = (classes - 1).bit_length()
        dtype: np.dtype[np.unsignedinteger] = np.min_scalar_type((int(flips.max(initial=0)) + 1 << bits) - 1)
        keys = (flips.astype(dtype) << dtype.type(bits)) | np.arange(classes - 1, -1, -1, dtype=dtype)
        ranked = np.sort(keys, axis=-1)[:, ::-1]  # small integers sort an order of magnitude faster than argsort
        held = np.cumsum(ranked >> dtype.type(bits), axis=-1, dtype=np.uint32 if dtype.itemsize < 8 else np.uint64)
        total = held[:, -1:].astype(np.int64)
        needed = [-(-share * total // 100) for share in SHARES]
        below = [np.count_nonzero(held < need.astype(held.dtype), axis=-1) for need in needed]
        sizes = np.where(total > 0, np.stack(below, axis=1) + 1, 0)
        return cls(keys, ranked, bits, sizes)

    def members(self, area: int) -> NDArray[np.bool_]:
        """Whether each class is in the area of ``SHARES[area]``, bool [P, C]."""
        size = self.sizes[:, area]
        last = self.ranked[np.arange(len(size)), np.maximum(size - 1, 0)]
        members: NDArray[np.bool_] = (self.keys >= last[:, None]) & (size > 0)[:, None]
        return members

    def classes(self) -> NDArray[np.int32]:
        """Classes of the largest area, most flips first, of one pair after the other."""
        classes = self.ranked.shape[1]
        kept = self.ranked[np.arange(classes) < self.sizes[:, -1:]]
        numbers: NDArray[np.int32] = classes - 1 - (kept & kept.dtype.type((1 << self.bits) - 1)).astype(np.int32)
        return numbers


@dataclass(frozen=True)
class ClassVectors:
    """Class vectors of length one; a class without images has the zero vector, and is left out.

    Attributes:
        unit: float32 [C, D].
        digest: hash of their source.
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
            members: whether each class is in each set, bool [P, C].
        """
        sets = members.astype(np.float32)
        size = (sets @ self.unit.any(1).astype(np.float32)).astype(np.float64)
        total = sets @ self.unit
        squared = np.einsum("pd,pd->p", total, total, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(size > 1, (squared - size) / (size * (size - 1)), np.nan)


def mean_logits(source: Source, model: int, labels: NDArray[np.int64], classes: int) -> ClassVectors:
    """The default class vectors: a model's mean logits over the images of each class, less their mean over classes.

    Classes that the model confuses have similar vectors. This needs no download and no text, and works for any data
    set. One model serves for all pairs, so that they are compared on one scale.

    Args:
        source: predictions.
        model: index of the model.
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
    from scipy.sparse import csr_array

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
