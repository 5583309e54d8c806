"""Any source of images: check that it is there, count its images, list it.

Sources that timm reads lie in ``kt.data.timm_source``, so that nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kt import store
from kt.data.classes import by_label, class_folders, class_map, truth_of
from kt.data.folders import check_folder, folder, unlabelled_images, with_unlabelled
from kt.data.listing import DEFAULT_PART, Listing, masked_npz, npz
from kt.data.masks import CLASSES, by_torchvision, check_masks, classes_of, masked_folder
from kt.data.scenes import BUILTIN
from kt.data.seen import height_and_width
from kt.data.spec import SPLITS, TIMM_PREFIXES, DataSpec
from kt.data.splits import check_parts, pools, split_counts
from kt.data.video_folders import video_folder
from kt.data.videos import VideoListing, planned
from kt.errors import KtError, nearest, quoted, short, unknown
from kt.spec import RULE, Place, as_written, beside, check_all
from kt.tasks.task import named

TORCHVISION = (
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "folder",
    "image_folder",
    "imagenet",
    "inat",
    "inaturalist",
    "kmnist",
    "mnist",
    "places365",
    "qmnist",
)
"""Data sets of torchvision that timm reads, as ``torch/…``."""

WITHOUT_PARTS = ("folder", "image_folder")
"""Those of ``TORCHVISION`` that read one and the same folder for every part."""

WITH_COLUMNS = ("hfds", "hfids", "tfds", "wds")
"""Those of ``TIMM_PREFIXES`` whose images and labels lie in named columns."""


def made_or_named(spec: DataSpec) -> list[str]:
    """Keys whose paths need not exist before anything runs."""
    return ["data.source", "data.root"] if spec.download else ["data.source"]


def check_source(spec: DataSpec) -> None:
    """Fail where the source cannot exist, without reading it.

    Raises:
        KtError: naming the source, what is allowed and the nearest name.
    """
    source, written = spec.source, as_written(spec.source)
    at = f"data.source: {short(written)}"
    if isinstance(source, Place) and not _is_there(source):
        near = nearest(written, [*BUILTIN, *beside(source)])
        kinds = ", ".join(f"{prefix}/…" for prefix in TIMM_PREFIXES)
        what = "no such file" if source.endswith((".npz", ".tar")) else "no such data set or folder"
        raise KtError(
            f"{at}: {what} ({short(source)}; {RULE}); allowed: {', '.join(BUILTIN)}, an .npz file, a folder, {kinds}, "
            f"a .tar file{near}"
        )
    if source.endswith((".npz", ".tar")) and store.is_pointer(Path(source)):
        store.refuse("data.source", Path(written))
    if spec.class_order != "natural" and (not spec.is_folder or spec.classes or spec.class_file):
        what = "data.classes has the labels" if spec.classes or spec.class_file else f"{source} has labels of its own"
        raise KtError(f"data.class_order: {spec.class_order!r} orders class folders, but {what}; leave it out")
    _check_task(spec)
    prefix, _, name = source.lower().partition("/")
    for key in ("image_key", "label_key"):
        if getattr(spec, key) is not None and prefix not in WITH_COLUMNS:
            kinds = ", ".join(f"{known}/…" for known in WITH_COLUMNS)
            raise KtError(f"data.{key}: {quoted(written)} has no columns; allowed for {kinds}")
    if prefix == "torch" and name not in TORCHVISION and source.lower() not in CLASSES:
        raise KtError(f"{at}: {unknown('data set', name, TORCHVISION)}")
    check_all(spec, made_or_named(spec), "data")
    unlabelled = spec.splits.transfer.folder
    if spec.size is None and (spec.by_timm or spec.is_folder or unlabelled):
        raise KtError("data.size: needed for this source, since all stored images have one size; 256 suits ImageNet")
    for split in SPLITS:
        take = spec.splits.takes()[split]
        if take.file and store.is_pointer(Path(take.file)):
            store.refuse(f"data.splits.{split}.file", Path(as_written(take.file)))
        without = (
            (source in BUILTIN and "" in BUILTIN[source].images) or source.endswith(".tar") or name in WITHOUT_PARTS
        )
        if take.part and without:
            raise KtError(f"data.splits.{split}.part: {quoted(take.part)}: {quoted(written)} has no official parts")


def _check_task(spec: DataSpec) -> None:
    """Fail where the source has no truths of the task, or keys make no sense for it."""
    task, written = named(spec.task), quoted(as_written(spec.source))
    own = BUILTIN[spec.source].truth if spec.source in BUILTIN else None
    if own == "map" and not task.clips:
        raise KtError(f"data.source: {written} has videos; set data.task: saliency")
    if spec.every is not None and not task.clips:
        raise KtError(f"data.every: is about videos, which the task {spec.task!r} does not have; leave it out")
    if task.clips:
        _check_videos(spec)
        return
    if task.dense:
        _check_masks(spec)
        return
    for key, given in (("masks", spec.masks), ("ignore", spec.ignore), ("fit", spec.fit != "cover" or None)):
        if given is not None:
            raise KtError(f"data.{key}: is about masks, which the task {spec.task!r} does not have; leave it out")
    if own == "mask" or spec.source.lower() in CLASSES:
        raise KtError(f"data.source: {written} has a class per pixel; set data.task: segmentation")
    if task.has_classes:
        return
    for key in ("classes", "class_file", "num_classes"):
        if getattr(spec, key) is not None:
            raise KtError(f"data.{key}: is about classes, which the task {spec.task!r} does not have; leave it out")
    if not spec.source.endswith(".npz"):
        raise KtError(
            f"data.source: {written} has classes, but the task {spec.task!r} has none; "
            "allowed: an .npz file with `images` and `truth`"
        )
    if spec.splits.transfer.folder:
        text = f"its images have no truth, which the task {spec.task!r} needs; leave it out"
        raise KtError(f"data.splits.transfer.folder: {text}")


def _builtin(truth: str) -> list[str]:
    """Data sets that need no file and have truths of some kind."""
    return [name for name, data in BUILTIN.items() if data.truth == truth]


def _check_videos(spec: DataSpec) -> None:
    """Fail where a source has no videos, or keys make no sense for them."""
    written, own = as_written(spec.source), _builtin("map")
    if not (spec.source in own or spec.is_folder):
        raise KtError(
            f"data.source: {quoted(written)} has no videos, which the task {spec.task!r} needs; allowed: "
            f"{', '.join(own)}, a folder with a folder of `frames` and `maps` per video{nearest(spec.source, own)}"
        )
    about = dict.fromkeys(("classes", "class_file", "num_classes", "label_key"), "classes")
    about |= {"masks": "masks", "ignore": "masks", "image_key": "columns", "root": "data sets that timm reads"}
    for key, what in about.items():
        if getattr(spec, key) is not None:
            raise KtError(f"data.{key}: is about {what}, which the task {spec.task!r} does not have; leave it out")
    if spec.class_order != "natural":
        raise KtError(
            f"data.class_order: {spec.class_order!r} orders class folders, but videos have none; leave it out"
        )
    if spec.fit != "cover" and spec.size is None:
        raise KtError(f"data.fit: {spec.fit!r} needs data.size; without it frames keep their size")
    if spec.splits.transfer.folder:
        raise KtError("data.splits.transfer.folder: its images are no frames of videos; leave it out")


def _check_masks(spec: DataSpec) -> None:
    """Fail where a source has no masks, or keys make no sense for images with masks."""
    written, known = as_written(spec.source), spec.source.lower() in CLASSES
    own = known or (spec.source in BUILTIN and BUILTIN[spec.source].truth == "mask")
    if not (own or spec.is_folder or spec.source.endswith(".npz")):
        allowed = ", ".join([*_builtin("mask"), *CLASSES])
        raise KtError(
            f"data.source: {quoted(written)} has no masks, which the task {spec.task!r} needs; allowed: {allowed}, a "
            f"folder with `images` and `masks`, an .npz file with both{nearest(spec.source, CLASSES)}"
        )
    for key in ("classes", "class_file", "num_classes", "ignore"):
        if own and getattr(spec, key) is not None:
            raise KtError(f"data.{key}: {written} has classes and ids of its own; leave it out")
    if spec.class_order != "natural":
        raise KtError(f"data.class_order: {spec.class_order!r} orders class folders, but masks hold ids; leave it out")
    if spec.masks is not None and not spec.is_folder:
        raise KtError(f"data.masks: {spec.masks!r} lie in a folder, which {written} is not; leave it out")
    if spec.fit != "cover" and spec.size is None:
        raise KtError(f"data.fit: {spec.fit!r} needs data.size; without it images keep their size")
    if spec.splits.transfer.folder:
        text = f"its images have no masks, which the task {spec.task!r} needs; leave it out"
        raise KtError(f"data.splits.transfer.folder: {text}")
    if known and spec.root is None:
        raise KtError(f"data.root: needed: the folder in which torchvision finds {written}")
    if spec.source.lower() == "torch/cityscapes" and spec.download:
        raise KtError(f"data.download: {written} needs an account; download it yourself and leave this key out")
    for split, take in spec.splits.takes().items():
        if known and take.part not in (None, *MASKED_PARTS):
            text = unknown("part", take.part or "", MASKED_PARTS)
            raise KtError(f"data.splits.{split}.part: {text}; other parts of {written} have no masks of their own")


MASKED_PARTS = ("train", "val")
"""Official parts of VOC and Cityscapes."""


def _is_there(source: Place) -> bool:
    return os.path.isfile(source) if source.endswith((".npz", ".tar")) else os.path.isdir(source)


def known_count(spec: DataSpec) -> int | None:
    """Number of images where it is known quickly; None for folders, timm's data sets and chosen classes."""
    if spec.classes or spec.class_file:
        return None
    if spec.source in BUILTIN:
        return sum(BUILTIN[spec.source].images.values())
    if not spec.source.endswith(".npz"):
        return None
    listing = _npz(spec)
    return len(listing.labels) if listing.parts is None else None


