"""Similarity of two models' outputs and features: Jensen-Shannon divergence, LEEP and CKA."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.expertise import of_class
from kt.complementarity.sources import Source, new_pairs
from kt.errors import KtError

CHUNK = 1 << 26
"""Probabilities of all models that are held at a time."""

TILE = 1 << 17
"""Probabilities that one model's are compared with at a time: they stay in a core's own cache."""

TINY = np.float32(1e-37)

ROWS = 2048
"""Images that are held at a time."""

JOINT = 1 << 24
"""Entries of joint distributions that each thread holds at a time."""

BATCH = 256
"""Least number of images in a minibatch, where there are so many."""


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


def leep(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Log expected empirical prediction in nats, for all ordered pairs with a changed model.

    The student plays the pretrained model, the teacher's predicted classes are the labels of the task: with the joint
    distribution P(y, z) of the teacher's class y and the student's output class z, LEEP is the mean over the images of
    ln Σ_z P(y|z) p_student(z). It is at most 0, and higher where the student's outputs tell the teacher's
    class.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M] by teacher and student; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``JOINT`` numbers per thread and ``ROWS`` images; logits are read twice for each block of teachers.

    Source: Nguyen, Hassner, Seeger, Archambeau 2020, ICML, arXiv 2002.12462, equations 1 and 2.
    """
    if not changed:
        return
    models = len(into)
    classes = source.logits(0, slice(0, 1)).shape[1]
    block = max(1, JOINT // classes**2)
    new = np.zeros(models, bool)
    new[list(changed)] = True
    work = []
    for student in range(models):
        teachers = np.flatnonzero((new | new[student]) & (np.arange(models) != student))
        work += [(student, teachers[i : i + block]) for i in range(0, len(teachers), block)]

    def measure(item: tuple[int, NDArray[np.int64]]) -> None:
        student, teachers = item
        into[teachers, student] = _of_student(source, student, teachers, classes)

    list(pool.map(measure, work))


def _of_student(source: Source, student: int, teachers: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """LEEP of one student with T teachers, float64 [T]."""
    joint = np.zeros((len(teachers), classes, classes), np.float32)
    chunks = [slice(i, min(i + ROWS, source.images)) for i in range(0, source.images, ROWS)]
    for rows in chunks:
        p = softmax(source.logits(student, rows))
        for t, teacher in enumerate(teachers):
            joint[t] += of_class(source.kept(teacher, rows), classes) @ p
    marginal = joint[0].sum(0)
    joint /= np.where(marginal > 0, marginal, 1)
    total = np.zeros(len(teachers))
    for rows in chunks:
        p = softmax(source.logits(student, rows))
        for t, teacher in enumerate(teachers):
            expected = np.einsum("nz,nz->n", joint[t][source.kept(teacher, rows)], p)
            total[t] += np.log(expected).sum(dtype=np.float64)
    return total / source.images


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

    Memory: n² / 2 numbers per model, n < 2 ``BATCH``, however many images there are.

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
