"""Tables from anywhere, with only the columns that the analysis needs.

The stages' tables keep to their schema; here a table may lack columns or bring its own, as Parquet or CSV. What is
missing is left out of the analysis; what must be there is named in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kt.analysis.deltas import PAIR, on_test
from kt.errors import KtError, listed, nearest, quoted, unknown
from kt.tables import schema
from kt.tasks.classification import Classification
from kt.tasks.task import Words

REQUIRED = {
    "transfers": ("teacher", "student", "method", "delta"),
    "zoo": ("name",),
    "complementarity": ("teacher", "student"),
    "pairs": ("teacher", "student"),
}
CONTROLS = ("self", "finetune")
"""Methods without a teacher, where the table does not say which they are."""

CLASSIFICATION = Classification().words
"""The task of tables that name none."""

OPTIONAL = ("n", "seconds", "transfer_rate", "delta_se", "acc_before")


@dataclass(frozen=True)
class Inputs:
    """The tables that an analysis starts from.

    Attributes:
        transfers: rows of one teacher and one student, failed ones with a null ``delta``; has ``seed``, ``control``,
            ``trains``, ``uses_labels`` (null where unknown), ``status``, ``key``, ``n``, ``seconds``,
            ``transfer_rate``, ``delta_se`` and ``acc_before`` whatever the file held.
        several: rows of methods with several teachers, apart: they are no pairs.
        zoo: properties of models, indexed by name.
        scores: measures of ordered pairs, with ``acc_difference`` where the models are measured; empty without any.
        measured: whether there was a table ``complementarity``.
        task: the words of what was learnt.
        clusters: that the test examples belong to; 0 where these are independent, or it is unknown.
        left_out: pairs that were chosen by results of others, and are not among the transfers here.
    """

    transfers: pd.DataFrame
    several: pd.DataFrame
    zoo: pd.DataFrame
    scores: pd.DataFrame
    measured: bool
    task: Words
    clusters: int = 0
    left_out: int = 0


def load(transfers: Path, zoo: Path, complementarity: Path | None = None, pairs: Path | None = None) -> Inputs:
    """Read the tables; raises ``KtError`` where a file or column is missing, or names or values make no sense."""
    chosen = None if pairs is None else read(pairs, "pairs")
    scores = None if complementarity is None else read(complementarity, "complementarity")
    task = schema.words(transfers) if transfers.suffix != ".csv" else CLASSIFICATION
    if task.plays:
        raise KtError(
            f"{transfers}: of a study of policies, which has no pairs to analyse; `kt report` has its results"
        )
    clusters = schema.clusters(zoo) if zoo.suffix != ".csv" and zoo.exists() else 0
    return prepare(read(transfers, "transfers"), read(zoo, "zoo"), scores, task, clusters, chosen)


def read(path: Path, table: str) -> pd.DataFrame:
    """One table with all its columns, from Parquet or, where the name ends so, CSV.

    A Parquet file that names its task has the columns of all tasks in memory: ``acc`` stands for its metric.
    """
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else _parquet(path, table)
    except FileNotFoundError as error:
        raise KtError(f"{path}: no such file") from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        kind = "CSV" if path.suffix == ".csv" else "Parquet"
        raise KtError(f"{path}: not a readable {kind} file ({str(error).splitlines()[0]})") from error
    for name in REQUIRED[table]:
        if name not in frame.columns:
            close = nearest(name, map(str, frame.columns))
            needs = listed(REQUIRED[table])
            raise KtError(f"{path}: column {name!r} is missing{close}; the table {table} needs {needs}")
    return frame


def _parquet(path: Path, table: str) -> pd.DataFrame:
    frame: pd.DataFrame = schema.from_file(table, pq.read_table(path), schema.words(path).metric.key).to_pandas()
    return frame


def prepare(
    transfers: pd.DataFrame,
    zoo: pd.DataFrame,
    complementarity: pd.DataFrame | None = None,
    task: Words = CLASSIFICATION,
    clusters: int = 0,
    pairs: pd.DataFrame | None = None,
) -> Inputs:
    """The same from frames in memory; models that know some classes only are no part of it.

    Where ``pairs`` has rounds, transfers of pairs that were chosen by the results of earlier ones are left out: the
    others were drawn at random, and stand for all pairs.
    """
    zoo = _indexed(zoo[zoo["classes"].isna()] if "classes" in zoo else zoo)
    apart = transfers["teacher"].isna()
    single = _complete(transfers[~apart])
    _known(single, zoo, "transfers")
    if (single["teacher"] == single["student"]).any():
        name = single.loc[single["teacher"] == single["student"], "teacher"].iloc[0]
        raise KtError(f"table transfers: {name!r} is its own teacher")
    by_results = _chosen_by_results(single, pairs)
    drawn = single[~by_results].reset_index(drop=True)
    return Inputs(
        drawn,
        _complete(transfers[apart]),
        zoo,
        _scores(complementarity, zoo, drawn),
        complementarity is not None,
        task,
        clusters,
        len(single.loc[by_results, PAIR].drop_duplicates()),
    )


def _chosen_by_results(rows: pd.DataFrame, pairs: pd.DataFrame | None) -> NDArray[np.bool_]:
    """Rows whose pair was chosen in a round after the first."""
    if pairs is None or "round" not in pairs:
        return np.zeros(len(rows), bool)
    chosen = pairs.loc[numeric(pairs["round"], "pairs", "round") > 0, PAIR]
    return np.asarray(pd.MultiIndex.from_frame(rows[PAIR]).isin(pd.MultiIndex.from_frame(chosen)), bool)


def _indexed(zoo: pd.DataFrame) -> pd.DataFrame:
    names = zoo["name"].astype(str)
    if names.duplicated().any():
        raise KtError(f"table zoo: the name {names[names.duplicated()].iloc[0]!r} is there twice")
    return zoo.set_index(names).drop(columns="name")


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the optional columns, and without a delta where the transfer did not finish."""
    known = rows.drop(columns=[c for c in rows.columns if c.startswith("_")]).reset_index(drop=True)
    delta = _finite(known, "delta")
    if "status" in known:
        delta = delta.where(known["status"] == "ok")
    made = {"delta": delta} | {name: _finite(known, name) for name in OPTIONAL}
    if "control" not in known:
        made["control"] = known["method"].isin(CONTROLS)
    if "seed" not in known:
        made["seed"] = known.groupby([*PAIR, "method"], dropna=False).cumcount()
    if "key" not in known:
        made["key"] = pd.Series(np.arange(len(known)).astype(str), known.index)
    if "uses_labels" not in known:
        made["uses_labels"] = pd.Series(None, known.index, dtype=object)
    made["status"] = pd.Series(np.where(made["delta"].notna(), "ok", "failed"), known.index)
    if "trains" not in known:
        made["trains"] = pd.Series(True, known.index)
    return known.assign(**made).astype({"control": bool, "trains": bool})


