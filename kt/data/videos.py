"""Videos: which of their frames are learnt from, all their frames in one order, and where people looked.

Splits divide videos. All frames of a video that is in a split are stored, since clips show those around a frame; only
some of those with a map are learnt from, or tested on: the targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data.decode import attempt, whole_files
from kt.data.fit import placed
from kt.data.listing import Framed, Listing
from kt.data.spec import SPLITS, DataSpec, Every
from kt.data.splits import assign
from kt.data.walk import NotReadable
from kt.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Indices = NDArray[np.int64]


class Looks(NamedTuple):
    """Fixations of a frame.

    Attributes:
        points: y and x of each in pixels, int64 [n, 2].
        sides: height and width of the frame.
    """

    points: Indices
    sides: tuple[int, int]


@dataclass(frozen=True)
class Video(ABC):
    """A video of a source; its frames count from 0.

    Attributes:
        name: its path or number in the source.
        mapped: frames that have a map, increasing, int64 [m]; at least one.
    """

    name: str
    mapped: Indices

    @abstractmethod
    def count(self) -> int:
        """Number of frames.

        Raises:
            NotReadable: the video cannot be opened.
        """

    @abstractmethod
    def frames(self, first: int, targets: Indices) -> Iterator[Callable[[], Framed]]:
        """One call for each frame from ``first`` to the last, those of ``targets`` with their map.

        The calls may run in any thread, and raise ``NotReadable``.
        """

    @abstractmethod
    def looks(self, targets: Indices) -> Iterator[Looks]:
        """Fixations of some frames.

        Raises:
            NotReadable: a file does not hold fixations of its frame.
        """

    def called(self, frame: int) -> str:
        """Name of a frame, in lists of images."""
        return str(frame)


@dataclass(frozen=True)
class VideoListing(Listing):
    """Contents of a source of videos; position i of all attributes is the i-th video, and there is no stream.

    Attributes:
        videos: all that have a map.
    """

    videos: Sequence[Video] = ()


def listing_of(videos: Sequence[Video], parts: Sequence[str] | None, shape: tuple[int, ...] | None) -> VideoListing:
    """A listing of videos with their official parts, and the shape [H, W, C] of arrays."""
    names, labels = [video.name for video in videos], np.zeros(len(videos), np.int64)
    part_of = None if parts is None else np.array(parts)
    return VideoListing(labels, [], part_of, names, lambda rows: iter(()), shape, videos=videos)


def targets(video: Video, every: int) -> Indices:
    """Frames of a video that are learnt from: of those with a map every n-th, from the n/2-th on; at least one."""
    chosen = video.mapped[every // 2 :: every]
    return chosen if len(chosen) else video.mapped[len(video.mapped) // 2 :][:1]


def divided(listing: VideoListing, spec: DataSpec) -> pd.DataFrame:
    """The table ``splits`` of videos, ``row`` counting in the listing; raises as ``assign`` does."""
    return assign(listing.labels, spec.splits, spec.seed, listing.parts, listing.names, listing.default, "videos")


class Planned(NamedTuple):
    """What each split has, but for what turns out to be damaged or without anything salient.

    Attributes:
        targets: number of frames that are learnt from, or tested on.
        videos: number of videos, each of which an epoch of a training shows once.
    """

    targets: dict[str, int]
    videos: dict[str, int]


def planned(listing: VideoListing, spec: DataSpec) -> Planned:
    """Numbers of targets and videos of each split."""
    every, splits = spec.every or Every(), divided(listing, spec)
    rows = {split: splits.loc[splits["split"] == split, "row"] for split in SPLITS}
    count = {split: sum(len(targets(listing.videos[v], every.of(split))) for v in of) for split, of in rows.items()}
    return Planned(count, {split: len(of) for split, of in rows.items()})


class Frames(NamedTuple):
    """All frames of the videos in splits.

    Attributes:
        listing: position i is the i-th frame, video after video, in time; label 0 of targets, −1 of all others.
        splits: the table ``splits`` of targets, ``row`` counting in the listing.
        looks: row, y and x of the fixations of targets, in pixels of stored frames, int32 [P, 3], by row.
        beyond: number of fixations of targets that lie beyond the edges of stored frames.
        videos: name, row of the first frame, and number of frames of each video, in this order.
    """

    listing: Listing
    splits: pd.DataFrame
    looks: NDArray[np.int32]
    beyond: int
    videos: list[tuple[str, int, int]]


class _Seen(NamedTuple):
    frames: int
    targets: Indices
    looks: list[Indices]
    beyond: int


def frames_of(listing: VideoListing, splits: pd.DataFrame, spec: DataSpec, threads: int) -> Frames:
    """List the frames of all videos in splits, and read their fixations; no frame is decoded.

    Args:
        listing: the source.
        splits: the table ``splits`` of videos, ``row`` counting in the listing.
        spec: how often there is a target, and the geometry of stored frames.
        threads: videos read at once.
    """
    every = spec.every or Every()
    wanted = {
        v: targets(listing.videos[v], every.of(split)) for v, split in zip(splits["row"], splits["split"], strict=True)
    }
    found = _read(listing, dict(sorted(wanted.items())), spec, threads)
    seen = {v: one for v, one in found.items() if isinstance(one, _Seen)}
    lost = {listing.videos[v].name: one for v, one in found.items() if isinstance(one, str)}
    counts = [one.frames for one in seen.values()]
    first = dict(zip(seen, np.cumsum([0, *counts]).tolist(), strict=False))
    videos = [listing.videos[v] for v in seen]
    labels = np.full(sum(counts), -1, np.int64)
    for v, one in seen.items():
        labels[first[v] + one.targets] = 0
    streams = [partial(videos[i].frames, targets=one.targets) for i, one in enumerate(seen.values())]
    return Frames(
        Listing(
            labels,
            [],
            None,
            [
                f"{video.name}/{video.called(k)}"
                for video, count in zip(videos, counts, strict=True)
                for k in range(count)
            ],
            partial(_stream, streams, list(first.values())),
            listing.shape,
            video=np.repeat(np.arange(len(videos)), counts),
            lost=lost,
        ),
        _of_targets(splits, seen, first, listing),
        _rows([(first[v] + k, at) for v, one in seen.items() for k, at in zip(one.targets, one.looks, strict=True)]),
        sum(one.beyond for one in seen.values()),
        [(video.name, first[v], one.frames) for video, (v, one) in zip(videos, seen.items(), strict=True)],
    )


def _read(listing: VideoListing, wanted: Mapping[int, Indices], spec: DataSpec, threads: int) -> dict[int, _Seen | str]:
    """What is seen of each video, or the reason why it cannot be read; by its number, from its targets by the same."""
    found, progress = dict[int, _Seen | str](), Progress("fixations", len(wanted))
    with whole_files(), ThreadPoolExecutor(threads) as pool:
        calls = [partial(_look, listing.videos[v], chosen, spec) for v, chosen in wanted.items()]
        for v, one in zip(wanted, pool.map(attempt, calls), strict=True):
            found[v] = one
            progress.step(listing.videos[v].name)
    return found


def _look(video: Video, wanted: Indices, spec: DataSpec) -> _Seen:
    """Count a video's frames, and read the fixations of targets."""
    count = video.count()
    if video.mapped[-1] >= count:
        raise NotReadable(f"it has {count} frames, but there is a map of {video.called(int(video.mapped[-1]))}")
    read = list(video.looks(wanted))
    kept = [placed(points, sides, spec.size, spec.fit == "contain") for points, sides in read]
    return _Seen(count, wanted, kept, sum(len(points) for points, _ in read) - sum(map(len, kept)))


