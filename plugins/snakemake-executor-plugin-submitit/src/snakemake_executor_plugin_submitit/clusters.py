"""What the executor needs of a place where jobs run."""

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

# state and reason, in the scheduler's words
States = dict[str, tuple[str, str]]


class SubmissionError(Exception):
    """Jobs were refused; nothing of them is in the queue.

    Attributes:
        temporary: The same submission, or a smaller one, may be taken later.
    """

    def __init__(self, text: str, *, temporary: bool) -> None:
        super().__init__(text)
        self.temporary = temporary


class Cluster(Protocol):
    """SLURM, this machine, or this process."""

    poll_limit: float  # seconds between two looks at most
    defaults: Mapping[str, str]  # resources that count where a rule names none
    told: Sequence[str]  # what a user should know before anything runs

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Find what can never run, before anything does; requests come with the name of their rule.

        Raises:
            ValueError: What is wrong and what to change, in one line.
        """

    def room(self, request: Request) -> int:
        """How many jobs of this kind can be submitted now."""

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """Submit tasks of equal requests at once and return their ids.

        Raises:
            SubmissionError: None of them was taken.
        """

    def states(self, ids: Iterable[str]) -> States | None:
        """One query for the states of all jobs; ids that are not known are left out; None if there is no answer."""

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs, in the queue or running; ids that are not known are no error."""


def end(cluster: Cluster, ids: Iterable[str], seconds: float, pause: float = 1.0) -> set[str]:
    """Cancel jobs, again and again until none of them is in the queue any more; a cancellation can get lost.

    Args:
        cluster: Where they are.
        ids: The jobs.
        seconds: How long this may take.
        pause: Seconds between two looks.

    Returns:
        The jobs that are still there, or may be: the scheduler did not answer.
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
        # one that is COMPLETING has heard of it
        cluster.cancel(key for key in left if states is None or states[key][0] != "COMPLETING")
    return left


def results(folder: Path, ids: set[str]) -> set[str]:
    """Which jobs have written their result, from one look into the folder."""
    with contextlib.suppress(OSError):
        # makes NFS clients look again; the same trick as in submitit
        folder.chmod(folder.stat().st_mode)
    ending = "_0_result.pkl"
    return {file.name.removesuffix(ending) for file in folder.glob("*" + ending)} & ids


def read_result(folder: Path, external: str) -> dict[str, Any]:
    """What a task returned, once; ``ending`` is None where submitit itself failed, ``error`` says how."""
    path = folder / f"{external}_0_result.pkl"
    with path.open("rb") as file:
        outcome, value = pickle.load(file)  # noqa: S301  # our own task wrote it
    # ids of local jobs are process ids: a later job with the same one must not find this result
    path.unlink()
    if outcome == "success":
        return dict(value)
    last = str(value).strip().splitlines()[-1]  # of a traceback
    name, _, text = last.partition(": ")
    return dict(json.loads(text)) if name.endswith(JobFailed.__name__) else {"ending": None, "error": last}
