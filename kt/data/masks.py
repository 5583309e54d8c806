"""Images with masks: ids of classes, files that hold ids, and folders and data sets of such pairs of files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.classes import TRAINING, USUAL, chosen_parts, class_map
from kt.data.fit import PHOTOMETRIC, turn_of
from kt.data.listing import DEFAULT_PART, Listing, Masked, composed, file_names, named_parts, ordered, shown
from kt.data.scenes import BUILTIN, CITYSCAPES, VOC
from kt.data.spec import MOST_IDS, DataSpec, counted
from kt.data.walk import NotReadable, open_picture, subfolders, walk
from kt.errors import KtError, listed, nearest
from kt.tasks.segmentation import IGNORED, MOST_CLASSES

UNKNOWN = -1

_SCALED = {"L;2": 85, "L;4": 17}
"""By Pillow's modes of two and four bits in a file: it multiplies grey values by this, to reach 255."""


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

    def of(self, ids: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The class of each pixel, uint8 [H, W], from ids [H, W].

        Raises:
            NotReadable: naming ids that are neither a class's nor ignored.
        """
        inside = (ids >= 0) & (ids < MOST_IDS)
        found = np.where(inside, self._table[np.where(inside, ids, 0).astype(np.int64)], UNKNOWN)
        if (found == UNKNOWN).any():
            others, pixels = np.unique(ids[found == UNKNOWN], return_counts=True)
            text = listed(f"{one} ({count:,} pixels)" for one, count in zip(others.tolist(), pixels, strict=True))
            raise NotReadable(f"ids in its mask that are neither a class's nor ignored: {text}")
        return found.astype(np.uint8)


CLASSES = {
    "torch/cityscapes": MaskClasses(
        list(CITYSCAPES), list(CITYSCAPES.values()), [*({*range(34)} - {*CITYSCAPES.values()}), IGNORED]
    ),
    "torch/voc": MaskClasses(VOC, range(len(VOC))),
}
"""Classes of the data sets that torchvision reads."""

TRAIN_IDS = MaskClasses(list(CITYSCAPES), range(len(CITYSCAPES)))
"""Those of Cityscapes where masks with training ids (``_labelTrainIds``) were made."""


def classes_of(spec: DataSpec) -> MaskClasses:
    """The classes of a data set of images with masks, in the order of their ids.

    Raises:
        KtError: the source has none of its own, and none are given; too many or too few are given; or an id stands for
            two of them, or for one and is ignored.
    """
    if spec.source in BUILTIN:
        names = BUILTIN[spec.source].classes
        return MaskClasses(names, range(len(names)))
    if spec.by_timm:
        return CLASSES[spec.source.lower()]
    ignored, chosen = (IGNORED,) if spec.ignore is None else spec.ignore, class_map(spec)
    key = "num_classes" if chosen is None else "class_file" if spec.class_file else "classes"
    if chosen is None and spec.num_classes is None:
        text = "the names of the classes in the order of their ids 0, 1, …, or a mapping from name to id"
        raise KtError(f"data.classes: needed for masks: {text}; or give data.num_classes")
    if chosen is None:
        chosen = {str(one): one for one in counted(spec.num_classes or 0, spec.ignore)}
    by_id: dict[int, str] = {}
    for name, one in sorted(chosen.items(), key=lambda item: item[1]):
        if one in ignored:
            text = f"{name!r} has the id {one}, which data.ignore ({listed(map(str, ignored))}) leaves without a class"
            raise KtError(f"data.{key}: {text}")
        if one >= MOST_IDS:
            raise KtError(f"data.{key}: {name!r} has the id {one}; masks hold ids below {MOST_IDS}")
        if by_id.setdefault(one, name) != name:
            raise KtError(f"data.{key}: {by_id[one]!r} and {name!r} have the same id, {one}")
    if not 2 <= len(by_id) <= MOST_CLASSES:
        raise KtError(f"data.{key}: {len(by_id)} classes; allowed: 2 to {MOST_CLASSES}")
    if spec.num_classes not in (None, len(by_id)):
        raise KtError(f"data.num_classes: {spec.num_classes}, but data.{key} has {len(by_id)} classes; leave it out")
    return MaskClasses(list(by_id.values()), list(by_id), ignored)


def masked(image: str, mask: str, classes: MaskClasses) -> Masked:
    """The image and the mask in two files.

    Raises:
        KtError: one is a Git LFS pointer.
        NotReadable: one is no image, or the mask holds no ids, or ids of no class.
    """
    try:
        ids = ids_in(mask)
    except KtError:
        raise
    except NotReadable as error:
        raise NotReadable(f"its mask: {error}") from error
    except Exception as error:  # decoders of broken files raise anything
        raise NotReadable(f"its mask: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return Masked(open_picture(image), classes.of(ids))


def ids_in(path: str) -> NDArray[np.integer]:
    """Ids in a mask file, [H, W]: indices of a palette image, values of a grey one.

    Raises:
        KtError: the file is a Git LFS pointer.
        NotReadable: it is no image, of colours, or compressed with loss.
    """
    picture = open_picture(path)
    if picture.format in ("JPEG", "JPEG2000", "MPO"):
        raise NotReadable("a JPEG file, which changes ids; save masks as PNG")
    if getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise NotReadable("a TIFF file with white as zero, which Pillow inverts; save masks as PNG")
    scale = _SCALED.get(_mode_in_file(picture), 1)
    picture.load()
    if not (picture.mode in ("1", "L", "P", "I") or picture.mode.startswith("I;16")):
        raise NotReadable(f"colours (mode {picture.mode}), not ids; save it as a grey or palette image")
    turn = turn_of(picture)
    ids = np.asarray(picture if turn is None else picture.transpose(turn))
    return ids.astype(np.uint8) // scale if ids.dtype == bool or scale > 1 else ids


def _mode_in_file(picture: Image.Image) -> str:
    """Pillow's mode of the pixels in a file that is not loaded yet."""
    tiles = getattr(picture, "tile", ())
    how = tiles[0][3] if tiles else ""
    return str(how[0] if isinstance(how, tuple) and how else how)


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
        KtError: as ``check_masks`` and ``classes_of`` do.
    """
    found, classes = check_masks(spec), classes_of(spec)
    files = [(image, mask, classes) for pairs in found.files.values() for image, mask in pairs]
    parts = None if "" in found.files else np.repeat(list(found.files), [len(pairs) for pairs in found.files.values()])
    listing = _listing(spec.source, files, classes, parts, file_names([image for image, _, _ in files]))
    return replace(listing, default=found.default, left_out=found.left_out, warnings=found.warnings)


def _listing(
    root: str,
    files: Sequence[tuple[str, str, MaskClasses]],
    classes: MaskClasses,
    parts: NDArray[np.str_] | None,
    names: Sequence[str],
) -> Listing:
    """Images and masks, by their paths below ``root``, and what the ids in each mask mean."""

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Masked]]:
        for image, mask, meaning in (files[row] for row in rows.tolist()):
            yield partial(masked, os.path.join(root, image), os.path.join(root, mask), meaning)

    return Listing(np.zeros(len(files), np.int64), classes.names, parts, names, stream)


def by_torchvision(spec: DataSpec) -> Listing:
    """PASCAL VOC 2012, or the fine annotations of Cityscapes, as torchvision finds them in ``data.root``.

    Raises:
        KtError: it does not find them, or a file of a part is not there.
    """
    from torchvision.datasets import Cityscapes, VOCSegmentation

    name, files, parts = spec.source.lower().partition("/")[2], list[tuple[str, str, MaskClasses]](), list[str]()
    classes = CLASSES[spec.source.lower()]
    for part in named_parts(spec):
        try:
            if name == "voc":
                data = VOCSegmentation(spec.root, image_set=part, download=spec.download)
                found = [(image, mask, classes) for image, mask in zip(data.images, data.targets, strict=True)]
            else:
                data = Cityscapes(spec.root, part, target_type="semantic")
                found = [
                    (image, *_of_cityscapes(masks[0])) for image, masks in zip(data.images, data.targets, strict=True)
                ]
        except (OSError, RuntimeError) as error:
            text = f"torchvision cannot open the part {part!r} of {spec.source}: {error}"
            raise KtError(f"data.root: {spec.root}: {text}") from error
        files += sorted(found, key=lambda pair: pair[0])
        parts += [part] * len(found)
    if missing := [shown(path) for image, mask, _ in files for path in (image, mask) if not os.path.lexists(path)]:
        raise KtError(f"data.root: {len(missing)} files of {spec.source} are not there: {listed(missing)}")
    names = [
        f"{part}/{os.path.splitext(os.path.basename(image))[0]}"
        for part, (image, _, _) in zip(parts, files, strict=True)
    ]
    return _listing("", files, classes, np.array(parts), file_names(names))


def _of_cityscapes(mask: str) -> tuple[str, MaskClasses]:
    """The mask of a Cityscapes image, and its ids: as published, or training ids where these alone were made."""
    made = mask.replace("_labelIds", "_labelTrainIds")
    if os.path.lexists(made) and not os.path.lexists(mask):
        return made, TRAIN_IDS
    return mask, CLASSES["torch/cityscapes"]


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
    chosen, default = chosen_parts(spec, parts)
    places = dict[str, tuple[str, str]]()
    for part in chosen:
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
