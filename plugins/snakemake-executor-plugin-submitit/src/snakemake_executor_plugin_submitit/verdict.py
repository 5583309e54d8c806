"""Endings of jobs, judged from the scheduler's state and the job's own result; and the rules that follow."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Verdict(enum.Enum):
    """Ending of a job."""

    COMPLETED = "completed"
    CODE_ERROR = "code error"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    CANCELLED = "cancelled"
    UNSEEN = "unseen files"
    LOST = "lost"
    NOT_SUBMITTED = "submission failed"

    @property
    def key(self) -> str:
        """Name in settings."""
        return self.value.replace(" ", "-")


# With every other state of the scheduler (RUNNING, PENDING, COMPLETING, SIGNALING, …) the job continues.
FINAL_STATES = {
    "COMPLETED": Verdict.LOST,  # without a result
    "FAILED": Verdict.CODE_ERROR,
    "TIMEOUT": Verdict.TIMED_OUT,
    "DEADLINE": Verdict.TIMED_OUT,
    "OUT_OF_MEMORY": Verdict.OUT_OF_MEMORY,
    "PREEMPTED": Verdict.PREEMPTED,
    "NODE_FAIL": Verdict.NODE_FAILURE,
    "BOOT_FAIL": Verdict.NODE_FAILURE,
    "CANCELLED": Verdict.CANCELLED,
    "REVOKED": Verdict.CANCELLED,
}
# Cause of a requeue with `scontrol requeue`.
BY_HAND = "by hand"
# Replaces the scheduler's state if there was no answer; the job may still run.
UNANSWERED = "UNANSWERED"


def queued(state: str) -> bool:
    """Return whether a job with this state is queued or running; jobs known only to accounting are not."""
    return state not in FINAL_STATES and state != UNANSWERED


# SLURM's reasons for waiting that do not end by themselves, or not for days; usage limits of running jobs do end.
_LASTING = re.compile(
    r"held|Held|Hold|Invalid|NeverSatisfied|BadConstraints|Down|DOWN|DRAINED|PartitionInactive|PartitionNodeLimit"
    r"|PartitionTimeLimit|NotAllowed|NotAvail|NotSatisfied|PerJob|PerNode|QOSMin|UsageThreshold|MaxMemPerLimit"
    r"|Wall|(?<!Run)Minutes|MaxRequeue|ReservationDeleted|SystemFailure|BurstBufferOperation"
)


def lasting(reason: str) -> bool:
    """Return whether a pending job may wait for ever for this reason of SLURM's."""
    return _LASTING.search(reason) is not None


@dataclass(frozen=True)
class Evidence:
    """Evidence on the ending of one job.

    Attributes:
        state: The scheduler's state, None if it does not know the job.
        reason: The scheduler's reason for the state.
        result: The ending that the job itself reported, None until then.
        hint: The ending according to SLURM's own lines in the job's output.
        seconds: How long all of the above has not changed.
    """

    state: str | None = None
    reason: str = ""
    result: Verdict | None = None
    hint: Verdict | None = None
    seconds: float = 0.0


def judge(seen: Evidence, grace: float) -> Verdict | None:
    """Return the verdict on a job, None while it continues or may still continue.

    A job's own success is final at once. All other evidence must be stable: results need time to appear on a shared
    file system, a requeued job shows a final state for a moment, and only the scheduler knows that memory or a node
    failed.

    Args:
        seen: Evidence.
        grace: Seconds without a change after which the evidence counts as final.
    """
    final = FINAL_STATES.get(seen.state or "")
    settled = seen.seconds >= grace
    if seen.result is Verdict.COMPLETED:
        return Verdict.COMPLETED
    if seen.result is Verdict.CODE_ERROR:
        if seen.hint is Verdict.OUT_OF_MEMORY:
            return Verdict.OUT_OF_MEMORY
        if final and seen.state not in ("COMPLETED", "FAILED"):
            return final
        return Verdict.CODE_ERROR if final or settled else None
    if seen.result:
        return seen.result
    if seen.state is None:
        return Verdict.LOST if settled else None
    if seen.state == "PENDING" and seen.reason.startswith("launch failed"):
        return Verdict.NODE_FAILURE  # SLURM holds such a job until it is released by hand
    if final is Verdict.CODE_ERROR and seen.reason == "BadConstraints":
        return Verdict.NOT_SUBMITTED  # never started: no node can ever satisfy it
    if final is None or not settled:
        return None
    return seen.hint if seen.hint and final is Verdict.CODE_ERROR else final


