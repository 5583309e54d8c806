"""Splits by image id: zoo, transfer, validation and test never share an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.data.listing import DEFAULT_PART
from kt.data.spec import SPLITS, SplitSizes, Take
from kt.errors import KtError, listed, nearest

Rows = NDArray[np.int64]


def assign(
    labels: NDArray[np.int64],
    sizes: SplitSizes,
    seed: int,
    parts: NDArray[np.str_] | None = None,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Give every split its images; images that no split takes are left out.

    Splits that list their images in a file come first. What is left of an official part (of the whole data set where
    it has none) is shuffled and cut into the splits that draw from it, in the order of ``SPLITS``, each stratified by
    class: a class's shuffled images are spread evenly over the whole order, so every cut of it holds all classes in
    proportion, up to rounding. A split that takes all the rest of its part gets what the others leave.

    Args:
        labels: classes, int64 [N]; −1 for images that are not to be used, but by a split that takes their folder.
        sizes: what each split takes.
        seed: seed of the shuffle.
        parts: official part of each image.
        names: the images' names; by default their positions.

    Returns:
        The table ``splits`` as a data frame; ``row`` and ``image_id`` are positions in the source.

    Raises:
        KtError: the splits ask for more images than there are, or for an image twice.
    """
    have = [] if parts is None else np.unique(parts).tolist()
    for split, take in sizes.takes().items():
        if take.part is not None and take.part not in have:
            what = f"unknown part {take.part!r}; allowed: {listed(have)}{nearest(take.part, have)}"
            raise KtError(f"data.splits.{split}.part: {what if have else 'the data set has no official parts'}")
    taken: dict[str, Rows] = {}
    free = labels >= 0
    for take in sizes.takes().values():
        if take.folder and parts is not None:
            free |= parts == take.folder
    for split, take in sizes.takes().items():
        if take.file:
            taken[split] = _listed_in_file(take.file, f"data.splits.{split}.file", names, labels, free)
            free[taken[split]] = False
    pools: dict[str | None, dict[str, Take]] = {}
    for split, take in sizes.takes().items():
        if not take.file:
            pool = None if parts is None else take.folder or take.part or DEFAULT_PART
            pools.setdefault(pool, {})[split] = take
    for part, takes in pools.items():
        rows = np.flatnonzero(free if parts is None else free & (parts == part))
        taken |= _cut(rows, labels, takes, seed, f" of the part {part!r}" if part else "")
    rows = np.concatenate([taken[split] for split in SPLITS])
    return pd.DataFrame(
        {
            "image_id": rows,
            "row": rows,
            "name": [names[row] if names is not None else str(row) for row in rows.tolist()],
            "label": labels[rows],
            "split": np.repeat(SPLITS, [len(taken[split]) for split in SPLITS]),
        }
    )


def spread(labels: NDArray[np.int64], generator: np.random.Generator) -> Rows:
    """A random order of images, int64 [n], in which every stretch holds all classes in proportion."""
    place = np.empty(len(labels))
    for c in np.unique(labels):
        of_class = generator.permutation(np.flatnonzero(labels == c))
        place[of_class] = (np.arange(len(of_class)) + generator.random(len(of_class))) / len(of_class)
    return np.argsort(place, kind="stable")


def _cut(rows: Rows, labels: NDArray[np.int64], takes: dict[str, Take], seed: int, of_part: str) -> dict[str, Rows]:
    """The rows of one pool, cut into the splits that draw from it."""
    order = rows[spread(labels[rows], np.random.default_rng(seed))]
    wanted = {split: round(take.share * len(rows)) if take.share else take.images for split, take in takes.items()}
    greedy = [split for split, images in wanted.items() if images is None]
    if len(greedy) > 1:
        raise KtError(f"data.splits: {' and '.join(greedy)} both take the rest{of_part}; give one a number or a share")
    total = sum(images or 0 for images in wanted.values())
    if total > len(rows) or (greedy and total == len(rows)):
        asked = " + ".join(f"{split} {'the rest' if n is None else n}" for split, n in wanted.items())
        raise KtError(f"data.splits: {total} images asked for ({asked}), but the data set has {len(rows)}{of_part}")
    counts = [len(rows) - total if images is None else images for images in wanted.values()]
    return dict(zip(wanted, np.split(order, np.cumsum(counts))[:-1], strict=True))


def _listed_in_file(
    file: str, at: str, names: Sequence[str] | None, labels: NDArray[np.int64], free: NDArray[np.bool_]
) -> Rows:
    """The positions of the images that a text file lists, in its order."""
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line]
    known = {name: row for row, name in enumerate(names if names is not None else map(str, range(len(labels))))}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        close = nearest(unknown[0], known) if len(known) <= 10_000 else ""
        raise KtError(f"{at}: {len(unknown)} of its images are not in the data set: {listed(unknown)}{close}")
    rows = np.array([known[name] for name in wanted], np.int64)
    if len(rows) == 0:
        raise KtError(f"{at}: {file} lists no image")
    if len(np.unique(rows)) < len(rows) or not free[rows].all():
        again = next(name for i, name in enumerate(wanted) if not free[rows[i]] or rows[i] in rows[:i])
        raise KtError(f"{at}: the image {again!r} is listed twice, or its class is not taken")
    return rows
