"""An array on disk that grows row by row and survives a kill, so that long work goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kt import store
from kt.errors import KtError

BLOCK = 1 << 24
"""Bytes read at once."""


class Growing:
    """Rows of one shape, appended in order; beside them a journal says how many are safely on disk.

    Args:
        path: the raw file; the journal lies beside it.
        key: what the rows depend on; rows written under another key are thrown away.
        dtype: of the values.
        shape: of one row.
        header: bytes before the first row.

    Raises:
        KtError: the file cannot be written, or its journal is damaged.
    """

    def __init__(self, path: Path, key: str, dtype: DTypeLike, shape: tuple[int, ...], header: bytes = b"") -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._journal = path.with_name(f"{path.name}.json")
        self._key = store.digest([key, self.dtype.str, list(shape), header.hex()])
        self.rows, self.notes = 0, list[Any]()
        if self._journal.exists():
            state = store.read_json(self._journal)
            end = len(header) + state["rows"] * self.row_bytes
            if state["key"] == self._key and path.exists() and path.stat().st_size >= end:
                self.rows, self.notes = state["rows"], state["notes"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if self.rows else "wb") as file:
                if self.rows:
                    file.truncate(end)
                else:
                    file.write(header)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise KtError(f"cannot write {path}: {error.strerror}; choose another `results` folder") from error

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def append(self, rows: NDArray[Any], note: Any = None) -> None:
        """Write rows [n, …]; once this returns they outlive a kill, and so does ``note``, a JSON value."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, self.dtype).data)
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(rows)
        if note is not None:
            self.notes.append(note)
        store.write_json(self._journal, {"key": self._key, "rows": self.rows, "notes": self.notes})

    def blocks(self) -> Iterator[bytes]:
        """The rows' bytes, a block at a time."""
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block

    def remove(self) -> None:
        """Delete the rows and their journal."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
