"""Reusable rows and columns of an earlier table: those whose models, images and measures are the same.

A table's metadata names its models in the order of its rows, with a hash of each one's predictions, and hashes of all
that its rows and each measure of all pairs depend on. Names alone are never trusted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kt.errors import KtError
from kt.tables import schema

METADATA = "scored"

_Number = TypeVar("_Number", np.int64, np.float64)


@dataclass(frozen=True)
class Facts:
    """Hashes of all that a table depends on.

    Attributes:
        rows: of the measures in rows, the truth and all else but predictions.
        measures: the same for each measure of all pairs at once.
        predicted: of every model's predicted classes, or scores where there are none, in the order of the rows.
        content: of all that every model predicts.
    """

    rows: str
    measures: dict[str, str]
    predicted: dict[str, str]
    content: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """As a Parquet file's metadata."""
        return {METADATA: json.dumps(asdict(self), separators=(",", ":"))}


def off_diagonal(models: int) -> NDArray[np.bool_]:
    """Whether each entry of a matrix is a pair of distinct models, in the order of the table's rows."""
    return ~np.eye(models, dtype=bool)


class Earlier:
    """An earlier table, for the models of a new one.

    Args:
        path: the table.
        facts: hashes of all that the new table depends on.

    Raises:
        KtError: it is not a readable table of this kind.
    """

    def __init__(self, path: Path, facts: Facts) -> None:
        try:
            file = pq.ParquetFile(path)
            raw = (file.schema_arrow.metadata or {}).get(METADATA.encode())
            then = Facts(**json.loads(raw or b""))
            self._metric = schema.metric_of(file.schema_arrow)
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            raise KtError(f"{path}: not a table that can be added to ({error})") from error
        old = {name: i for i, name in enumerate(then.predicted)}
        if file.metadata.num_rows != len(old) * (len(old) - 1):
            raise KtError(f"{path}: not a table that can be added to (its rows are not those of all pairs)")
        self._complete = file.schema_arrow.names == list(schema.file_names("complementarity", self._metric).values())
        self._columns = file.schema_arrow.names
        self._path, self._file, self._then, self._now = path, file.metadata, then, facts
        self._old = np.array([old.get(name, -1) for name in facts.predicted])
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], dtype=np.int64)
        self._starts = np.concatenate([[0], ends])

    def _same(self, then: dict[str, str], now: dict[str, str]) -> NDArray[np.bool_]:
        return np.array([then.get(name) == key for name, key in now.items()])

    def numbers(self) -> NDArray[np.int64]:
        """The row that still holds for every pair, int64 [M, M]; −1 where there is none."""
        models = len(self._then.predicted)
        rows = np.full((models, models), -1)
        if self._then.rows == self._now.rows and self._complete:
            rows[off_diagonal(models)] = np.arange(models * (models - 1))
        return self._seen(rows, self._same(self._then.predicted, self._now.predicted), -1)

    def measure(self, name: str, whole_content: bool) -> tuple[NDArray[np.float64], list[int]]:
        """One measure of all pairs, float64 [M, M], and the models whose pairs it does not have or that changed."""
        models = len(self._now.predicted)
        if self._then.measures.get(name) != self._now.measures[name] or name not in self._columns:
            return nothing(models)
        kind = "content" if whole_content else "predicted"
        same = self._same(getattr(self._then, kind), getattr(self._now, kind))
        then = np.full((len(self._then.predicted),) * 2, np.nan)
        column = pq.read_table(self._path, columns=[name])[name].to_numpy()
        then[off_diagonal(len(then))] = column
        return self._seen(then, same, np.nan), np.flatnonzero(~same).tolist()

    def _seen(self, then: NDArray[_Number], same: NDArray[np.bool_], empty: float) -> NDArray[_Number]:
        """A matrix over the models of then as one over the models of now; ``empty`` where a model changed."""
        now = then.take(self._old, 0).take(self._old, 1)
        now[~same, :] = empty
        now[:, ~same] = empty
        return now

    def rows(self, numbers: NDArray[np.int64]) -> pa.Table:
        """Rows by their numbers, in the given order; without measures of all pairs that are no longer asked for."""
        groups = np.unique(np.searchsorted(self._starts, numbers, side="right") - 1)
        found = pq.ParquetFile(self._path, metadata=self._file).read_row_groups(groups.tolist())
        sizes = self._starts[groups + 1] - self._starts[groups]
        local = np.cumsum(sizes) - sizes
        which = np.searchsorted(self._starts[groups], numbers, side="right") - 1
        rows = found.take(pa.array(numbers - self._starts[groups][which] + local[which]))
        rows = schema.from_file("complementarity", rows, self._metric)
        for name in self._then.measures.keys() - self._now.measures.keys():
            place = rows.column_names.index(name)
            rows = rows.set_column(place, rows.schema.field(place), pa.nulls(len(rows), pa.float64()))
        return rows


def earlier(path: Path | None, facts: Facts) -> Earlier | None:
    """The earlier table, or None where there is none that can be added to."""
    if path is None or not path.exists():
        return None
    try:
        return Earlier(path, facts)
    except KtError:
        return None


def nothing(models: int) -> tuple[NDArray[np.float64], list[int]]:
    """A measure that no earlier table has: an empty matrix, and every model as changed."""
    return np.full((models, models), np.nan), list(range(models))
