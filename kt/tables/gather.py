"""From what the stages left behind to the final tables; knows no torch."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from kt import predictions
from kt.errors import KtError
from kt.tables import schema
from kt.zoo.classes import positions

LIBRARIES = ("torch", "timm", "numpy", "pandas", "pyarrow", "snakemake")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results may depend on, without importing them."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def zoo(
    members: Sequence[Mapping[str, Any]],
    files: Mapping[str, Path],
    specialists: Mapping[str, NDArray[np.int64]],
    labels: Mapping[str, NDArray[np.int64]],
    overrides: Mapping[str, Mapping[str, Any]],
    extra: Mapping[str, pa.DataType],
) -> pa.Table:
    """The table ``zoo``.

    Args:
        members: what is known of each member, as its JSON file holds it.
        files: each member's predictions.
        specialists: the labels behind the outputs of the members that have classes of their own, int64 [K]; accuracy
            and calibration are those on the images of these classes.
        labels: classes of the splits ``validation`` and ``test``, int64 [n].
        overrides: the user's own values, by model and column.
        extra: types of the columns that only ``overrides`` has.

    Raises:
        KtError: predictions are missing, or are those of other weights.
    """
    rows = []
    for member in members:
        name = member["name"]
        found = {split: predictions.read(files[name], split) for split in ("validation", "test")}
        if found["test"].fingerprint != member["fingerprint"]:
            raise KtError(
                f"{files[name]}: predictions of other weights than {name!r} has now; delete the file and run again"
            )
        known = {split: _Known(p.logits, p.predicted == labels[split]) for split, p in found.items()}
        if (own := specialists.get(name)) is not None:
            known = {split: _of_classes(name, split, p, labels[split], own) for split, p in found.items()}
        accuracy = {split: float(of_split.right.mean()) for split, of_split in known.items()}
        test, n, published = accuracy["test"], len(known["test"].right), member.get("published_acc")
        rows.append(
            {
                **{key: value for key, value in member.items() if key != "published_acc"},
                "acc": 100 * test,
                "acc_se": 100 * float(np.sqrt(test * (1 - test) / n)),
                "acc_published": published,
                "acc_agrees": None if published is None else predictions.agrees(100 * test, published, n),
                "acc_validation": 100 * accuracy["validation"],
                "ece": predictions.calibration_error(*known["test"]),
                **predictions.sharpness(known["test"].logits),
                "classes": None if own is None else own.tolist(),
                **overrides.get(name, {}),
            }
        )
    return schema.build("zoo", rows, extra)


class _Known(NamedTuple):
    """Logits [n, K] on the images that a member is measured on, and which of these it gets right, bool [n]."""

    logits: predictions.Logits
    right: NDArray[np.bool_]


def _of_classes(
    name: str, split: str, found: predictions.Prediction, labels: NDArray[np.int64], own: NDArray[np.int64]
) -> _Known:
    """The same on the images of a specialist's classes; ``own`` are the labels behind its outputs, int64 [K]."""
    where = positions(labels, own)
    if not (where >= 0).any():
        raise KtError(f"zoo.models.{name}.classes: the split {split!r} has no image of them")
    return _Known(found.logits[where >= 0], (found.predicted == where)[where >= 0])


def transfers(files: Sequence[Path]) -> pa.Table:
    """The table ``transfers``: all jobs' rows, by method, teacher, student, seed and key.

    Raises:
        KtError: a file is missing or damaged, or all units failed.
    """
    data = pa.concat_tables([schema.read(path, "transfers") for path in files])
    if data.num_rows and not any(status == "ok" for status in data["status"].to_pylist()):
        raise KtError(f"all {data.num_rows} transfers failed; the first reason: {data['reason'][0]}")
    return data.sort_by([(name, "ascending") for name in ("method", "teacher", "student", "seed", "key")])


def frame(data: pa.Table) -> pd.DataFrame:
    """A table as a pandas data frame."""
    result: pd.DataFrame = data.to_pandas()
    return result
