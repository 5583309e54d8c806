"""Images with maps for the table ``pictures``: what a few finished trainings of a task whose truths are maps did."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from kt import predictions, status
from kt.analysis.deltas import of_pairs
from kt.data.datasets import Dataset
from kt.layout import Layout
from kt.predictions import File
from kt.study.study import Study
from kt.tables import schema
from kt.tasks.task import Task
from kt.transfer.ledger import Ledger, unpack

Numbers = NDArray[np.int64]

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
        study: of a task whose truths are maps.
        layout: where its files lie.
        transfers: the table ``transfers``.
    """
    done = of_pairs(transfers)
    done = done[done["status"] == "ok"]
    method = next((name for name in METHODS if (done["method"] == name).any()), None)
    ranked = done[done["method"] == method].sort_values(["delta", "key"], ascending=[False, True])
    ledger, prints = Ledger(layout.ledger), status.fingerprints(layout, study.names)
    seen = _Seen(study.task, Dataset.open(layout.data), layout)
    rows: list[dict[str, Any]] = []
    places = {round(place * (len(ranked) - 1)): why for why, place in reversed(PLACES.items())} if len(ranked) else {}
    for place, why in sorted(places.items()):
        row = ranked.iloc[place]
        outcome = ledger.read(row["key"])[1]
        outcome |= outcome.get("models", {}).get(prints[row["student"]], {})
        rows += _of_training(why, row, outcome, seen)
    return schema.build("pictures", rows)


class _Seen(NamedTuple):
    """Test images as pictures show them.

    Attributes:
        task: what is learnt.
        dataset: the images and their truths.
        layout: where predictions lie.
    """

    task: Task
    dataset: Dataset
    layout: Layout

    def maps(self, name: str, images: Numbers) -> list[str | None]:
        """Pictures of a model's answers; None where these are not kept."""
        file = File.open(self.layout.predictions(name), "test")
        if self.task.dense:
            return [as_text(file.map("test.top")[image]) for image in images]
        answers = file.answers("test")
        if answers is None:
            return [None] * len(images)
        import torch

        truth = torch.from_numpy(self.dataset.truths("test")[images])
        shown = self.task.shown(self.task.aligned(torch.from_numpy(answers[images]).float(), truth))
        assert shown is not None, "a task whose trainings keep pictures makes them"
        return [as_text(picture) for picture in shown.numpy()]

    def looks(self, images: Numbers) -> list[list[float] | None]:
        """Fixations of frames: x and y of each in turn, as shares of width and height; None of other images."""
        if self.dataset.videos is None:
            return [None] * len(images)
        counts = self.dataset.truths("test")[images][:, 1]
        shares = [(np.argwhere(each)[:, ::-1] + 0.5) / each.shape[::-1] for each in counts]
        return [share.ravel().tolist() for share in shares]

    def scores(self, kept: NDArray[Any], images: Numbers) -> list[float | None]:
        """The metric of single images, from what was kept of all; None of a dense task, where an image has none."""
        if self.task.dense:
            return [None] * len(images)
        truth: Any = self.dataset.truths("test")
        scores = self.task.metric.scale * self.task.scores(kept, truth)
        return [float(score) for score in scores[images]]


def _of_training(why: str, row: pd.Series[Any], outcome: dict[str, Any], seen: _Seen) -> list[dict[str, Any]]:
    """Rows of one training: an image each."""
    shown, dataset = outcome.get("shown"), seen.dataset
    if not shown:
        return []
    images = np.array(shown["images"][:EACH], np.int64)
    rows, ids = dataset.rows("test")[images], dataset.ids("test")[images]
    after, taught = unpack(shown["after"]), unpack(shown["taught"]) if shown.get("taught") else None
    kept = {name: predictions.read(seen.layout.predictions(row[name]), "test").kept for name in ("teacher", "student")}
    columns = {
        "image_id": ids.tolist(),
        "image": [as_text(image) for image in dataset.images[rows]],
        "truth": [as_text(truth) for truth in dataset.truth[rows]],
        "teacher_map": seen.maps(row["teacher"], images),
        "before_map": seen.maps(row["student"], images),
        "after_map": [as_text(each) for each in after[: len(images)]],
        "taught_map": [None] * len(images)
        if taught is None
        else [as_text(255 * each) for each in taught[: len(images)]],
        "fixations": seen.looks(images),
        "acc_teacher": seen.scores(kept["teacher"], images),
        "acc_before": seen.scores(kept["student"], images),
        "acc_after": seen.scores(unpack(outcome["last"]), images),
    }
    common = {name: row[name] for name in ("method", "teacher", "student", "seed", "delta", "delta_se", "key")}
    common |= {"why": why, "names": list(dataset.class_names)}
    return [common | dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


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
