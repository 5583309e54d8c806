"""Data sets: decoded once into a memory-mapped uint8 store that every later stage shares.

The store is a folder: ``images.npy`` uint8 [N, H, W, C], ``labels.npy`` int64 [N] (for a task without classes
``truth.npy`` [N, …]; a mask or a map is one more channel of the images), ``splits.parquet`` (table ``splits``) and,
written last, ``meta.json`` with the classes' names and a hash of all three. It holds the images of the splits alone, in
the order of the source. Of videos it holds all frames, and ``fixations.npy`` int32 [P, 3]: row, y and x.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kt import store
from kt.data import sources
from kt.data.classes import truth_of
from kt.data.clips import FIXATIONS, VIDEO, Videos, Watched
from kt.data.decode import decode, name_of
from kt.data.listing import Listing
from kt.data.scenes import BUILTIN
from kt.data.spec import SPLITS, DataSpec
from kt.data.splits import assign, counts, warn_repeated
from kt.data.video_store import write_videos
from kt.data.videos import VideoListing
from kt.errors import KtError, listed
from kt.spec import as_written
from kt.tables import schema
from kt.tasks.task import Task, named

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def write(
    folder: Path,
    spec: DataSpec,
    threads: int = 1,
    check: Callable[[Mapping[str, int]], None] = lambda counts: None,
) -> dict[str, Any]:
    """Split, decode and store a data set in ``folder``; ``meta.json`` is written last and makes it whole.

    Args:
        folder: where the store is to be.
        spec: the source, and how it is split and kept.
        threads: images decoded at once.
        check: called with the number of images of each split before anything is decoded.

    Returns:
        What ``meta.json`` holds.

    Raises:
        KtError: the source is malformed, the splits do not fit it, or images are damaged.
    """
    listing = sources.read(spec)
    for line in listing.warnings:
        log.warning("data: %s", line)
    if isinstance(listing, VideoListing):
        return write_videos(folder, spec, listing, threads, check)
    truth, groups, classes = truth_of(listing, spec)
    task = named(spec.task)
    splits = assign(groups, spec.splits, spec.seed, listing.parts, listing.names, listing.default)
    check(counts(splits))
    if task.classifies:
        _check_classes(spec, classes, splits["label"].to_numpy())
    else:
        splits = splits.assign(label=-1)
    rows = np.sort(splits["row"].to_numpy())
    decoded = decode(listing, rows, spec, folder / "images.npy", threads)
    lost = rows[np.array(list(decoded.damaged), np.int64)]
    splits = splits[~splits["row"].isin(lost)]
    check(counts(splits))
    splits = splits.assign(row=np.searchsorted(rows, splits["row"].to_numpy()))
    kept = None if truth is None else truth[rows]
    if kept is not None:
        with store.atomic(folder / truth_files(task)[0]) as temporary, temporary.open("wb") as file:
            np.save(file, kept)
    schema.write(folder / "splits.parquet", "splits", schema.build("splits", splits.to_dict("series")))
    reasons = decoded.damaged.values()
    why = {name_of(listing, row): reason for row, reason in zip(lost.tolist(), reasons, strict=True)}
    if why:
        log.warning("data: %d damaged images are left out: %s", len(why), listed(f"{n} ({r})" for n, r in why.items()))
    facts = {
        "classes": classes,
        "hash": decoded.hash(kept, splits),
        "source": as_written(spec.source),
        "images": counts(splits),
        "damaged": why,
        "repeated": warn_repeated(splits, decoded.digests),
        "left_out": _left_out(listing, groups, len(rows), len(why)),
    }
    if not task.classifies:
        facts["task"] = spec.task
    if task.dense:
        facts["pixels"] = _pixels(classes, decoded.pixels)
    store.write_json(folder / "meta.json", facts)
    return facts


def _check_classes(spec: DataSpec, classes: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Warn of classes without an image; fail where fewer than two have one."""
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise KtError(f"data: images of {len(present)} class in the splits; a study needs at least two classes")
    missing = sorted(set(range(len(classes))) - set(present.tolist()))
    if missing and not (spec.num_classes or spec.classes or spec.class_file):
        names = listed(classes[label] for label in missing)
        log.warning("data: no image of %d of %d classes is in a split: %s", len(missing), len(classes), names)


