"""Final tables from the files of the stages, without torch."""

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
from kt.predictions import Answers, Prediction
from kt.tables import schema
from kt.tasks.classification import Classification
from kt.tasks.task import Task

CLASSIFICATION = Classification()

LIBRARIES = ("torch", "timm", "numpy", "pandas", "pyarrow", "snakemake")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results may depend on; none is imported."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


class Specialist(NamedTuple):
    """Classes of a member that has its own.

    Attributes:
        classes: the labels behind its outputs, int64 [K].
        places: of the splits ``validation`` and ``test``, the output that is each image's class, int64 [n]; −1 where
            its class is none of them.
    """

    classes: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]


def zoo(
    members: Sequence[Mapping[str, Any]],
    files: Mapping[str, Path],
    specialists: Mapping[str, Specialist],
    truth: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
    extra: Mapping[str, pa.DataType],
    task: Task = CLASSIFICATION,
) -> pa.Table:
    """The table ``zoo``.

    Args:
        members: the facts of each member, as its JSON file holds them.
        files: each member's predictions.
        specialists: of the members that have classes of their own; they are measured on the images of these classes.
        truth: of the splits ``validation`` and ``test``, [n, …].
        overrides: the user's own values, by model and column.
        extra: types of the columns that only ``overrides`` has.
        task: what is learnt.

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
        own, published = specialists.get(name), member.get("published_acc")
        if own is None:
            known = {split: (p.answers, task.scores(p.kept, truth[split])) for split, p in found.items()}
        else:
            known = {split: _of_classes(name, split, p, own.places[split], task) for split, p in found.items()}
        answers, scores = known["test"]
        clusters = task.clusters(truth["test"]) if own is None else None
        rows.append(
            {
                **{key: value for key, value in member.items() if key != "published_acc"},
                "acc": task.value(scores),
                "acc_se": task.error(scores, clusters),
                "acc_published": published,
                "acc_agrees": None if published is None else task.agrees(scores, published, clusters),
                "acc_validation": task.value(known["validation"][1]),
                **task.describe(None if answers is None else answers[:], found["test"].kept, scores),
                "classes": None if own is None else own.classes.tolist(),
                **overrides.get(name, {}),
            }
        )
    return schema.build("zoo", rows, extra)


def _of_classes(
    name: str, split: str, found: Prediction, places: NDArray[np.int64], task: Task
) -> tuple[Answers | None, NDArray[Any]]:
    """Answers and scores on the images of a specialist's classes."""
    its_own = places >= 0
    if not its_own.any():
        raise KtError(f"zoo.models.{name}.classes: the split {split!r} has no image of them")
    assert found.answers is not None, "a specialist's logits are kept"
    return found.answers[its_own], task.scores(found.kept, places)[its_own]


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
