"""Progress of long loops as plain log lines, readable when several jobs write to one terminal."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0


class Progress:
    """Says how far a loop is, at most every ``EVERY_SECONDS``, and at its end.

    Args:
        what: the beginning of every line.
        total: steps in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._last = time.monotonic()

    def step(self, note: str, steps: int = 1) -> None:
        """One more step, or several, are done; ``note`` says what they were."""
        self.done += steps
        now = time.monotonic()
        if self.done < self.total and now - self._last < EVERY_SECONDS:
            return
        self._last = now
        left = (now - self._start) / self.done * (self.total - self.done)
        tail = f"{left:.0f} s left" if self.done < self.total else f"took {now - self._start:.0f} s"
        log.info("%s: %d of %d, %s (%s)", self.what, self.done, self.total, tail, note)
