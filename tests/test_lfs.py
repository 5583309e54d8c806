"""Git LFS pointers that lie in place of files are told from the files."""

from __future__ import annotations

import pytest

from kt import store
from kt.errors import KtError


def test_a_pointer_is_told_from_a_file(tmp_path):
    pointer, short, empty = tmp_path / "p.npz", tmp_path / "s", tmp_path / "e"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    short.write_text("version https://git-lfs")
    empty.touch()
    assert store.is_pointer(pointer)
    assert not any(map(store.is_pointer, [short, empty, tmp_path, tmp_path / "none"]))
    with pytest.raises(KtError, match=r"data.source: .*p.npz: a Git LFS pointer, not the file itself; run `git lfs p"):
        store.refuse("data.source", pointer)
