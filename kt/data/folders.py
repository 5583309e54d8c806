"""Images in folders: a folder a class, with official parts or without, and folders of images without labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kt.data.classes import class_map
from kt.data.listing import DEFAULT_PART, Listing, Picture, composed, named_parts, ordered, shown
from kt.data.pictures import open_picture
from kt.data.spec import DataSpec
from kt.data.walk import endings, entries, is_folder, is_hidden, subfolders, walk
from kt.errors import KtError, listed, nearest

TRAINING = frozenset(["train", "training"])
USUAL = TRAINING | {"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
"""Usual names of official parts, in lower case."""

_LIKE_A_PART = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(USUAL))})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ClassFolders:
    """Where a folder data set keeps its classes.

    Attributes:
        root: the source.
        parts: the official parts that are read, [""] where there are none.
        default: the part that splits draw from unless they name another.
        folders: of every part, the path below ``root`` of each class's folder, by the class's name.
    """

    root: str
    parts: Sequence[str]
    default: str
    folders: Mapping[str, Mapping[str, str]]

    @property
    def classes(self) -> list[str]:
        """The names of all classes, by label."""
        return ordered({name for part in self.parts for name in self.folders[part]})


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder data set.

    Attributes:
        places: where its classes lie.
        images: paths below the source of each part's images, in no order, by the class's name; no class that is
            taken is empty in all parts.
        left_out: files and folders that are not read, counted by what they are.
        warnings: lines about classes that a part lacks.
    """

    places: ClassFolders
    images: Mapping[str, Mapping[str, list[str]]]
    left_out: Counter[str]
    warnings: Sequence[str]

    def sizes(self, chosen: Collection[str] | None) -> dict[str, int]:
        """Number of images of the classes that are taken (None: of all), by part."""
        return {
            part: sum(len(paths) for name, paths in images.items() if chosen is None or name in chosen)
            for part, images in self.images.items()
        }


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
    places = ClassFolders(root, parts, default or DEFAULT_PART, folders)
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


def check_folder(spec: DataSpec) -> FolderImages:
    """Find all images of a folder data set.

    Raises:
        KtError: as ``class_folders`` and ``class_map`` do, a folder cannot be read or is read twice, a part has no
            class folders, a class has no image, or its name is written in another case in another part.
    """
    places, chosen = class_folders(spec), class_map(spec)
    root, classes = places.root, places.classes
    at = f"data.source: {shown(root)}"
    keys = [(part, name) for part in places.parts for name in places.folders[part]]
    starts = [os.path.join(root, places.folders[part][name]) for part, name in keys]
    found = walk(starts)
    if found.same:
        one, two = (shown(starts[i]) for i in found.same)
        raise KtError(f"{at}: {one} and {two} are the same folder, so that its images would be read twice")
    images: dict[str, dict[str, list[str]]] = {part: {} for part in places.parts}
    for (part, name), below in zip(keys, found.images, strict=True):
        images[part][name] = [f"{places.folders[part][name]}/{path}" for path in below]
    wanted = [name for name in classes if chosen is None or name in chosen]
    left_out = found.left_out + _beside(places)
    for name in wanted:
        if not any(images[part].get(name) for part in places.parts):
            part = next(part for part in places.parts if name in places.folders[part])
            path = shown(os.path.join(root, places.folders[part][name]))
            raise KtError(f"data.source: {path}: no image in this class folder; delete or fill it")
    return FolderImages(places, images, left_out, _lacking(at, places, images, wanted))


def folder(spec: DataSpec) -> Listing:
    """A folder of class folders, or one with official parts whose subfolders are classes.

    Raises:
        KtError: as ``check_folder`` does, or two files have names that are written alike.
    """
    found = check_folder(spec)
    parts, classes, root = found.places.parts, found.places.classes, found.places.root
    paths, labels, of_part = list[str](), list[int](), list[str]()
    for part in parts:
        for label, name in enumerate(classes):
            here = ordered(found.images[part].get(name, []))
            paths += here
            labels += [label] * len(here)
            of_part += [part] * len(here)
    return Listing(
        np.array(labels, np.int64),
        classes,
        np.array(of_part) if parts != [""] else None,
        _names(paths),
        lambda rows: (partial(open_picture, os.path.join(root, paths[i])) for i in rows),
        default=found.places.default,
        left_out=found.left_out,
        warnings=found.warnings,
    )


