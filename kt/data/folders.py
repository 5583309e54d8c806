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


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of the images in a folder and its subfolders; none where there is no such folder."""
    for root, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith("."):
                yield os.path.join(root, file)


def _subfolders(folder: Path) -> list[str]:
    return sorted((e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")), key=natural)


def _open(path: str) -> Image.Image:
    return Image.open(path)


def check_folder(spec: DataSpec) -> tuple[list[str], list[str]]:
    """Official parts that are read, [""] where there are none, and classes; only one image a class is looked for.

    Raises:
        KtError: a part that a split names is not there, no class folders, an empty class folder, or classes that
            differ between parts.
    """
    root = Path(spec.source)
    parts = named_parts(spec) if DEFAULT_PART in _subfolders(root) else [""]
    for part in parts:
        if not (root / part).is_dir():
            raise KtError(f"data.splits: no part {part!r} in {root}{nearest(part, _subfolders(root))}")
    classes = sorted({name for part in parts for name in _subfolders(root / part)}, key=natural)
    if not classes:
        raise KtError(f"data.source: {root}: no class folders in it; it needs a folder a class, with images inside")
    for part in parts:
        for name in classes:
            wanted = spec.classes is None or name in spec.classes
            if wanted and next(_images_below(root / part / name), None) is None:
                raise KtError(f"data.source: {root / part / name}: no image in this class folder; delete or fill it")
    return parts, classes


def folder(spec: DataSpec) -> Listing:
    """A folder of class folders, or one with a subfolder ``train``, whose subfolders are then official parts.

    Raises:
        KtError: as ``check_folder`` does.
    """
    root, (parts, classes) = Path(spec.source), check_folder(spec)
    paths, labels, of_part = [], [], []
    for part in parts:
        for label, name in enumerate(classes):
            found = sorted(_images_below(root / part / name), key=natural)
            paths += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
            of_part += [part] * len(found)
    return Listing(
        np.array(labels, np.int64),
        classes,
        np.array(of_part) if parts != [""] else None,
        paths,
        lambda rows: (partial(_open, os.path.join(root, paths[i])) for i in rows),
    )


def with_unlabelled(listing: Listing, place: str) -> Listing:
    """A source and, after its images, those of a folder without labels, which becomes an official part of its own.

    Raises:
        KtError: there is no image in the folder.
    """
    paths = sorted(_images_below(Path(place)), key=natural)
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