def _finite(rows: pd.DataFrame, column: str) -> pd.Series[Any]:
    """A column of the table ``transfers`` as floats, NaN where it holds none that is finite, or is not there."""
    values = numeric(rows[column], "transfers", column) if column in rows else pd.Series(np.nan, rows.index)
    return values.where(np.isfinite(values))


def numeric(values: pd.Series[float], table: str, column: str) -> pd.Series[float]:
    """A column as floats; raises ``KtError`` where it holds anything else."""
    try:
        return pd.to_numeric(values).astype(float)
    except (ValueError, TypeError) as error:
        wrong = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
        row, given = (wrong.index[0], wrong.iloc[0]) if len(wrong) else ("?", values.iloc[0])
        text = f"must hold numbers, not {quoted(given)} (row {row})"
        raise KtError(f"table {table}: column {quoted(column)} {text}") from error


def _known(rows: pd.DataFrame, zoo: pd.DataFrame, table: str) -> None:
    for role in PAIR:
        for name in rows[role].unique():
            if name not in zoo.index:
                raise KtError(f"table {table}: {unknown('model', str(name), zoo.index)} (the table zoo)")


def _scores(complementarity: pd.DataFrame | None, zoo: pd.DataFrame, transfers: pd.DataFrame) -> pd.DataFrame:
    """Measures of pairs; ``acc`` of the zoo gives ``acc_difference`` where the table does not hold it."""
    if complementarity is None:
        scores = _all_pairs(zoo, transfers)
    else:
        test = on_test(complementarity) if "split" in complementarity else complementarity
        scores = test[test["teacher"].isin(zoo.index) & test["student"].isin(zoo.index)].reset_index(drop=True)
        if scores.duplicated(PAIR).any():
            raise KtError("table complementarity: a pair has several rows for one split")
    if "acc_difference" not in scores and "acc" in zoo:
        acc = numeric(zoo["acc"], "zoo", "acc")
        difference = scores["teacher"].map(acc).astype(float) - scores["student"].map(acc).astype(float)
        scores = scores.assign(acc_difference=difference)
    return scores


def _all_pairs(zoo: pd.DataFrame, transfers: pd.DataFrame) -> pd.DataFrame:
    names = zoo.index[zoo.index.isin(set(transfers["teacher"]) | set(transfers["student"]))].to_numpy(object)
    teachers, students = (grid.ravel() for grid in np.meshgrid(names, names, indexing="ij"))
    apart = teachers != students
    return pd.DataFrame({"teacher": teachers[apart], "student": students[apart]})
