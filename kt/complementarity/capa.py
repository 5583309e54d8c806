"""How much two models' predicted probabilities agree beyond what their accuracies alone give."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kt.complementarity.divergence import softmax
from kt.complementarity.sources import Source

CHUNK = 1 << 25
"""Probabilities of all models that a thread holds at a time."""


def capa(
    source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor, labels: NDArray[np.int64]
) -> None:
    """Chance-adjusted probabilistic agreement, for all pairs with a changed model.

    κ_p = (observed − expected) / (1 − expected). Observed is the chance that both say the same class when each draws it
    from its probabilities: the mean over the images of Σ_c p_c q_c, for all pairs one Gram matrix. Expected is that of
    independent models that give the label the same mean probability, p̄ and q̄, and share the rest evenly:
    p̄ q̄ + (1 − p̄)(1 − q̄) / (C − 1).

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are. NaN below two classes.
        changed: indices of the changed models.
        pool: threads; each takes images of its own.
        labels: int64 [N].

    Memory: ``CHUNK`` probabilities in float32 and two matrices a thread, however many images there are.

    Source: Goel et al. 2025, arXiv 2502.04313, and its package `lm-sim`.
    """
    if not changed:
        return
    models, images = len(into), source.images
    classes = source.logits(0, slice(0, 1)).shape[1]
    which, everyone = list(changed), len(changed) == models
    same, at_label, lock = np.zeros((len(changed), models)), np.zeros(models), Lock()
    chunk = max(1, CHUNK // (models * classes))

    def count(start: int) -> None:
        rows = slice(start, min(start + chunk, images))
        p = np.empty((models, rows.stop - start, classes), np.float32)
        for model in range(models):
            p[model] = softmax(source.logits(model, rows))
        of_label = p[:, np.arange(p.shape[1]), labels[rows]].sum(1, dtype=np.float64)
        flat = p.reshape(models, -1)
        product = (flat if everyone else flat[which]) @ flat.T
        with lock:
            np.add(same, product, out=same)
            np.add(at_label, of_label, out=at_label)

    with threadpool_limits(1, "blas"):  # the threads share the images, not a product
        list(pool.map(count, range(0, images, chunk)))
    likely = at_label / images
    expected = np.outer(likely, likely)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected += np.outer(1 - likely, 1 - likely) / (classes - 1)
        for row, model in enumerate(changed):
            found = (same[row] / images - expected[model]) / (1 - expected[model])
            into[model, :] = into[:, model] = np.where(np.isfinite(found), found, np.nan)
