"""Frames of videos: which of them a clip shows, which an epoch shows, and where people looked.

The frames of a data set lie one video after another, in time. An example is one of them, with the clip around it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data.seen import ClipSpec

Indices = NDArray[np.int64]

VIDEO = ("name", "first", "frames")
"""Facts of each video in ``meta.json``: its name, the row of its first frame, and their number."""

FIXATIONS = "fixations.npy"
"""File of the fixations of frames."""


class Videos(NamedTuple):
    """The videos of a data set, in the order of their frames.

    Attributes:
        names: of each, in its source.
        first: row of its first frame, int64 [V].
        frames: number of its frames, int64 [V].
    """

    names: tuple[str, ...]
    first: Indices
    frames: Indices

    def of(self, rows: Indices) -> Indices:
        """Number of the video that each frame belongs to, int64 [n], from rows [n]."""
        found: Indices = np.searchsorted(self.first, rows, "right") - 1
        return found

    def clips(self, rows: Indices, clip: ClipSpec) -> Indices:
        """Rows of the frames that a clip around each frame shows, int64 [n, T]; clamped at both ends of its video."""
        video = self.of(rows)
        first, last = self.first[video], self.first[video] + self.frames[video] - 1
        shown: Indices = np.clip(rows[:, None] + np.array(clip.offsets), first[:, None], last[:, None])
        return shown


def in_turn(order: Indices, clusters: Indices) -> Indices:
    """Examples in an order, int64 [k], so that the first of every cluster comes before the second of any.

    Args:
        order: some of n examples.
        clusters: number of the cluster of each example, int64 [n].
    """
    places: dict[int, int] = {}
    turns = []
    for cluster in clusters[order].tolist():
        turns.append(places.get(cluster, 0))
        places[cluster] = turns[-1] + 1
    found: Indices = order[np.argsort(turns, kind="stable")]
    return found


class Targets(NamedTuple):
    """Frames to be learnt from: an epoch shows one of each video.

    Attributes:
        names: of the videos.
        frames: positions of each video's frames among all that are learnt from, int64 each.
    """

    names: list[str]
    frames: list[Indices]

    @classmethod
    def of(cls, videos: Videos, rows: Indices) -> Targets:
        """All videos that some frames, by their rows int64 [n], belong to."""
        numbers = videos.of(rows)
        present = np.unique(numbers)
        return cls([videos.names[v] for v in present], [np.flatnonzero(numbers == v) for v in present])

    def some(self, chosen: Indices) -> Targets:
        """Those of some of the videos, by their places, int64 [k]."""
        return Targets([self.names[i] for i in chosen], [self.frames[i] for i in chosen])

    def drawn(self, seed: int, epoch: int) -> Indices:
        """Position of the frame that an epoch shows of each video, int64 [V]; by seed, video's name and epoch alone."""
        names = (zlib.crc32(name.encode()) for name in self.names)
        draws = (np.random.default_rng([seed, epoch, name]).random() for name in names)
        chosen = [own[int(draw * len(own))] for draw, own in zip(draws, self.frames, strict=True)]
        return np.array(chosen, np.int64)


@dataclass(frozen=True)
class Watched:
    """Truths of frames: maps of where people looked, and the points that they fixated; read on demand.

    Attributes:
        maps: of all frames of the data set, uint8 [F, H, W], memory-mapped.
        rows: position i is the truth of the frame ``rows[i]``, int64 [n].
        fixations: row, y and x of every fixation of the data set, int32 [P, 3], by row; memory-mapped.
        videos: of the data set.
    """

    maps: NDArray[np.uint8]
    rows: Indices
    fixations: NDArray[np.int32]
    videos: Videos

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [n, 3, H, W] of all of them."""
        return len(self.rows), 3, *self.maps.shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def clusters(self) -> Indices:
        """Number of each frame's video, int64 [n]."""
        return self.videos.of(self.rows)

    def __getitem__(self, positions: Indices | slice) -> NDArray[np.float32]:
        """Float32 [b, 3, H, W]: the map in [0, 1], fixations at each pixel, and those of the split's other videos."""
        rows = self.rows[positions]
        found = np.empty((len(rows), *self.shape[1:]), np.float32)
        found[:, 0] = self.maps[rows]
        found[:, 0] /= 255
        for one, row, video in zip(found, rows, self.clusters[positions], strict=True):
            one[1] = self._counted(np.array([row]))
            one[2] = self._all - self._counted(self._of_video[int(video)])
        return found

    @cached_property
    def _of_video(self) -> dict[int, Indices]:
        return {int(video): self.rows[self.clusters == video] for video in np.unique(self.clusters)}

    @cached_property
    def _all(self) -> NDArray[np.int64]:
        """Fixations of the split's frames at each pixel, int64 [H, W]."""
        return self._counted(self.rows)

    @cached_property
    def _starts(self) -> Indices:
        """Place of the first fixation of each frame of the data set, and of the end of the last one's."""
        return np.searchsorted(self.fixations[:, 0], np.arange(len(self.maps) + 1))

    def _counted(self, rows: Indices) -> NDArray[np.int64]:
        """Fixations of some frames at each pixel, int64 [H, W]."""
        height, width = self.maps.shape[1:]
        parts = [self.fixations[self._starts[row] : self._starts[row + 1], 1:] for row in rows]
        y, x = np.concatenate(parts).astype(np.int64).T
        return np.bincount(y * width + x, minlength=height * width).reshape(height, width)
