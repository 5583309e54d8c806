"""Clips of videos: which frames a model sees, which an epoch shows, and the truths of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kt.data.clips import Targets, Videos, Watched
from kt.data.inputs import Inputs, normalise, to_unit
from kt.data.seen import ClipSpec, InputSpec
from kt.tasks.task import standard_error

VIDEOS = Videos(("first", "second"), np.array([0, 5]), np.array([5, 40]))
"""Frames 0 to 4, and 5 to 44."""


def test_a_clip_ends_with_its_frame_or_has_it_in_the_middle_and_stays_in_its_video():
    before = ClipSpec(frames=4, stride=2, reach="before")
    assert VIDEOS.clips(np.array([4, 11, 5]), before).tolist() == [[0, 0, 2, 4], [5, 7, 9, 11], [5, 5, 5, 5]]
    around = ClipSpec(frames=4, stride=1, reach="around")
    assert VIDEOS.clips(np.array([4, 10]), around).tolist() == [[2, 3, 4, 4], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("clip", "first", "last"),
    [
        (ClipSpec(frames=32), -31, 0),  # DHF1K: 32 frames that end at the target
        (ClipSpec(frames=32, stride=2, reach="around"), -32, 30),  # ViNet-A
        (ClipSpec(frames=32, reach="around"), -16, 15),  # ViNet-A on Hollywood-2
    ],
)
def test_published_clips(clip: ClipSpec, first: int, last: int):
    assert (clip.offsets[0], clip.offsets[-1], len(clip.offsets)) == (first, last, 32)


def test_an_epoch_shows_one_frame_of_each_video_whatever_other_videos_there_are():
    rows = np.array([0, 2, 4, 9, 19, 29, 39])
    targets = Targets.of(VIDEOS, rows)
    shown = [targets.drawn(3, epoch).tolist() for epoch in range(200)]
    assert all(first in (0, 1, 2) and second in (3, 4, 5, 6) for first, second in shown)
    assert {first for first, _ in shown} == {0, 1, 2}
    assert {second for _, second in shown} == {3, 4, 5, 6}
    alone = Targets.of(VIDEOS, rows[3:])
    assert [alone.drawn(3, epoch)[0] + 3 for epoch in range(200)] == [second for _, second in shown]
    assert shown != [targets.drawn(4, epoch).tolist() for epoch in range(200)]


def test_clips_are_the_frames_as_they_are_normalised_alone():
    images = np.random.default_rng(0).integers(0, 256, (45, 6, 8, 3), np.uint8)
    clip = ClipSpec(frames=3, stride=2)
    spec = InputSpec(size=(6, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1), clip=clip)
    rows = np.array([4, 20])
    given = Inputs(images, rows, spec, torch.device("cpu"), videos=VIDEOS)[slice(None)]
    assert given.shape == (2, 3, 3, 6, 8) == (2, *spec.shape(3))
    frames = normalise(to_unit(images, spec, torch.device("cpu")), spec)
    for i, shown in enumerate(VIDEOS.clips(rows, clip)):
        for t, row in enumerate(shown):
            assert torch.equal(given[i, :, t], frames[row])
    assert given.is_contiguous(memory_format=torch.channels_last_3d)


def test_truths_of_frames_are_map_fixations_and_those_of_other_videos():
    maps = np.random.default_rng(0).integers(0, 256, (45, 4, 5), np.uint8)
    points = [(4, 1, 2), (4, 1, 2), (4, 3, 4), (10, 0, 0), (11, 2, 2), (20, 3, 3), (20, 1, 2)]
    rows = np.array([4, 10, 20])  # frame 11 is none of the split
    watched = Watched(maps, rows, np.array(points, np.int32), VIDEOS)
    found = watched[np.array([0, 2])]
    assert found.shape == (2, 3, 4, 5)
    assert watched.shape == (3, 3, 4, 5)
    assert found.dtype == np.float32
    assert np.array_equal(found[:, 0], maps[[4, 20]].astype(np.float32) / 255)
    own = np.zeros((2, 4, 5))
    own[0, 1, 2], own[0, 3, 4], own[1, 3, 3], own[1, 1, 2] = 2, 1, 1, 1
    assert np.array_equal(found[:, 1], own)
    others = np.zeros((2, 4, 5))
    others[0, 0, 0], others[0, 3, 3], others[0, 1, 2] = 1, 1, 1  # of the second video, frames 10 and 20
    others[1] = own[0]
    assert np.array_equal(found[:, 2], others)
    assert watched.clusters.tolist() == [0, 1, 1]


def test_the_error_of_a_mean_is_over_clusters():
    values, clusters = np.array([1.0, 2.0, 4.0, 5.0, 9.0]), np.array([7, 2, 7, 2, 3])
    # mean 4.2; sums of differences by cluster: 7: -3.4, 2: -1.4, 3: 4.8
    expected = np.sqrt(3 / 2 * (3.4**2 + 1.4**2 + 4.8**2)) / 5
    assert standard_error(values, clusters) == pytest.approx(expected)
    assert standard_error(np.stack([values, 2 * values]), clusters) == pytest.approx([expected, 2 * expected])
    alone = standard_error(values, np.arange(5))
    assert alone == pytest.approx(standard_error(values) * np.sqrt(5 / 4)) == pytest.approx(values.std(ddof=1) / 5**0.5)
    assert np.isnan(standard_error(values, np.zeros(5, np.int64)))
    assert np.isnan(standard_error(values[:1]))
