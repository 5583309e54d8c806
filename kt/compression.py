"""Logits of which only the largest are kept: a fraction of the bytes, at an error that is measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float16]

ROWS = 4096
"""Rows that are handled at once."""


class Largest(NamedTuple):
    """The k largest logits of each image.

    Attributes:
        values: the logits, float16 [N, k], largest first.
        classes: whose they are, unsigned integers [N, k].
        rest: the logit of every other class, float16 [N]: they share the probability that is left evenly.
    """

    values: Logits
    classes: NDArray[np.unsignedinteger]
    rest: Logits


def largest(logits: Logits, k: int) -> Largest:
    """Keep the k largest of C > k logits, from float16 [N, C]; of equals the first."""
    parts = [_largest(logits[i : i + ROWS], k) for i in _starts(logits)]
    return Largest(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _starts(rows: NDArray[np.float16]) -> range:
    return range(0, max(1, len(rows)), ROWS)


def _largest(logits: Logits, k: int) -> Largest:
    order = np.argsort(-logits.astype(np.float32), axis=1, kind="stable")
    values = np.take_along_axis(logits, order[:, :k], 1)
    others = np.take_along_axis(logits, order[:, k:], 1).astype(np.float64)
    top = others[:, :1]
    rest = (top[:, 0] + np.log(np.exp(others - top).mean(1))).astype(np.float16)
    ties = (rest == values[:, 0]) & (order[:, 0] > 0)  # of equals the first class would win
    rest[ties] = np.nextafter(rest[ties], np.float16(-np.inf))
    return Largest(values, order[:, :k].astype(np.min_scalar_type(logits.shape[1] - 1)), rest)


def expand(kept: Largest, classes: int) -> Logits:
    """Logits of all classes, float16 [N, C]."""
    full = np.repeat(kept.rest[:, None], classes, 1)
    np.put_along_axis(full, kept.classes.astype(np.int64), kept.values, 1)
    return full


def divergence(logits: Logits, kept: Largest) -> NDArray[np.float64]:
    """KL(softmax(logits) ‖ softmax of what was kept) of each image, nats, [N]."""
    found = []
    for i in _starts(logits):
        rows = slice(i, i + ROWS)
        part = Largest(kept.values[rows], kept.classes[rows], kept.rest[rows])
        log_p, log_q = (_log_softmax(z) for z in (logits[rows], expand(part, logits.shape[1])))
        found.append((np.exp(log_p) * (log_p - log_q)).sum(1))
    return np.concatenate(found)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)), np.float64)
