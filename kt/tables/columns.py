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

TEACHER = Column("teacher", TEXT, "name", "the model that teaches")
STUDENT = Column("student", TEXT, "name", "the model that learns")
PAIR = (TEACHER, STUDENT)
METHOD = Column("method", TEXT, "name", "the transfer method or control")
SUCCESS = Column("success", REAL, "percent of pairs", "pairs with delta > 0")
KEY = Column("key", TEXT, "hash", "the unit of work in the ledger")
