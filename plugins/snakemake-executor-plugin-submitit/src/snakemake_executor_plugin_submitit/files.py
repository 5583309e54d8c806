"""Files that another machine wrote, as this machine sees them: on a shared file system they may appear late."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

# Size in bytes, and time of the last change (Unix seconds); zeros for a folder.
Stamp = tuple[int, float]
# Some file systems keep whole seconds.
_COARSE_SECONDS = 1.0


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file; None if this machine does not see it."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return (0, 0.0) if stat.S_ISDIR(facts.st_mode) else (facts.st_size, facts.st_mtime)


def stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamps of those files that exist."""
    found = {path: stamp(path) for path in paths}
    return {path: each for path, each in found.items() if each}


def fault(path: str, wanted: Stamp) -> str:
    """Describe what is wrong with a file here, compared with its stamp elsewhere; empty if it is as new, or newer."""
    with contextlib.suppress(OSError):
        # an NFS client trusts what it knows of a file for up to a minute, unless the file is opened
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    here = stamp(path)
    if here is None:
        return f"does not see {path}"
    (size, changed), (full, latest) = here, wanted
    if changed > latest or (size == full and changed >= latest - _COARSE_SECONDS):
        return ""
    return f"sees an old state of {path}: {size} bytes from {latest - changed:.0f} s before the latest {full}"


def ahead(paths: Iterable[str], reference: str) -> tuple[float, str]:
    """Return by how many seconds the newest file is newer than one that this machine would write now, and its path.

    Args:
        paths: Files.
        reference: A file of this machine's on the same file system; its time of last change is set to now.
    """
    os.utime(reference)
    newest, path = max(((each[1], path) for path, each in stamps(paths).items()), default=(0.0, ""))
    return newest - os.stat(reference).st_mtime, path