def _pixels(classes: Sequence[str], counted: NDArray[np.int64]) -> dict[str, int]:
    """Pixels of each class in all splits; warn of classes without one, and fail where fewer than two have one."""
    pixels = dict(zip(classes, counted.tolist(), strict=False))
    missing = [name for name, count in pixels.items() if not count]
    if len(pixels) - len(missing) < 2:
        text = f"{len(pixels) - len(missing)} class is in the masks of the splits; a study needs at least two classes"
        raise KtError(f"data: {text}")
    if missing:
        log.warning("data: no pixel of %d of %d classes is in a split: %s", len(missing), len(pixels), listed(missing))
    return pixels


def _left_out(listing: Listing, groups: NDArray[np.int64], taken: int, damaged: int) -> dict[str, int]:
    """Files, folders and images that are in no split, counted by reason."""
    found = dict(listing.left_out)
    unlabelled = int((listing.labels < 0).sum())
    foreign = int((groups < 0).sum()) - unlabelled
    spare = len(groups) - foreign - taken
    other = "images of classes that are not taken" if listing.truth is None else "images without a truth"
    more = {"damaged images": damaged, other: foreign, "images of no split": spare}
    return found | {what: count for what, count in more.items() if count}


def summary(facts: Mapping[str, Any]) -> str:
    """One line on a data set: its classes, the images of each split, and what is left out."""
    classes, images, counted = facts["classes"], facts["images"], "images"
    names = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
    what = f"{len(classes)} classes ({names})" if classes else f"task {facts['task']}"
    if "videos" in facts:
        frames, counted = sum(video["frames"] for video in facts["videos"]), "target frames"
        videos = ", ".join(f"{n} {split}" for split, n in facts["videos_of"].items())
        what += f", {videos} videos of {frames:,} frames"
    left_out = sorted(facts["left_out"].items(), key=lambda item: (-item[1], item[0]))
    rest = f"; left out: {listed(f'{what} ({count:,})' for what, count in left_out)}" if left_out else ""
    return f"{what}, {', '.join(f'{n} {split}' for split, n in images.items())} {counted}{rest}"


def split_sizes(folder: Path, spec: DataSpec, in_epoch: bool = False) -> dict[str, int]:
    """Images of each split: as stored in ``folder``; before that, those that the configuration gives.

    Of a source that ships with the project, all are known before. Of videos these are targets; ``in_epoch`` counts
    those that an epoch of a training shows, one of each video.
    """
    videos = named(spec.task).clips
    try:
        stored: dict[str, int] = store.read_json(folder / "meta.json")["videos_of" if videos and in_epoch else "images"]
    except (KtError, KeyError):
        if spec.source in BUILTIN and (planned := sources.planned_sizes(spec, in_epoch)):
            return planned
        if videos and not in_epoch:
            return {}
        return {split: images for split in SPLITS if (images := spec.splits.known(split)) is not None}
    return stored


def truth_files(task: Task) -> list[str]:
    """Names of the files in a store that hold the truth alone."""
    if task.spatial:
        return [FIXATIONS] if task.clips else []
    return ["labels.npy" if task.has_classes else "truth.npy"]


@dataclass(frozen=True)
class Truths:
    """Truths of some images, or of views of them, by position; read on demand.

    Attributes:
        truth: [N, …], memory-mapped or in memory.
        rows: position i is the truth at ``rows[i]``, int64 [n].
        cuts: where the truths are masks, and those of views: the part of each that is shown, as top, left, height and
            width in pixels, and 1 where it is mirrored, [n, 5].
    """

    truth: NDArray[Any]
    rows: NDArray[np.int64]
    cuts: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [n, …] of all of them."""
        return len(self.rows), *self.truth.shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Truths [b, …]."""
        found = np.ascontiguousarray(self.truth[self.rows[positions]])
        for mask, cut in zip(found, self.cuts[positions].tolist() if self.cuts is not None else (), strict=False):
            mask[...] = _shown(mask, *cut)
        return found


