"""Agreement of two models: same class, alike maps, the label among the top five, and CAPA of the probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kt.complementarity.similarity import softmax
from kt.complementarity.sources import Source, new_pairs
from kt.tasks.maps import constant
from kt.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

TILE = 8
"""Models that one model is compared with at a time."""

HELD_CLASSES = 1 << 24
"""Predicted classes that are held at a time."""

HELD_PROBABILITIES = 1 << 25
"""Probabilities of all models that a thread holds at a time."""

HELD_VALUES = 1 << 21
"""Values of maps of all models that are held at a time; a filter takes a dozen times their bytes."""


class Truth(Protocol):
    """Truths of images, read a slice at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [N, …, H, W]."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Truths of some images."""


def agreement(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Percent of images on which two models predict the same class, for all pairs with a changed model.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``HELD_CLASSES`` predicted classes, however many images there are.
    """
    if not changed:
        return
    models, images = len(into), source.images
    same = np.zeros((models, models), np.int64)
    chunk = max(1, HELD_CLASSES // models)
    for start in range(0, images, chunk):
        rows = slice(start, min(start + chunk, images))
        part = np.stack([source.kept(model, rows) for model in range(models)])

        def count(pair: tuple[int, NDArray[np.int64]], part: NDArray[np.unsignedinteger] = part) -> None:
            model, others = pair
            for which in tiles(others):
                same[model, which] += equal(part[model], part[which])

        list(pool.map(count, new_pairs(models, changed)))
    for model, others in new_pairs(models, changed):
        into[model, others] = into[others, model] = 100 * same[model, others] / images


def alike(
    source: Source,
    into: NDArray[np.float64],
    changed: Sequence[int],
    pool: Executor,
    labels: Truth,
    task: Task,
) -> None:
    """Mean correlation of two models' maps as they are judged (``Task.judged``), for all pairs with a changed model.

    A constant map correlates with none: 0, as in the score. Correlations are inner products of centred maps of norm 1,
    so that all pairs of some images are one matrix product.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are, those of a model whose
            answers are not kept are NaN.
        changed: indices of the changed models.
        pool: not used: torch has its own threads.
        labels: truths of the images, [N, …, H, W], which answers are aligned to.
        task: what is learnt.

    Memory: ``HELD_VALUES`` values of maps (or one image), however many images there are.
    """
    if not changed:
        return
    import torch

    models, images = len(into), source.images
    known = [model for model in range(models) if source.has_answers(model)]
    which = [model for model in changed if model in known]
    into[list(changed), :] = into[:, list(changed)] = np.nan
    total = np.zeros((len(which), len(known)))
    chunk = max(1, HELD_VALUES // (models * math.prod(labels.shape[-2:])))
    for start in range(0, images if which else 0, chunk):
        rows = slice(start, min(start + chunk, images))
        truth = torch.from_numpy(labels[rows])
        maps = np.stack(
            [_unit(task.judged(task.aligned(torch.from_numpy(source.logits(m, rows)).float(), truth))) for m in known]
        ).reshape(len(known), -1)
        with threadpool_limits(1, "blas"):  # one order of summation, however many threads there are
            total += maps[[known.index(model) for model in which]] @ maps.T
    for row, model in enumerate(which):
        into[model, known] = into[known, model] = total[row] / images


def _unit(maps: Tensor) -> NDArray[np.float64]:
    """Maps less their means, of norm 1, float64 [b, P]; zeros where a map is constant."""
    flat: NDArray[np.float64] = maps.double().flatten(1).numpy()
    flat = flat / np.abs(flat).max(1, keepdims=True).clip(1e-30)  # squares of tiny values would be lost
    flat -= flat.mean(1, keepdims=True)
    norm = np.where(constant(maps).numpy(), np.inf, np.sqrt(np.square(flat).sum(1)))
    return flat / norm[:, None]


def tiles(models: NDArray[np.int64]) -> Iterator[slice | NDArray[np.int64]]:
    """Ascending indices of models, ``TILE`` at a time; as a slice where they are a run, which needs no copy."""
    for tile in (models[i : i + TILE] for i in range(0, len(models), TILE)):
        run = slice(int(tile[0]), int(tile[-1]) + 1)
        yield run if run.stop - run.start == len(tile) else tile


def equal(one: NDArray[np.unsignedinteger], others: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Number of equal entries of [n] and each row of [S, n], int64 [S]."""
    equal = np.empty((len(others), -(-len(one) // 64) * 64), bool)
    equal[:, len(one) :] = False
    np.equal(one, others, out=equal[:, : len(one)])
    packed = np.packbits(equal, axis=-1).view(np.uint64)  # 64 truth values are counted at a time
    counted: NDArray[np.int64] = np.bitwise_count(packed).sum(-1, dtype=np.int64)
    return counted


def top_flips(
    source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor, labels: NDArray[np.int64]
) -> None:
    """Percent of images whose label is among the teacher's five likeliest classes and not among the student's.

    For all ordered pairs with a changed model, from one bit per image and model. Negative flips of a pair are the
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


def capa(
    source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor, labels: NDArray[np.int64]
) -> None:
    """Chance-adjusted probabilistic agreement, for all pairs with a changed model.

    κ_p = (observed − expected) / (1 − expected). Observed is the chance that both draw the same class, each from its
    probabilities: the mean over the images of Σ_c p_c q_c, for all pairs one Gram matrix. Expected is that of
    independent models that give the label the same mean probability, p̄ and q̄, and share the rest evenly:
    p̄ q̄ + (1 − p̄)(1 − q̄) / (C − 1).

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M]; pairs of unchanged models are left as they are. NaN below two classes.
        changed: indices of the changed models.
        pool: threads; each takes images of its own.
        labels: int64 [N].

    Memory: ``HELD_PROBABILITIES`` probabilities in float32 and two matrices a thread, however many images there are.

    Source: Goel et al. 2025, arXiv 2502.04313, and its package `lm-sim`.
    """
    if not changed:
        return
    models, images = len(into), source.images
    classes = source.logits(0, slice(0, 1)).shape[1]
    which, everyone = list(changed), len(changed) == models
    same, at_label, lock = np.zeros((len(changed), models)), np.zeros(models), Lock()
    chunk = max(1, HELD_PROBABILITIES // (models * classes))

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
