"""Snakemake executor: submits ready jobs together and reports how each ended."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

from . import request as requests
from .backlog import Backlog
from .clusters import Cluster, SubmissionError, end
from .events import Events
from .files import stamps
from .history import History
from .payload import Nested, Shell
from .plain import plain
from .request import Request
from .runs import RunFolder, paths
from .task import Task
from .verdict import FINAL_STATES, Rule, Verdict, judge, parse_rules, queued
from .watch import Entry, Watch

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
)
# SLURM gives up a silent node within this time, seconds.
_NODE_SECONDS = 600.0
# Time for cancelled jobs to leave the queue, at the end of a run and before the next one starts its own, seconds.
_CANCEL_SECONDS = 20.0


class Executor(RemoteExecutor):  # type: ignore[misc]  # the interface package has no types
    """Executor behind ``--executor submitit``."""

    # Snakemake's polling thread starts before __post_init__ has run.
    _ready = False

    def __post_init__(self) -> None:
        """Check the set-up before anything is submitted."""
        settings = self.workflow.executor_settings
        if self.workflow.remote_execution_settings.immediate_submit:
            raise WorkflowError("submitit: --immediate-submit is not supported: endings could not be told apart")
        try:
            self.rules = parse_rules(settings.on_end)
            requests.parse_flags(settings.sbatch)
        except ValueError as error:
            raise WorkflowError(f"submitit: {error}") from error
        try:
            configs = [str(path) for path in self.workflow.config_settings.configfiles]
            self.run_folder = RunFolder(Path(settings.logdir), settings.cluster, configs)
        except OSError as error:
            raise WorkflowError(
                f"submitit: cannot make a log folder in {settings.logdir!r} ({error.strerror}): set --submitit-logdir "
                "to a folder that you can write and that the compute nodes see"
            ) from error
        self.settings = settings
        self.entries: dict[int, Entry] = {}
        self._lock = threading.RLock()
        self._completed: dict[str, float] = {}
        self._left: set[str] = set()  # cancelled jobs that are still in the queue
        self._told: set[str] = set()
        try:
            self.cluster = self._make_cluster()
            for line in self.cluster.told:
                self._tell(line)
            self.cluster.check(self._declared())
        except ValueError as error:
            raise WorkflowError(f"submitit: {error}") from error
        self.backlog = Backlog(self.cluster, send=self._submit, tell=self._tell)
        fast, slow = float(settings.poll_seconds), float(settings.poll_max_seconds)
        self.watch = Watch(self.cluster, self.run_folder.submitit, fast=fast, slow=slow, tell=self._tell)
        self.events = Events(self.run_folder.path / "events.tsv", self.watch.why_requeued)
        if settings.keep_runs:
            self.run_folder.prune(settings.keep_runs)
        self._end_left_behind()
        self.logger.info(f"submitit: {settings.cluster}, logs in {self.run_folder.path}")
        self._ready = True

    def _make_cluster(self) -> Cluster:
        # imported here, because each needs another part of submitit
        from .local import Debug, Local
        from .slurm import Slurm

        settings, folder = self.settings, self.run_folder.submitit
        common = {"parallel": settings.parallel, "signal_delay": settings.signal_delay, "setup": settings.setup}
        if settings.cluster == "slurm":
            return Slurm(folder, array_size=settings.array_size, **common)
        if settings.cluster == "debug":
            return Debug(folder)
        return Local(folder, cores=self.workflow.resource_settings.cores or sys.maxsize, **common)

    def _declared(self) -> list[tuple[str, Request]]:
        """Return one request per rule of this run, as far as it is known before inputs exist."""
        jobs = {job.rule.name: job for job in self.workflow.dag.needrun_jobs() if not job.is_local}
        return [(name, self._request(job)) for name, job in jobs.items()]

    def _request(self, job: Any) -> Request:
        known = {name: value for name, value in job.resources.items() if "TBD" not in str(value)}
        try:
            return requests.read(
                known, known.get("_cores", 1), self.settings.requeues, self.settings.sbatch, self.cluster.defaults
            )
        except ValueError as error:
            raise WorkflowError(f"submitit: {job.name}: {error}") from error

    # --- from Snakemake's scheduler -------------------------------------------------------------------------------

    def run_jobs(self, jobs: list[Any]) -> None:
        """Submit all ready jobs, equal requests together."""
        entries = []
        for job in jobs:
            self.run_job_pre(job)
            request = self._request(job)
            payload = self._payload(job, request)
            task = Task(
                payload=payload,
                # a Snakemake on the node goes to the workflow's working directory by itself
                folder=self.workflow.workdir_init if isinstance(payload, Nested) else str(Path.cwd()),
                log=str(self.run_folder.log(job)),
                minutes=request.minutes,
                requeues=request.requeues,
                signal_delay=self.settings.signal_delay,
                history=str(self.run_folder.submitit / f"{uuid.uuid4().hex}.history"),
                lease=str(self.run_folder.lease(job)),
                inputs=stamps(set(paths(job, "input")) - set(paths(job, "output"))),
                outputs=paths(job, "output", without=("nodelocal", "pipe", "service", "temp")),
                latency=self.settings.grace_seconds,
            )
            entries.append(Entry(SubmittedJobInfo(job), request, task))
        with self._lock:
            self.entries |= {id(entry.info): entry for entry in entries}
            self.backlog.add(entries)
            self.watch.hurry()
            self.backlog.submit()
        for entry in entries:
            entry.info.external_jobid = entry.external or None
            self.report_job_submission(entry.info)

    def run_job(self, job: Any) -> None:
        """Submit one job."""
        self.run_jobs([job])

    def _payload(self, job: Any, request: Request) -> Nested | Shell:
        """Return what the task runs; in the foreground, always a Snakemake."""
        way = "always" if self.settings.cluster == "debug" else self.settings.nested
        found = None if way == "always" else plain(job, self.workflow, request.cpus, way == "unless-literal")
        return found or Nested(self.format_job_exec(job))

    def get_job_args(self, job: Any) -> str:
        """Extend Snakemake's arguments by the requested cores; the default is all cores of the node."""
        return f"{super().get_job_args(job)} --cores {self._request(job).cpus}"

    def additional_general_args(self) -> str:
        """Prevent the Snakemake on the node from submitting, whatever profile it finds."""
        return "--executor local --workflow-profile none --quiet host progress"

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run; uses our own list, because ``active_jobs`` is empty during a poll."""
        del active_jobs
        with self._lock:
            ids = [entry.external for entry in self.entries.values() if entry.external]
            self.entries.clear()
            self.backlog.clear()
        if ids:
            self.logger.info(f"submitit: cancelling {len(ids)} jobs")
            self._left |= end(self.cluster, ids, _CANCEL_SECONDS)

    def shutdown(self) -> None:
        """Shut down; cancels jobs that are left after an error in Snakemake itself."""
        if self._ready:
            self.cancel_jobs([])
            self._end_requeued()
            if self._left:  # the next run cancels them, like those of a killed Snakemake
                self.logger.warning(f"submitit: {len(self._left)} cancelled jobs are still in the queue")
            else:
                self.run_folder.close()
        super().shutdown()

    # --- submission -----------------------------------------------------------------------------------------------

    def _submit(self, request: Request, batch: Sequence[Entry]) -> None:
        jobs = [entry.info.job for entry in batch]
        names = {job.name for job in jobs}
        name, tasks = names.pop() if len(names) == 1 else "snakemake", [entry.task for entry in batch]
        try:
            ids = self.cluster.submit(name, request, tasks)
        except SubmissionError as error:
            if error.temporary or not request.avoid:
                raise
            ids = self.cluster.submit(name, replace(request, avoid=()), tasks)  # no other node fits
        self.run_folder.record(ids, jobs, [entry.task.log for entry in batch])
        for entry, external in zip(batch, ids, strict=True):
            entry.reset(external)
        self.events.submitted(batch, request)
        first, last = ids[0], ids[-1]
        self.logger.info(f"submitit: {len(ids)} jobs submitted as {first}" + (f" … {last}" if last != first else ""))

    def _end_left_behind(self) -> None:
        """Cancel jobs of killed runs, and wait until they are gone, because they would write the same files as ours.

        While SLURM does not answer, it may still run them.
        """
        for folder, ids in self.run_folder.left_behind():
            left = set(ids) if self.settings.cluster == "slurm" else set()
            while left:
                states = self.cluster.states(left)
                if states is None:
                    self._tell(f"SLURM does not answer; waiting, as it may still run {len(left)} jobs of {folder.name}")
                    time.sleep(self.settings.poll_seconds)
                    continue
                left = {key for key, (state, _) in states.items() if queued(state)}
                if left:
                    self._tell(f"cancelling {len(left)} jobs that {folder.name} left behind")
                    left = end(self.cluster, left, _CANCEL_SECONDS)
            (folder / "ended").touch()

    def _end_requeued(self) -> None:
        """Cancel completed jobs that SLURM requeued because it gave up their node just after they had finished."""
        latest = [key for key, when in self._completed.items() if time.monotonic() - when < _NODE_SECONDS]
        states = self.cluster.states(latest) or {}
        waiting = [key for key, (state, _) in states.items() if state == "PENDING"]
        if waiting:
            self.cluster.cancel(waiting)

    # --- polling --------------------------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Wait for the next poll, but never past the end of the run."""
        until = time.monotonic() + (self.watch.pause if self._ready else 0.5)
        while self.wait and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(0.5, left))

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Determine which jobs have ended, and yield those that continue."""
        if not self._ready:
            return
        with self._lock:
            self.backlog.submit()
            entries = [self.entries[id(info)] for info in active_jobs if id(info) in self.entries]
        self.logger.debug(f"submitit: looking at {len(entries)} jobs")
        self.watch.look([entry for entry in entries if entry.external])
        self.events.seen(entries)
        for entry in entries:
            verdict = Verdict.NOT_SUBMITTED if entry.refused else None
            if entry.external:
                verdict = self._judged(entry)
            if verdict is None or not self._ended(entry, verdict):
                yield entry.info

    def _judged(self, entry: Entry) -> Verdict | None:
        verdict = judge(entry.seen, self.settings.grace_seconds)
        if verdict is Verdict.COMPLETED and (fault := entry.fault()):
            # files need time to appear on a shared file system; unlike results, outputs may be on a local one
            if time.monotonic() - entry.since < self.settings.grace_seconds:
                return None
            entry.details["error"] = f"completed on its node, but this machine {fault}"
            return Verdict.UNSEEN
        if verdict is Verdict.CODE_ERROR and not entry.details and not Path(entry.task.log).exists():
            # the task, which writes that log, never started
            if output := self.watch.output(entry).strip():
                entry.details["error"] = output.splitlines()[-1]
            else:
                entry.details["error"] = "no log was written: does its node see the folder of --submitit-logdir?"
                return Verdict.UNSEEN
        return verdict

    def _ended(self, entry: Entry, verdict: Verdict) -> bool:
        """Act on an ending; returns False if the job is submitted again."""
        if verdict is Verdict.COMPLETED:
            self.events.ended(entry, verdict)
            self._completed[entry.external] = time.monotonic()
            self._forget(entry)
            self.report_job_success(entry.info)
            return True
        rule = self._rule(entry, verdict)
        again = rule.kind == "retry" and entry.retries[verdict] < rule.times
        (self.logger.warning if again else self.logger.error)(f"submitit: {entry.explain(verdict, rule, again=again)}")
        self.events.ended(entry, verdict, again=again)
        state = entry.seen.state
        if entry.external and state not in FINAL_STATES and (state == "PENDING" or not entry.seen.result):
            # a job that was given up must not start later; one that has written its result ends by itself
            self.cluster.cancel([entry.external])
        if again:
            if verdict is Verdict.TIMED_OUT and not entry.seen.result:
                History(Path(entry.task.history)).add(verdict)  # it was killed before it could record this itself
            if verdict is Verdict.UNSEEN:
                Path(entry.task.history).unlink(missing_ok=True)  # it completed, but its outputs exist only on its node
            entry.retries[verdict] += 1
            if node := self._faulty_node(entry, verdict):
                entry.request = replace(entry.request, avoid=tuple(sorted({*entry.request.avoid, node})))
            with self._lock:
                entry.reset()
                self.backlog.add([entry])
            return False
        self._forget(entry)
        job = entry.info.job
        if rule.kind != "workflow":
            job.attempt = job.restart_times + 1  # prevents Snakemake's own retries
        entry.info.external_jobid = entry.external or None
        self.report_job_error(entry.info, msg=f"{verdict.value}. ", aux_logs=[entry.task.log])
        return True

    def _faulty_node(self, entry: Entry, verdict: Verdict) -> str:
        """Node that would fail the next start in the same way; SLURM itself avoids those that are down."""
        reported = verdict is Verdict.NODE_FAILURE and entry.seen.result is verdict
        return self.cluster.node(entry.external) if reported or verdict is Verdict.UNSEEN else ""

    def _rule(self, entry: Entry, verdict: Verdict) -> Rule:
        """Rule for an ending; a job that could not requeue itself at its time limit is submitted again."""
        if verdict is Verdict.TIMED_OUT:
            entry.retries[verdict] = History(Path(entry.task.history)).count(verdict)
            if entry.retries[verdict] < entry.request.requeues:
                return Rule("retry", entry.request.requeues)
        return self.rules[verdict]

    def _forget(self, entry: Entry) -> None:
        with self._lock:
            self.entries.pop(id(entry.info), None)
            self.backlog.hurry()  # the cluster may have room now

    def _tell(self, text: str) -> None:
        """Show a message once."""
        if text not in self._told:
            self._told.add(text)
            self.logger.warning(f"submitit: {text}")
