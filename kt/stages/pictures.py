"""Images with class maps for the table ``pictures``: what a few finished trainings of a dense task did."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from kt import status
from kt.analysis.deltas import of_pairs
from kt.data.datasets import Dataset
from kt.layout import Layout
from kt.predictions import File
from kt.study.study import Study
from kt.tables import schema
from kt.transfer.ledger import Ledger, unpack

METHODS = ("kl_dp", "bikd", "kl_dp_unsup", "kl")
"""Methods whose trainings are shown: the first of these that the study has."""

PLACES = {"highest delta": 0.0, "median delta": 0.5, "lowest delta": 1.0}
"""Trainings that are shown: their places among all of the method, by falling delta."""

EACH = 2
"""Images of each training."""

LARGEST = 256
"""Longer side of a picture in pixels; larger ones are made smaller."""


def pictures(study: Study, layout: Layout, transfers: pd.DataFrame) -> pa.Table:
    """The table ``pictures``; without rows where no training that could be shown finished.

    Args:
        study: of a dense task.
        layout: where its files lie.
        transfers: the table ``transfers``.
    """
    done = of_pairs(transfers)
    done = done[done["status"] == "ok"]
    method = next((name for name in METHODS if (done["method"] == name).any()), None)
    ranked = done[done["method"] == method].sort_values(["delta", "key"], ascending=[False, True])
    dataset, ledger, prints = Dataset.open(layout.data), Ledger(layout.ledger), status.fingerprints(layout, study.names)
    rows: list[dict[str, Any]] = []
    places = {round(place * (len(ranked) - 1)): why for why, place in reversed(PLACES.items())} if len(ranked) else {}
    for place, why in sorted(places.items()):
        row = ranked.iloc[place]
        outcome = ledger.read(row["key"])[1]
        outcome |= outcome.get("models", {}).get(prints[row["student"]], {})
        rows += _of_training(why, row, outcome, dataset, layout)
    return schema.build("pictures", rows)


def _of_training(
    why: str, row: pd.Series[Any], outcome: dict[str, Any], dataset: Dataset, layout: Layout
) -> list[dict[str, Any]]:
    """Rows of one training: an image each."""
    shown = outcome.get("shown", {"images": []})
    test, ids = dataset.rows("test"), dataset.ids("test")
    before, teacher = (_maps(layout.predictions(row[name])) for name in ("student", "teacher"))
    after: Any = unpack(shown["after"]) if shown["images"] else []
    taught = unpack(shown["taught"]) if shown.get("taught") else None
    found = []
    for i, image in enumerate(shown["images"][:EACH]):
        found.append(
            {
                **{name: row[name] for name in ("method", "teacher", "student", "seed", "delta", "delta_se", "key")},
                "why": why,
                "image_id": int(ids[image]),
                "names": list(dataset.class_names),
                "image": as_text(np.asarray(dataset.images[test[image]])),
                "truth": as_text(np.asarray(dataset.truth[test[image]])),
                "teacher_map": as_text(teacher[image]),
                "before_map": as_text(before[image]),
                "after_map": as_text(after[i]),
                "taught_map": None if taught is None else as_text(255 * taught[i]),
            }
        )
    return found


def _maps(path: Path) -> NDArray[np.uint8]:
    return File.open(path, "test").map("test.top")


def as_text(pixels: NDArray[Any]) -> str:
    """A picture, uint8 [H, W] or [H, W, C], as a PNG in base64; classes are not mixed where it is made smaller.

    Of channels that are neither grey nor RGB, the first three show, or the first.
    """
    shown = pixels if pixels.ndim == 2 else pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    picture = Image.fromarray(np.ascontiguousarray(shown, np.uint8))
    scale = LARGEST / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        photo = pixels.ndim == 3
        picture = picture.resize(size, Image.Resampling.BICUBIC if photo else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
