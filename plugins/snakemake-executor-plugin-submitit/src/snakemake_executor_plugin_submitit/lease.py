"""Lease: at most one process works on a job, even if the scheduler has given up a node that still runs it."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# Seconds between two heartbeats, and without one until a holder counts as dead. NFS may show a file a minute late.
BEAT_SECONDS = 10.0
DEAD_SECONDS = 90.0


class Lease:
    """File that names the process working on a job, and changes while the process is alive.

    A node that is cut off from the scheduler continues its job, while the scheduler starts the job elsewhere. The
    second start waits until the first has ended or sends no heartbeat. Clocks of nodes differ, so only changes count,
    timed by the clock of the waiting process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        self._beats, self._last = 0, 0.0

    def take(self, tell: Callable[[str], None], waits: Callable[[], bool] = lambda: True) -> bool:
        """Wait until no other process holds the lease, then take it.

        Args:
            tell: Called once with a message that names the holder.
            waits: Called repeatedly while waiting; False gives up.

        Returns:
            Whether the lease was taken.
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
        """Send a heartbeat, at most every ``BEAT_SECONDS``."""
        if time.monotonic() - self._last >= BEAT_SECONDS:
            self._write()

    def release(self) -> None:
        """Release the lease."""
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
