"""The store of videos: all frames of those in splits, targets, and fixations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kt import store
from kt.data.clips import FIXATIONS, VIDEO
from kt.data.decode import check_damage, decode, name_of
from kt.data.listing import Listing
from kt.data.spec import SPLITS, DataSpec
from kt.data.splits import counts, warn_repeated
from kt.data.videos import VideoListing, divided, frames_of
from kt.errors import listed
from kt.spec import as_written
from kt.tables import schema

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FRAME = "frame with a map"
"""What is counted of videos."""


def write_videos(
    folder: Path, spec: DataSpec, source: VideoListing, threads: int, check: Callable[[Mapping[str, int]], None]
) -> dict[str, Any]:
    """Split, decode and store videos: all frames are decoded, and ``splits.parquet`` has the targets.

    A video with a damaged frame is left out, and so is a target of whose map all pixels are equal.

    Args:
        folder: where the store is to be.
        spec: how videos are split and kept.
        source: the videos.
        threads: frames decoded at once.
        check: called with the number of videos of each split before anything is decoded, and after it.

    Returns:
        What ``meta.json`` holds.

    Raises:
        KtError: the splits do not fit the source, or videos are damaged.
    """
    listing, splits, looks, beyond, videos = frames_of(source, divided(source, spec), spec, threads)
    rows = np.arange(len(listing.labels))
    check_damage(listing, rows, {}, spec)
    check(_videos_of(splits, listing))
    decoded = decode(listing, rows, spec, folder / "images.npy", threads)
    video = listing.video
    assert video is not None, "the listing is of frames"
    broken = np.unique(video[list(decoded.damaged)])
    found = dict(listing.lost) | {name_of(listing, row): reason for row, reason in decoded.damaged.items()}
    whole = splits[~np.isin(video[splits["row"].to_numpy()], broken)]
    splits = whole[whole["row"].isin(decoded.mapped)]
    check(_videos_of(splits, listing))
    looks = looks[np.isin(looks[:, 0], splits["row"])]
    with store.atomic(folder / FIXATIONS) as temporary, temporary.open("wb") as file:
        np.save(file, looks)
    schema.write(folder / "splits.parquet", "splits", schema.build("splits", splits.to_dict("series")))
    lost = len(broken) + len(listing.lost)
    if found:
        reasons = listed(f"{name} ({reason})" for name, reason in found.items())
        log.warning("data: %d videos with damage are left out: %s", lost, reasons)
    if beyond:
        log.info("data: %d fixations lie beyond the edges of the stored frames", beyond)
    if not len(looks):
        log.warning("data: no frame has a fixation: metrics on fixations are undefined")
    kept = [dict(zip(VIDEO, one, strict=True)) for i, one in enumerate(videos) if i not in broken]
    spare = len(source.videos) - len(videos) - len(listing.lost)
    left_out = {"damaged videos": lost, "videos of no split": spare, "frames of an even map": len(whole) - len(splits)}
    facts = {
        "classes": [],
        "task": spec.task,
        "hash": decoded.hash(looks, splits, kept),
        "source": as_written(spec.source),
        "images": counts(splits, FRAME),
        "videos": kept,
        "videos_of": _videos_of(splits, listing),
        "damaged": found,
        "repeated": warn_repeated(splits, decoded.digests),
        "left_out": dict(source.left_out) | {what: count for what, count in left_out.items() if count},
    }
    store.write_json(folder / "meta.json", facts)
    return facts


def _videos_of(splits: pd.DataFrame, listing: Listing) -> dict[str, int]:
    """Videos of each split, from those of its targets.

    Raises:
        KtError: a split that needs some has none.
    """
    assert listing.video is not None, "the listing is of frames"
    counts(splits, FRAME)
    video = splits.assign(video=listing.video[splits["row"].to_numpy()])
    return {split: int(video.loc[splits["split"] == split, "video"].nunique()) for split in SPLITS}
