"""Queue of ready jobs that the cluster has not yet accepted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from .clusters import Cluster, SubmissionError
from .request import Request
from .watch import Entry

# Seconds between two attempts after a temporary refusal: first, and at most.
_RESUBMIT_SECONDS = (2.0, 120.0)


class Backlog:
    """Jobs in the order in which they became ready; not thread-safe."""

    def __init__(
        self, cluster: Cluster, *, send: Callable[[Request, Sequence[Entry]], None], tell: Callable[[str], None]
    ) -> None:
        """Start with an empty queue.

        Args:
            cluster: Cluster, which reports how many jobs it has room for.
            send: Submits jobs of equal requests at once; raises ``SubmissionError`` if none of them was accepted.
            tell: Shows a message to the user once.
        """
        self._cluster, self._send, self._tell = cluster, send, tell
        self._entries: list[Entry] = []
        self._retry_at, self._retry_after = 0.0, _RESUBMIT_SECONDS[0]
        self._batch = 0  # most jobs in the next submission; 0 leaves it to the cluster

    def add(self, entries: Iterable[Entry]) -> None:
        """Add jobs that became ready."""
        self._entries += entries

    def clear(self) -> None:
        """Drop all jobs."""
        self._entries.clear()

    def hurry(self) -> None:
        """Retry temporarily refused jobs at the next :meth:`submit`, without waiting."""
        self._retry_at = 0.0

    def submit(self) -> None:
        """Submit the waiting jobs, equal requests together, as far as the cluster accepts them."""
        if time.monotonic() < self._retry_at:
            return
        while self._entries:
            request = self._entries[0].request
            room = self._cluster.room(request)
            if room < 1:
                return
            size = min(room, self._batch or room)
            batch = [entry for entry in self._entries if entry.request == request][:size]
            try:
                self._send(request, batch)
            except SubmissionError as error:
                if not error.temporary:
                    for entry in batch:
                        entry.refused = str(error)
                else:
                    # a limit on submitted jobs may still accept a smaller array
                    self._batch = max(1, len(batch) // 2)
                    self._retry_at = time.monotonic() + self._retry_after
                    self._retry_after = min(_RESUBMIT_SECONDS[1], self._retry_after * 2)
                    self._tell(f"the cluster accepts no more jobs for now; the others wait: {error}")
                    return
            except BaseException:  # Ctrl-C: the polling thread must not submit them again
                self._entries.clear()
                raise
            else:
                self._batch, self._retry_after = self._batch * 2, _RESUBMIT_SECONDS[0]
            sent = set(map(id, batch))
            self._entries = [entry for entry in self._entries if id(entry) not in sent]
