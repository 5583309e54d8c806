"""Interface of a cluster, and functions that all clusters share."""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .request import Request
from .task import JobFailed, Task
from .verdict import queued

# the scheduler's own state and reason, by job id
States = dict[str, tuple[str, str]]


class SubmissionError(Exception):
    """The cluster refused jobs; none of them is in the queue.

    Attributes:
        temporary: The same submission, or a smaller one, may be accepted later.
    """

    def __init__(self, text: str, *, temporary: bool) -> None:
        super().__init__(text)
        self.temporary = temporary


class Cluster(Protocol):
    """SLURM, this machine, or this process."""

    poll_limit: float  # longest interval between two polls, seconds
    defaults: Mapping[str, str]  # resources of rules that set none
    told: Sequence[str]  # messages for the user before anything runs

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Check that all requests, given with the names of their rules, can run.

        Raises:
            ValueError: The error and the remedy, in one line.
        """

    def room(self, request: Request) -> int:
        """Return how many jobs of this request can be submitted now."""

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """Submit tasks of equal requests at once and return their ids.

        Raises:
            SubmissionError: None of them was accepted.
        """

    def states(self, ids: Iterable[str]) -> States | None:
        """Query the states of all jobs at once, without unknown ids; None if there is no answer."""

    def node(self, external: str) -> str:
        """Return the node of a job's latest start; empty if it is not known."""

    def requeued(self, external: str) -> str:
        """Ask why a job is in the queue again; empty if the cluster does not know."""

    def cancel(self, ids: Iterable[str]) -> None:
        """End queued or running jobs; unknown ids are no error."""


def end(cluster: Cluster, ids: Iterable[str], seconds: float, pause: float = 1.0) -> set[str]:
    """Cancel jobs repeatedly until none of them is in the queue, because a cancellation can get lost.

    Args:
        cluster: Cluster of the jobs.
        ids: Ids of the jobs.
        seconds: Time limit.
        pause: Seconds between two attempts.

    Returns:
        The jobs that are still in the queue, or may be if the scheduler did not answer.
    """
    left, until = set(ids), time.monotonic() + seconds
    cluster.cancel(left)
    while left:
        states = cluster.states(left)
        if states is not None:
            left = {key for key, (state, _) in states.items() if queued(state)}
        if not left or time.monotonic() >= until:
            break
        time.sleep(pause)
        # a COMPLETING job has been cancelled already
        cluster.cancel(key for key in left if states is None or states[key][0] != "COMPLETING")
    return left


def results(folder: Path, ids: set[str]) -> set[str]:
    """Ids of the jobs that have written their result, from one listing of the folder."""
    with contextlib.suppress(OSError):
        # makes NFS clients refresh their cache, as in submitit
        folder.chmod(folder.stat().st_mode)
    ending = "_0_result.pkl"
    return {file.name.removesuffix(ending) for file in folder.glob("*" + ending)} & ids


def read_result(folder: Path, external: str) -> dict[str, Any]:
    """Read and delete a task's result; if submitit itself failed, ``ending`` is None and ``error`` gives the reason."""
    path = folder / f"{external}_0_result.pkl"
    with path.open("rb") as file:
        outcome, value = pickle.load(file)  # noqa: S301  # our own task wrote it
    # ids of local jobs are process ids: a later job with the same id must not find this result
    path.unlink()
    if outcome == "success":
        return dict(value)
    last = str(value).strip().splitlines()[-1]  # of a traceback
    name, _, text = last.partition(": ")
    return dict(json.loads(text)) if name.endswith(JobFailed.__name__) else {"ending": None, "error": last}
