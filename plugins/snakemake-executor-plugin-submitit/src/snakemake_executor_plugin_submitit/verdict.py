"""How a job ended, from what the scheduler and the job itself say; and what follows."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Verdict(enum.Enum):
    """The endings of a job."""

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
        """The name in settings."""
        return self.value.replace(" ", "-")


# Every other word of the scheduler (RUNNING, PENDING, COMPLETING, SIGNALING, …) means that the job goes on.
FINAL_STATES = {
    "COMPLETED": Verdict.LOST,  # nobody saw its result
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
# In place of the scheduler's word where nobody could be asked; the job may well go on.
UNANSWERED = "UNANSWERED"


def queued(state: str) -> bool:
    """Whether a job with this state is in the queue or runs; one that only the books know is not."""
    return state not in FINAL_STATES and state != UNANSWERED


# SLURM's reasons for waiting that do not pass by themselves, or not for days; usage limits of running jobs do pass.
_LASTING = re.compile(
    r"held|Held|Hold|Invalid|NeverSatisfied|BadConstraints|Down|DOWN|DRAINED|PartitionInactive|PartitionNodeLimit"
    r"|PartitionTimeLimit|NotAllowed|NotAvail|NotSatisfied|PerJob|PerNode|QOSMin|UsageThreshold|MaxMemPerLimit"
    r"|Wall|(?<!Run)Minutes|MaxRequeue|ReservationDeleted|SystemFailure|BurstBufferOperation"
)


def lasting(reason: str) -> bool:
    """Whether a pending job may wait for ever for this reason, in SLURM's words."""
    return _LASTING.search(reason) is not None


@dataclass(frozen=True)
class Evidence:
    """What is known of one job.

    Attributes:
        state: The scheduler's word, None where it does not know the job.
        reason: The scheduler's reason for the state.
        result: The ending that the job itself wrote down, None as long as it has not.
        hint: What SLURM's own lines in the job's output say of the ending.
        seconds: How long all of the above has been so.
    """

    state: str | None = None
    reason: str = ""
    result: Verdict | None = None
    hint: Verdict | None = None
    seconds: float = 0.0


def judge(seen: Evidence, grace: float) -> Verdict | None:
    """The verdict on a job, None while it goes on or may still go on.

    A job's own success is final at once. All else waits: results take time to cross a shared file system, a job that
    is requeued shows a final state for a moment, and only the scheduler knows that memory or a node was at fault.

    Args:
        seen: What is known.
        grace: Seconds after which what is known is taken for all there is to know.
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
        return Verdict.NODE_FAILURE  # SLURM holds such a job until somebody releases it
    if final is Verdict.CODE_ERROR and seen.reason == "BadConstraints":
        return Verdict.NOT_SUBMITTED  # never started: no node can ever satisfy it
    if final is None or not settled:
        return None
    return seen.hint if seen.hint and final is Verdict.CODE_ERROR else final


def hint(output: str) -> Verdict | None:
    """What ``srun`` and ``slurmstepd`` wrote into a job's output, where the state alone would only say FAILED.

    Only the latest start counts; submitit greets each with a line.
    """
    output = output.rpartition("Starting with JobEnvironment")[2]
    # the remains of a job whose node was given up end after it went back to the queue, and make it FAILED
    # a job that begins while its node is going finds nobody to start its step
    if re.search(r"DUE TO NODE FAILURE|error: Node failure on|error: Task launch for .* failed on node", output):
        return Verdict.NODE_FAILURE
    # SLURM can take the late end of a start that went back to the queue for the end of the job
    if "DUE TO JOB REQUEUE" in output:
        return Verdict.PREEMPTED
    if re.search(r"oom[-_]kill|Out Of Memory", output):
        return Verdict.OUT_OF_MEMORY
    # the warning before the time limit came before the task could listen, and killed it
    return Verdict.TIMED_OUT if "User defined signal 2" in output else None


@dataclass(frozen=True)
class Rule:
    """What follows an ending: ``retry`` up to ``times``, ``workflow`` (Snakemake's own retries) or ``fail``."""

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
    """Rules from texts such as ``preempted=retry:10``; what is not named keeps its default.

    Raises:
        ValueError: What is wrong and what is allowed, in one line.
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
