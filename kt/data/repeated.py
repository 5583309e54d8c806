"""The same picture in two splits or under two classes, told by its stored pixels."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.errors import listed

log = logging.getLogger(__name__)


def warn(splits: pd.DataFrame, digests: NDArray[np.uint64]) -> dict[str, int]:
    """Warn of pictures that are in two splits, or under two classes.

    Two images are the same where their stored pixels are: what no model can tell apart, whatever file, name, format
    or metadata it comes from. Copies that were compressed anew are not found.

    Args:
        splits: the table ``splits``, ``row`` counting in ``digests``.
        digests: a hash of each image's stored pixels, uint64 [n].

    Returns:
        Numbers of images: in another split, too (``splits``), and under another class, too (``classes``).
    """
    frame = splits.assign(digest=digests[splits["row"].to_numpy()])
    frame = frame[frame.duplicated("digest", keep=False)]
    by_content = frame.groupby("digest")
    labelled = frame[frame["label"] >= 0].groupby("digest")["label"].nunique()
    found = {
        "splits": frame[frame["digest"].map(by_content["split"].nunique()) > 1],
        "classes": frame[frame["digest"].map(labelled).fillna(0) > 1],
    }
    for what, same in found.items():
        if len(same):
            groups = same.sort_values(["digest", "row"]).groupby("digest", sort=False)["name"].head(4)
            names = groups.groupby(same["digest"]).agg(lambda alike: " = ".join(alike[:3]) + " = …" * (len(alike) > 3))
            between = "in two splits" if what == "splits" else "under two classes"
            log.warning("data: %d images are %s, pixel by pixel the same: %s", len(same), between, listed(names))
    return {what: len(same) for what, same in found.items()}