def _shown(mask: NDArray[Any], top: int, left: int, tall: int, wide: int, mirrored: int) -> NDArray[Any]:
    """A part of a mask [H, W] at the size of the whole: each pixel is the nearest one of the part."""
    height, width = mask.shape
    rows = top + (2 * np.arange(height) + 1) * tall // (2 * height)
    columns = left + (2 * np.arange(width) + 1) * wide // (2 * width)
    shown: NDArray[Any] = mask[rows[:, None], columns[:: -1 if mirrored else 1]]
    return shown


@dataclass(frozen=True)
class Dataset:
    """A stored data set, images memory-mapped.

    Attributes:
        images: uint8 [N, H, W, C], memory-mapped.
        truth: [N, …]; labels int64 [N], −1 where there is none, of classification; of a dense task the masks uint8
            [N, H, W], memory-mapped.
        splits: the table ``splits`` as a data frame.
        class_names: the classes' names in the source, by label; none where the task has no classes.
        hash: hash of images, truth and splits.
        dense: whether the truth has a class for each pixel.
        videos: whose frames the images are; None where they are no frames.
        fixations: row, y and x of every point that was looked at in the frames, int32 [P, 3], by row, memory-mapped.
    """

    images: NDArray[np.uint8]
    truth: NDArray[Any]
    splits: pd.DataFrame
    class_names: tuple[str, ...]
    hash: str
    dense: bool = False
    videos: Videos | None = None
    fixations: NDArray[np.int32] | None = None
    _kept: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open the store that ``write`` made.

        Raises:
            KtError: the store is missing or incomplete.
        """
        meta = store.read_json(folder / "meta.json")
        videos, fixations = None, None
        try:
            images = np.load(folder / "images.npy", mmap_mode="r")
            if "videos" in meta:
                names, first, frames = (tuple(video[key] for video in meta["videos"]) for key in VIDEO)
                videos = Videos(names, np.array(first, np.int64), np.array(frames, np.int64))
                fixations = np.load(folder / FIXATIONS, mmap_mode="r")
            if "pixels" in meta or videos:
                images, truth = images[..., :-1], images[..., -1]
            elif "task" in meta:
                truth = np.load(folder / "truth.npy", mmap_mode="r")
            else:
                truth = np.load(folder / "labels.npy")
        except (OSError, ValueError, EOFError) as error:
            raise KtError(f"{folder}: the stored data set is incomplete ({error}); delete it and run again") from error
        return cls(
            images,
            truth,
            schema.read_frame(folder / "splits.parquet", "splits"),
            tuple(meta["classes"]),
            str(meta["hash"]),
            "pixels" in meta,
            videos,
            fixations,
        )

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 [N] of classification; −1 where there is none."""
        return self.truth

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Colour channels of the images."""
        return int(self.images.shape[-1])

    def truths(self, split: str) -> Truths | Watched:
        """Truths of a split's images, read on demand."""
        if self.videos is None:
            return Truths(self.truth, self.rows(split))
        assert self.fixations is not None, "frames of videos have fixations"
        return Watched(self.truth, self.rows(split), self.fixations, self.videos)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split in ``images`` and ``truth``, int64 [n], in the split's fixed order; read-only."""
        return self._column(split, "row")

    def ids(self, split: str) -> NDArray[np.int64]:
        """Image ids of a split, int64 [n], in the same order as ``rows``; read-only."""
        return self._column(split, "image_id")

    def _column(self, split: str, column: str) -> NDArray[np.int64]:
        # asked for at every evaluation, so looked up once
        if (split, column) not in self._kept:
            found = self.splits.loc[self.splits["split"] == split, column].to_numpy()
            found.flags.writeable = False
            self._kept[split, column] = found
        return self._kept[split, column]
