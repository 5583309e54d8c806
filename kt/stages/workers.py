"""Several processes of one job, on its GPU or its cores; each trains one unit at a time and writes its record itself.

The process of the job hands out the units and logs what the others say. A worker that is killed takes nothing along:
its units have their checkpoints, and the others go on. When the job is told to stop, so are its workers; when it is
killed, they stop by themselves. A unit gives the same result, to the bit, in any process with as many threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import platform
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Lock
from typing import Any, NamedTuple, Protocol

from kt import compiler
from kt.control.study import ControlStudy
from kt.errors import Interrupted, KtError
from kt.progress import Progress, on_signal
from kt.study.study import Study
from kt.transfer.unit import Unit

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds after which a signal is noticed while no worker says anything."""

PR_SET_PDEATHSIG = 1
"""Number of Linux's ``prctl``: the signal that a process gets when its parent ends."""


class Job(Protocol):
    """What workers need of a job, as ``kt.stages.jobs`` has them."""

    study: Study | ControlStudy

    @property
    def again(self) -> Callable[[], Job]:
        """Makes the same job in another process."""

    @property
    def title(self) -> str:
        """Its name in the log."""

    def begin(self, threads: int) -> Any:
        """The bench for its units."""

    def unit(self, bench: Any, unit: Unit, key: str, keep: bool) -> None:
        """Train a unit and write its record."""


class Said(NamedTuple):
    """What a worker tells the process of the job.

    Attributes:
        what: ``ready`` for a unit, ``log``, ``failed`` (the job cannot go on), or ``stopped`` by a signal.
        text: the line, or the reason.
        level: of a line of the log.
    """

    what: str
    text: str = ""
    level: int = logging.INFO


class Work(NamedTuple):
    """All that a worker needs.

    Attributes:
        study: the study.
        again: makes the job.
        units: those that may be handed to it, by their keys.
        threads: its CPU threads.
        processes: number of workers.
        keep: keep all students.
        parent: process id of the job.
    """

    study: Study | ControlStudy
    again: Callable[[], Job]
    units: Mapping[str, Unit]
    threads: int
    processes: int
    keep: bool
    parent: int


@dataclass
class _Worker:
    number: int
    process: SpawnProcess
    key: str | None = None


@dataclass
class _Team:
    """The workers by their connections, and what is left to hand out."""

    work: Work
    done: Progress
    waiting: deque[str]
    first: bool
    workers: dict[Connection, _Worker] = field(default_factory=dict)
    idle: list[Connection] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for number in range(1, self.work.processes + 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(theirs, self.work), daemon=True)
            process.start()
            theirs.close()
            self.workers[ours] = _Worker(number, process)

    def hear(self, connection: Connection) -> None:
        """Take one message of a worker; without one it has ended."""
        worker = self.workers[connection]
        try:
            said: Said = connection.recv()
        except (EOFError, OSError):
            self._ended(connection)
            return
        if said.what == "log":
            log.log(said.level, "process %d: %s", worker.number, said.text)
        elif said.what == "ready":
            if worker.key is not None:
                self.done.step(f"{self.work.units[worker.key].title}, process {worker.number}")
            worker.key = None
            self.idle.append(connection)
        elif said.what == "failed":
            self.failed.append(said.text)
            self.waiting.clear()
        else:
            self.stopped.append(said.text)

    def hand_out(self) -> None:
        """Give each idle worker its next unit, or let it go."""
        for connection in list(self.idle):
            if self.waiting and self._must_wait():
                return
            key = self.waiting.popleft() if self.waiting else None
            self.workers[connection].key = key
            self.idle.remove(connection)
            with contextlib.suppress(OSError):  # it has just ended; `hear` will notice
                connection.send(key)

    def _must_wait(self) -> bool:
        """Whether the next unit needs the records of controls that are still running."""
        running = [self.work.units[worker.key] for worker in self.workers.values() if worker.key is not None]
        return (
            self.first
            and not self.work.units[self.waiting[0]].method.control
            and any(unit.method.control for unit in running)
        )

    def tell(self, number: int) -> None:
        """Send a signal to all workers, and hand out nothing more."""
        self.waiting.clear()
        for worker in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                if worker.process.pid is not None:
                    os.kill(worker.process.pid, number)

    def _ended(self, connection: Connection) -> None:
        worker = self.workers.pop(connection)
        connection.close()
        if connection in self.idle:
            self.idle.remove(connection)
        worker.process.join()
        status = worker.process.exitcode or 0
        if status == -signal.SIGTERM:
            self.stopped.append(f"process {worker.number} was stopped before it had begun")
        elif status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            during = f" during {self.work.units[worker.key].title}" if worker.key else ""
            line = f"process {worker.number} of {self.work.processes} {how}{during}"
            log.error("%s", line)
            self.failed.append(f"{line}; what is finished is kept, and the same command goes on")


def run(job: Job, units: Mapping[str, Unit], threads: int, keep: bool, processes: int) -> None:
    """Train units in several processes at once; their records are in the ledger afterwards.

    Args:
        job: whose units they are.
        units: those to train, by their keys.
        threads: CPU threads of the job, divided among the processes.
        keep: keep all students; else those that the configuration asks for.
        processes: how many, at least two.

    Raises:
        Interrupted: the job was told to stop; each worker has written its checkpoint.
        KtError: a worker was killed, or a training cannot begin; the others have ended what they had begun.
    """
    stop, told = on_signal(), False
    work = Work(job.study, job.again, dict(units), max(1, threads // processes), processes, keep, os.getpid())
    exports = keep or job.study.transfer.export != "none"
    team = _Team(work, Progress(job.title, len(units)), deque(units), exports)
    log.info("%s: %d processes, CPU threads of each: %d", job.title, processes, work.threads)
    team.start()
    try:
        while team.workers:
            if stop.is_set() and not told:
                told = True
                team.tell(signal.SIGTERM)
            for connection in wait(list(team.workers), POLL):
                assert isinstance(connection, Connection)
                team.hear(connection)
            team.hand_out()
    finally:
        for worker in team.workers.values():
            worker.process.kill()
            worker.process.join()
    if stop.is_set() or team.stopped:
        raise Interrupted(team.stopped[0] if team.stopped else f"{job.title}: stopped by a signal")
    if team.failed:
        raise KtError(team.failed[0])


def _main(connection: Connection, work: Work) -> None:
    """A worker: train what is handed out, until there is nothing more."""
    _end_with(work.parent)
    compiler.put_off()
    tell = _Teller(connection)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[tell], force=True)
    try:
        job = work.again()
        bench = job.begin(work.threads)
        bench.share(work.processes)
        tell.say(Said("ready"))
        while (key := connection.recv()) is not None:
            job.unit(bench, work.units[key], key, work.keep)
            tell.say(Said("ready"))
    except Interrupted as reason:
        tell.say(Said("stopped", str(reason)))
    except KtError as error:
        tell.say(Said("failed", str(error)))
    except (EOFError, BrokenPipeError):  # the job was killed
        return


def _end_with(parent: int) -> None:
    """Let this process be told to stop when the job's is killed; elsewhere than on Linux it notices after its unit."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


class _Teller(logging.Handler):
    """Sends lines of the log, and what else a worker says, one at a time."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection, self._sending = connection, Lock()

    def say(self, said: Said) -> None:
        """Send a message."""
        with self._sending:
            self._connection.send(said)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line; nobody hears it where the job was killed."""
        with contextlib.suppress(OSError):
            self.say(Said("log", self.format(record), record.levelno))
