"""Which classes a specialist tells apart: its outputs against the data set's labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    """Where each label stands among ``classes``, int64 [N]; −1 for a label that is not one of them.

    Args:
        labels: of the data set, int64 [N]; negative where there is none.
        classes: distinct labels, int64 [K].
    """
    where = np.full(max(int(classes.max()), int(labels.max(initial=-1))) + 2, -1, np.int64)
    where[classes] = np.arange(len(classes))
    found: NDArray[np.int64] = where[labels.clip(-1)]
    return found