def with_unlabelled(listing: Listing, place: str) -> Listing:
    """A source and, after its images, those of a folder without labels, which becomes an official part of its own.

    Raises:
        KtError: there is no image in the folder, or it cannot be read.
    """
    paths, left_out = unlabelled_images(place)
    count = len(listing.labels)
    names = listing.names if listing.names is not None else map(str, range(count))
    parts = np.full(count, listing.default) if listing.parts is None else listing.parts

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
        yield from listing.stream(rows[rows < count])
        yield from (partial(open_picture, paths[row - count]) for row in rows[rows >= count])

    return Listing(
        np.concatenate([listing.labels, np.full(len(paths), -1)]),
        listing.classes,
        np.concatenate([parts, np.full(len(paths), place)]),
        [*names, *_names(paths)],
        stream,
        listing.shape,
        listing.default,
        Counter(listing.left_out) + left_out,
        listing.warnings,
    )


def unlabelled_images(place: str) -> tuple[list[str], Counter[str]]:
    """Paths of the images of a folder without labels, in natural order, and what is left out.

    Raises:
        KtError: there is no image in the folder, or it cannot be read.
    """
    found = walk([place])
    if not found.images[0]:
        raise KtError(f"data.splits.transfer.folder: {place}: no image in it")
    return [os.path.join(place, path) for path in ordered(found.images[0])], found.left_out


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
            raise KtError(f"data.source: {os.path.join(root, part)}: two class folders are called {name!r}; rename one")
        found[name] = os.path.join(part, folder_name)
    if part and not found:
        raise KtError(
            f"data.source: {os.path.join(root, part)}: no class folders in it; a part needs a folder a class, with "
            "images inside"
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
    if all(_LIKE_A_PART.search(name) for name in inside):
        raise KtError(
            f"{at}: its folders are called like official parts: {names}; name them in data.splits (`part`), or, if "
            "they are classes, in data.classes"
        )
    if all(_holds_parts_alone(os.path.join(root, name)) for name in inside):
        raise KtError(
            f"{at}: its folders hold official parts, not images: {names}; the source is one of them, or, if they are "
            "classes, name them in data.classes"
        )


def _holds_parts_alone(path: str) -> bool:
    seen = False
    for entry in entries(path):
        if not is_hidden(entry.name):
            if entry.name.casefold() not in USUAL or not is_folder(entry):
                return False
            seen = True
    return seen


def _beside(places: ClassFolders) -> Counter[str]:
    """What lies beside the parts and beside the class folders."""
    found = Counter[str]()
    for part in dict.fromkeys(["", *places.parts]):
        for entry in entries(os.path.join(places.root, part)):
            name = shown(entry.name)
            if is_folder(entry):
                if is_hidden(entry.name):
                    found[f"folder {name}"] += 1
                elif not part and places.parts != [""] and entry.name not in places.parts:
                    found[f"folder {name}, which no split names"] += 1
            elif not is_hidden(entry.name) and os.path.splitext(name)[1].lower() in endings():
                found["images beside the folders"] += 1
    return found


def _lacking(
    at: str, places: ClassFolders, images: Mapping[str, Mapping[str, list[str]]], wanted: Sequence[str]
) -> list[str]:
    """A line for each part that has no image of some classes.

    Raises:
        KtError: a part has no class of the first one, or has a class in another case.
    """
    have = {part: {name for name in wanted if images[part].get(name)} for part in places.parts}
    lines = list[str]()
    first = places.parts[0]
    for part, here in have.items():
        there = [name for name in wanted if name not in here]
        if here.isdisjoint(have[first]):
            raise KtError(
                f"{at}: no class of {first} has an image in {part}: {first} has {listed(ordered(have[first]))}; "
                f"{part} has {listed(ordered(places.folders[part]))}"
            )
        by_case = {name.casefold(): name for name in here}
        for name in there:
            twin = by_case.get(name.casefold())
            if twin and not any(twin in names for names in have.values() if name in names):
                raise KtError(f"{at}: the class {name!r} is called {twin!r} in {part}; give it one name")
        if there:
            lines.append(f"{part} has no image of {len(there)} of {len(wanted)} classes: {listed(there)}")
    return lines


def _names(paths: Sequence[str]) -> Sequence[str]:
    """Paths as they are written in tables and in files of images.

    Raises:
        KtError: two are written alike.
    """
    names = [shown(path) for path in paths]
    if names != paths and (twice := [name for name, n in Counter(names).items() if n > 1]):
        raise KtError(f"data.source: two files are both called {twice[0]!r}; rename one")
    return names
