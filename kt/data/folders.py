"""Images in folders: one folder per class, with or without official parts, and folders of images without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kt.data.classes import ClassFolders, check_chosen, class_folders, class_map
from kt.data.listing import Framed, Listing, Masked, Picture, file_names, ordered, shown
from kt.data.spec import DataSpec
from kt.data.walk import endings, entries, is_folder, is_hidden, leads_back, open_picture, walk
from kt.errors import KtError, listed


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder data set.

    Attributes:
        places: where its classes lie.
        images: paths below the source of each part's images, in no order, by the class's name; no class that is
            taken is empty in all parts.
        left_out: files and folders that are not read, counted by kind.
        warnings: lines about classes that a part lacks.
        folders: paths without links of the folders that are read.
    """

    places: ClassFolders
    images: Mapping[str, Mapping[str, list[str]]]
    left_out: Counter[str]
    warnings: Sequence[str]
    folders: Collection[str]

    def sizes(self, chosen: Collection[str] | None) -> dict[str, int]:
        """Number of images of the classes that are taken (None: of all), by part."""
        return {
            part: sum(len(paths) for name, paths in images.items() if chosen is None or name in chosen)
            for part, images in self.images.items()
        }


def check_folder(spec: DataSpec) -> FolderImages:
    """Find all images of a folder data set.

    Raises:
        KtError: as ``class_folders``, ``class_map`` and ``check_chosen`` do, a folder cannot be read or is read twice,
            a class has no image, or its name is written in another case in another part.
    """
    places, chosen = class_folders(spec), class_map(spec)
    root, classes = places.root, places.classes
    at = f"data.source: {shown(root)}"
    check_chosen(chosen or (), classes, spec)
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
    return FolderImages(places, images, left_out, _lacking(at, places, images, wanted), found.folders)


def folder(spec: DataSpec) -> Listing:
    """A folder of class folders, or one with official parts whose subfolders are classes.

    Raises:
        KtError: as ``check_folder`` does, or the names of two files have the same form.
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
        file_names(paths),
        lambda rows: (partial(open_picture, os.path.join(root, paths[i])) for i in rows),
        default=found.places.default,
        left_out=found.left_out,
        warnings=found.warnings,
        folders=found.folders,
    )


def with_unlabelled(listing: Listing, place: str) -> Listing:
    """A source and, after its images, those of a folder without labels, which becomes an official part of its own.

    Raises:
        KtError: there is no image in the folder, or it cannot be read.
    """
    paths, left_out = unlabelled_images(place, listing.folders)
    count = len(listing.labels)
    names = listing.names if listing.names is not None else map(str, range(count))
    parts = np.full(count, listing.default) if listing.parts is None else listing.parts

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture | Masked | Framed]]:
        yield from listing.stream(rows[rows < count])
        yield from (partial(open_picture, paths[row - count]) for row in rows[rows >= count])

    return Listing(
        np.concatenate([listing.labels, np.full(len(paths), -1)]),
        listing.classes,
        np.concatenate([parts, np.full(len(paths), place)]),
        [*names, *file_names(paths)],
        stream,
        listing.shape,
        listing.default,
        Counter(listing.left_out) + left_out,
        listing.warnings,
    )


def unlabelled_images(place: str, labelled: Collection[str] = ()) -> tuple[list[str], Counter[str]]:
    """Paths of the images of a folder without labels, in natural order, and the files that are left out.

    Args:
        place: the folder.
        labelled: paths without links of the folders whose images have labels.

    Raises:
        KtError: there is no image in the folder, it cannot be read, or a folder in it has images with labels.
    """
    found = walk([place])
    if twice := [folder for folder in found.folders if folder in labelled]:
        raise KtError(
            f"data.splits.transfer.folder: {shown(place)}: {shown(min(twice))} is read with labels, too, so that its "
            "images would be in two splits; give a folder of other images"
        )
    if not found.images[0]:
        raise KtError(f"data.splits.transfer.folder: {place}: no image in it")
    return [os.path.join(place, path) for path in ordered(found.images[0])], found.left_out


def _beside(places: ClassFolders) -> Counter[str]:
    """Files and folders beside the parts and beside the class folders, counted by kind."""
    found = Counter[str]()
    for part in dict.fromkeys(["", *places.parts]):
        for entry in entries(os.path.join(places.root, part)):
            name = shown(entry.name)
            if is_folder(entry):
                if is_hidden(entry.name):
                    found[f"folder {name}"] += 1
                elif entry.is_symlink() and leads_back(entry.path):
                    found[f"link that leads back: {shown(entry.path)}"] += 1
                elif not part and places.parts != [""] and entry.name not in places.parts:
                    found[f"folder {name}, which no split names"] += 1
            elif not is_hidden(entry.name) and os.path.splitext(name)[1].lower() in endings():
                found["images beside the folders"] += 1
    return found


def _lacking(
    at: str, places: ClassFolders, images: Mapping[str, Mapping[str, list[str]]], wanted: Sequence[str]
) -> list[str]:
    """One line per part that has no image of some classes.

    Raises:
        KtError: a part has no class of the first one, or has a class in another case or with other spaces around it.
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
        alike = {name.casefold().strip(): name for name in here}
        for name in there:
            twin = alike.get(name.casefold().strip())
            if twin and not any(twin in names for names in have.values() if name in names):
                raise KtError(f"{at}: the class {name!r} is called {twin!r} in {part}; give it one name")
        if there:
            lines.append(f"{part} has no image of {len(there)} of {len(wanted)} classes: {listed(there)}")
    return lines
