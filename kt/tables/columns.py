"""Columns of tables: their types, and names that follow the metric of a study's task."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: with ``METRIC`` where the metric of the task belongs.
        dtype: Arrow type.
        unit: of the values.
        meaning: in words.
        nullable: whether a value may be unknown.
        holds_names: whether values are, or contain, names of columns.
        added: whether tables of earlier versions lack the column, where it is read as unknown.
    """

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    holds_names: bool = False
    added: bool = False


METRIC = "acc"
"""Stands for the metric in names of columns: a table in memory has ``acc_before`` whatever the task, and its file the
key of the task's metric in its place, which for classification is the same."""


def with_metric(text: str, key: str, instead_of: str = METRIC) -> str:
    """A name or text in which one metric's key stands in place of another's."""
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(instead_of)}(?![A-Za-z0-9])", key, text) if key != instead_of else text


def added(name: str, dtype: pa.DataType, unit: str, meaning: str) -> Column:
    """A column that tables of earlier versions lack."""
    return Column(name, dtype, unit, meaning, nullable=True, added=True)


SHARES = (2, 5, 20, 50)
"""Percent of the positive flips that an area of expertise holds at least."""

TEXT, COUNT, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
CLASSES, TAGS = pa.list_(pa.int32()), pa.list_(pa.string())
REALS = pa.list_(pa.float64())

TEACHER = Column("teacher", TEXT, "name", "the model that teaches")
STUDENT = Column("student", TEXT, "name", "the model that learns")
PAIR = (TEACHER, STUDENT)
METHOD = Column("method", TEXT, "name", "the transfer method or control")
SUCCESS = Column("success", REAL, "percent of pairs", "pairs with delta > 0")
KEY = Column("key", TEXT, "hash", "the unit of work in the ledger")
