"""Images in folders: a folder a class, with official parts or without, and folders of images without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.listing import DEFAULT_PART, Listing, Picture, named_parts, natural
from kt.data.spec import DataSpec
from kt.errors import KtError, nearest

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


def _images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and its subfolders, in natural order."""
    found = [
        os.path.join(root, file)
        for root, _, files in os.walk(folder, followlinks=True)
        for file in files
        if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith(".")
    ]
    return sorted(found, key=natural)


def _subfolders(folder: Path) -> list[str]:
    return sorted((e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")), key=natural)


def _open(path: str) -> Image.Image:
    return Image.open(path)


def folder(spec: DataSpec) -> Listing:
    """A folder of class folders, or one with a subfolder ``train``, whose subfolders are then official parts.

    Raises:
        KtError: a part that a split names is not there, no class folders, an empty class folder, or classes that
            differ between parts.
    """
    root = Path(spec.source)
    has_parts = DEFAULT_PART in _subfolders(root)
    parts = named_parts(spec) if has_parts else [""]
    for part in parts:
        if not (root / part).is_dir():
            raise KtError(f"data.splits: no part {part!r} in {root}{nearest(part, _subfolders(root))}")
    classes = sorted({name for part in parts for name in _subfolders(root / part)}, key=natural)
    if not classes:
        raise KtError(f"data.source: {root}: no class folders in it; it needs a folder a class, with images inside")
    paths, labels, of_part = [], [], []
    for part in parts:
        for label, name in enumerate(classes):
            found = _images_below(root / part / name) if (root / part / name).is_dir() else []
            if not found and (spec.classes is None or name in spec.classes):
                raise KtError(f"data.source: {root / part / name}: no image in this class folder; delete or fill it")
            paths += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
            of_part += [part] * len(found)
    return Listing(
        np.array(labels, np.int64),
        classes,
        np.array(of_part) if has_parts else None,
        paths,
        lambda rows: (partial(_open, os.path.join(root, paths[i])) for i in rows),
    )


def with_unlabelled(listing: Listing, place: str) -> Listing:
    """A source and, after its images, those of a folder without labels, which becomes an official part of its own.

    Raises:
        KtError: there is no image in the folder.
    """
    paths = _images_below(Path(place))
    if not paths:
        raise KtError(f"data.splits.transfer.folder: {place}: no image in it")
    count = len(listing.labels)
    names = listing.names if listing.names is not None else map(str, range(count))
    parts = np.full(count, DEFAULT_PART) if listing.parts is None else listing.parts

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
        yield from listing.stream(rows[rows < count])
        yield from (partial(_open, paths[row - count]) for row in rows[rows >= count])

    return Listing(
        np.concatenate([listing.labels, np.full(len(paths), -1)]),
        listing.classes,
        np.concatenate([parts, np.full(len(paths), place)]),
        [*names, *paths],
        stream,
        listing.shape,
    )
