"""Groups of processes, signals to all of them, and what the kernel has killed of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def signal_group(group: int, number: int) -> None:
    """Send a signal to all processes of a group, if there is any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def wait_for_group(child: subprocess.Popen[bytes], seconds: float, beat: Callable[[], object]) -> bool:
    """Wait until no process of the child's group is left, and call ``beat`` meanwhile.

    The signal ends the shell that started a training at once, while the training still writes its checkpoint.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.poll() is not None and not any(map(_alive, _members(child.pid))):
            return True
        beat()
        time.sleep(0.1)
    return False


def _members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def oom_kills() -> int:
    """Count the processes of this job's control group that the kernel has killed for memory; 0 if it does not count."""
    count = 0
    try:
        groups = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return 0
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            file = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            file = Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        try:
            fields = dict(entry.split() for entry in file.read_text("utf-8").splitlines())
        except OSError:
            continue
        count += int(fields.get("oom_kill", 0))
    return count


def ignore_user_signal() -> None:
    """Ignore what some SLURM sites send to every process of the step; for a child before it starts its program."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _ignore_signals() -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def scontrol(*arguments: str) -> str | None:
    """Return the output of ``scontrol``, None if it fails; what SLURM sends to the whole step does not end it."""
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=_ignore_signals
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
