"""Pointers of Git LFS, which lie in a clone in place of files that were not fetched."""

from __future__ import annotations

from pathlib import Path

from kt.errors import KtError

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
