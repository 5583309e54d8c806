"""Whether a model's outputs fit the classes in another order than the data set's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data.listing import ORDERS, ordered

Permutation = NDArray[np.int64]
"""The class that each output stands for, [K]."""

GAIN = 0.1
"""Accuracy by which another order has to be better, beyond two standard errors of a coin."""


class Better(NamedTuple):
    """Another order of the classes: what it is called, and the accuracies without and with it, in [0, 1]."""

    order: str
    accuracy: float
    reordered: float


def better(predicted: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]) -> Better | None:
    """The order of classes under which a model is far more often right; None where there is none.

    Tried are the usual orders of class folders, labels that are off by one, and whatever order half of the images
    suggest, on the other half.

    Args:
        predicted: the largest output of each image, int64 [n].
        labels: its class, int64 [n].
        names: of the classes, [K].
    """
    accuracy, least = float((predicted == labels).mean()), GAIN + 1 / np.sqrt(len(labels))
    tried = {order: float((classes[predicted] == labels).mean()) for order, classes in _usual(names).items()}
    order = max(tried, key=tried.__getitem__)
    if tried[order] > accuracy + least:
        return Better(order, accuracy, tried[order])
    half, rest = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    fitted = _suggested(predicted[half], labels[half], len(names))
    held_out = float((fitted[predicted[rest]] == labels[rest]).mean()) if len(rest) else 0.0
    return Better("other", accuracy, held_out) if held_out > accuracy + least else None


def _usual(names: Sequence[str]) -> dict[str, Permutation]:
    orders = {order: ordered(names, order) for order in ORDERS}
    orders["case-insensitive"] = sorted(names, key=str.lower)
    place = {name: label for label, name in enumerate(names)}
    numbers = np.arange(len(names))
    return {
        **{order: np.array([place[name] for name in those]) for order, those in orders.items()},
        "labels from 1": np.roll(numbers, 1),
        "labels from -1": np.roll(numbers, -1),
    }


def _suggested(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> Permutation:
    """The order under which most images are right, every output a class of its own."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted, labels), 1)
    found: Permutation = linear_sum_assignment(counts, maximize=True)[1]
    return found
