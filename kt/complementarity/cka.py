"""How alike two models' penultimate features are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.sources import Source
from kt.errors import KtError

BATCH = 256
"""Least number of images in a minibatch, where there are so many."""


def cka(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Linear centred kernel alignment, minibatch and unbiased, for all pairs with a changed model.

    The unbiased HSIC of two kernels is the inner product of their U-centred matrices over n (n − 3). So all pairs of a
    minibatch are one matrix product over the models' centred kernels; HSICs are averaged over the minibatches before
    their ratio is taken. A minibatch takes every B-th image, so that an order by class does no harm.

    Args:
        source: predictions, with features.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: n² / 2 numbers a model, n < 2 ``BATCH``, however many images there are.

    Raises:
        KtError: there are no features, or fewer than four images.

    Source: Nguyen, Raghu, Kornblith 2021, ICLR, arXiv 2010.15327, equations 2 and 3; Song et al. 2012, JMLR 13,
    equation 5, and Székely and Rizzo 2014, Annals of Statistics 42(6), proposition 1, for the inner product.
    """
    if not changed:
        return
    models, images = len(into), source.images
    if images < 4:
        raise KtError(f"complementarity.measures: 'cka' needs at least 4 images, not {images}")
    batches = max(1, images // BATCH)
    own, cross = np.zeros(models), np.zeros((len(changed), models))
    for batch in range(batches):
        rows = slice(batch, images, batches)
        centred = np.stack(list(pool.map(lambda m, rows=rows: _centred(source.features(m, rows)), range(models))))
        own += np.einsum("mk,mk->m", centred, centred, dtype=np.float64)
        cross += centred[list(changed)] @ centred.T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = cross / np.sqrt(np.outer(own[list(changed)], own))
    for row, model in enumerate(changed):
        into[model, :] = into[:, model] = np.where(np.isfinite(ratio[row]), ratio[row], np.nan)


def _centred(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Upper triangle of the U-centred linear kernel of features [n, D], over √(n (n − 3)/2); float32 [n (n − 1)/2]."""
    x = features.astype(np.float64)
    x -= x.mean(0)  # changes nothing but the rounding
    n = len(x)
    kernel = x @ x.T
    np.fill_diagonal(kernel, 0)
    of_row = kernel.sum(1) / (n - 2)
    centred = kernel - of_row[:, None] - of_row + of_row.sum() / (n - 1)
    triangle: NDArray[np.float32] = (centred[np.triu_indices(n, 1)] / np.sqrt(n * (n - 3) / 2)).astype(np.float32)
    return triangle
