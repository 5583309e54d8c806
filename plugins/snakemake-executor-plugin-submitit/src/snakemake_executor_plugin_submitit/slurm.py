"""SLURM: submission through submitit, everything else through the site's own commands."""

from __future__ import annotations

import difflib
import getpass
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from .clusters import States, SubmissionError
from .request import Request
from .task import Task

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
# sbatch may succeed later, or with fewer jobs at once
_TEMPORARY = re.compile(
    r"temporarily|timed out|contact slurm controller|connection refused|submit limit|MaxSubmit|job limit"
    r"|job count|resource limit|try again|policy",
    re.IGNORECASE,
)
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
        _forget_surrounding_job()
        self.folder, self.parallel, self.signal_delay, self.setup = folder, parallel, signal_delay, list(setup)
        config = _run("scontrol", "show", "config")
        if config.returncode:
            raise ValueError(f"the SLURM controller does not answer: {_first_line(config.stderr)}")
        values = dict(re.findall(r"^(\w+)\s*=\s*(\S*)", config.stdout, re.MULTILINE))
        limit = int(values.get("MaxArraySize", 1001))
        if array_size > limit:
            raise ValueError(f"--submitit-array-size {array_size} is above this site's MaxArraySize={limit}")
        self.array_size = array_size or max(1, limit)
        # a job that ended is known for this long; a slower poll would miss how it ended
        self.poll_limit = max(1.0, int(values.get("MinJobAge", 300)) / 3)
        self.accounting = values.get("AccountingStorageType", "none").rpartition("/")[2] not in ("none", "")
        self.user = getpass.getuser()

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Compare partitions, time limits and GPU types with what the site has."""
        shown = _run("sinfo", "--noheader", "--all", "--format=%R|%G|%l")
        if shown.returncode:
            raise ValueError(f"sinfo fails: {_first_line(shown.stderr)}")
        partitions: dict[str, set[str]] = {}
        limits: dict[str, float] = {}
        for line in shown.stdout.splitlines():
            name, gres, limit = line.split("|", 2)
            partitions.setdefault(name, set()).update(re.findall(r"gpu(?::([A-Za-z][\w.-]*))?(?=[:,(]|$)", gres))
            limits[name] = max(limits.get(name, 0), _minutes(limit))
        for rule, request in requests:
            named = request.partition.split(",") if request.partition else list(partitions)
            for name in named:
                if name not in partitions:
                    raise ValueError(
                        f"rule {rule}: this cluster has no partition {name!r}{_near(name, partitions)}; "
                        f"it has {', '.join(sorted(partitions))}"
                    )
            kinds = set().union(*(partitions[name] for name in named))
            if request.gpu_type and request.gpu_type not in kinds:
                known = ", ".join(sorted(kinds - {""})) or "none with a type"
                raise ValueError(
                    f"rule {rule}: no GPU of type {request.gpu_type!r}{_near(request.gpu_type, kinds)} "
                    f"in partition {' or '.join(named)}; known: {known}"
                )
            longest = max(limits[name] for name in named)
            if request.minutes > longest:
                raise ValueError(
                    f"rule {rule}: runtime={request.minutes} min is above the limit of {longest:.0f} min "
                    f"of partition {' or '.join(named)}"
                )

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
            jobs: list[submitit.Job[Any]] = executor.submit_array(list(tasks))
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            _run("scancel", f"--user={self.user}", f"--name={unique}")
            self._sweep()
            text = _first_line(str(error))
            raise SubmissionError(text, temporary=_TEMPORARY.search(text) is not None) from error
        return [job.job_id for job in jobs]

    def states(self, ids: Iterable[str]) -> States | None:
        """``squeue`` for all; where the site keeps accounts, ``sacct`` for those that it no longer knows."""
        wanted = set(ids)
        if not wanted:
            return {}
        bases = sorted({external.split("_")[0] for external in wanted})
        which = f"--jobs={','.join(bases)}" if len(bases) <= _MANY else f"--user={self.user}"
        shown = _run("squeue", which, "--array", "--states=all", "--noheader", "--format=%i|%T|%r")
        if shown.returncode and "Invalid job id" not in shown.stderr:
            return None
        states = {}
        for line in shown.stdout.splitlines():
            external, state, reason = line.split("|", 2)
            if external in wanted:
                states[external] = (state, reason)
        gone = wanted - states.keys()
        if gone and self.accounting:
            states |= self._accounts(gone)
        return states

    def _accounts(self, ids: set[str]) -> States:
        bases = sorted({external.split("_")[0] for external in ids})
        shown = _run("sacct", "-X", "-n", "-P", "--array", "-o", "JobID,State", "-j", ",".join(bases[:_MANY]))
        rows = (line.split("|", 1) for line in shown.stdout.splitlines() if "|" in line)
        # "CANCELLED by 1000"
        return {external: (state.split(" ")[0], "") for external, state in rows if external in ids}

    def cancel(self, ids: Iterable[str]) -> None:
        """``scancel``, as few calls as the length of a command line allows."""
        listed = sorted(set(ids))
        for start in range(0, len(listed), _MANY):
            _run("scancel", "--quiet", *listed[start : start + _MANY])

    def _sweep(self) -> None:
        """Remove what submitit prepared for a submission that failed."""
        for pattern in ("?" * 32 + ".pkl", ".submission_file_*.sh"):
            for path in self.folder.glob(pattern):
                if not path.is_symlink():
                    path.unlink(missing_ok=True)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command, without the user's own filters and formats (``SQUEUE_PARTITION`` and the like)."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SINFO_", "SCANCEL_"))}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} timed out")


def _first_line(text: str) -> str:
    """The line that says most: the last ``error:`` line, else the first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines[:1])[-1].removeprefix("sbatch: ").removeprefix("error: ")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [entry for entry in known if entry], 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _minutes(text: str) -> float:
    """SLURM's ``days-hours:minutes:seconds`` in minutes."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
    except ValueError:  # infinite, n/a
        return float("inf")
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _delay(wanted: int, minutes: int) -> int:
    """Seconds between signal and time limit, shorter where a job would otherwise be told to end when it starts.

    SLURM may send the signal 60 s early, and a task needs some seconds before it listens.
    """
    return max(1, min(wanted, minutes * 60 - 90)) if minutes else wanted


def _forget_surrounding_job() -> None:
    """Where Snakemake itself runs in a job, that job's limits must not leak into those it submits."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    print("submitit: running inside a SLURM job; its SLURM_ variables are not passed on", file=sys.stderr)
    for key in list(os.environ):
        if key.startswith(("SLURM_", "SRUN_")) and key != "SLURM_CONF":
            del os.environ[key]