def known_classes(spec: DataSpec) -> int | None:
    """Number of classes where it is known before the source is read; None for arrays and timm's data sets.

    Raises:
        KtError: as ``known_names`` does.
    """
    return spec.num_classes or len(known_names(spec) or ()) or None


def known_names(spec: DataSpec) -> list[str] | None:
    """Names of the classes by label where they are known before the source is read; None as ``known_classes``.

    Raises:
        KtError: as ``class_map`` does, a folder of classes is not one, or a label is not below ``data.num_classes``.
    """
    task = named(spec.task)
    if not task.has_classes:
        return None
    if task.dense:
        return list(classes_of(spec).names)
    chosen = class_map(spec)
    if chosen is None and spec.source in BUILTIN:
        chosen = {name: label for label, name in enumerate(BUILTIN[spec.source].classes)}
    if chosen is None and spec.is_folder:
        chosen = {name: label for label, name in enumerate(class_folders(spec).classes)}
    return None if chosen is None else by_label(chosen.items(), spec)


def known_channels(spec: DataSpec) -> int:
    """Colour channels of the stored images; of arrays they are the arrays' own."""
    shape = _known_shape(spec)
    return shape[-1] if shape else spec.channels


def known_sides(spec: DataSpec) -> tuple[int, int]:
    """Height and width of the stored images."""
    if spec.size is not None:
        return height_and_width(spec.size)
    shape = _known_shape(spec)
    assert shape is not None  # other sources need a size
    return shape[0], shape[1]


