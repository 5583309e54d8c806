"""Images in folders: one folder per class, with or without official parts, and folders of images without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kt.data.classes import TRAINING, USUAL, ClassFolders, check_chosen, class_folders, class_map
from kt.data.decode import open_picture
from kt.data.listing import DEFAULT_PART, Listing, Masked, Picture, composed, named_parts, ordered, shown
from kt.data.masks import classes_of, masked
from kt.data.spec import DataSpec
from kt.data.walk import endings, entries, is_folder, is_hidden, leads_back, subfolders, walk
from kt.errors import KtError, listed, nearest


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
        _names(paths),
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

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture | Masked]]:
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


def _names(paths: Sequence[str]) -> Sequence[str]:
    """Paths as they appear in tables and in files of images.

    Raises:
        KtError: two have the same form.
    """
    names = [shown(path) for path in paths]
    if names != paths and (twice := [name for name, n in Counter(names).items() if n > 1]):
        raise KtError(f"data.source: two files are both called {twice[0]!r}; rename one")
    return names


IMAGES = "images"
"""Folder of the images of a data set with masks."""

MASKS = ("masks", "annotations")
"""Folders of masks, unless the configuration names another."""


@dataclass(frozen=True)
class MaskedImages:
    """Images of a folder, and their masks.

    Attributes:
        files: paths below the source of an image and its mask, in natural order, by official part; "" is the whole data
            set, where it has no parts.
        default: the part that splits draw from unless they name another.
        left_out: files and folders that are not read, counted by kind.
        warnings: lines about images without masks, and masks without images.
    """

    files: Mapping[str, Sequence[tuple[str, str]]]
    default: str
    left_out: Counter[str]
    warnings: Sequence[str]


def check_masks(spec: DataSpec) -> MaskedImages:
    """Find all images of a folder, and the mask of each: the file of the same name, but for the ending.

    Raises:
        KtError: the folders of images and masks are not there or cannot be read, an image or a mask has no partner and
            ``spec.damaged`` is `fail`, or two of them have the same name.
    """
    places, default = _mask_places(spec)
    at, starts = f"data.source: {shown(spec.source)}", [place for pair in places.values() for place in pair]
    found = walk([os.path.join(spec.source, place) for place in starts])
    if found.same:
        one, two = (shown(starts[i]) for i in found.same)
        raise KtError(f"{at}: {one} and {two} are the same folder")
    stems = [_by_stem(at, place, paths) for place, paths in zip(starts, found.images, strict=True)]
    files, left_out, lone = dict[str, list[tuple[str, str]]](), Counter(found.left_out), list[str]()
    for part, images, masks in zip(places, stems[::2], stems[1::2], strict=True):
        both = ordered(images.keys() & masks.keys())
        files[part] = [(images[stem], masks[stem]) for stem in both]
        for what, here, there in (("images without a mask", images, masks), ("masks without an image", masks, images)):
            if alone := ordered(here.keys() - there.keys()):
                where = places[part][here is images]
                lone.append(f"{len(alone)} {what} in {shown(where)}: {listed(shown(here[stem]) for stem in alone)}")
                left_out[what] += len(alone)
        if not both:
            raise KtError(f"{at}: no image has a mask: {'; '.join(lone) or f'{shown(places[part][0])} is empty'}")
    if lone and spec.damaged == "fail":
        raise KtError(f"{at}: {'; '.join(lone)}; mend them, or set data.damaged: skip, which leaves them out")
    return MaskedImages(files, default, left_out, lone)


def masked_folder(spec: DataSpec) -> Listing:
    """A folder of images with their masks, with or without official parts.

    Raises:
        KtError: as ``check_masks`` and ``kt.data.masks.classes_of`` do.
    """
    found, classes, root = check_masks(spec), classes_of(spec), spec.source
    files = [pair for pairs in found.files.values() for pair in pairs]

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Masked]]:
        for image, mask in (files[row] for row in rows.tolist()):
            yield partial(masked, os.path.join(root, image), os.path.join(root, mask), classes)

    return Listing(
        np.zeros(len(files), np.int64),
        classes.names,
        None if "" in found.files else np.repeat(list(found.files), [len(pairs) for pairs in found.files.values()]),
        _names([image for image, _ in files]),
        stream,
        default=found.default,
        left_out=found.left_out,
        warnings=found.warnings,
    )


def _mask_places(spec: DataSpec) -> tuple[dict[str, tuple[str, str]], str]:
    """Folders of images and of masks below the source, by official part; and the part that splits draw from.

    Parts are folders inside of both, or those that hold both.
    """
    root, inside = spec.source, subfolders(spec.source)
    above = [] if IMAGES in inside else [name for name in inside if IMAGES in subfolders(os.path.join(root, name))]
    parts = subfolders(os.path.join(root, IMAGES)) if IMAGES in inside else above
    if not (IMAGES in inside or above):
        raise KtError(
            f"data.source: {shown(root)}: needs a folder {IMAGES!r} and one of masks ({' or '.join(MASKS)}, or "
            f"data.masks), or parts that hold both; there are: {listed(map(shown, inside)) or 'no folders'}"
            f"{nearest(IMAGES, inside)}"
        )
    training = [name for name in parts if name.casefold() in TRAINING]
    named = any(take.part for take in spec.splits.takes().values())
    if not (above or named or training or (parts and all(name.casefold() in USUAL for name in parts))):
        return {"": (IMAGES, _mask_folder("", spec))}, DEFAULT_PART
    if len(training) > 1 and DEFAULT_PART not in training:
        raise KtError(f"data.source: {shown(root)}: the parts {listed(training)} have the same meaning; keep one")
    default = training[0] if training and DEFAULT_PART not in training else DEFAULT_PART
    places = dict[str, tuple[str, str]]()
    for part in named_parts(spec, default):
        if part not in parts:
            raise KtError(
                f"data.splits: no part {part!r} in {shown(root)}; there are: {listed(map(shown, parts)) or 'none'}"
                f"{nearest(part, parts)}"
            )
        masks = _mask_folder(part if above else "", spec)
        places[part] = (f"{part}/{IMAGES}", f"{part}/{masks}") if above else (f"{IMAGES}/{part}", f"{masks}/{part}")
        if not os.path.isdir(os.path.join(root, places[part][1])):
            raise KtError(f"data.source: {shown(root)}: no folder {shown(places[part][1])}, of the masks of {part}")
    return places, default


def _mask_folder(inside: str, spec: DataSpec) -> str:
    """Name of the folder of masks beside that of the images; ``inside`` is their place below the source."""
    place = os.path.join(spec.source, inside)
    folders = subfolders(place)
    known = [name for name in ([spec.masks] if spec.masks else MASKS) if name in folders]
    if len(known) > 1:
        raise KtError(f"data.source: {shown(place)}: masks in {listed(known)}; name one in data.masks")
    if not known:
        near = nearest(spec.masks or MASKS[0], folders)
        key = f"data.masks: no folder {spec.masks!r}" if spec.masks else f"data.source: no folder {' or '.join(MASKS)}"
        raise KtError(f"{key} in {shown(place)}; there are: {listed(map(shown, folders))}{near}")
    return known[0]


def _by_stem(at: str, place: str, paths: Sequence[str]) -> dict[str, str]:
    """Paths below the source by their path below ``place`` without its ending.

    Raises:
        KtError: two have the same.
    """
    found = dict[str, str]()
    for path in sorted(paths):
        stem = composed(os.path.splitext(path)[0])
        if (other := found.setdefault(stem, f"{place}/{path}")) != f"{place}/{path}":
            raise KtError(f"{at}: two files of one name: {shown(other)} and {shown(f'{place}/{path}')}; keep one")
    return found
