"""SLURM: submission through submitit, everything else through the site's own commands."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from . import checks, surroundings
from .clusters import States, SubmissionError
from .commands import patience, run, said
from .request import Request
from .task import Task
from .verdict import FINAL_STATES, UNANSWERED

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
# sbatch may succeed later, or with fewer jobs at once: whatever else it says, but for what is wrong with the job itself
_FOR_GOOD = re.compile(
    r"invalid|not available$|can ?not be satisfied|denied|not permitted|not allowed|unsupported|not supported"
    r"|unrecognized|ambiguous|requires an argument|requires? an? |more processors|too long|batch script|no partition"
    r"|missing|exceeds|dependency problem|duplicate job|unknown|disabled",
    re.IGNORECASE | re.MULTILINE,
)
# a clock or a daemon is at fault, whatever the message calls invalid; a policy may be a limit on the jobs of a user
_FOR_NOW = re.compile(r"munge|authentication|credential|timed out|job submit limit", re.IGNORECASE)
# newer versions name the limit; those on the number of jobs pass, those on the size of a job don't
_LIMIT = re.compile(r"error: ((?:Assoc|QOS)\w+)")
# more ids than this on a command line, and the whole queue of the user is asked for instead
_MANY = 1000


class Slurm:
    """The cluster that ``sbatch`` of this machine talks to."""

    def __init__(
        self, folder: Path, *, array_size: int, parallel: int, signal_delay: int, setup: Sequence[str]
    ) -> None:
        """Look at the site.

        Args:
            folder: Where submitit's files go.
            array_size: Most jobs in an array; 0 takes the site's limit.
            parallel: Most jobs of an array that run at once; 0 sets no limit.
            signal_delay: Seconds before the time limit at which the signal comes.
            setup: Shell lines before each job.

        Raises:
            ValueError: No SLURM here, in one line.
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
            raise ValueError(f"the SLURM controller does not answer: {said(config.stderr)}")
        values = dict(re.findall(r"^(\w+)\s*=\s*(\S*)", config.stdout, re.MULTILINE))
        limit = int(values.get("MaxArraySize", 1001))
        if array_size > limit:
            raise ValueError(f"--submitit-array-size {array_size} is above this site's MaxArraySize={limit}")
        self.array_size = max(1, min(array_size or limit, int(values.get("MaxJobCount", 10000)) - 1))
        # a job that ended is known for this long, with 0 for ever; a slower poll would miss how it ended
        self.poll_limit = max(1.0, int(values.get("MinJobAge", 300)) / 3 or math.inf)
        self.patience = 3.0 * int(values.get("MessageTimeout", 10))
        self.accounting = values.get("AccountingStorageType", "none").rpartition("/")[2] not in ("none", "")
        self.user = getpass.getuser()

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Compare with what the site has, and let SLURM say about the rest."""
        site = checks.partitions()
        asked: set[tuple[str, ...]] = {()}
        for rule, request in requests:
            checks.compare(rule, request, site)
            flags = checks.flags(request)
            if flags not in asked:
                asked.add(flags)
                checks.ask(rule, flags, self.user, accounting=self.accounting)

    def room(self, request: Request) -> int:
        """As many as one array can hold."""
        del request
        return self.array_size

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """One ``sbatch``: an array, or a plain job for a single task."""
        # unique, so that a job which sbatch made but did not report can be found
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
        except BaseException as error:  # Ctrl-C, too: nobody would know the id of what was just made
            run("scancel", f"--user={self.user}", f"--name={unique}")
            self._sweep()
            if not isinstance(error, FailedJobError | FailedSubmissionError | OSError):
                raise
            raise SubmissionError(said(str(error)), temporary=ended.is_set() or _may_pass(str(error))) from error
        return [job.job_id for job in jobs]

    def states(self, ids: Iterable[str]) -> States | None:
        """``squeue`` for all; where the site keeps accounts, ``sacct`` for those that it no longer knows."""
        wanted = set(ids)
        if not wanted:
            return {}
        bases = sorted({external.split("_")[0] for external in wanted})
        which = f"--jobs={','.join(bases)}" if len(bases) <= _MANY else f"--user={self.user}"
        shown = run("squeue", which, "--array", "--states=all", "--noheader", "--format=%i|%T|%r")
        if shown.returncode and "Invalid job id" not in shown.stderr:
            return None
        states = {}
        for line in shown.stdout.splitlines():
            external, _, rest = line.partition("|")
            if external in wanted:  # not so the line of a banner
                states[external] = (rest.partition("|")[0], rest.partition("|")[2])
        gone = wanted - states.keys()
        if gone and self.accounting:
            states |= self._accounts(gone)
        return states

    def _accounts(self, ids: set[str]) -> States:
        """How jobs ended; one that still runs by the books alone is as unknown as before.

        Where the books cannot be read, all jobs go on: no answer is no verdict.
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

    def cancel(self, ids: Iterable[str]) -> None:
        """``scancel``, as few calls as the length of a command line allows; whether it worked, ``squeue`` says."""
        listed = sorted(set(ids))
        for start in range(0, len(listed), _MANY):
            run("scancel", "--quiet", *listed[start : start + _MANY])

    def _sweep(self) -> None:
        """Remove what submitit prepared for a submission that failed."""
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
    """Ids of single jobs; ``7_[0,2-6:2%4]`` stands for tasks that never started."""
    base, bracket, listed = job.partition("_[")
    if not bracket:
        return [job]
    found = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", listed.partition("%")[0]):
        found += [f"{base}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1))]
    return found


def _delay(wanted: int, minutes: int) -> int:
    """Seconds between signal and time limit, shorter where a job would otherwise be told to end when it starts.

    SLURM may send the signal 60 s early, and a task needs some seconds before it listens.
    """
    return max(1, min(wanted, minutes * 60 - 90)) if minutes else wanted
