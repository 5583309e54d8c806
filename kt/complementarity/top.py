"""Flips of whether the label is among a model's likeliest classes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.parallel import new_pairs
from kt.complementarity.sources import Source


def top_flips(
    source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor, labels: NDArray[np.int64]
) -> None:
    """Percent of images whose label is among the teacher's five likeliest classes and not among the student's.

    For all ordered pairs with a changed model, from one bit an image and model. Negative flips of a pair are the
    positive ones of the pair the other way round.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M] by teacher and student; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.
        labels: int64 [N].

    Source: the code published with FG, whose option ``topn`` says how many classes.
    """
    if not changed:
        return
    models, images = len(into), source.images

    def found(model: int) -> NDArray[np.uint64]:
        bits = np.zeros(-(-images // 64) * 64, bool)
        bits[:images] = (source.top(model, slice(0, images)) == labels[:, None]).any(1)
        return np.packbits(bits).view(np.uint64)

    words = np.stack(list(pool.map(found, range(models))))

    def count(pair: tuple[int, NDArray[np.int64]]) -> None:
        model, others = pair
        for teachers, students, place in (
            (words[model], words[others], (model, others)),
            (words[others], words[model], (others, model)),
        ):
            into[place] = 100 * np.bitwise_count(teachers & ~students).sum(-1, dtype=np.int64) / images

    list(pool.map(count, new_pairs(models, changed)))