def _known_shape(spec: DataSpec) -> tuple[int, ...] | None:
    """[H, W, C] of images that are arrays of one shape."""
    if spec.source in BUILTIN:
        return BUILTIN[spec.source].shape
    return _npz(spec).shape if spec.source.endswith(".npz") else None


@dataclass(frozen=True)
class PartSizes:
    """Images that splits can draw from.

    Attributes:
        images: number by official part; under None of the whole data set, where it has no parts.
        default: the part that splits draw from unless they name another; None where there are no parts.
    """

    images: Mapping[str | None, int]
    default: str | None


def part_sizes(spec: DataSpec) -> PartSizes | None:
    """Numbers of images, without reading one.

    None where that takes long: for timm's data sets, and for chosen classes of built-in ones.

    Raises:
        KtError: as ``read`` does, or a class that is to be taken is not in a folder.
    """
    chosen, place = class_map(spec), spec.splits.transfer.folder
    images: dict[str | None, int]
    labelled: Collection[str] = ()
    if spec.by_timm or (spec.source in BUILTIN and chosen is not None):
        return None
    if spec.source in BUILTIN:
        images = {part or None: count for part, count in BUILTIN[spec.source].images.items()}
        default = None if None in images else DEFAULT_PART
    elif spec.is_folder and named(spec.task).dense:
        pairs = check_masks(spec)
        images = {part or None: len(found) for part, found in pairs.files.items()}
        default = None if None in images else pairs.default
    elif spec.is_folder:
        found = check_folder(spec)
        images = {part or None: count for part, count in found.sizes(chosen).items()}
        default = None if None in images else found.places.default
        labelled = found.folders
    else:
        listing = _npz(spec)
        taken = truth_of(listing, spec).groups >= 0
        parts = listing.parts
        images = (
            {None: int(taken.sum())}
            if parts is None
            else {str(part): int(taken[parts == part].sum()) for part in np.unique(parts)}
        )
        default = None if parts is None else listing.default
    if place:
        default = default or DEFAULT_PART
        images = {part or default: count for part, count in images.items()}
        images[place] = len(unlabelled_images(place, labelled)[0])
    return PartSizes(images, default)


