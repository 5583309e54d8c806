"""A symmetric matrix that is lowered often, by two vectors at a time, and of which little is read in between.

A thousand models have a covariance of 2,000 × 2,000 numbers, and a round of the rule ``adaptive`` lowers it by tens of
thousands of pairs. Vectors are kept until a block of them is full, and then subtracted by one product of matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 128
"""Pairs of vectors kept: fewer make the products slow, more make a column slow to read."""


class Lowered:
    """The matrix M of the rows z of pairs: properties, a flag of the teacher and a flag of the student.

    Args:
        matrix: its beginning, [k + 2 · models, k + 2 · models]; changed in place.
        k: properties.
        models: models.
    """

    def __init__(self, matrix: Floats, k: int, models: int) -> None:
        self._matrix, self._k, self._models = matrix, k, models
        self._properties, self._diagonal = matrix[:k].copy(), np.diag(matrix).copy()
        self._left, self._right = np.empty((BLOCK, len(matrix))), np.empty((BLOCK, len(matrix)))
        self._kept = 0

    def lower(self, left: Floats, right: Floats) -> None:
        """Subtract left · right' + right · left', [k + 2 · models] each."""
        k = self._k
        self._properties -= np.outer(left[:k], right) + np.outer(right[:k], left)
        self._diagonal -= 2 * left * right
        self._left[self._kept], self._right[self._kept] = left, right
        self._kept += 1
        if self._kept == BLOCK:
            product = self._left.T @ self._right
            self._matrix -= product
            self._matrix -= product.T
            self._kept = 0

    def column(self, at: int) -> Floats:
        """One column, [k + 2 · models]."""
        left, right = self._left[: self._kept], self._right[: self._kept]
        return np.asarray(self._matrix[at] - right[:, at] @ left - left[:, at] @ right, np.float64)

    def forms(self, x: Floats, teachers: Ints, student: int) -> Floats:
        """The forms z'Mz of pairs of one student, [n]; x has their properties, [n, k]."""
        t, s = self._k + teachers, self._k + self._models + student
        columns = self._properties[:, t].T + self._properties[:, s]
        of_x = x @ self._properties[:, : self._k] + 2 * columns
        return np.asarray((of_x * x).sum(1) + self._diagonal[t] + self._diagonal[s] + 2 * self.column(s)[t], np.float64)

    def along(self, x: Floats, teacher: int, student: int) -> Floats:
        """Mz of one pair, [k + 2 · models]; x has its properties, [k]."""
        of_models = self.column(self._k + teacher) + self.column(self._k + self._models + student)
        return np.asarray(x @ self._properties + of_models, np.float64)