def hint(output: str) -> Verdict | None:
    """Find the ending in the lines of ``srun`` and ``slurmstepd`` in a job's output, if the state is only FAILED.

    Only the latest start counts; submitit writes a line at each start.
    """
    output = output.rpartition("Starting with JobEnvironment")[2]
    # the old step of a job whose node was given up ends after the requeue, and makes the job FAILED
    # a job that starts while its node goes down cannot launch its step
    if re.search(r"DUE TO NODE FAILURE|error: Node failure on|error: Task launch for .* failed on node", output):
        return Verdict.NODE_FAILURE
    # SLURM can mistake the late end of a requeued start for the end of the job
    if "DUE TO JOB REQUEUE" in output:
        return Verdict.PREEMPTED
    if re.search(r"oom[-_]kill|Out Of Memory", output):
        return Verdict.OUT_OF_MEMORY
    # the signal before the time limit came before the task could handle it, and killed it
    return Verdict.TIMED_OUT if "User defined signal 2" in output else None


def requeued(output: str) -> str:
    """Find why SLURM requeued a job in the lines of its output; empty if they do not say.

    A node that fails at once writes none.
    """
    output = output.rpartition("Starting with JobEnvironment")[2]
    if "DUE TO PREEMPTION" in output:
        return Verdict.PREEMPTED.value
    if "DUE TO JOB REQUEUE" in output:
        return BY_HAND
    return Verdict.NODE_FAILURE.value if hint(output) is Verdict.NODE_FAILURE else ""


@dataclass(frozen=True)
class Rule:
    """Rule for an ending: ``retry`` up to ``times``, ``workflow`` (Snakemake's own retries) or ``fail``."""

    kind: str
    times: int = 0


DEFAULT_RULES: dict[Verdict, Rule] = {
    Verdict.CODE_ERROR: Rule("workflow"),
    Verdict.TIMED_OUT: Rule("workflow"),
    Verdict.OUT_OF_MEMORY: Rule("workflow"),
    Verdict.PREEMPTED: Rule("retry", 20),
    Verdict.NODE_FAILURE: Rule("retry", 3),
    Verdict.CANCELLED: Rule("fail"),
    Verdict.UNSEEN: Rule("retry", 1),
    Verdict.LOST: Rule("retry", 1),
    Verdict.NOT_SUBMITTED: Rule("fail"),
}


def parse_rules(texts: Iterable[str]) -> Mapping[Verdict, Rule]:
    """Parse rules such as ``preempted=retry:10``; endings that are not named keep their default.

    Raises:
        ValueError: The error and the allowed values, in one line.
    """
    endings = {verdict.key: verdict for verdict in DEFAULT_RULES}
    rules = dict(DEFAULT_RULES)
    for text in texts:
        name, _, rule = text.partition("=")
        if name not in endings:
            near = difflib.get_close_matches(name, endings, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{text!r}: unknown ending {name!r}{hint}; allowed: {', '.join(endings)}")
        kind, _, times = rule.partition(":")
        if kind == "retry" and times.isdigit():
            rules[endings[name]] = Rule("retry", int(times))
        elif rule in ("workflow", "fail"):
            rules[endings[name]] = Rule(rule)
        else:
            raise ValueError(f"{text!r}: unknown rule {rule!r}; allowed: retry:N, workflow, fail")
    return rules
