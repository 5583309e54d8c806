"""Classes of a source: class folders and official parts, the classes that are taken, and their labels."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from kt import store
from kt.data.listing import DEFAULT_PART, Listing, composed, named_parts, ordered, shown
from kt.data.spec import MOST_CLASSES, DataSpec, class_names, counted
from kt.data.strict_yaml import load_names
from kt.data.walk import entries, is_folder, is_hidden, subfolders
from kt.errors import KtError, listed, nearest
from kt.spec import as_written
from kt.tasks.task import named

TRAINING = frozenset(["train", "training"])
USUAL = TRAINING | {"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
"""Usual names of official parts, in lower case."""

_LIKE_A_PART = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(USUAL))})(?:set)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ClassFolders:
    """Class folders of a data set, by official part.

    Attributes:
        root: the source.
        parts: the official parts that are read, [""] where there are none.
        default: the part that splits draw from unless they name another.
        folders: of every part, the path below ``root`` of each class's folder, by the class's name.
        order: order of the classes' labels, a name in ``kt.data.listing.ORDERS``.
    """

    root: str
    parts: Sequence[str]
    default: str
    folders: Mapping[str, Mapping[str, str]]
    order: str

    @property
    def classes(self) -> list[str]:
        """The names of all classes, by label."""
        return ordered({name for part in self.parts for name in self.folders[part]}, self.order)


def class_folders(spec: DataSpec) -> ClassFolders:
    """Find parts and classes; no image is looked for.

    Raises:
        KtError: a part that a split names is not there, there are fewer than two class folders, or class folders
            are really parts or data sets.
    """
    root = spec.source
    at, inside = f"data.source: {shown(root)}", subfolders(root)
    default = _default_part(root, inside, spec)
    parts = [""] if default is None else named_parts(spec, default)
    for part in parts:
        if part and part not in inside:
            raise KtError(
                f"data.splits: no part {part!r} in {shown(root)}; there are: {listed(map(shown, inside)) or 'none'}"
                f"{nearest(part, inside)}"
            )
    folders = {part: _by_name(root, part) for part in parts}
    places = ClassFolders(root, parts, default or DEFAULT_PART, folders, spec.class_order)
    classes = places.classes
    if not classes:
        raise KtError(f"{at}: no class folders in it; it needs one folder per class, with images inside")
    if len(classes) == 1:
        below = os.path.join(root, parts[0], next(iter(folders[parts[0]].values()), ""))
        deeper = f"; is the source {shown(below)}?" if parts == [""] and len(subfolders(below)) > 1 else ""
        raise KtError(f"{at}: only one class folder, {classes[0]!r}; a study needs at least two classes{deeper}")
    if parts == [""]:
        _refuse_parts_as_classes(at, root, inside, spec)
    return places


def _default_part(root: str, inside: Sequence[str], spec: DataSpec) -> str | None:
    """The part that splits draw from unless they name another; None where the folders are classes."""
    training = [name for name in inside if name.casefold() in TRAINING]
    named = any(take.part for take in spec.splits.takes().values())
    usual = bool(inside) and all(name.casefold() in USUAL for name in inside)
    if not (named or usual or any(_holds_folders(os.path.join(root, name)) for name in training)):
        return None
    if len(training) > 1 and DEFAULT_PART not in training:
        raise KtError(f"data.source: {shown(root)}: the parts {listed(training)} have the same meaning; keep one")
    return training[0] if training and DEFAULT_PART not in training else DEFAULT_PART


def _holds_folders(path: str) -> bool:
    return any(is_folder(entry) and not is_hidden(entry.name) for entry in entries(path))


def _by_name(root: str, part: str) -> dict[str, str]:
    """Class folders of a part, paths below the source, by the class's name."""
    found = dict[str, str]()
    for folder_name in subfolders(os.path.join(root, part)):
        name = shown(composed(folder_name))
        if name in found:
            raise KtError(
                f"data.source: {shown(os.path.join(root, part))}: two class folders are called {name!r}; rename one"
            )
        found[name] = os.path.join(part, folder_name)
    if part and not found:
        raise KtError(
            f"data.source: {shown(os.path.join(root, part))}: no class folders in it; a part needs one folder per "
            "class, with images inside"
        )
    return found


def _refuse_parts_as_classes(at: str, root: str, inside: Sequence[str], spec: DataSpec) -> None:
    """Fail where class folders have names of official parts, or hold nothing but parts; not where classes are named.

    Raises:
        KtError: with what to write instead.
    """
    if spec.classes or spec.class_file:
        return
    names = listed(map(shown, inside))
    if like_parts(inside):
        raise KtError(
            f"{at}: its folders are called like official parts: {names}; name them in data.splits (`part`), or, if "
            "they are classes, in data.classes"
        )
    if with_parts := [name for name in inside if _holds_parts_alone(os.path.join(root, name))]:
        raise KtError(
            f"{at}: these folders hold official parts, not images: {listed(map(shown, with_parts))}; is one of them "
            "the source? If they are classes, name these in data.classes"
        )


def like_parts(names: Sequence[str]) -> bool:
    """Whether all names are those of official parts, perhaps with more words."""
    return all(_LIKE_A_PART.search(name) for name in names)


def _holds_parts_alone(path: str) -> bool:
    seen = False
    for entry in entries(path):
        if not is_hidden(entry.name):
            if entry.name.casefold() not in USUAL or not is_folder(entry):
                return False
            seen = True
    return seen


