"""One process for one job at a time, also where the scheduler has given up one that goes on."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# Between two signs of life, and without one for how long a holder is taken for dead. NFS may show a file a minute late.
BEAT_SECONDS = 10.0
DEAD_SECONDS = 90.0


class Lease:
    """A file that names who works on a job and changes as long as they do.

    A node that is cut off from the scheduler goes on with its job, while the scheduler starts the job elsewhere: the
    second waits here until the first has ended or shows no sign of life. Clocks of nodes differ, so only changes
    count, by the clock of who waits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        self._beats, self._last = 0, 0.0

    def take(self, tell: Callable[[str], None], waits: Callable[[], bool] = lambda: True) -> bool:
        """Wait until nobody else holds the lease, then hold it.

        Args:
            tell: Called once with who is waited for.
            waits: Asked again and again while this waits; False gives up.

        Returns:
            Whether it is held now.
        """
        seen, since = self._read(), time.monotonic()
        told = False
        while seen and not _gone(seen) and time.monotonic() - since < DEAD_SECONDS:
            if not told:
                tell(f"process {seen.split()[1]} on {seen.split()[0]} still works on this job; waiting for its end")
                told = True
            if not waits():
                return False
            time.sleep(0.5)
            now = self._read()
            if now != seen:
                seen, since = now, time.monotonic()
        self._write()
        return True

    def beat(self) -> None:
        """Show a sign of life, every ``BEAT_SECONDS`` and not more often."""
        if time.monotonic() - self._last >= BEAT_SECONDS:
            self._write()

    def release(self) -> None:
        """Let the next one work."""
        if self._read().startswith(self._name):
            self.path.unlink(missing_ok=True)

    def _read(self) -> str:
        try:
            return self.path.read_text("utf-8")
        except OSError:
            return ""

    def _write(self) -> None:
        self._beats, self._last = self._beats + 1, time.monotonic()
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{self._name.split()[2]}")
        temporary.write_text(f"{self._name} {self._beats}", "utf-8")
        temporary.replace(self.path)


def _gone(holder: str) -> bool:
    """Whether the holder was a process of this host that is no more."""
    host, pid, *_ = holder.split()
    return host == socket.gethostname() and not psutil.pid_exists(int(pid))
