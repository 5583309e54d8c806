"""State of the submitted jobs, updated by one listing of the result files and one query."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clusters import Cluster, read_result, results
from .files import fault
from .request import Request
from .task import Task
from .verdict import UNANSWERED, Evidence, Rule, Verdict, hint, lasting, requeued

# Factor by which the poll interval grows while nothing changes.
_BACK_OFF = 1.3


@dataclass
class Entry:
    """A job of Snakemake's that this executor handles.

    Attributes:
        info: Snakemake's handle (``SubmittedJobInfo``).
        request: Requested resources.
        task: Task for the node.
        external: Id on the cluster, empty until submission.
        refused: Reason of a permanent refusal.
        retries: Number of resubmissions, by cause.
        seen: Latest evidence.
        since: Time of the latest change of the evidence (monotonic seconds).
        details: Result of the task.
    """

    info: Any
    request: Request
    task: Task
    external: str = ""
    refused: str = ""
    retries: Counter[Verdict] = field(default_factory=Counter)
    seen: Evidence = field(default_factory=Evidence)
    since: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the job for users."""
        return Path(self.task.log).name.removesuffix(".log")

    def fault(self) -> str:
        """Describe what is wrong with an output of the completed job as this machine sees it; empty if all is well."""
        faults = (fault(path, tuple(wanted)) for path, wanted in self.details.get("outputs", {}).items())
        return next(filter(None, faults), "")

    def reset(self, external: str = "") -> None:
        """Drop the evidence, because the job was or will be submitted again."""
        self.external, self.refused, self.seen, self.details = external, "", Evidence(), {}
        self.since = time.monotonic()

    def explain(self, verdict: Verdict, rule: Rule, *, again: bool) -> str:
        """Describe in one line how the job ended, why, and what follows."""
        workflow = rule.kind == "workflow" and self.info.job.restart_times >= self.info.job.attempt
        facts = [
            self.refused,
            f"exit status {self.details['status']}" if self.details.get("status") else "",
            self.details.get("error", ""),
            f"{self.details['timeouts']} times requeued before" if self.details.get("timeouts") else "",
            f"SLURM says {self.seen.state}" if self.seen.state and not self.details else "",
        ]
        why = ", ".join(fact for fact in facts if fact)
        follows = "retried as the workflow says" if workflow else "given up"
        if again:
            follows = f"retry {self.retries[verdict] + 1} of {rule.times}"
        where = f" [job {self.external}, {self.task.log}]" if self.external else ""
        return f"{self.name}: {verdict.value}" + (f" ({why})" if why else "") + f"; {follows}{where}"


class Watch:
    """Poller: updates the entries, and sets the poll interval."""

    def __init__(
        self, cluster: Cluster, folder: Path, *, fast: float, slow: float, tell: Callable[[str], None]
    ) -> None:
        """Set the intervals.

        Args:
            cluster: Cluster to query.
            folder: Folder of the results.
            fast: Seconds between two polls while jobs change.
            slow: Seconds between two polls when nothing has changed for long.
            tell: Shows a message to the user once.
        """
        self.cluster, self.folder, self.tell = cluster, folder, tell
        self.fast, self.slow = fast, max(fast, slow)
        self._interval = fast
        self._stuck: set[str] = set()  # reasons that were reported

    @property
    def pause(self) -> float:
        """Seconds until the next poll."""
        return min(self._interval, self.cluster.poll_limit)

    def hurry(self) -> None:
        """Poll at the fast interval again."""
        self._interval = self.fast

    def look(self, entries: Sequence[Entry]) -> None:
        """Update submitted entries."""
        changed = self._read_results(entries)
        waiting = [entry for entry in entries if entry.seen.result is not Verdict.COMPLETED]
        states = self.cluster.states([entry.external for entry in waiting])
        if states is None:
            self.tell("SLURM does not answer; waiting")
            return
        now = time.monotonic()
        for entry in waiting:
            state, reason = states.get(entry.external, (None, ""))
            old = entry.seen
            if (state, reason) != (old.state, old.reason):
                entry.since, changed = now, True
            found = hint(self.output(entry)) if state in ("FAILED", "COMPLETED") else None
            entry.seen = Evidence(state, reason, old.result, found, now - entry.since)
        if unknown := sum(state == UNANSWERED for state, _ in states.values()):
            self.tell(f"sacct does not answer; waiting for the endings of {unknown} jobs")
        self._tell_stuck(waiting)
        self._interval = self.fast if changed else min(self.slow, self._interval * _BACK_OFF)

    def why_requeued(self, entry: Entry) -> str:
        """Return why SLURM put a job back into the queue that has not recorded this itself."""
        return requeued(self.output(entry)) or self.cluster.requeued(entry.external) or "unknown cause"

    def output(self, entry: Entry) -> str:
        """Return the last lines that SLURM and submitit wrote about a job; empty if there are none."""
        try:
            return (self.folder / f"{entry.external}_0_log.out").read_text("utf-8", errors="replace")[-4000:]
        except OSError:
            return ""

    def _tell_stuck(self, entries: Sequence[Entry]) -> None:
        """Report each lasting reason once, when it first occurs."""
        stuck: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.seen.state == "PENDING" and lasting(entry.seen.reason):
                # names of nodes may follow the reason
                stuck.setdefault(entry.seen.reason.partition(",")[0], []).append(entry)
        for reason in stuck.keys() - self._stuck:
            first, count = stuck[reason][0], len(stuck[reason])
            named = f"{first.name} (job {first.external})" + (f" and {count - 1} more" if count > 1 else "")
            self.tell(f"{named} may wait for ever: {first.seen.reason}")
        self._stuck |= stuck.keys()

    def _read_results(self, entries: Sequence[Entry]) -> bool:
        done = results(self.folder, {entry.external for entry in entries if entry.seen.result is None})
        for entry in entries:
            if entry.external in done:
                entry.details = read_result(self.folder, entry.external)
                ending = entry.details["ending"]
                entry.seen = Evidence(result=Verdict(ending) if ending else Verdict.CODE_ERROR)
                entry.since = time.monotonic()
        return bool(done)