def class_map(spec: DataSpec) -> dict[str, int] | None:
    """Labels of the classes that are taken, by name; None where all are taken as they are.

    Raises:
        KtError: the file of classes is missing, names a class twice, or is neither a list nor a mapping to integers
            ≥ 0.
    """
    if not spec.class_file:
        return spec.classes
    written = as_written(spec.class_file)
    at, path = f"data.class_file: {written}", Path(spec.class_file)
    if spec.classes:
        raise KtError(f"{at}: give either data.classes or data.class_file, not both")
    if store.is_pointer(path):
        store.refuse("data.class_file", Path(written))
    try:
        value = _parsed(path.read_text(encoding="utf-8-sig"), path.suffix.lower())
        names = class_names(value) if isinstance(value, list | dict) else []
    except OSError as error:
        raise KtError(f"{at}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, KtError, RecursionError) as error:
        raise KtError(f"{at}: {' '.join(str(error).split())}") from error
    labels = list(value.values()) if isinstance(value, dict) else counted(len(names), spec.ignore)
    if not names or not all(type(label) is int and 0 <= label < MOST_CLASSES for label in labels):
        raise KtError(f"{at}: needs one class per line (.txt), or a list or a mapping from class to integer ≥ 0")
    return dict(zip(names, labels, strict=True))


def check_chosen(chosen: Iterable[str], classes: Iterable[str], spec: DataSpec) -> None:
    """Fail where a requested class is not in the source."""
    known = set(map(composed, classes))
    for name in (name for name in chosen if name not in known):
        key = "class_file" if spec.class_file else "classes"
        raise KtError(f"data.{key}: no class {name!r} in {spec.source}{nearest(name, known)}")


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".txt":
        return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_distinct, parse_float=str)
    return load_names(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"a class is listed twice: {twice[0]!r}")
    return dict(pairs)


def relabel(listing: Listing, spec: DataSpec) -> tuple[NDArray[np.int64], list[str]]:
    """The label of every image, −1 where it has none or its class is not taken, and the name of every label's class.

    Raises:
        KtError: a class is not in the source, or a label is not below ``data.num_classes``.
    """
    chosen = class_map(spec)
    if chosen is None:
        names = [(name, label) for label, name in enumerate(listing.classes)]
        return np.maximum(listing.labels, -1), by_label(names, spec)
    check_chosen(chosen, listing.classes, spec)
    known = {composed(name): label for label, name in enumerate(listing.classes)}
    new = np.full(len(listing.classes), -1, np.int64)
    for name, label in chosen.items():
        new[known[name]] = label
    return np.where(listing.labels < 0, -1, new[listing.labels]), by_label(chosen.items(), spec)


class Truth(NamedTuple):
    """Truth of all images of a source, as it is stored.

    Attributes:
        values: [N, …]; labels int64 [N] where the task has classes; None of a dense task, whose masks are decoded with
            the images.
        groups: int64 [N]: labels, or 0 where no image as a whole has a class; −1 for images without a truth, or of a
            class that is not taken.
        classes: names of the classes, by label.
    """

    values: NDArray[Any] | None
    groups: NDArray[np.int64]
    classes: list[str]


def truth_of(listing: Listing, spec: DataSpec) -> Truth:
    """Truth of all images of a source.

    Raises:
        KtError: as ``relabel``, or the task's ``check_truth``, does.
    """
    task, at = named(spec.task), f"data.source: {as_written(spec.source)}"
    if task.dense:
        return Truth(None, np.zeros(len(listing.labels), np.int64), list(listing.classes))
    if task.has_classes:
        labels, classes = relabel(listing, spec)
        return Truth(task.check_truth(at, labels), labels, classes)
    assert listing.truth is not None  # checked with the source
    values = task.check_truth(at, listing.truth)
    return Truth(values, np.where(task.labelled(values), 0, -1), [])


def chosen_parts(spec: DataSpec, parts: Sequence[str]) -> tuple[list[str], str]:
    """Those of a folder's official parts that splits draw from, and the one of splits that name none.

    Raises:
        KtError: two parts have the same meaning, or a split names another one.
    """
    at, training = shown(spec.source), [name for name in parts if name.casefold() in TRAINING]
    if len(training) > 1 and DEFAULT_PART not in training:
        raise KtError(f"data.source: {at}: the parts {listed(training)} have the same meaning; keep one")
    default = training[0] if training and DEFAULT_PART not in training else DEFAULT_PART
    chosen = named_parts(spec, default)
    for part in chosen:
        if part not in parts:
            known = listed(map(shown, parts)) or "none"
            raise KtError(f"data.splits: no part {part!r} in {at}; there are: {known}{nearest(part, parts)}")
    return chosen, default


def by_label(chosen: Collection[tuple[str, int]], spec: DataSpec) -> list[str]:
    """Names of classes by label; a label without a class is its own name.

    Raises:
        KtError: a label is not below ``data.num_classes``.
    """
    largest = max((label for _, label in chosen), default=-1)
    if spec.num_classes is not None and largest >= spec.num_classes:
        raise KtError(f"data.num_classes: {spec.num_classes}, but a label is {largest}; labels count from 0")
    names = list(map(str, range(spec.num_classes or largest + 1)))
    for name, label in chosen:
        names[label] = name
    return names
