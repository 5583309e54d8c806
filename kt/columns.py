"""What a column of a table is, and the types that columns have."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, its unit and its meaning; ``nullable`` where a value may be unknown."""

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False


TEXT, COUNT, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
CLASSES, TAGS = pa.list_(pa.int32()), pa.list_(pa.string())

PAIR = (
    Column("teacher", TEXT, "name", "the model that teaches"),
    Column("student", TEXT, "name", "the model that learns"),
)
