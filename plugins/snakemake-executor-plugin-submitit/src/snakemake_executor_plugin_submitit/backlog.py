"""Jobs that are ready and wait here, until the cluster takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from .clusters import Cluster, SubmissionError
from .request import Request
from .watch import Entry

# Between two attempts to submit what was refused for now: at first, and at most.
_RESUBMIT_SECONDS = (2.0, 120.0)


class Backlog:
    """Jobs in the order in which they became ready; for one thread at a time."""

    def __init__(
        self, cluster: Cluster, *, send: Callable[[Request, Sequence[Entry]], None], tell: Callable[[str], None]
    ) -> None:
        """Begin with none.

        Args:
            cluster: Says how many jobs it has room for.
            send: Submits jobs of equal requests at once; raises ``SubmissionError`` where none of them was taken.
            tell: Says something to the user once.
        """
        self._cluster, self._send, self._tell = cluster, send, tell
        self._entries: list[Entry] = []
        self._retry_at, self._retry_after = 0.0, _RESUBMIT_SECONDS[0]
        self._batch = 0  # most jobs in the next submission; 0 leaves it to the cluster

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in jobs that became ready."""
        self._entries += entries

    def clear(self) -> None:
        """Forget all jobs."""
        self._entries.clear()

    def hurry(self) -> None:
        """Don't wait any longer with what was refused for now."""
        self._retry_at = 0.0

    def submit(self) -> None:
        """Send out what waits here, equal requests together, as far as the cluster takes it."""
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
                    # a limit on submitted jobs may let a smaller array through
                    self._batch = max(1, len(batch) // 2)
                    self._retry_at = time.monotonic() + self._retry_after
                    self._retry_after = min(_RESUBMIT_SECONDS[1], self._retry_after * 2)
                    self._tell(f"the cluster takes no more jobs for now, the others wait here: {error}")
                    return
            except BaseException:  # Ctrl-C: the thread that polls must not send them again
                self._entries.clear()
                raise
            else:
                self._batch, self._retry_after = self._batch * 2, _RESUBMIT_SECONDS[0]
            sent = set(map(id, batch))
            self._entries = [entry for entry in self._entries if id(entry) not in sent]
