"""Lease: at most one process works on a job, even if the scheduler has given up a node that still runs it."""

from __future__ import annotations

import contextlib
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
_SETTLE_SECONDS = 1.0


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
        seen, since, told = self._read(), time.monotonic(), False
        while True:
            if not seen and self._create():
                return True
            if _gone(seen) or time.monotonic() - since >= DEAD_SECONDS:
                self._write()
                # another process may be taking it over as well; the last one to write has it
                time.sleep(_SETTLE_SECONDS)
                if self._is_own(self._read()):
                    return True
            elif seen and not told:
                tell(f"process {seen.split()[1]} on {seen.split()[0]} may still work on this job; waiting for its end")
                told = True
            if not waits():
                return False
            time.sleep(0.5)
            now = self._read()
            if now != seen:
                seen, since = now, time.monotonic()

    def beat(self) -> bool:
        """Send a heartbeat, at most every ``BEAT_SECONDS``; returns False if another process has taken the lease."""
        if time.monotonic() - self._last < BEAT_SECONDS:
            return True
        if not self.held():
            return False
        with contextlib.suppress(OSError):  # one lost heartbeat does not matter
            self._write()
        return True

    def held(self) -> bool:
        """Return whether no other process has taken the lease."""
        holder = self._read()
        return not holder or self._is_own(holder)

    def release(self) -> None:
        """Release the lease."""
        if self._is_own(self._read()):
            self.path.unlink(missing_ok=True)

    def _read(self) -> str:
        try:
            return self.path.read_text("utf-8")
        except OSError:
            return ""

    def _is_own(self, holder: str) -> bool:
        return holder.startswith(self._name)

    def _create(self) -> bool:
        """Take a free lease; returns False if another process was faster."""
        temporary = self._written()
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        self._written().replace(self.path)

    def _written(self) -> Path:
        """Write the next heartbeat to a file of its own, so that readers see complete ones."""
        self._beats, self._last = self._beats + 1, time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{self._name.split()[2]}")
        temporary.write_text(f"{self._name} {self._beats}", "utf-8")
        return temporary


def _gone(holder: str) -> bool:
    """Return whether the holder was a process of this host that is no more."""
    host, pid, *_ = holder.split() or ("", "0")
    return host == socket.gethostname() and not psutil.pid_exists(int(pid))
