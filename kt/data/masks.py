"""Masks: ids of classes, files that hold ids, and data sets of images with masks that torchvision or numpy reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.classes import class_map
from kt.data.decode import NotReadable, open_picture, turn_of
from kt.data.listing import Masked
from kt.data.scenes import BUILTIN
from kt.data.spec import MOST_IDS, DataSpec, counted
from kt.errors import KtError, listed
from kt.tasks.segmentation import IGNORED, MOST_CLASSES

UNKNOWN = -1


@dataclass(frozen=True)
class MaskClasses:
    """Classes of the pixels of masks.

    Attributes:
        names: of the classes, by their number.
        ids: that stand for them in masks, by their number.
        ignored: ids that stand for no class.
    """

    names: Sequence[str]
    ids: Sequence[int]
    ignored: Sequence[int] = (IGNORED,)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        table = np.full(MOST_IDS, UNKNOWN, np.int16)
        table[list(self.ignored)] = IGNORED
        table[list(self.ids)] = np.arange(len(self.ids))
        return table

    def of(self, ids: NDArray[np.generic]) -> NDArray[np.uint8]:
        """The class of each pixel, uint8 [H, W], from ids [H, W] of any integer type.

        Raises:
            NotReadable: naming ids that are neither a class's nor ignored.
        """
        inside = (ids >= 0) & (ids < MOST_IDS)  # type: ignore[operator]
        found = np.where(inside, self._table[np.where(inside, ids, 0).astype(np.int64)], UNKNOWN)
        if (found == UNKNOWN).any():
            others, pixels = np.unique(ids[found == UNKNOWN], return_counts=True)
            text = listed(f"{one} ({count:,} pixels)" for one, count in zip(others.tolist(), pixels, strict=True))
            raise NotReadable(f"ids in its mask that are neither in data.classes nor in data.ignore: {text}")
        return found.astype(np.uint8)


def classes_of(spec: DataSpec) -> MaskClasses:
    """The classes of a data set of images with masks, in the order of their ids.

    Raises:
        KtError: the source has none of its own, and none are given; too many or too few are given; or an id stands for
            two of them, or for one and is ignored.
    """
    if spec.source in BUILTIN:
        names = BUILTIN[spec.source].classes
        return MaskClasses(names, range(len(names)))
    ignored = (IGNORED,) if spec.ignore is None else spec.ignore
    chosen = class_map(spec)
    if chosen is None and spec.num_classes is None:
        raise KtError(
            "data.classes: needed for masks: a list of the names of classes whose ids are 0, 1, …, or a mapping from "
            "name to id; or data.num_classes"
        )
    if chosen is None:
        chosen = {str(one): one for one in counted(spec.num_classes or 0, spec.ignore)}
    key = "num_classes" if class_map(spec) is None else "class_file" if spec.class_file else "classes"
    by_id: dict[int, str] = {}
    for name, one in sorted(chosen.items(), key=lambda item: item[1]):
        if one in ignored:
            text = f"the id {one} of {name!r} is one of data.ignore {list(ignored)}, whose pixels have no class"
            raise KtError(f"data.{key}: {text}")
        if one >= MOST_IDS:
            raise KtError(f"data.{key}: {name!r} has the id {one}; masks hold ids below {MOST_IDS}")
        if by_id.setdefault(one, name) != name:
            raise KtError(f"data.{key}: {by_id[one]!r} and {name!r} have the same id, {one}")
    if not 2 <= len(by_id) <= MOST_CLASSES:
        raise KtError(f"data.{key}: {len(by_id)} classes; allowed: 2 to {MOST_CLASSES}")
    if spec.num_classes and chosen is not None and spec.num_classes != len(by_id):
        raise KtError(f"data.num_classes: {spec.num_classes}, but data.{key} has {len(by_id)} classes; leave it out")
    return MaskClasses(list(by_id.values()), list(by_id), ignored)


def masked(image: str, mask: str, classes: MaskClasses) -> Masked:
    """The image and the mask in two files.

    Raises:
        KtError: one is a Git LFS pointer.
        NotReadable: one is no image, or the mask holds no ids.
    """
    try:
        found = classes.of(ids_in(mask))
    except OSError as error:
        raise NotReadable(f"its mask cannot be read: {error}") from error
    return Masked(open_picture(image), found)


_SCALED = {"L;2": 85, "L;4": 17}
"""By Pillow's raw modes of two and four bits: it multiplies grey values by this, to reach 255."""


def ids_in(path: str) -> NDArray[np.generic]:
    """Ids in a mask file, [H, W]: indices of a palette image, values of a grey one.

    Raises:
        KtError: the file is a Git LFS pointer.
        NotReadable: it is no image, of colours, or compressed with loss.
    """
    picture = open_picture(path)
    if picture.format in ("JPEG", "MPO"):
        raise NotReadable("its mask is a JPEG file, which changes ids; save masks as PNG")
    raw = _raw_mode(picture)
    picture.load()
    if not (picture.mode in ("1", "L", "P", "I") or picture.mode.startswith("I;16")):
        raise NotReadable(f"its mask is of the mode {picture.mode}; ids are those of grey or palette images")
    turn = turn_of(picture)
    ids = np.asarray(picture if turn is None else picture.transpose(turn))
    return ids // _SCALED[raw] if raw in _SCALED else ids.astype(np.uint8) if ids.dtype == bool else ids


def _raw_mode(picture: Image.Image) -> str:
    """Pillow's mode of the pixels in a file that is not loaded yet."""
    tiles = getattr(picture, "tile", ())
    how = tiles[0][3] if tiles else ""
    return str(how[0] if isinstance(how, tuple) and how else how)
