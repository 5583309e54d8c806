"""Pairs that are still to be measured, and threads that do not run ahead of whoever takes their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def new_pairs(models: int, changed: Sequence[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every unordered pair of distinct models with a changed one, once: a changed model and its partners."""
    left = np.ones(models, bool)
    for model in changed:
        left[model] = False
        yield model, np.flatnonzero(left)


def in_order(
    pool: Executor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Results in the order of the items; at most ``ahead`` wait, so that memory stays bounded."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