def _of_targets(
    splits: pd.DataFrame, seen: Mapping[int, _Seen], first: Mapping[int, int], listing: VideoListing
) -> pd.DataFrame:
    """The table ``splits`` of targets; ``image_id`` counts the frames with a map of all videos of the source."""
    import pandas as pd

    before = np.cumsum([0, *(len(video.mapped) for video in listing.videos)])
    kept = [(v, split) for v, split in zip(splits["row"].tolist(), splits["split"], strict=True) if v in seen]
    rows = [first[v] + seen[v].targets for v, _ in kept]
    ids = [before[v] + np.searchsorted(listing.videos[v].mapped, seen[v].targets) for v, _ in kept]
    names = [f"{listing.videos[v].name}/{listing.videos[v].called(k)}" for v, _ in kept for k in seen[v].targets]
    return pd.DataFrame(
        {
            "image_id": np.concatenate([np.zeros(0, np.int64), *ids]),
            "row": np.concatenate([np.zeros(0, np.int64), *rows]),
            "name": names,
            "label": -1,
            "split": np.repeat([split for _, split in kept], [len(own) for own in rows]),
        }
    )


def _rows(looks: Sequence[tuple[int, Indices]]) -> NDArray[np.int32]:
    """Row, y and x of fixations, int32 [P, 3], from the y and x in each row."""
    parts = [np.column_stack([np.full(len(points), row), points]) for row, points in looks]
    return np.concatenate([np.zeros((0, 3), np.int64), *parts]).astype(np.int32)


def _stream(
    streams: Sequence[Callable[[int], Iterator[Callable[[], Framed]]]], first: Sequence[int], rows: Indices
) -> Iterator[Callable[[], Framed]]:
    """Calls for all frames from the first of ``rows`` on, one video after another."""
    if len(rows):
        begin = int(np.searchsorted(first, rows[0], "right")) - 1
        for v in range(begin, len(streams)):
            yield from streams[v](max(0, int(rows[0]) - first[v]))
