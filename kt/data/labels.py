"""Which classes of a source are taken, and under which labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from kt.data.arrays import BUILTIN
from kt.data.folders import check_folder
from kt.data.listing import Listing
from kt.data.spec import DataSpec
from kt.errors import KtError, nearest


def class_map(spec: DataSpec) -> dict[str, int] | None:
    """From the names of the classes taken to their labels; None takes all as they are.

    Raises:
        KtError: the file of classes is missing, or is neither a list nor a mapping to integers ≥ 0.
    """
    if not spec.class_file:
        return spec.classes
    at, path = f"data.class_file: {spec.class_file}", Path(spec.class_file)
    if spec.classes:
        raise KtError(f"{at}: give either data.classes or data.class_file, not both")
    try:
        text = path.read_text(encoding="utf-8")
        value: Any = text.split("\n") if path.suffix == ".txt" else yaml.safe_load(text)
    except OSError as error:
        raise KtError(f"{at}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KtError(f"{at}: {' '.join(str(error).split())}") from error
    if isinstance(value, list):
        names = [str(name).strip() for name in value]
        names = [name for name in names if name]
        value = {name: label for label, name in enumerate(names)}
        if len(value) < len(names):
            raise KtError(f"{at}: a class is listed twice")
    right = isinstance(value, dict) and value and all(type(label) is int and label >= 0 for label in value.values())
    if not right:
        raise KtError(f"{at}: needs one class a line (.txt), or a list or a mapping from class to integer ≥ 0")
    return {str(name): label for name, label in value.items()}


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
    known = {name: label for label, name in enumerate(listing.classes)}
    chosen = class_map(spec)
    for name in chosen or ():
        if name not in known:
            key = "class_file" if spec.class_file else "classes"
            raise KtError(f"data.{key}: no class {name!r} in {spec.source}{nearest(name, known)}")
    chosen = known if chosen is None else chosen
    new = np.full(len(listing.classes), -1, np.int64)
    for name, label in chosen.items():
        new[known[name]] = label
    return np.where(listing.labels < 0, -1, new[listing.labels]), _by_label(chosen, spec)


def known_names(spec: DataSpec) -> list[str] | None:
    """Names of the classes by label where they are known before the source is read; None as ``known_classes``.

    Raises:
        KtError: as ``class_map`` does, a folder of classes is not one, or a label is not below ``data.num_classes``.
    """
    chosen = class_map(spec)
    if chosen is None and spec.source in BUILTIN:
        chosen = {str(label): label for label in range(BUILTIN[spec.source].classes)}
    if chosen is None and spec.is_folder:
        chosen = {name: label for label, name in enumerate(check_folder(spec)[1])}
    return None if chosen is None else _by_label(chosen, spec)


def _by_label(chosen: Mapping[str, int], spec: DataSpec) -> list[str]:
    largest = max(chosen.values(), default=-1)
    if spec.num_classes is not None and largest >= spec.num_classes:
        raise KtError(f"data.num_classes: {spec.num_classes}, but a label is {largest}; labels count from 0")
    names = list(map(str, range(spec.num_classes or largest + 1)))
    for name, label in chosen.items():
        names[label] = name
    return names
