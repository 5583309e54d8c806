"""Files are whole or absent whatever kills the writer; one run at a time holds a results folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt import store
from kt.errors import KtError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)

# Each line kills the writing process for good at one point of the write.
KILL_POINTS = {
    "before the temporary file is made": "Path.mkdir = die",
    "in the middle of the text": "text = text[:1000]; after_body = die",
    "before the file is synced": "os.fsync = die",
    "before the file is moved": "os.replace = die",
    "after the move, before the folder is synced": "store._sync_folder = die",
    "after the folder is synced": "Path.unlink = die",
}
WRITER = """
import os, signal, sys
from pathlib import Path
from kt import store
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
after_body = lambda: None
text = "new" * 100_000
exec(sys.argv[2])
with store.atomic(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        after_body()
print("finished")
"""


def test_of_two_writers_with_the_same_process_number_each_writes_a_file_of_its_own(tmp_path):
    path = tmp_path / "file"
    with store.atomic(path) as slow:
        slow.write_text("half of sl")
        with store.atomic(path) as quick:
            quick.write_text("quick")
        assert path.read_text() == "quick"
        slow.write_text("slow")
    assert path.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [path]


@given(old=st.binary(max_size=200), new=st.binary(max_size=200))
def test_atomic_replaces_the_whole_content_and_leaves_nothing_else(old, new):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "file"
        for content in (old, new):
            with store.atomic(path) as temporary:
                temporary.write_bytes(content)
            assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["file"]


@given(old=st.none() | st.binary(max_size=50), written=st.binary(max_size=50))
def test_an_error_while_writing_keeps_the_old_file(old, written):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        if old is not None:
            path.write_bytes(old)

        def fail() -> None:
            with store.atomic(path) as temporary:
                temporary.write_bytes(written)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (path.read_bytes() if path.exists() else None) == old
        assert not list(Path(folder).glob(".*"))


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_writer_killed_at_any_point_leaves_the_old_or_the_whole_new_file(tmp_path, python, point, old):
    path, new = tmp_path / "file", "new" * 100_000
    if old:
        path.write_text(old)
    killed = python(WRITER, path, KILL_POINTS[point])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    expected = new if point.startswith("after") else old
    assert (path.read_text() if path.exists() else None) == expected
    store.write_text(path, "newer")
    assert path.read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["file"]


def test_the_writer_of_the_kill_tests_finishes_when_it_is_not_killed(tmp_path, python):
    assert python(WRITER, tmp_path / "file", "pass").stdout == "finished\n"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_a_file_gives_one_clear_line(tmp_path):
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken" / "file", tmp_path / "taken" / "deeper" / "file"):
        with pytest.raises(KtError, match=r"cannot write .*; choose another `results` folder"):
            store.write_text(path, "x")


def test_written_files_follow_the_umask(tmp_path):
    store.write_text(tmp_path / "file", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@given(JSON)
def test_json_survives_writing_and_reading(value):
    with tempfile.TemporaryDirectory() as folder:
        store.write_json(Path(folder) / "v.json", value)
        assert store.read_json(Path(folder) / "v.json") == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"{'a': 1}"])
def test_reading_what_is_not_json_names_the_file(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(KtError, match=r"bad\.json: not valid JSON"):
        store.read_json(tmp_path / "bad.json")


def test_reading_a_missing_json_file_names_it(tmp_path):
    with pytest.raises(KtError, match=r"none\.json: no such file"):
        store.read_json(tmp_path / "none.json")


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=5))
def test_digest_depends_on_the_value_and_not_on_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert store.digest(turned) == store.digest(value) == store.digest(json.loads(store.canonical(value)))
    assert store.digest({**value, next(iter(value)): [value]}) != store.digest(value)


def test_digests_are_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b'{"a":1}')
    known = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert store.digest({"a": 1}) == store.digest_file(tmp_path / "f") == known


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_digest_refuses_numbers_that_json_does_not_know(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.digest({"lr": value})


def test_check_writable_accepts_present_and_future_folders_and_makes_nothing(tmp_path):
    store.check_writable(tmp_path)
    store.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_check_writable_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KtError, match=r"results: .* cannot be a folder, because .*file is a file"):
            store.check_writable(path)


@pytest.mark.parametrize("mode", ["0o555", "0o000"])
def test_folders_without_permission_give_one_clear_line(python, mode):
    code = """
import os, sys, tempfile
from pathlib import Path
from kt import store
from kt.errors import KtError
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    locked = Path(folder, "locked")
    locked.mkdir()
    locked.chmod(int(sys.argv[1], 8))
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere, nobody may not
        for attempt in (store.check_writable, lambda path: store.write_text(path / "f", "x")):
            for path in (locked, locked / "below"):
                try:
                    attempt(path)
                except KtError as error:
                    print("refused:", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    locked.chmod(0o755)
"""
    lines = python(code, mode).stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("refused: results: ") and "no permission in" in line for line in lines[:2])
    assert all(line.startswith("refused: cannot write ") for line in lines[2:])


def test_lock_refuses_a_second_process_and_names_the_holder(tmp_path, python):
    with store.lock(tmp_path / "results"):
        second = python("import sys; from kt import store; store.lock(sys.argv[1])", tmp_path / "results")
    assert second.returncode == 1
    last = second.stderr.splitlines()[-1]
    assert last.startswith("kt.errors.KtError: results: ")
    assert f"is in use by another run (process {os.getpid()} on {os.uname().nodename})" in last
    third = python("import sys; from kt import store; store.lock(sys.argv[1])", tmp_path / "results")
    assert third.returncode == 0, third.stderr


def test_lock_ends_with_a_holder_that_is_killed(tmp_path, root):
    code = (
        "import sys, time; from kt import store; f = store.lock(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(KtError, match=f"process {holder.pid} on"):
            store.lock(tmp_path)
        holder.kill()
        holder.wait()
    with store.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_without_locks_or_synced_folders_are_used_with_a_warning(tmp_path, monkeypatch, caplog, number):
    sync = os.fsync

    def no_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(store.fcntl, "flock", no_locks)
    store.write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    store.lock(tmp_path).close()
    assert caplog.messages == [
        f"{tmp_path}: this file system has no locks: make sure yourself that only one run uses it"
    ]


def test_a_disk_that_fails_is_no_missing_feature(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(store.fcntl, "flock", broken)
    for use in (lambda: store.write_text(tmp_path / "file", "whole"), lambda: store.lock(tmp_path)):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            use()
