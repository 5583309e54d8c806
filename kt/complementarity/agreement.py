"""On how many images two models predict the same class."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.parallel import new_pairs
from kt.complementarity.sources import Source

TILE = 8
"""Models that one is compared with at a time."""

CHUNK = 1 << 24
"""Predicted classes that are held at a time."""


def agreement(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Percent of images on which two models predict the same class, for all pairs with a changed model.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``CHUNK`` predicted classes, however many images there are.
    """
    if not changed:
        return
    models, images = len(into), source.images
    same = np.zeros((models, models), np.int64)
    chunk = max(1, CHUNK // models)
    for start in range(0, images, chunk):
        rows = slice(start, min(start + chunk, images))
        part = np.stack([source.predicted(model, rows) for model in range(models)])

        def count(pair: tuple[int, NDArray[np.int64]], part: NDArray[np.unsignedinteger] = part) -> None:
            model, others = pair
            for tile in (others[i : i + TILE] for i in range(0, len(others), TILE)):
                run = slice(int(tile[0]), int(tile[-1]) + 1)  # a run of models needs no copy
                which = run if run.stop - run.start == len(tile) else tile
                same[model, which] += _equal(part[model], part[which])

        list(pool.map(count, new_pairs(models, changed)))
    for model, others in new_pairs(models, changed):
        into[model, others] = into[others, model] = 100 * same[model, others] / images


def _equal(one: NDArray[np.unsignedinteger], others: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Number of equal entries of [n] and each row of [S, n], int64 [S]."""
    equal = np.empty((len(others), -(-len(one) // 64) * 64), bool)
    equal[:, len(one) :] = False
    np.equal(one, others, out=equal[:, : len(one)])
    packed = np.packbits(equal, axis=-1).view(np.uint64)  # 64 truth values are counted at a time
    counted: NDArray[np.int64] = np.bitwise_count(packed).sum(-1, dtype=np.int64)
    return counted
