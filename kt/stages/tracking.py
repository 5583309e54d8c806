"""Stage ``kt track``: finished trainings, from tables and ledger, as runs of an experiment tracker."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import kt
from kt import store
from kt.control.study import ControlStudy
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.stages.trackers import TRACKERS, Plain, Run
from kt.study.study import Study
from kt.tables import schema
from kt.tables.columns import with_metric
from kt.transfer.export import readable
from kt.transfer.ledger import Ledger, Record

SETTINGS = ("seed", "control", "uses_labels", "trains")
"""Numbers and flags in a row of ``transfers`` that are no outcome of the training."""


def track(study: Study | ControlStudy, layout: Layout, to: str) -> str:
    """Add the finished trainings to a tracker, those that it does not have yet; returns what was done, in words.

    Raises:
        KtError: the tracker is unknown or not installed, there are no tables yet, or another process does the same.
    """
    if to not in TRACKERS:
        raise KtError(f"track: --to: {unknown('tracker', to, TRACKERS)}")
    path, folder, ledger = layout.table("transfers"), layout.tracking / to, Ledger(layout.ledger)
    found, failed = _trainings(schema.read_frame(path, "transfers"))
    metric = schema.words(path).metric.key
    data = "games" if isinstance(study, ControlStudy) else Path(study.data.source).name
    about = {"study": study.title, "data": data, "task": study.task.name, "kt": kt.__version__}
    with store.lock(folder):
        tracker = TRACKERS[to](folder.absolute(), re.sub(r"[^\w.-]+", "-", study.title).strip("-")[:60] or "kt")
        there = tracker.names()
        new = [name for name in found if name not in there]
        for name in new:
            tracker.add(_run(name, found[name], ledger, metric, about))
    left_out = f"; {failed} failed, left out" if failed else ""
    return f"{to}: {len(new)} trainings added, {len(found) - len(new)} there already{left_out}\n{tracker.shown}"


def _trainings(transfers: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], int]:
    """Rows of each finished training by its name, and the number of trainings that failed.

    A training is a row, but for a control, which stands in the rows of all its teachers, and for models that train
    together, where each is a run.
    """
    found, failed = {}, 0
    for _, rows in transfers.groupby(["key", "student"], sort=False):
        row = rows.iloc[0]
        name = readable(row["student"], _teachers(row), row["method"], row["seed"])
        if row["status"] == "ok":
            found[f"{name}.{row['key'][:8]}"] = rows
        else:
            failed += 1
    return found, failed


def _teachers(row: pd.Series[Any]) -> list[str]:
    return [] if row["control"] else list(row["teachers"])


def _run(name: str, rows: pd.DataFrame, ledger: Ledger, metric: str, about: Mapping[str, str]) -> Run:
    row = rows.iloc[0]
    teachers = _teachers(row)
    unit, outcome, ended = _record(ledger, row["key"])
    settings = {name: value for name, value in unit.items() if name not in ("student", "teacher", "teachers", "seed")}
    settings |= {"student": row["student"], "teachers": " ".join(teachers) or "none", "method.name": row["method"]}
    steps = outcome.get("curve") or range(1, len(outcome["loss"]) + 1)
    of_epochs = outcome["loss"], outcome["validation"]
    return Run(
        name,
        dict(_flat(settings | {name: row[name].item() for name in SETTINGS})),
        {with_metric(name, metric): value for name, value in _measured(rows)},
        [{"epochs/loss": a, "epochs/validation": b} for a, b in zip(*of_epochs, strict=True)],
        list(steps),
        {**about, "key": row["key"]},
        ended,
    )


def _record(ledger: Ledger, key: str) -> tuple[Record, Record, float]:
    """A unit, its outcome, and the time when it was written.

    Raises:
        KtError: the ledger lacks it.
    """
    try:
        return *ledger.read(key), ledger.path(key).stat().st_mtime
    except (FileNotFoundError, ValueError) as error:
        raise KtError(f"{ledger.path(key)}: missing or damaged; `snakemake` makes it and the tables again") from error


def _measured(rows: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """The numbers in which all rows of a training agree: those of a control that depend on the teacher are left out."""
    for name in rows.columns.difference(list(SETTINGS), sort=False):
        if pd.api.types.is_numeric_dtype(rows[name]):
            value = float(rows[name].iloc[0])
            if math.isfinite(value) and (rows[name] == value).all():
                yield name, value


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Plain]]:
    """Nested settings as pairs of a dotted name and a plain value; those without a value are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, str | int | float):
            yield f"{before}{name}", value
        elif value is not None:
            yield f"{before}{name}", json.dumps(value)
