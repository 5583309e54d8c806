"""Task on the node: runs one Snakemake job, writes its log, and handles signals before preemption and time limit."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import submitit
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from .files import Stamp, ahead, fault, stamps
from .history import History
from .lease import Lease
from .payload import Nested, Shell
from .processes import ignore_user_signal, oom_kills, scontrol, signal_group, wait_for_group
from .verdict import Verdict

# SLURM may send the signal this much early, seconds.
_SIGNAL_SLACK = 60.0
# Largest lag of a node's clock that a job waits for, seconds.
_CLOCK_SECONDS = 300.0


class JobFailed(Exception):
    """Ending of a failed job, as JSON; an exception, so that SLURM and its mails call the job FAILED too."""


@dataclass
class Task:
    """One Snakemake job as submitit runs it.

    A training loop in this task gets one signal, SIGTERM: it should write its checkpoint and end. The task then
    requeues the job, and the same command starts again.

    Attributes:
        payload: What to run.
        folder: Working directory.
        log: File for the output.
        minutes: Time limit; 0 means unknown.
        requeues: How often the job returns to the queue after reaching its time limit.
        signal_delay: Seconds between signal and time limit.
        history: File that records earlier starts of the job.
        lease: File of the lease on the job's outputs.
        inputs: Files that exist when the job is submitted, with their stamps.
        outputs: Files that exist when the job has completed.
        latency: Seconds that a node may need to see the inputs.
    """

    payload: Nested | Shell
    folder: str
    log: str
    minutes: int
    requeues: int
    signal_delay: int
    history: str
    lease: str
    inputs: Mapping[str, Stamp] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    latency: float = 0.0

    def __call__(self) -> dict[str, Any]:
        """Run the job.

        Returns:
            ``ending`` (value of a :class:`Verdict`), ``status`` (exit status, None if there is none), ``timeouts`` and
            ``preemptions`` (how often the job was requeued), ``error`` (further information), ``outputs`` (stamps of a
            completed job's outputs).

        Raises:
            JobFailed: The job did not complete; holds the same values.
            SystemExit: The job was requeued or stopped; then the scheduler knows the ending.
        """
        environment = submitit.JobEnvironment()
        history = History(Path(self.history))
        debug = environment.cluster == "debug"
        ending: Verdict
        status: int | None
        with open(self.log, "ab", buffering=0) as log:
            run = _Run(self, environment, history, log)
            ending, status = run.foreground() if debug else run.watched()
            facts = [ending.value, f"exit status {status}" if status else "", run.error]
            run.note(", ".join(filter(None, facts)))
        if ending is Verdict.COMPLETED:
            history.add(ending)
        result = {
            "ending": ending.value,
            "status": status,
            "timeouts": history.count(Verdict.TIMED_OUT),
            "preemptions": history.count(Verdict.PREEMPTED),
            "error": run.error,
            "outputs": stamps(self.outputs) if ending is Verdict.COMPLETED else {},
        }
        if ending is Verdict.COMPLETED or debug:
            return result
        raise JobFailed(json.dumps(result))


class _Run:
    """One start of a task."""

    def __init__(self, task: Task, environment: Any, history: History, log: IO[bytes]) -> None:
        self.task, self.environment, self.history, self.log = task, environment, history, log
        self.lease = Lease(Path(task.lease))
        self.started, self.error = time.monotonic(), ""
        self.killed_before = oom_kills()
        start = len(history.events()) + 1
        self.note(f"job {environment.job_id} on {environment.hostname}" + (f", start {start}" if start > 1 else ""))

    def note(self, text: str) -> None:
        """Write a line of our own to the job's log."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self.log.write(f"=== {now} {text} ===\n".encode())

    def foreground(self) -> tuple[Verdict, int | None]:
        """Run in the Snakemake process, which keeps its signal handlers; output goes to the terminal and the log."""
        process = subprocess.Popen(
            ["bash", "-c", self.task.payload.command],
            cwd=self.task.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        with process:
            try:
                for line in process.stdout:
                    self.log.write(line)
                    sys.stderr.write(line.decode(errors="replace"))
            except BaseException:  # a signal that possibly reached only the Snakemake process
                for each in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.terminate()
                process.communicate()
                raise
        return (Verdict.CODE_ERROR if process.returncode else Verdict.COMPLETED), process.returncode

    def watched(self) -> tuple[Verdict, int | None]:
        """Run the command and stop it in time when a signal comes."""
        received: list[int] = []
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            # the handler only records the signal, because the wait below may be in any state
            signal.signal(number, lambda number, _: received.append(number))
        if not self.lease.take(self.note, waits=lambda: not received):
            return self._stopped(None, received[0])
        try:
            if self.history.count(Verdict.COMPLETED):
                # its node was given up just after completion, and other jobs may be reading the outputs now
                return Verdict.COMPLETED, 0
            for check, verdict in ((self._lacking, Verdict.UNSEEN), (self._late, Verdict.NODE_FAILURE)):
                if error := check(received):
                    self.error = error
                    return verdict, None
            return self._command(received)
        finally:
            self.lease.release()

    def _lacking(self, received: list[int]) -> str:
        """Wait for inputs to appear as they were at submission, and describe the first that does not.

        The Snakemake in the job would report a missing one too, but end as if the job were done; half a file it would
        read.
        """
        until = time.monotonic() + self.task.latency
        left = dict(self.task.inputs)
        while True:
            faults = {path: found for path, wanted in left.items() if (found := fault(path, wanted))}
            if not faults or received:
                return ""
            if time.monotonic() >= until:
                return f"{self.environment.hostname} {next(iter(faults.values()))}"
            left = {path: left[path] for path in faults}
            self.lease.beat()
            time.sleep(1.0)

    def _late(self, received: list[int]) -> str:
        """Wait until this node's clock has reached the times of the inputs; describe it if that would take too long.

        Snakemake refuses outputs that are older than their inputs, and deletes them.
        """
        noted = False
        # measured again after each wait: the times of files advance in steps of some milliseconds
        while (late := ahead(self.task.inputs, self.task.log))[0] > 0 and not received:
            seconds, path = late
            if seconds > _CLOCK_SECONDS:
                return f"{path} is dated {seconds:.0f} s after now by the clock of {self.environment.hostname}"
            if not noted:
                self.note(f"{path} is dated {seconds:.1f} s after now by the clock of this node; waiting")
                noted = True
            self.lease.beat()
            time.sleep(min(1.0, seconds))
        return ""

    def _command(self, received: list[int]) -> tuple[Verdict, int | None]:
        """Run the command until it ends or a signal comes."""
        payload = self.task.payload
        try:
            payload.prepare()
        except OSError as error:
            self.error = str(error)
            return Verdict.CODE_ERROR, None
        child = subprocess.Popen(
            [shutil.which("bash") or "bash", "-c", payload.command],
            cwd=self.task.folder,
            env=payload.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ignore_user_signal,
        )
        while child.poll() is None and not received:
            if not self.lease.beat():
                self.note("another process has taken over this job, because this one showed no sign of life; stopped")
                signal_group(child.pid, signal.SIGKILL)
                raise SystemExit(1)
            try:
                child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        # a signal to the whole step may end the command before we pass it on
        if received and not self._completed(child):
            return self._stopped(child, received[0])
        if child.returncode == 0:
            try:
                self.error = payload.finish(self.lease.beat)
            except OSError as error:
                self.error = str(error)
            if not self.error:
                return Verdict.COMPLETED, 0
        self._discard()
        out_of_memory = child.returncode and oom_kills() > self.killed_before
        return (Verdict.OUT_OF_MEMORY if out_of_memory else Verdict.CODE_ERROR), child.returncode

    def _discard(self) -> None:
        """Remove what a failed start has left, unless it belongs to another process now."""
        if self.lease.held():
            try:
                self.task.payload.discard()
            except OSError as error:
                self.note(f"an output of this start cannot be removed: {error}")

    def _completed(self, child: subprocess.Popen[bytes]) -> bool:
        """Return whether a command that may have got a signal has completed."""
        return child.returncode == 0 and self.task.payload.status_after_signal_counts

    def _stopped(self, child: subprocess.Popen[bytes] | None, number: int) -> tuple[Verdict, int | None]:
        """End the command if it runs, determine the cause of the signal, and requeue the job if it should continue."""
        if child:
            signal_group(child.pid, signal.SIGTERM)
        cause = self._cause(number)
        why = cause.value if cause else "stopped"
        told = "; told the job to write its checkpoint" if child else ""
        self.note(f"{signal.Signals(number).name}: {why}{told}")
        if child:
            self._wait_for_end(child)
            if self._completed(child):  # just then
                return Verdict.COMPLETED, 0
            self._discard()
        status = child.returncode if child else None
        if cause is None:
            raise SystemExit(128 + number)
        if cause is Verdict.TIMED_OUT and self.history.count(cause) >= self.task.requeues:
            return cause, status
        self.history.add(cause)
        if not self._requeue():
            return cause, status
        raise SystemExit(128 + number)

    def _wait_for_end(self, child: subprocess.Popen[bytes]) -> None:
        patience = max(5.0, self.task.signal_delay - 10.0)
        if not wait_for_group(child, patience, self.lease.beat):
            self.note(f"the job did not end within {patience:.0f} s: killed")
            signal_group(child.pid, signal.SIGKILL)
            child.wait()

    def _cause(self, number: int) -> Verdict | None:
        """Return the cause of the signal; None if the job was stopped from outside and should not continue.

        The signals before a time limit and before a preemption are the same; only SLURM can distinguish them. If it
        cannot be asked, the clock decides.
        """
        warned = number == signal.SIGUSR2
        if self.environment.cluster == "slurm":
            shown = scontrol("show", "job", self.environment.raw_job_id)
            if shown is not None:
                preempted = "PreemptTime=" in shown and "PreemptTime=None" not in shown
                return Verdict.PREEMPTED if preempted else Verdict.TIMED_OUT if warned else None
        if not warned:
            return None
        left = self.task.minutes * 60 - (time.monotonic() - self.started)
        late = not self.task.minutes or left <= self.task.signal_delay + _SIGNAL_SLACK
        return Verdict.TIMED_OUT if late else Verdict.PREEMPTED

    def _requeue(self) -> bool:
        """Requeue the job; returns False if the site does not allow that."""
        if self.environment.cluster == "local":
            self.note("starts again")
            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if scontrol("requeue", self.environment.job_id) is None:
            self.note("could not be requeued")
            return False
        self.note("back in the queue")
        return True
