"""Splits by image id: zoo, transfer, validation and test never share an image."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.data.spec import SplitSizes
from kt.errors import KtError

SPLITS = ("zoo", "transfer", "validation", "test")


def assign(ids: NDArray[np.int64], labels: NDArray[np.int64], sizes: SplitSizes, seed: int) -> pd.DataFrame:
    """Shuffle the images and cut them into the four splits, in the order of ``SPLITS``, each stratified by class.

    A class's shuffled images are spread evenly over the whole order, so every cut of it holds all classes in
    proportion, up to rounding.

    Args:
        ids: distinct image ids, int64 [N].
        labels: classes, int64 [N].
        sizes: images per split.
        seed: seed of the shuffle.

    Returns:
        The table ``splits`` as a data frame; images beyond the sum of the sizes are in no split.

    Raises:
        KtError: the splits ask for more images than there are, or ids repeat.
    """
    if sizes.total > len(ids):
        raise KtError(f"data.splits: {sizes.total} images asked for ({_sum(sizes)}), but the data set has {len(ids)}")
    if len(np.unique(ids)) != len(ids):
        raise KtError("data.source: image ids repeat; every image needs an id of its own")
    generator = np.random.default_rng(seed)
    place = np.empty(len(ids))
    for c in np.unique(labels):
        of_class = generator.permutation(np.flatnonzero(labels == c))
        place[of_class] = (np.arange(len(of_class)) + generator.random(len(of_class))) / len(of_class)
    rows = np.argsort(place, kind="stable")[: sizes.total]
    split = np.repeat(SPLITS, [getattr(sizes, name) for name in SPLITS])
    return pd.DataFrame({"image_id": ids[rows], "row": rows, "label": labels[rows], "split": split})


def _sum(sizes: SplitSizes) -> str:
    return " + ".join(f"{name} {getattr(sizes, name)}" for name in SPLITS)
