"""The analysis of a study: from its tables to those of ``docs/tables.md``, and a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from kt import store
from kt.analysis import breakdown, prediction
from kt.analysis.deltas import WITHIN
from kt.analysis.effects import effects
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, gather
from kt.analysis.prediction import HeldOut
from kt.analysis.summary import summary
from kt.progress import Progress
from kt.tables import schema
from kt.tables.of_analysis import ANALYSIS
from kt.tasks.task import Words

BOOTSTRAP = 1_000
"""Bootstrap samples of the models, for every mean and every effect."""

EQUAL_WITHIN = 2.0
"""In units of the metric: a teacher this close to its student counts as equal, where nothing else is asked for."""


@dataclass(frozen=True)
class Analysis:
    """The tables by name, as ``docs/tables.md`` has them, the summary as Markdown, and what both depend on.

    Attributes:
        tables: by name.
        summary: the answer, and the numbers behind it.
        task: the words of what was learnt.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
    """

    tables: Mapping[str, pd.DataFrame]
    summary: str
    task: Words
    equal_within: float

    def write(self, out: Path) -> None:
        """Write every table as Parquet and CSV, and ``summary.md``."""
        metadata = {schema.TASK: self.task.to_json(), WITHIN: repr(self.equal_within)}
        for name, frame in self.tables.items():
            table = as_table(name, frame)
            schema.write(out / f"{name}.parquet", name, table, metadata)
            schema.write_csv(out / f"{name}.csv", table, name, metadata)
        store.write_text(out / "summary.md", self.summary)


def as_table(name: str, frame: pd.DataFrame) -> pa.Table:
    """A frame as a checked table: its columns in order, those missing and what is not finite as null."""
    columns = {}
    for column in ANALYSIS[name]:
        values = frame[column.name] if column.name in frame else pd.Series([None] * len(frame), dtype=object)
        if pa.types.is_floating(column.dtype):
            numbers = pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan)
            columns[column.name] = pa.array(numbers, mask=~np.isfinite(numbers))
        else:
            columns[column.name] = values.astype(object).where(values.notna(), None).tolist()
    return schema.build(name, columns)


def analyse(
    inputs: Inputs,
    equal_within: float = EQUAL_WITHIN,
    bootstrap: int = BOOTSTRAP,
    draws: int | None = None,
    seed: int = 0,
) -> Analysis:
    """All tables of the analysis and their summary.

    Args:
        inputs: the tables.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
        bootstrap: bootstrap samples of the models.
        draws: permutations of the models' labels; as many as the pairs allow where None.
        seed: seed of the folds, the bootstrap and the permutations.
    """
    with threadpool_limits(1):  # the many small products of an analysis wait for their threads longer than they run
        return _analyse(inputs, equal_within, bootstrap, draws, seed)


def _analyse(inputs: Inputs, equal_within: float, bootstrap: int, draws: int | None, seed: int) -> Analysis:
    rng = np.random.default_rng(seed)
    outcomes = gather(inputs)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ANALYSIS}
    progress = Progress("analysis", len(outcomes))
    for found in outcomes:
        parts["groups"].append(breakdown.groups(found, bootstrap, equal_within, rng))
        parts["by_model"].append(breakdown.by_model(found, inputs.zoo))
        parts["variance"].append(pd.DataFrame([breakdown.variance(found)]))
        parts["effects"].append(effects(found, bootstrap, rng, draws))
        if held := prediction.hold_out(found, rng):
            scores = prediction.score(found, held)
            parts["ladder"].append(scores)
            parts["predictions"].append(_predictions(found, held, prediction.best_rung(scores)))
            parts["importances"].append(held.importances)
        progress.step(found.method)
    made = {name: _together(name, frames) for name, frames in parts.items()}
    made["spread"] = breakdown.spread(made["by_model"])
    made["expertise"] = breakdown.expertise(inputs)
    made["several"] = breakdown.several(inputs, outcomes)
    return Analysis(made, summary(made, inputs, outcomes, equal_within, bootstrap), inputs.task, equal_within)


def _together(name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=[c.name for c in ANALYSIS[name]])


def _predictions(outcomes: Outcomes, held: HeldOut, rung: str) -> pd.DataFrame:
    everything = held.predictions
    chosen = everything[(everything["rung"] == rung) & (everything["scheme"] == "students")]
    predicted = chosen.groupby("row")["predicted"].mean()
    rows, names = predicted.index.to_numpy(np.int64), np.array(outcomes.known.names, object)
    return pd.DataFrame(
        {
            "teacher": names[outcomes.teachers[rows]],
            "student": names[outcomes.students[rows]],
            "method": outcomes.method,
            "delta": outcomes.delta[rows],
            "predicted": predicted.to_numpy(np.float64),
            "rung": rung,
        }
    )
