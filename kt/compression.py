"""Logits of which only the largest are kept: a fraction of the bytes, at an error that is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float16]

VALUES = 1 << 22
"""Logits that are handled at once."""

PARTS = ("values", "classes", "rest")


@dataclass(frozen=True)
class Largest:
    """The k largest of C logits of each image, or of each pixel; an index of rows gives them back as an array of all C.

    Attributes:
        values: the logits, float16 [N, k, …], largest first.
        classes: their positions, unsigned integers [N, k, …].
        rest: the logit of every other class, float16 [N, …]: they share the probability that is left evenly.
        width: number of logits C.
    """

    values: Logits
    classes: NDArray[np.unsignedinteger]
    rest: Logits
    width: int

    dtype = np.dtype(np.float16)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all logits, (N, C, …)."""
        return len(self.values), self.width, *self.values.shape[2:]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Logits:
        """Logits of all classes of some rows, given by a slice or an array, float16 [n, C, …]."""
        full = np.repeat(self.rest[rows][:, None], self.width, 1)
        np.put_along_axis(full, self.classes[rows].astype(np.int64), self.values[rows], 1)
        return full

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


def largest(logits: Logits, k: int) -> Largest:
    """Keep the k largest of C > k logits, from float16 [N, C, …]; of equals the first."""
    parts = [_largest(logits[rows], k) for rows in _stretches(logits)]
    values, classes, rest = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Largest(values, classes, rest, logits.shape[1])


def _stretches(rows: Logits) -> Iterator[slice]:
    step = max(1, VALUES // max(1, math.prod(rows.shape[1:])))
    return (slice(i, i + step) for i in range(0, max(1, len(rows)), step))


def _largest(logits: Logits, k: int) -> tuple[Logits, NDArray[np.unsignedinteger], Logits]:
    order = np.argsort(-logits.astype(np.float32), axis=1, kind="stable")
    values = np.take_along_axis(logits, order[:, :k], 1)
    others = np.take_along_axis(logits, order[:, k:], 1).astype(np.float64)
    top = others[:, :1]
    rest = (top[:, 0] + np.log(np.exp(others - top).mean(1))).astype(np.float16)
    ties = (rest == values[:, 0]) & (order[:, 0] > 0)  # of equals the first class would win
    rest[ties] = np.nextafter(rest[ties], np.float16(-np.inf))
    return values, order[:, :k].astype(np.min_scalar_type(logits.shape[1] - 1)), rest


def divergence(logits: Logits, kept: Largest) -> NDArray[np.float64]:
    """KL(softmax(logits) ‖ softmax of what was kept) of each image, or of each pixel, nats, [N, …]."""
    found = []
    for rows in _stretches(logits):
        log_p, log_q = _log_softmax(logits[rows]), _log_softmax(kept[rows])
        found.append((np.exp(log_p) * (log_p - log_q)).sum(1))
    return np.concatenate(found)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)), np.float64)
