"""How well a teacher's predicted classes can be read from a student's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.divergence import softmax
from kt.complementarity.embeddings import of_class
from kt.complementarity.sources import Source

ROWS = 2048
"""Images that are held at a time."""

JOINT = 1 << 24
"""Entries of joint distributions that a thread holds at a time."""


def leep(source: Source, into: NDArray[np.float64], changed: Sequence[int], pool: Executor) -> None:
    """Log expected empirical prediction in nats, for all ordered pairs with a changed model.

    The student plays the pretrained model, the teacher's predicted classes are the labels of the task: with the joint
    distribution P(y, z) of the teacher's class y and the student's output class z, LEEP is the mean over the images of
    ln Σ_z P(y|z) p_student(z). It is at most 0, and higher where the student could learn to say what the teacher says
    from what it says already.

    Args:
        source: predictions.
        into: the matrix to fill, float64 [M, M] by teacher and student; pairs of unchanged models are left as they are.
        changed: indices of the changed models.
        pool: threads.

    Memory: ``JOINT`` numbers a thread and ``ROWS`` images; logits are read twice for each block of teachers.

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
            joint[t] += of_class(source.predicted(teacher, rows), classes) @ p
    marginal = joint[0].sum(0)
    joint /= np.where(marginal > 0, marginal, 1)
    total = np.zeros(len(teachers))
    for rows in chunks:
        p = softmax(source.logits(student, rows))
        for t, teacher in enumerate(teachers):
            expected = np.einsum("nz,nz->n", joint[t][source.predicted(teacher, rows)], p)
            total[t] += np.log(expected).sum(dtype=np.float64)
    return total / source.images
