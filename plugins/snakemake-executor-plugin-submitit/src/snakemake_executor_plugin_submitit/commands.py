"""Calls of SLURM's commands."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import psutil

_OWN_FILTERS = ("SACCT_", "SCANCEL_", "SINFO_", "SQUEUE_")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command, without the user's own filters and formats (``SQUEUE_PARTITION`` and the like)."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(_OWN_FILTERS)}
    env["SLURM_BITSTR_LEN"] = "0"  # otherwise SLURM truncates the list of an array's tasks
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} timed out")


def message(text: str) -> str:
    """Reduce a command's output to one line: its errors, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return "; ".join(dict.fromkeys(errors)) or lines[0].removeprefix("sbatch: ")


@contextlib.contextmanager
def patience(command: str, seconds: float) -> Iterator[threading.Event]:
    """End a command started inside this block if it takes too long; the event is set if that happened.

    When a site is full, ``sbatch`` silently sleeps and retries for two minutes.
    """
    ended = threading.Event()

    def end() -> None:
        ended.set()
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.name() == command:
                    child.terminate()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield ended
    finally:
        timer.cancel()
