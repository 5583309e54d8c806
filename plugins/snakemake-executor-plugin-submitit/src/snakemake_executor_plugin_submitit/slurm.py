"""SLURM: submission through submitit, everything else through the site's own commands."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from . import checks, surroundings
from .clusters import States, SubmissionError
from .commands import message, patience, run
from .request import Request
from .task import Task
from .verdict import BY_HAND, FINAL_STATES, UNANSWERED, Verdict

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
# Permanent refusals: the job itself is wrong. After any other message sbatch may succeed later, or with fewer jobs.
_FOR_GOOD = re.compile(
    r"invalid|not available$|can ?not be satisfied|denied|not permitted|not allowed|unsupported|not supported"
    r"|unrecognized|ambiguous|requires an argument|requires? an? |more processors|too long|batch script|no partition"
    r"|missing|exceeds|dependency problem|duplicate job|unknown|disabled",
    re.IGNORECASE | re.MULTILINE,
)
# Temporary refusals: a clock or a daemon is at fault, even if the message says invalid, or a user has too many jobs.
_FOR_NOW = re.compile(r"munge|authentication|credential|timed out|job submit limit", re.IGNORECASE)
# Newer versions name the limit: limits on the number of jobs are temporary, those on the size of a job are not.
_LIMIT = re.compile(r"error: ((?:Assoc|QOS)\w+)")
# States in the accounts of a start that SLURM requeued.
_REQUEUED = {
    "BOOT_FAIL": Verdict.NODE_FAILURE.value,
    "NODE_FAIL": Verdict.NODE_FAILURE.value,
    "PREEMPTED": Verdict.PREEMPTED.value,
    "REQUEUED": BY_HAND,
}
# Most ids on a command line; with more, the whole queue of the user is queried.
_MANY = 1000


class Slurm:
    """The cluster of this machine's ``sbatch``."""

    def __init__(
        self, folder: Path, *, array_size: int, parallel: int, signal_delay: int, setup: Sequence[str]
    ) -> None:
        """Read the site's configuration.

        Args:
            folder: Folder of submitit's files.
            array_size: Most jobs in an array; 0 for the site's limit.
            parallel: Most jobs of an array that run at once; 0 for no limit.
            signal_delay: Seconds between signal and time limit.
            setup: Shell lines before each job.

        Raises:
            ValueError: There is no SLURM here, in one line.
        """
        missing = [name for name in _COMMANDS if shutil.which(name) is None]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not on the PATH: run Snakemake on a login node of the cluster (perhaps after "
                "'module load slurm'), or choose --submitit-cluster local"
            )
        self.defaults: Mapping[str, str]
        self.told: Sequence[str]
        self.defaults, self.told = surroundings.clear(os.environ)
        self.folder, self.parallel, self.signal_delay, self.setup = folder, parallel, signal_delay, list(setup)
        config = run("scontrol", "show", "config")
        if config.returncode:
            raise ValueError(f"the SLURM controller does not answer: {message(config.stderr)}")
        values = dict(re.findall(r"^(\w+)\s*=\s*(\S*)", config.stdout, re.MULTILINE))
        limit = int(values.get("MaxArraySize", 1001))
        if array_size > limit:
            raise ValueError(f"--submitit-array-size {array_size} is above this site's MaxArraySize={limit}")
        self.array_size = max(1, min(array_size or limit, int(values.get("MaxJobCount", 10000)) - 1))
        # SLURM knows an ended job for MinJobAge seconds (0: for ever); a slower poll would miss its ending
        self.poll_limit = max(1.0, int(values.get("MinJobAge", 300)) / 3 or math.inf)
        self.patience = 3.0 * int(values.get("MessageTimeout", 10))
        self.accounting = values.get("AccountingStorageType", "none").rpartition("/")[2] not in ("none", "")
        self.user = getpass.getuser()
        self._starts: dict[str, tuple[str, float]] = {}  # node and time of the latest start that squeue showed
        self._waiting: set[str] = set()  # jobs without a node in the latest query

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Compare the requests with the site, and ask SLURM about the rest."""
        site = checks.partitions()
        asked: set[tuple[str, ...]] = {()}
        for rule, request in requests:
            checks.compare(rule, request, site)
            flags = checks.flags(request)
            if flags not in asked:
                asked.add(flags)
                checks.ask(rule, flags, self.user, accounting=self.accounting)

    def room(self, request: Request) -> int:
        """Return the size of an array."""
        del request
        return self.array_size

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """Submit with one ``sbatch``: an array, or a plain job for a single task."""
        # unique, to find a job that sbatch made but did not report
        unique = f"{name}.{uuid.uuid4().hex[:8]}"
        executor = submitit.SlurmExecutor(self.folder)
        executor.update_parameters(
            job_name=unique,
            array_parallelism=self.parallel or len(tasks),
            signal_delay_s=_delay(self.signal_delay, request.minutes),
            stderr_to_stdout=True,
            setup=self.setup or None,
            **request.parameters(),
        )
        try:
            with patience("sbatch", self.patience) as ended:
                jobs: list[submitit.Job[Any]] = executor.submit_array(list(tasks))
        except BaseException as error:  # also on Ctrl-C: the ids of the new jobs are unknown
            run("scancel", f"--user={self.user}", f"--name={unique}")
            self._sweep()
            if not isinstance(error, FailedJobError | FailedSubmissionError | OSError):
                raise
            raise SubmissionError(message(str(error)), temporary=ended.is_set() or _may_pass(str(error))) from error
        return [job.job_id for job in jobs]

    def states(self, ids: Iterable[str]) -> States | None:
        """Query ``squeue`` for all jobs and, if the site keeps accounts, ``sacct`` for those no longer listed."""
        asked = set(ids)
        if not asked:
            return {}
        bases = sorted({external.split("_")[0] for external in asked})
        which = f"--jobs={','.join(bases)}" if len(bases) <= _MANY else f"--user={self.user}"
        shown = run("squeue", which, "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r")
        if shown.returncode and "Invalid job id" not in shown.stderr:
            return None
        states = {}
        for line in shown.stdout.splitlines():
            external, *facts = line.split("|", 3)
            if external in asked and len(facts) == 3:  # skips lines of a banner
                state, node, reason = facts
                states[external] = (state, reason)
                self._note(external, node)
        gone = asked - states.keys()
        if gone and self.accounting:
            states |= self._accounts(gone)
        return states

    def _accounts(self, ids: set[str]) -> States:
        """Query how jobs ended; jobs that accounting lists as running stay unknown.

        If ``sacct`` fails, all jobs count as unanswered and continue.
        """
        bases = sorted({external.split("_")[0] for external in ids})
        states: States = {}
        for start in range(0, len(bases), _MANY):
            listed = ",".join(bases[start : start + _MANY])
            shown = run("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", listed)
            if shown.returncode:
                return dict.fromkeys(ids, (UNANSWERED, "sacct does not answer"))
            for line in shown.stdout.splitlines():
                job, _, state = line.partition("|")
                word = state.partition(" ")[0]  # "CANCELLED by 1000"
                if word in FINAL_STATES:
                    states |= dict.fromkeys(ids.intersection(_tasks(job)), (word, ""))
        return states

    def _note(self, external: str, node: str) -> None:
        if not node:
            self._waiting.add(external)
        elif external in self._waiting or self.node(external) != node:
            self._waiting.discard(external)
            self._starts[external] = node, time.time()

    def node(self, external: str) -> str:
        """Return the node that ``squeue`` last showed for a job."""
        return self._starts.get(external, ("", 0.0))[0]

    def requeued(self, external: str) -> str:
        """Ask the accounts about the latest start, and the controller about its node."""
        if self.accounting:
            shown = run("sacct", "-D", "-X", "-n", "-P", "-o", "State", "-j", external)
            words = [line.partition(" ")[0] for line in shown.stdout.splitlines()]
            if found := [_REQUEUED[word] for word in words if word in _REQUEUED]:
                return found[-1]
        node, since = self._starts.get(external, ("", 0.0))
        return Verdict.NODE_FAILURE.value if node and checks.failed(node, since) else ""

    def cancel(self, ids: Iterable[str]) -> None:
        """Call ``scancel``, as few times as the length of a command line allows; ``squeue`` shows whether it worked."""
        listed = sorted(set(ids))
        for start in range(0, len(listed), _MANY):
            run("scancel", "--quiet", *listed[start : start + _MANY])

    def _sweep(self) -> None:
        """Remove submitit's files of a failed submission."""
        for pattern in ("?" * 32 + ".pkl", ".submission_file_*.sh"):
            for path in self.folder.glob(pattern):
                if not path.is_symlink():
                    path.unlink(missing_ok=True)


def _may_pass(refusal: str) -> bool:
    limit = _LIMIT.search(refusal)
    if limit:
        return "SubmitJob" in limit[1]
    return _FOR_NOW.search(refusal) is not None or _FOR_GOOD.search(refusal) is None


def _tasks(job: str) -> list[str]:
    """Expand to ids of single jobs; ``7_[0,2-6:2%4]`` stands for tasks that never started."""
    base, bracket, listed = job.partition("_[")
    if not bracket:
        return [job]
    found = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", listed.partition("%")[0]):
        found += [f"{base}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1))]
    return found


def _delay(delay: int, minutes: int) -> int:
    """Seconds between signal and time limit, shortened if the signal would otherwise come at the start of the job.

    SLURM may send the signal 60 s early, and a task needs some seconds before it handles signals.
    """
    return max(1, min(delay, minutes * 60 - 90)) if minutes else delay
