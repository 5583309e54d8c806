"""Schema of all tables, and the one way to write and read them.

Tables are Parquet files. Their metadata holds the schema version, the code version and what the writer adds
(configuration hash, the words of the task, library versions). In a file, the metric's key stands in names of columns;
in memory these names are the same for all tasks (``kt.tables.columns.METRIC``). ``docs/tables.md`` is made from here; a
test compares the two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import kt
from kt.errors import KtError, nearest
from kt.store import atomic
from kt.tables.columns import METRIC, Column, with_metric
from kt.tables.of_analysis import ANALYSIS
from kt.tables.of_experiments import OPTIONAL
from kt.tables.of_study import STUDY
from kt.tasks.classification import Classification
from kt.tasks.task import Words

if TYPE_CHECKING:
    import pandas as pd

VERSION = "2"

TABLES: dict[str, tuple[Column, ...]] = {**STUDY, **OPTIONAL, **ANALYSIS}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table."""
    return pa.schema([pa.field(c.name, c.dtype, c.nullable) for c in TABLES[table]])


def build(
    table: str,
    rows: Sequence[Mapping[str, Any]] | Mapping[Any, Any],
    extra: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:
    """Rows (or columns) as a checked Arrow table; ``extra`` declares further, nullable columns of the user's.

    Columns that tables of earlier versions lack are null where they are not given.

    Raises:
        KtError: a column is missing, unknown, of the wrong type, or null where it may not be.
    """
    schema = arrow_schema(table)
    for name, dtype in (extra or {}).items():
        schema = schema.append(pa.field(name, dtype))
    columns = rows if isinstance(rows, Mapping) else {n: [row.get(n) for row in rows] for n in schema.names}
    given = columns.keys() if isinstance(rows, Mapping) else {key for row in rows for key in row}
    for name in given:
        if name not in schema.names:
            raise KtError(f"table {table}: unknown column {name!r}{nearest(name, schema.names)}")
    if isinstance(rows, Mapping) and rows:
        unknown = [None] * len(next(iter(rows.values())))
        columns = dict.fromkeys(_added(table), unknown) | dict(rows)
    for name in schema.names:
        if name not in columns:
            raise KtError(f"table {table}: column {name!r} is missing")
        whole = pa.types.is_integer(schema.field(name).type)
        if whole and any(isinstance(v, float) and v % 1 > 0 for v in columns[name]):  # Arrow would cut them off
            raise KtError(f"table {table}: column {name!r} holds fractions, but needs whole numbers")
    try:
        result = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)
    except (OverflowError, pa.ArrowException) as error:
        raise KtError(f"table {table}: {error}") from error
    return _without_forbidden_nulls(table, result)


def _added(table: str) -> list[str]:
    """Columns that tables of earlier versions lack."""
    return [column.name for column in TABLES[table] if column.added]


def _without_forbidden_nulls(table: str, data: pa.Table) -> pa.Table:
    for column in TABLES[table]:
        if not column.nullable and column.name in data.column_names and data[column.name].null_count:
            raise KtError(f"table {table}: column {column.name!r} has no value in some rows")
    return data


TASK = "task"
"""Key of a file's metadata that holds the words of the study's task."""


CLASS_NAMES = "class_names"
"""Key of the metadata of the table ``zoo``: the names of the classes, class 0 first, a list in JSON."""


CLASS_SIZES = "class_sizes"
"""The same of the numbers of test images of the classes, or of their pixels where a task has a class per pixel."""


CLUSTERS = "clusters"
"""The same of the number of clusters, as videos, that the test examples belong to; not there where independent."""


def fact(path: str | os.PathLike[str], key: str) -> str:
    """A text in a table's metadata; empty where it does not say, or the file is damaged."""
    try:
        metadata = _open(path).schema_arrow.metadata or {}
    except KtError:
        return ""
    found: bytes = metadata.get(key.encode(), b"")
    return found.decode()


def clusters(path: str | os.PathLike[str]) -> int:
    """The number of clusters in a table's metadata; 0 where it does not say.

    Raises:
        KtError: the file is missing or damaged.
    """
    return int((_open(path).schema_arrow.metadata or {}).get(CLUSTERS.encode(), 0))


def class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the classes in a table's metadata; none where it does not say.

    Raises:
        KtError: the file is missing or damaged.
    """
    return tuple(_listed(path, CLASS_NAMES))


def class_sizes(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The sizes of the classes, as ``class_names``."""
    return tuple(_listed(path, CLASS_SIZES))


def _listed(path: str | os.PathLike[str], key: str) -> list[Any]:
    text = (_open(path).schema_arrow.metadata or {}).get(key.encode())
    found: list[Any] = json.loads(text) if text else []
    return found


def words(path: str | os.PathLike[str]) -> Words:
    """The words of the task that a table is about; of a file that does not say, of classification.

    Raises:
        KtError: the file is missing or damaged.
    """
    return _words(_open(path).schema_arrow.metadata)


def metric_of(file: pa.Schema) -> str:
    """The metric's key in a file's names of columns."""
    return _words(file.metadata).metric.key


def _words(metadata: Mapping[bytes, bytes] | None) -> Words:
    text = (metadata or {}).get(TASK.encode())
    return Words.from_json(text) if text else Classification().words


def file_names(table: str, key: str) -> dict[str, str]:
    """Names of a table's columns in a file, by their names in memory, for a metric's key.

    Raises:
        KtError: two columns would have the same name.
    """
    names = {column.name: with_metric(column.name, key) for column in TABLES[table]}
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise KtError(f"table {table}: the metric's key {key!r} makes two columns {twice[0]!r}; choose another key")
    return names


