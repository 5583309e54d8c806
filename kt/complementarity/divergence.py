"""How far two models' predicted probabilities lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.parallel import new_pairs
from kt.complementarity.sources import Source

CHUNK = 1 << 26
"""Probabilities of all models that are held at a time."""

TILE = 1 << 17
"""Probabilities that one is compared with at a time: they stay in a core's own cache."""

TINY = np.float32(1e-37)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probabilities float32 [n, C] from logits [n, C]."""
    z = logits.astype(np.float32)
    z -= z.max(1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(1, keepdims=True)
    return z


def js_divergence(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Jensen-Shannon divergence in nats, the mean over the images, for all pairs with a changed model.

    JSD(p, q) = H((p + q)/2) − (H(p) + H(q))/2, between 0 and ln 2. No identity takes the logarithm out of the pair:
    every pair costs images × classes logarithms.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``CHUNK`` probabilities, however many images there are.

    Source: Lin 1991, IEEE Transactions on Information Theory 37(1), equations 3.7 and 4.1.
    """
    if not changed:
        return
    models, images = len(into), source.images
    classes = source.logits(0, slice(0, 1)).shape[1]
    total = np.zeros_like(into)
    chunk = max(1, min(CHUNK // models, TILE) // classes)
    for start in range(0, images, chunk):
        rows = slice(start, min(start + chunk, images))
        p = np.stack(list(pool.map(lambda m, rows=rows: softmax(source.logits(m, rows)), range(models))))
        own = np.array([_plogp(p[m : m + 1])[0] for m in range(models)])
        tile = max(1, TILE // (p.shape[1] * classes))

        def count(
            pair: tuple[int, NDArray[np.int64]],
            p: NDArray[np.float32] = p,
            own: NDArray[np.float64] = own,
            tile: int = tile,
        ) -> None:
            model, others = pair
            for who in (others[i : i + tile] for i in range(0, len(others), tile)):
                total[model, who] += (own[model] + own[who]) / 2 - _plogp((p[model] + p[who]) / 2)

        list(pool.map(count, new_pairs(models, changed)))
    for model, others in new_pairs(models, changed):
        into[model, others] = into[others, model] = np.maximum(total[model, others] / images, 0)


def _plogp(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ p ln p over images and classes, float64 [S] from [S, n, C]; sums in float32 run over one image's classes."""
    logs = np.log(np.maximum(p, TINY))
    summed: NDArray[np.float64] = np.einsum("snc,snc->sn", p, logs).sum(-1, dtype=np.float64)
    return summed
