"""Which classes of a source are taken, and under which labels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from kt.data.arrays import BUILTIN
from kt.data.classes import check_chosen, class_map
from kt.data.listing import Listing, composed
from kt.data.parts import class_folders
from kt.data.spec import DataSpec
from kt.errors import KtError


def known_classes(spec: DataSpec) -> int | None:
    """Number of classes where it is known before the source is read; None for arrays and timm's data sets.

    Raises:
        KtError: as ``known_names`` does.
    """
    return spec.num_classes or len(known_names(spec) or ()) or None


def relabel(listing: Listing, spec: DataSpec) -> tuple[NDArray[np.int64], list[str]]:
    """The label of every image, −1 where it has none or its class is not taken, and the name of every label's class.

    Raises:
        KtError: a class is not in the source, or a label is not below ``data.num_classes``.
    """
    chosen = class_map(spec)
    if chosen is None:
        names = [(name, label) for label, name in enumerate(listing.classes)]
        return np.maximum(listing.labels, -1), _by_label(names, spec)
    check_chosen(chosen, listing.classes, spec)
    known = {composed(name): label for label, name in enumerate(listing.classes)}
    new = np.full(len(listing.classes), -1, np.int64)
    for name, label in chosen.items():
        new[known[name]] = label
    return np.where(listing.labels < 0, -1, new[listing.labels]), _by_label(chosen.items(), spec)


def known_names(spec: DataSpec) -> list[str] | None:
    """Names of the classes by label where they are known before the source is read; None as ``known_classes``.

    Raises:
        KtError: as ``class_map`` does, a folder of classes is not one, or a label is not below ``data.num_classes``.
    """
    chosen = class_map(spec)
    if chosen is None and spec.source in BUILTIN:
        chosen = {str(label): label for label in range(BUILTIN[spec.source].classes)}
    if chosen is None and spec.is_folder:
        chosen = {name: label for label, name in enumerate(class_folders(spec).classes)}
    return None if chosen is None else _by_label(chosen.items(), spec)


def _by_label(chosen: Collection[tuple[str, int]], spec: DataSpec) -> list[str]:
    largest = max((label for _, label in chosen), default=-1)
    if spec.num_classes is not None and largest >= spec.num_classes:
        raise KtError(f"data.num_classes: {spec.num_classes}, but a label is {largest}; labels count from 0")
    names = list(map(str, range(spec.num_classes or largest + 1)))
    for name, label in chosen:
        names[label] = name
    return names
