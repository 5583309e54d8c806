"""What a task runs: a Snakemake, or the shell command of a plain rule with what Snakemake does around it on a node."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# As in `snakemake.shell`.
_THREADS = (
    *(f"{library}_NUM_THREADS" for library in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")),
    "VECLIB_MAXIMUM_THREADS",
)
_TEMPORARY = ("TMPDIR", "TMP", "TEMPDIR", "TEMP")


@dataclass(frozen=True)
class Nested:
    """A command that starts Snakemake for one job or group, which does everything itself.

    Attributes:
        command: Shell command.
    """

    command: str

    # After a signal, Snakemake's exit status is 0 only if the job had completed.
    status_after_signal_counts = True

    def environment(self) -> dict[str, str] | None:
        """Environment of the command; None for that of this process."""
        return None

    def prepare(self) -> None:
        """Do nothing."""

    def finish(self, beat: Callable[[], object]) -> str:
        """Return that nothing is wrong."""
        del beat
        return ""

    def discard(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Shell:
    """The shell command of a plain job.

    Attributes:
        command: Shell command, with its strict mode.
        threads: Threads of the job.
        outputs: Outputs, and whether each is a folder.
        logs: The job's own log files.
        markers: Files by which Snakemake knows incomplete outputs.
        latency: Seconds that outputs may need to appear.
        keep_incomplete: Outputs of a failed job are kept.
    """

    command: str
    threads: int
    outputs: Mapping[str, bool]
    logs: Sequence[str]
    markers: Sequence[str]
    latency: float
    keep_incomplete: bool

    # A program may end with status 0 after it has written its checkpoint.
    status_after_signal_counts = False

    def environment(self) -> dict[str, str]:
        """Environment of the command: numbers of threads, and the folder for temporary files of this node."""
        numbers = dict.fromkeys(_THREADS, str(self.threads))
        return {**os.environ, **numbers, **dict.fromkeys(_TEMPORARY, tempfile.gettempdir())}

    def prepare(self) -> None:
        """Remove outputs and logs of earlier starts, and make their folders.

        Raises:
            OSError: That is not possible, or an output is write-protected.
        """
        for path in self.outputs:
            if os.path.exists(path) and not os.access(path, os.W_OK) and not os.path.islink(path):
                raise PermissionError(f"{path} is write-protected")
        for path, folder in [*self.outputs.items(), *((path, False) for path in self.logs)]:
            _remove(path, folder)
            os.makedirs(os.path.dirname(path), exist_ok=True)

    def finish(self, beat: Callable[[], object]) -> str:
        """Wait for the outputs, and give them the time of now; returns what is wrong with the first, else nothing.

        Args:
            beat: Called repeatedly while waiting.

        Raises:
            OSError: An output cannot be touched.
        """
        until = time.monotonic() + self.latency
        while missing := [path for path in self.outputs if not os.path.exists(path)]:
            if time.monotonic() >= until:
                return f"{missing[0]} is missing, {self.latency:g} s after the command ended"
            beat()
            time.sleep(0.1)
        for path, folder in self.outputs.items():
            if os.path.isdir(path) != folder:
                return f"{path} is {'no folder' if folder else 'a folder, which the rule does not say'}"
            _touch(path, folder)
        for marker in self.markers:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(marker)
        return ""

    def discard(self) -> None:
        """Remove the outputs of a failed start."""
        if not self.keep_incomplete:
            for path, folder in self.outputs.items():
                _remove(path, folder)


def _remove(path: str, folder: bool) -> None:
    """Remove a file, a folder that is an output, or another folder if it is empty."""
    if os.path.isdir(path) and not os.path.islink(path):
        if folder:
            shutil.rmtree(path)
        else:
            with contextlib.suppress(OSError):
                os.removedirs(path)
    elif path != os.devnull:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _touch(path: str, folder: bool) -> None:
    """Set the time of last change to now, as Snakemake reads it: that of a folder is a file in it."""
    if folder and not os.path.islink(path):
        path = os.path.join(path, ".snakemake_timestamp")
        with open(path, "a"):
            pass
    os.utime(path, follow_symlinks=False)
