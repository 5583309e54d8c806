"""Classes that a specialist distinguishes, and outputs whose order is not that of the data set's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data.listing import ORDERS, ordered
from kt.errors import KtError, unknown
from kt.zoo.spec import Member


def labels_of(name: str, member: Member, known: Sequence[str]) -> NDArray[np.int64]:
    """The data set's label behind each of a member's outputs, int64 [K]; all labels where it is no specialist.

    Args:
        name: the member's.
        member: its section of the configuration.
        known: names of the data set's classes, by label.

    Raises:
        KtError: as ``labels_named``.
    """
    if member.classes is None:
        return np.arange(len(known))
    return labels_named(f"zoo.models.{name}.classes", member.classes, known)


def labels_named(at: str, classes: Sequence[int | str], known: Sequence[str]) -> NDArray[np.int64]:
    """The data set's labels of classes that are given by number or name, int64 [K].

    Args:
        at: their place in the configuration.
        classes: numbers or names.
        known: names of the data set's classes, by label.

    Raises:
        KtError: a class is not in the data set, or is given twice, by number and by name.
    """
    found = list[int]()
    for given in classes:
        if isinstance(given, int) and not 0 <= given < len(known):
            raise KtError(f"{at}: no class {given}; the data set has {len(known)}, counted from 0")
        if isinstance(given, str) and given not in known:
            raise KtError(f"{at}: {unknown('class', given, known)}")
        found.append(given if isinstance(given, int) else list(known).index(given))
        if found[-1] in found[:-1]:
            raise KtError(f"{at}: the class {given!r} is given twice")
    return np.array(found, np.int64)


def positions(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each label among ``classes``, int64 [N]; −1 for a label that is not one of them.

    Args:
        labels: of the data set, int64 [N]; negative where there is none.
        classes: distinct labels, int64 [K].
    """
    where = np.full(max(int(classes.max()), int(labels.max(initial=-1))) + 2, -1, np.int64)
    where[classes] = np.arange(len(classes))
    found: NDArray[np.int64] = where[labels.clip(-1)]
    return found


Permutation = NDArray[np.int64]
"""The class that each output stands for, [K]."""

GAIN = 0.1
"""Accuracy by which another order has to be better, beyond two standard errors of a coin."""


class BetterOrder(NamedTuple):
    """Another order of the classes: its name, and the accuracies without and with it, in [0, 1]."""

    order: str
    accuracy: float
    reordered: float


def better_order(predicted: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]) -> BetterOrder | None:
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
        return BetterOrder(order, accuracy, tried[order])
    half, rest = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    fitted = _suggested(predicted[half], labels[half], len(names))
    held_out = float((fitted[predicted[rest]] == labels[rest]).mean()) if len(rest) else 0.0
    return BetterOrder("other", accuracy, held_out) if held_out > accuracy + least else None


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
