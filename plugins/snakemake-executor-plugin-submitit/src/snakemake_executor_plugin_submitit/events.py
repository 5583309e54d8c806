"""Event log of a run's jobs, which other programs may read during and after the run.

``events.tsv`` in the run's folder is append-only. A line has, separated by tabs: time (ISO 8601 with the zone), the
cluster's id of the job (empty if there is none), its name (that of its log without ``.log``), event, and detail:

- ``submitted``: the resources, as ``cpus=4 gpus=1 minutes=60``;
- ``running``;
- ``requeued``: the job is in the cluster's queue again and will continue; the cause, ``by hand`` or ``unknown cause``;
- ``retried``: the job ended, and is submitted again under a new id; its ending;
- ``ended``: the ending, one of the values of :class:`Verdict`.

The latest line of a name counts. A killed Snakemake writes nothing more; then only the cluster knows its jobs.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .history import History
from .request import Request
from .verdict import FINAL_STATES, Verdict
from .watch import Entry

# The scheduler's states of a waiting job; a job that ran before was requeued.
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")


class Events:
    """The file ``events.tsv`` of one run."""

    def __init__(self, path: Path, why_requeued: Callable[[Entry], str]) -> None:
        """Begin the record.

        Args:
            path: The file.
            why_requeued: Finds the cause of a requeue that the job has not recorded itself.
        """
        self.path, self._why_requeued = path, why_requeued
        self._running: set[str] = set()
        self._told: dict[str, int] = {}  # number of events of a job's own history that are recorded, by id

    def submitted(self, entries: Iterable[Entry], request: Request) -> None:
        """Record submitted jobs, whose ids are known."""
        facts = {"cpus": request.cpus, "gpus": request.gpus, "gpu_type": request.gpu_type, "minutes": request.minutes}
        detail = " ".join(f"{name}={value}" for name, value in facts.items() if value)
        self._write([(entry, "submitted", detail) for entry in entries])

    def seen(self, entries: Iterable[Entry]) -> None:
        """Record the jobs that started or were requeued since the last poll."""
        news = []
        for entry in entries:
            state, was = entry.seen.state, entry.external in self._running
            if state is None or state in FINAL_STATES or was != (state in _WAITING):
                continue
            if was:
                # a job records the cause of a requeue itself, unless its node died
                own = History(Path(entry.task.history)).events()[self._told.get(entry.external, 0) :]
                news.append((entry, "requeued", own[-1]["ending"] if own else self._why_requeued(entry)))
                self._told[entry.external] = self._told.get(entry.external, 0) + len(own)
                self._running.discard(entry.external)
            else:
                news.append((entry, "running", ""))
                self._running.add(entry.external)
        self._write(news)

    def ended(self, entry: Entry, verdict: Verdict, *, again: bool = False) -> None:
        """Record that a job ended, or will be submitted again."""
        self._running.discard(entry.external)
        self._write([(entry, "retried" if again else "ended", verdict.value)])

    def _write(self, news: Sequence[tuple[Entry, str, str]]) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        if news:
            # one write for all, so that readers see complete lines
            lines = [f"{now}\t{entry.external}\t{entry.name}\t{event}\t{detail}\n" for entry, event, detail in news]
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