def planned_sizes(spec: DataSpec, in_epoch: bool = False) -> dict[str, int] | None:
    """Images of each split as the source will give them, but for damaged ones; None as ``part_sizes``.

    Of videos these are the targets, or those of them that an epoch of a training shows.

    Raises:
        KtError: as ``part_sizes`` does, a split names an unknown part, or asks for too many images.
    """
    if named(spec.task).clips:
        listing = _read(spec)
        assert isinstance(listing, VideoListing), "the task needs videos"
        found = planned(listing, spec)
        return found.videos if in_epoch else found.targets
    splits, sizes = spec.splits, part_sizes(spec)
    if sizes is None:
        return None
    check_parts(splits, [part for part in sizes.images if part])
    counts = dict[str, int]()
    for part, takes in pools(splits, sizes.default).items():
        counts |= split_counts(takes, sizes.images.get(part, 0), part)
    return counts


def read(spec: DataSpec) -> Listing:
    """List a source; raises ``KtError`` as ``check_source`` does, or where the source is malformed."""
    check_source(spec)
    listing = _read(spec)
    unlabelled = spec.splits.transfer.folder
    return with_unlabelled(listing, unlabelled) if unlabelled else listing


def _npz(spec: DataSpec) -> Listing:
    if named(spec.task).dense:
        classes = classes_of(spec)
        return masked_npz(Path(spec.source), classes.names, classes.of)
    return npz(Path(spec.source), named(spec.task).has_classes)


def _read(spec: DataSpec) -> Listing:
    if spec.source in BUILTIN:
        return BUILTIN[spec.source].read()
    if spec.source.endswith(".npz"):
        return _npz(spec)
    if spec.by_timm and named(spec.task).dense:
        return by_torchvision(spec)
    if spec.by_timm:
        from kt.data.timm_source import read_timm

        return read_timm(spec)
    task = named(spec.task)
    return video_folder(spec) if task.clips else masked_folder(spec) if task.dense else folder(spec)


def check_images(spec: DataSpec) -> None:
    """Fail where a folder has no images as the task needs them; raises ``KtError`` as the functions it calls."""
    if spec.is_folder:
        task = named(spec.task)
        (video_folder if task.clips else check_masks if task.dense else check_folder)(spec)
