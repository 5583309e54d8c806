"""Clusters without SLURM: processes of this machine, or one job after the other in this process."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import submitit
from submitit.local.local import LocalExecutor

from .clusters import States
from .cpus import usable_cpus
from .request import Request
from .task import Task

_YEAR_MIN = 365 * 24 * 60
# Only `cancel` ends a job: Ctrl-C in a terminal also reaches submitit's processes, which kill the job a second later.
# The EXIT trap keeps shells from replacing themselves by their last command: the shell's process id is the job's.
_SHELL = ("trap '' INT", "trap : EXIT")


class Local:
    """This machine; runs no more jobs at once than its CPUs and GPUs allow, which submitit does not check."""

    poll_limit = 1.0
    defaults: Mapping[str, str] = MappingProxyType({})
    told: Sequence[str] = ()

    def __init__(self, folder: Path, *, cores: int, parallel: int, signal_delay: int, setup: Sequence[str]) -> None:
        """Count CPUs and GPUs.

        Args:
            folder: Folder of submitit's files.
            cores: Most cores of all jobs together; this machine may have fewer.
            parallel: Most jobs at once; 0 for as many as CPUs and GPUs allow.
            signal_delay: Seconds between signal and time limit.
            setup: Shell lines before each job.
        """
        self.folder, self.signal_delay, self.setup = folder, signal_delay, [*_SHELL, *setup]
        self.cpus = min(cores, usable_cpus())
        self.parallel = parallel
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = range(len(shown.split(",")) if shown else 0 if shown == "" else len(glob.glob("/dev/nvidia[0-9]*")))
        self._running: dict[str, tuple[submitit.Job[Any], int, list[int]]] = {}
        self._cancelled: set[str] = set()

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Check that every rule fits on this machine."""
        for rule, request in requests:
            if request.gpus > len(self.gpus):
                raise ValueError(
                    f"rule {rule} requests {request.gpus} GPU(s), but this machine has {len(self.gpus)}: "
                    f"--set-resources {rule}:gpus={len(self.gpus)}"
                )

    def room(self, request: Request) -> int:
        """Return 1 if the job fits now, else 0; a job with more CPUs than there are runs alone."""
        self._reap()
        if not self._running:
            return 1
        if self.parallel and len(self._running) >= self.parallel:
            return 0
        used = sum(cpus for _, cpus, _ in self._running.values())
        return int(used + request.cpus <= self.cpus and request.gpus <= len(self._free_gpus()))

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """Start the tasks."""
        del name
        ids = []
        for task in tasks:
            gpus = self._free_gpus()[: request.gpus]
            executor = LocalExecutor(self.folder)
            executor.update_parameters(
                timeout_min=request.minutes or _YEAR_MIN,
                gpus_per_node=len(gpus),
                visible_gpus=gpus,
                signal_delay_s=self.signal_delay,
                stderr_to_stdout=True,
                setup=self.setup,
            )
            job = executor.submit(task)
            self._running[job.job_id] = (job, request.cpus, gpus)
            ids.append(job.job_id)
        return ids

    def states(self, ids: Iterable[str]) -> States | None:
        """Return the states of the processes."""
        self._reap()
        return {
            external: (
                "RUNNING" if external in self._running else "CANCELLED" if external in self._cancelled else "FAILED",
                "",
            )
            for external in ids
        }

    def node(self, external: str) -> str:
        """Return nothing: there is only this machine."""
        del external
        return ""

    def requeued(self, external: str) -> str:
        """Return nothing: jobs record the cause themselves."""
        del external
        return ""

    def cancel(self, ids: Iterable[str]) -> None:
        """Tell the jobs to write their checkpoints, and wait; a job kills processes that ignore the signal."""
        ending = {external for external in ids if external in self._running}
        self._cancelled |= ending
        while ending & self._running.keys():
            for external in ending & self._running.keys():
                _terminate_children(int(external))
            time.sleep(0.1)
            self._reap()

    def _reap(self) -> None:
        self._running = {key: value for key, value in self._running.items() if not value[0].done()}

    def _free_gpus(self) -> list[int]:
        taken = {gpu for _, _, gpus in self._running.values() for gpu in gpus}
        return [gpu for gpu in self.gpus if gpu not in taken]


def _terminate_children(pid: int) -> None:
    """Terminate the child of a job's shell: a line of `setup`, or submitit's process, which passes signals on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            child.terminate()


class Debug:
    """This process: a submitted job has already ended."""

    poll_limit = 1.0
    defaults: Mapping[str, str] = MappingProxyType({})
    told: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # submitit's ids are memory addresses, which are unique only among living objects
        self._jobs: list[submitit.Job[Any]] = []

    def check(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Accept all requests."""

    def room(self, request: Request) -> int:
        """Return 1: jobs run one after the other."""
        del request
        return 1

    def submit(self, name: str, request: Request, tasks: Sequence[Task]) -> list[str]:
        """Run the tasks, and write their results like the other clusters."""
        del name, request
        ids = []
        for task in tasks:
            job = submitit.DebugExecutor(self.folder).submit(task)
            value = job.result()
            submitit.core.utils.cloudpickle_dump(("success", value), job.paths.result_pickle)
            self._jobs.append(job)
            ids.append(job.job_id)
        return ids

    def states(self, ids: Iterable[str]) -> States | None:
        """Return COMPLETED for all jobs."""
        return dict.fromkeys(ids, ("COMPLETED", ""))

    def node(self, external: str) -> str:
        """Return nothing: there is only this machine."""
        del external
        return ""

    def requeued(self, external: str) -> str:
        """Return nothing: jobs record the cause themselves."""
        del external
        return ""

    def cancel(self, ids: Iterable[str]) -> None:
        """Do nothing: no job is running."""
