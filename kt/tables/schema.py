"""All tables, and the only way to write or read one.

Tables are Parquet files. Their metadata holds the schema version, the code version and what the writer adds
(configuration hash, library versions). ``docs/tables.md`` is made from here; a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import kt
from kt.errors import KtError, nearest
from kt.store import atomic
from kt.tables.columns import Column
from kt.tables.of_analysis import ANALYSIS
from kt.tables.of_study import EXPERIMENTS, STUDY

VERSION = "2"

TABLES: dict[str, tuple[Column, ...]] = {**STUDY, **EXPERIMENTS, **ANALYSIS}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table."""
    return pa.schema([pa.field(c.name, c.dtype, c.nullable) for c in TABLES[table]])


def build(
    table: str,
    rows: Sequence[Mapping[str, Any]] | Mapping[Any, Any],
    extra: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:
    """Rows (or columns) as a checked Arrow table; ``extra`` declares further, nullable columns of the user's.

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


def _without_forbidden_nulls(table: str, data: pa.Table) -> pa.Table:
    for column in TABLES[table]:
        if not column.nullable and column.name in data.column_names and data[column.name].null_count:
            raise KtError(f"table {table}: column {column.name!r} has no value in some rows")
    return data


def write(path: str | os.PathLike[str], table: str, data: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write a table atomically with its schema's version, the code version and ``metadata`` in the file."""
    facts = {"table": table, "schema_version": VERSION, "code_version": kt.__version__, **(metadata or {})}
    with atomic(path) as temporary:
        pq.write_table(data.replace_schema_metadata(facts), temporary)


def write_pieces(
    path: str | os.PathLike[str], table: str, pieces: Iterable[pa.Table], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a table that comes in pieces, as ``write`` does, and hold one piece at a time; returns its rows.

    Raises:
        KtError: a piece does not fit the schema.
    """
    facts = {"table": table, "schema_version": VERSION, "code_version": kt.__version__, **(metadata or {})}
    rows = 0
    with atomic(path) as temporary, pq.ParquetWriter(temporary, arrow_schema(table).with_metadata(facts)) as file:
        for piece in pieces:
            file.write_table(_without_forbidden_nulls(table, piece).replace_schema_metadata(facts))
            rows += len(piece)
    return rows


def read(
    path: str | os.PathLike[str], table: str, columns: Sequence[str] | None = None, extra: bool = False
) -> pa.Table:
    """Read a table, or some of its columns; columns beyond the schema are dropped, so that any table can be fed in.

    ``extra`` keeps them.

    Raises:
        KtError: the file is missing or damaged, a column is missing, or one has the wrong type.
    """
    schema = arrow_schema(table)
    if columns:
        schema = pa.schema([schema.field(name) for name in columns])
    try:
        file = pq.ParquetFile(Path(path))
        for name in schema.names:
            if name not in file.schema_arrow.names:
                raise KtError(f"{path}: column {name!r} is missing; docs/tables.md describes the table {table!r}")
        data = file.read(None if extra else schema.names)
    except FileNotFoundError as error:
        raise KtError(f"{path}: no such file") from error
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


def write_csv(path: str | os.PathLike[str], data: pa.Table) -> None:
    """Write a table as CSV, atomically; lists become their values with spaces between, nulls empty cells."""
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
