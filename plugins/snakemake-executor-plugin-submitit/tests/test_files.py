"""Files of other machines that appear late, in part, or with other times; causes of requeues and signals."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import checks, slurm
from snakemake_executor_plugin_submitit.files import ahead, fault, stamp, stamps
from snakemake_executor_plugin_submitit.history import History
from snakemake_executor_plugin_submitit.payload import Nested
from snakemake_executor_plugin_submitit.processes import scontrol
from snakemake_executor_plugin_submitit.task import Task, _Run
from snakemake_executor_plugin_submitit.verdict import requeued


def _made(path: Path, size: int, changed: float) -> str:
    path.write_bytes(bytes(size))
    os.utime(path, (changed, changed))
    return str(path)


def test_a_file_is_as_it_should_be_or_newer(tmp_path: Path) -> None:
    path = _made(tmp_path / "x", 10, 1000.5)
    assert stamp(path) == (10, 1000.5)
    assert fault(path, (10, 1000.5)) == ""
    assert fault(path, (10, 1001.0)) == ""  # a file system that keeps whole seconds
    assert fault(path, (20, 900.0)) == ""  # changed since
    assert fault(path, (20, 1000.5)) == f"sees an old state of {path}: 10 bytes from 0 s before the latest 20"
    assert fault(path, (10, 1060.5)) == f"sees an old state of {path}: 10 bytes from 60 s before the latest 10"
    assert fault(f"{path}y", (10, 0.0)) == f"does not see {path}y"
    assert fault(str(tmp_path), stamps([str(tmp_path), f"{path}y"])[str(tmp_path)]) == ""


def _run(tmp_path: Path, inputs: dict[str, tuple[int, float]], latency: float = 0.0) -> _Run:
    (tmp_path / "log").touch()
    task = Task(Nested("true"), "", str(tmp_path / "log"), 0, 0, 0, "", str(tmp_path / "lease"), inputs, (), latency)
    environment: Any = SimpleNamespace(job_id="7", hostname="n1")
    return _Run(task, environment, History(tmp_path / "history"), io.BytesIO())


def test_a_job_waits_until_it_sees_the_whole_of_its_inputs(tmp_path: Path) -> None:
    wanted = {name: stamps([_made(tmp_path / name, 10, 1000.0)])[str(tmp_path / name)] for name in ("x", "y")}
    inputs = {str(tmp_path / name): each for name, each in wanted.items()}
    _made(tmp_path / "x", 5, 900.0)
    (tmp_path / "y").unlink()
    lacking = _run(tmp_path, inputs)._lacking([])
    assert lacking.startswith(f"n1 sees an old state of {tmp_path}/x: 5 bytes")
    appear = threading.Timer(0.5, lambda: [_made(tmp_path / name, 10, 1000.0) for name in ("x", "y")])
    appear.start()
    assert _run(tmp_path, inputs, latency=60)._lacking([]) == ""


def test_a_job_waits_until_its_clock_has_reached_the_times_of_its_inputs(tmp_path: Path) -> None:
    path = _made(tmp_path / "x", 10, time.time() + 1.5)
    run = _run(tmp_path, {path: (10, 0.0)})
    assert run._late([]) == ""
    assert ahead([path], str(tmp_path / "log"))[0] <= 0
    assert isinstance(run.log, io.BytesIO)
    assert b"s after now by the clock of this node; waiting" in run.log.getvalue()
    _made(tmp_path / "x", 10, time.time() + 1000)
    assert run._late([]).endswith("s after now by the clock of n1")


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("slurmstepd-n1: error: *** JOB 3 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***", "by hand"),
        ("slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("srun: error: Node failure on n1", "node failure"),
        ("srun: error: n1: task 0: Terminated", ""),
        ("srun: error: Node failure on n1\nStarting with JobEnvironment()\nfine", ""),
    ],
)
def test_cause_of_a_requeue_in_the_output_of_slurm(output: str, cause: str) -> None:
    assert requeued(output) == cause


NODE = "NodeName=n1 Arch=x86_64\n   State={state} ThreadsPerCore=1\n   BootTime={boot} SlurmdStartTime=None\n"


@pytest.mark.parametrize(
    ("state", "boot", "answer", "cause"),
    [
        ("DOWN*", "2026-01-01T00:00:00", "", "node failure"),
        ("IDLE*", "2026-01-01T00:00:00", "", "node failure"),
        ("MIXED+DRAIN", "2026-01-01T00:00:00", "", ""),
        ("IDLE", "2026-01-03T00:00:00", "", "node failure"),
        ("IDLE", "None", "", ""),
        ("IDLE", "2026-01-01T00:00:00", "NODE_FAIL\nPENDING\n", "node failure"),
        ("DOWN", "2026-01-01T00:00:00", "NODE_FAIL\nREQUEUED\nRUNNING\n", "by hand"),
        ("IDLE", "2026-01-01T00:00:00", "PREEMPTED\nPENDING\n", "preempted"),
    ],
)
def test_cause_of_a_requeue_from_accounts_and_node(
    monkeypatch: pytest.MonkeyPatch, state: str, boot: str, answer: str, cause: str
) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        shown = {"squeue": "7|RUNNING|n1|None\n", "sacct": answer, "scontrol": NODE.format(state=state, boot=boot)}
        return subprocess.CompletedProcess(command, 0, shown[command[0]], "")

    monkeypatch.setattr(slurm, "run", run)
    monkeypatch.setattr(checks, "run", run)
    monkeypatch.setattr(slurm.time, "time", lambda: time.mktime((2026, 1, 2, 0, 0, 0, 0, 0, -1)))
    cluster = object.__new__(slurm.Slurm)
    cluster.accounting, cluster.user, cluster._starts, cluster._waiting = bool(answer), "me", {}, set()
    assert cluster.states(["7"]) == {"7": ("RUNNING", "None")}
    assert (cluster.node("7"), cluster.requeued("7")) == ("n1", cause)


def test_a_job_that_runs_again_on_its_node_is_a_new_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    shown = iter(["7|RUNNING|n1|None", "7|RUNNING|n1|None", "7|PENDING||BeginTime", "7|RUNNING|n1|None"])
    ask: Callable[..., Any] = lambda *command: subprocess.CompletedProcess(command, 0, next(shown), "")  # noqa: E731
    monkeypatch.setattr(slurm, "run", ask)
    monkeypatch.setattr(slurm.time, "time", lambda: now[0])
    cluster = object.__new__(slurm.Slurm)
    cluster.accounting, cluster.user, cluster._starts, cluster._waiting = False, "me", {}, set()
    found = []
    for now[0] in (1.0, 2.0, 3.0, 4.0):
        cluster.states(["7"])
        found.append(cluster._starts["7"])
    assert found == [("n1", 1.0), ("n1", 1.0), ("n1", 1.0), ("n1", 4.0)]


def test_signals_to_the_whole_step_do_not_end_the_question_for_their_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nkill -USR2 $$; kill -TERM $$; echo $@\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert scontrol("show", "job") == "show job\n"
