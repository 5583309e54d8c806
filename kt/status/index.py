"""Index of the ledger: its records in short, in one file, so that a hundred thousand of them are not read twice.

``<ledger>/index.parquet`` is a cache: each of its rows is good as long as the record has the size and the time of
change that it had when its hash was checked. Without the file, or with a damaged one, all records are read again.
``read`` changes nothing on disk, so that a plan may call it; ``update`` also writes the file.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from kt import store
from kt.errors import KtError
from kt.transfer.export import on_validation
from kt.transfer.ledger import Ledger

CACHE, VERSION = "index.parquet", "5"


class Entry(NamedTuple):
    """One record of the ledger in short.

    Attributes:
        key: the unit's key.
        size: bytes of the file.
        changed: when it was written, nanoseconds since 1970.
        status: ``ok``, ``failed``, or ``damaged``, and then the rest is empty.
        cause: of a failure.
        reason: of a failure, one line.
        student: fingerprint; one of the models where all of them train together.
        seconds: wall time of the training.
        images: images that it trained on, each as often as a model saw it.
        device: where.
        validation: the student's metric on validation at the end; −∞ where the record has none of its own.
    """

    key: str
    size: int
    changed: int
    status: str
    cause: str = ""
    reason: str = ""
    student: str = ""
    seconds: float = 0.0
    images: int = 0
    device: str = ""
    validation: float = -math.inf


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Entry).items()], {"version": VERSION})


def read(folder: Path) -> list[Entry]:
    """All records of a ledger; only what is new or changed is read from its own file."""
    return _compare(folder)[0]


def update(folder: Path) -> list[Entry]:
    """The same, and the index is written anew where it says otherwise, if this user may write it."""
    entries, changed = _compare(folder)
    if changed:
        _save(folder / CACHE, entries)
    return entries


def _compare(folder: Path) -> tuple[list[Entry], bool]:
    """All records, and whether the index says otherwise."""
    known = _load(folder / CACHE)
    entries, fresh = [], False
    for key, size, changed in _listing(folder):
        entry = known.get(key)
        if entry is None or (entry.size, entry.changed) != (size, changed):
            entry, fresh = _read(Ledger(folder), key, size, changed), True
        entries.append(entry)
    return entries, fresh or len(entries) < len(known)


def _listing(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Key, size and time of change of every record."""
    for group in sorted(folder.glob("[0-9a-f][0-9a-f]")):
        with os.scandir(group) as files:
            for file in files:
                if file.name.endswith(".json") and not file.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # a retry may take it away just now
                        facts = file.stat()
                        yield file.name[:-5], facts.st_size, facts.st_mtime_ns


def _read(ledger: Ledger, key: str, size: int, changed: int) -> Entry:
    try:
        unit, outcome = ledger.read(key)
    except (ValueError, FileNotFoundError):
        return Entry(key, size, changed, "damaged")
    return Entry(
        key,
        size,
        changed,
        status=str(outcome.get("status")),
        cause=str(outcome.get("cause") or ""),
        reason=str(outcome.get("reason") or ""),
        student=str(unit.get("student") or ""),
        seconds=float(outcome.get("seconds") or 0),
        images=int(outcome.get("steps") or 0)
        * int(unit.get("training", {}).get("batch_size", 0))
        * max(1, len(outcome.get("models", ()))),
        device=str(outcome.get("device") or ""),
        validation=-math.inf if (value := on_validation(outcome)) is None else value,
    )


def _load(path: Path) -> dict[str, Entry]:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException):
        return {}
    if table.schema.metadata is None or table.schema.metadata.get(b"version") != VERSION.encode():
        return {}
    columns: list[list[Any]] = [table[name].to_pylist() for name in Entry._fields]
    return {entry.key: entry for entry in map(Entry._make, zip(*columns, strict=True))}


def _save(path: Path, entries: list[Entry]) -> None:
    columns = zip(*entries, strict=True) if entries else ([] for _ in Entry._fields)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    # a folder that this user may only read is read anew each time
    with contextlib.suppress(OSError, KtError), store.atomic(path) as temporary:
        pq.write_table(table, temporary)