def _translated(table: str, data: pa.Table, names: Mapping[str, str], key: str, instead_of: str) -> pa.Table:
    """A table under other names of columns, also where its values are such names."""
    if key == instead_of:
        return data
    for column in TABLES[table]:
        at = data.column_names.index(column.name) if column.name in data.column_names else -1
        if column.holds_names and at >= 0:
            texts = [text and with_metric(text, key, instead_of) for text in data[at].to_pylist()]
            data = data.set_column(at, data.schema.field(at), pa.array(texts, column.dtype))
    return data.rename_columns([names.get(name, name) for name in data.column_names])


def to_file(table: str, data: pa.Table, key: str) -> pa.Table:
    """A table with the names that its columns have in a file, for a metric's key."""
    return _translated(table, data, file_names(table, key), key, METRIC)


def from_file(table: str, data: pa.Table, key: str) -> pa.Table:
    """A file's table with the names that its columns have in memory."""
    return _translated(table, data, {v: k for k, v in file_names(table, key).items()}, METRIC, key)


def _facts(table: str, metadata: Mapping[str, str] | None) -> tuple[dict[str, str], str]:
    """A file's metadata, and the key of the metric that its columns are named by."""
    facts = {"table": table, "schema_version": VERSION, "code_version": kt.__version__, **(metadata or {})}
    return facts, _words({name.encode(): text.encode() for name, text in facts.items()}).metric.key


def write(path: str | os.PathLike[str], table: str, data: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write a table atomically with its schema's version, the code version and ``metadata`` in the file."""
    facts, key = _facts(table, metadata)
    with atomic(path) as temporary:
        pq.write_table(to_file(table, data, key).replace_schema_metadata(facts), temporary)


def write_pieces(
    path: str | os.PathLike[str], table: str, pieces: Iterable[pa.Table], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a table that comes in pieces, as ``write`` does, and hold one piece at a time; returns its rows.

    Raises:
        KtError: a piece does not fit the schema.
    """
    facts, key = _facts(table, metadata)
    schema = to_file(table, arrow_schema(table).empty_table(), key).schema.with_metadata(facts)
    rows = 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
        for piece in pieces:
            whole = to_file(table, _without_forbidden_nulls(table, piece), key)
            file.write_table(whole.replace_schema_metadata(facts))
            rows += len(piece)
    return rows


def _open(path: str | os.PathLike[str]) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(Path(path))
    except FileNotFoundError as error:
        raise KtError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise KtError(f"{path}: not a readable Parquet file ({error})") from error


def read(
    path: str | os.PathLike[str], table: str, columns: Sequence[str] | None = None, extra: bool = False
) -> pa.Table:
    """Read a table, or some of its columns; columns beyond the schema are dropped, so that any table can be fed in.

    ``extra`` keeps them. Columns have the names of the schema, whatever the metric's key in the file. Those that tables
    of earlier versions lack are null.

    Raises:
        KtError: the file is missing or damaged, a column is missing, or one has the wrong type.
    """
    file = _open(path)
    key = metric_of(file.schema_arrow)
    schema, there = arrow_schema(table), file_names(table, key)
    if columns:
        schema = pa.schema([schema.field(name) for name in columns])
    lacking = [name for name in schema.names if there[name] not in file.schema_arrow.names]
    for name in lacking:
        if columns or name not in _added(table):
            raise KtError(f"{path}: column {there[name]!r} is missing; docs/tables.md describes the table {table!r}")
    wanted = [there[name] for name in schema.names if name not in lacking]
    try:
        data = from_file(table, file.read(None if extra else wanted), key)
        for name in lacking:
            data = data.append_column(schema.field(name), pa.nulls(len(data), schema.field(name).type))
    except (pa.ArrowInvalid, OSError) as error:
        raise KtError(f"{path}: not a readable Parquet file ({error})") from error
    try:
        further = [field for field in data.schema if extra and field.name not in schema.names]
        schema = pa.schema([*schema, *further])
        data = data.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise KtError(f"{path}: {error}; docs/tables.md describes the table {table!r}") from error
    return _without_forbidden_nulls(table, data)


def read_frame(path: str | os.PathLike[str], table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table, or some of its columns, as a pandas data frame; raises as ``read`` does."""
    frame: pd.DataFrame = read(path, table, columns).to_pandas()
    return frame


def write_csv(
    path: str | os.PathLike[str], data: pa.Table, table: str = "", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a table as CSV, atomically; lists become their values with spaces between, nulls empty cells.

    With the table's name and the metadata of its file, columns are named as in the file.
    """
    if table:
        data = to_file(table, data, _facts(table, metadata)[1])
    frame = data.to_pandas()
    for field in data.schema:
        if pa.types.is_list(field.type):
            lists = data[field.name].to_pylist()
            frame[field.name] = [None if values is None else " ".join(map(str, values)) for values in lists]
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def markdown() -> str:
    """The reference of all tables, as the generated part of ``docs/tables.md``."""
    parts = []
    for table, columns in TABLES.items():
        rows = [
            f"| `{c.name}` | {c.dtype} | {c.unit} | {c.meaning}{'; may be null' if c.nullable else ''} |"
            for c in columns
        ]
        parts.append("\n".join([f"## {table}", "", "| column | dtype | unit | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
