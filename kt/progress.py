"""Progress of long loops as plain log lines, and the signals that end a run or a stage."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from threading import Event
from types import FrameType

import psutil

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0


class Progress:
    """Log lines on the progress of a loop, at most one every ``EVERY_SECONDS``, and one at its end.

    Args:
        what: the beginning of every line.
        total: steps in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._last = time.monotonic()

    def step(self, note: str, steps: int = 1) -> None:
        """Count one more step, or several; ``note`` says what they were."""
        self.done += steps
        now = time.monotonic()
        if self.done < self.total and now - self._last < EVERY_SECONDS:
            return
        self._last = now
        left = (now - self._start) / self.done * (self.total - self.done)
        tail = f"{left:.0f} s left" if self.done < self.total else f"took {now - self._start:.0f} s"
        log.info("%s: %d of %d, %s (%s)", self.what, self.done, self.total, tail, note)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; `kill`, systemd, `docker stop` and batch systems; a closed terminal."""

_PAUSE = 0.2  # seconds between two looks for stages that have just started


def on_signal() -> Event:
    """An event that is set when this process is asked to stop, or is about to lose its machine (SIGUSR2).

    A second Ctrl-C interrupts at once. Signals that are ignored stay ignored, as under ``nohup``.
    """
    stop = Event()

    def take(number: int, frame: FrameType | None) -> None:
        stop.set()
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    for number in (*SIGNALS, signal.SIGUSR2):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, take)
    return stop


@contextlib.contextmanager
def stopping() -> Iterator[Event]:
    """The event of ``on_signal`` for some part of a process, after which signals do again what they did before."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    try:
        yield on_signal()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_stages_too() -> None:
    """Let each signal that stops this process, Snakemake's, also stop the stages that its shells run.

    Snakemake passes no signal on. Only Ctrl-C in a terminal reaches all processes; after a signal to Snakemake alone it
    would wait until the running trainings are done. A stage gets SIGTERM, and writes its checkpoint. SIGTERM and SIGINT
    count even where the shell ignored them, as it does for commands in its background.
    """
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends it at once
    # a shell that Snakemake has just started has no stage yet
    threading.Thread(target=_terminate_stages, daemon=True).start()
    raise KeyboardInterrupt


def _terminate_stages() -> None:
    told = set[psutil.Process]()
    while True:
        for stage in _stages():
            if stage not in told:
                told.add(stage)
                with contextlib.suppress(psutil.NoSuchProcess):
                    stage.terminate()
        time.sleep(_PAUSE)


def _stages() -> Iterator[psutil.Process]:
    """The ``kt`` commands that shells of this process run."""
    for shell in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            yield from (stage for stage in shell.children() if stage.cmdline()[1:3] == ["-m", "kt"])
