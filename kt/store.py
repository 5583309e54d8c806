"""Files that are whole or absent: atomic writes, content hashes, arrays that grow, one run per results folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kt.errors import KtError, short

log = logging.getLogger(__name__)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and moved onto ``path`` in one step.

    A reader sees the old file or the whole new one. Of two writers the one that ends last wins, also on two nodes with
    the same process number. After a crash a hidden ``.tmp`` file may stay behind: it is never read.

    Raises:
        KtError: the folder cannot be made or written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise KtError(f"cannot write {target}: {error.strerror}; choose another `results` folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTTY}
"""Answers of file systems that cannot lock, or cannot sync folders."""


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        KtError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KtError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KtError(f"{path}: not valid JSON ({error})") from error


def canonical(value: Any) -> bytes:
    """The canonical bytes of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value's canonical form, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Fail early where results could not be written, without leaving anything behind.

    Raises:
        KtError: ``folder`` (or its nearest existing parent) is not a folder that this user may write.
    """
    path = Path(folder).absolute()
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise KtError(f"results: {short(folder)}: {error.strerror}") from error
    existing = next(p for p in (path, *path.parents) if os.path.exists(p))  # Path.exists raises in a locked folder
    if not existing.is_dir():
        raise KtError(f"results: {folder} cannot be a folder, because {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise KtError(f"results: {folder} cannot be written (no permission in {existing}); choose another folder")


def lock(folder: str | os.PathLike[str]) -> IO[str]:
    """Hold a results folder for one run; the lock ends with the process, however it ends.

    Where the file system has no locks, a warning says so, and nothing refuses a second run.

    Returns:
        The open lock file: keep it open as long as the lock is needed.

    Raises:
        KtError: another live process holds the folder.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise KtError(
            f"results: {Path(folder).absolute()} is in use by another run (process {holder}); wait for it or stop it"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        log.warning("%s: this file system has no locks: make sure yourself that only one run uses it", path.parent)
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


SIGNATURE = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, not the file itself; false where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def refuse(at: str, path: Path) -> None:
    """Fail because of a Git LFS pointer.

    Raises:
        KtError: always; ``at`` is the key that names the file.
    """
    raise KtError(f"{at}: {path}: a Git LFS pointer, not the file itself; run `git lfs pull`")


BLOCK = 1 << 24
"""Bytes read at once."""


class Growing:
    """Rows of one shape, appended in order; a journal beside them counts those that are safely on disk.

    Args:
        path: the raw file; the journal lies beside it.
        key: all that the rows depend on; rows written under another key are discarded.
        dtype: of the values.
        shape: of one row.
        header: bytes before the first row.

    Raises:
        KtError: the file cannot be written, or its journal is damaged.
    """

    def __init__(self, path: Path, key: str, dtype: DTypeLike, shape: tuple[int, ...], header: bytes = b"") -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._journal = path.with_name(f"{path.name}.json")
        self._key = digest([key, self.dtype.str, list(shape), header.hex()])
        self.rows, self.notes = 0, list[Any]()
        if self._journal.exists():
            state = read_json(self._journal)
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
        write_json(self._journal, {"key": self._key, "rows": self.rows, "notes": self.notes})

    def blocks(self) -> Iterator[bytes]:
        """The rows' bytes, a block at a time."""
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block

    def remove(self) -> None:
        """Delete the rows and their journal."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
