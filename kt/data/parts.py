"""Official parts and class folders of a folder of images; no image is looked for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kt.data.listing import DEFAULT_PART, composed, named_parts, ordered, shown
from kt.data.spec import DataSpec
from kt.data.walk import entries, is_folder, is_hidden, subfolders
from kt.errors import KtError, listed, nearest

TRAINING = frozenset(["train", "training"])
USUAL = TRAINING | {"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
"""Usual names of official parts, in lower case."""

_LIKE_A_PART = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(USUAL))})(?:set)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ClassFolders:
    """Where a folder data set keeps its classes.

    Attributes:
        root: the source.
        parts: the official parts that are read, [""] where there are none.
        default: the part that splits draw from unless they name another.
        folders: of every part, the path below ``root`` of each class's folder, by the class's name.
        order: of the classes' labels, a name in ``kt.data.listing.ORDERS``.
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
        KtError: a part that a split names is not there, there are fewer than two class folders, or folders that are
            parts or data sets stand where classes should.
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
        raise KtError(f"{at}: no class folders in it; it needs a folder a class, with images inside")
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
            f"data.source: {shown(os.path.join(root, part))}: no class folders in it; a part needs a folder a class, "
            "with images inside"
        )
    return found


def _refuse_parts_as_classes(at: str, root: str, inside: Sequence[str], spec: DataSpec) -> None:
    """Fail where what stands for classes is called like parts, or holds nothing but parts; not where classes are named.

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
