"""States of cluster jobs, from the records of the executor plugin and one call of ``squeue``.

Each run of the workflow has a folder with ``owner.json``, ``jobs.tsv`` and ``events.tsv``; the plugin's README
describes them. They tell the truth as long as the run's Snakemake lives; of jobs that had not ended by then, SLURM is
asked.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml

from kt.layout import Layout

ACTIVE = ("running", "queued", "requeued")
_MANY = 500  # more ids than this, and the whole queue of the user is asked for instead
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_GOING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING")


@dataclass
class Job:
    """The latest submission of a job.

    Attributes:
        name: the job's name.
        log: its log.
        external: SLURM's id.
        state: ``running``, ``queued``, ``requeued`` (in the queue again), ``done``, ``failed``, ``stopped`` with its
            run, or ``gone`` where nobody saw how it ended.
        cause: why it is in the queue again, or how it failed.
        at: when that became known.
        cpus: cores.
        gpus: GPUs.
        started: when it was last seen to start.
    """

    name: str
    log: Path
    external: str
    state: str
    at: datetime
    cause: str = ""
    cpus: int = 1
    gpus: int = 0
    started: datetime | None = None


@dataclass
class Record:
    """The runs of one study.

    Attributes:
        jobs: the latest of every job, by the names of its members: `rule.wildcard=value`.
        gpu_seconds: given to jobs so far, number of GPUs times time.
        cpu_seconds: the same of cores, for jobs without a GPU.
        seen: when the plugin last wrote something down; None where there is no run.
        asked: whether SLURM itself was asked; None where that was not needed.
        alive: ``process 12 on login1`` of a run that goes on, else empty.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    seen: datetime | None = None
    asked: bool | None = None
    alive: str = ""


def log_folder(layout: Layout, study: Path) -> Path:
    """Where the folders of runs are: as the latest run says, else as the profile, else ``slurm_logs`` in the study's.

    The profile ``slurm`` is the one in the study's folder, else that in the current folder.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(layout.cluster_logs.read_text("utf-8").strip())
    profile = next((path for place in (study, Path()) if (path := place / "slurm/config.yaml").is_file()), study)
    try:
        settings = yaml.safe_load(profile.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = {}
    named = settings.get("submitit-logdir") if isinstance(settings, dict) else None
    return study / Path(str(named or "slurm_logs")).expanduser()


def read(logs: Path, config: Path, now: datetime) -> Record:
    """All that is known of the cluster jobs of a study.

    Args:
        logs: the folder of run folders.
        config: the study's file; runs of other studies are left out.
        now: the time, for jobs that are running.
    """
    record = Record()
    open_jobs: dict[str, Job] = {}
    for folder in sorted(path.parent for path in logs.glob("*/events.tsv")):
        owner = _owner(folder)
        if os.path.realpath(_config(owner)) != os.path.realpath(config):
            continue
        jobs = _replay(folder, record)
        if (folder / "ended").exists():
            for job in jobs.values():
                job.state = "stopped" if job.state in ACTIVE else job.state
        elif _lives(owner):
            record.alive = f"process {owner['pid']} on {owner['host']}"
        if owner.get("cluster") == "slurm":
            open_jobs |= {job.external: job for job in jobs.values() if job.state in ACTIVE and job.external}
        members = _members(folder)
        record.jobs |= {member: job for job in jobs.values() for member in members.get(job.log.name, [job.name])}
    if open_jobs:
        states = _squeue(open_jobs)
        record.asked = states is not None
        if states is not None:
            _look(open_jobs, states)
    for job in {id(job): job for job in record.jobs.values()}.values():
        if job.state == "running":
            _charge(record, job, now)
    return record


def _owner(folder: Path) -> Mapping[str, object]:
    try:
        owner: dict[str, object] = json.loads((folder / "owner.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return owner


def _config(owner: Mapping[str, object]) -> Path:
    """The configuration file of a run: the one that was given, else that of its folder."""
    given = owner.get("configs")
    last = given[-1] if isinstance(given, list) and given else "config.yaml"
    return Path(str(owner.get("folder", "/"))) / str(last)


def _lives(owner: Mapping[str, object]) -> bool:
    pid = owner.get("pid")
    return owner.get("host") == socket.gethostname() and isinstance(pid, int) and os.path.exists(f"/proc/{pid}")


def _replay(folder: Path, record: Record) -> dict[str, Job]:
    """The jobs of one run after all its events."""
    jobs: dict[str, Job] = {}
    for line in (folder / "events.tsv").read_text("utf-8", errors="replace").splitlines():
        try:
            when, external, name, event, detail = line.split("\t")
            at = datetime.fromisoformat(when)
        except ValueError:  # half a line, written just now
            continue
        if event == "submitted":
            facts = dict(word.split("=", 1) for word in detail.split())
            job = Job(name, folder / f"{name}.log", external, "queued", at)
            job.cpus, job.gpus = int(facts.get("cpus", 1)), int(facts.get("gpus", 0))
            if name in jobs and jobs[name].state == "requeued":  # ended and submitted anew
                job.state, job.cause = "requeued", jobs[name].cause
            jobs[name] = job
            continue
        job = jobs.setdefault(name, Job(name, folder / f"{name}.log", external, "queued", at))
        if event == "running":
            job.state, job.started, job.cause = "running", at, ""
        else:
            _charge(record, job, at)
            ended = "done" if detail == "completed" else "failed"
            job.state = ended if event == "ended" else "requeued"
            job.cause = "" if job.state == "done" else detail
        job.at = at
    record.seen = max(filter(None, [record.seen, *(job.at for job in jobs.values())]), default=None)
    return jobs


def _charge(record: Record, job: Job, until: datetime) -> None:
    if job.started:
        seconds = max(0.0, (until - job.started).total_seconds())
        record.gpu_seconds += job.gpus * seconds
        record.cpu_seconds += 0 if job.gpus else job.cpus * seconds
        job.started = None


def _members(folder: Path) -> dict[str, list[str]]:
    """The members of each job, by the name of its log."""
    try:
        lines = (folder / "jobs.tsv").read_text("utf-8").splitlines()
    except OSError:
        return {}
    rows = (line.split("\t") for line in lines)
    return {row[1]: row[2].split() for row in rows if len(row) == 3}


def _squeue(ids: Iterable[str]) -> dict[str, str] | None:
    """State of each job that SLURM knows; None where it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    bases = sorted({external.split("_")[0] for external in ids})
    which = f"--jobs={','.join(bases)}" if len(bases) <= _MANY else f"--user={getpass.getuser()}"
    command = ["squeue", which, "--array", "--states=all", "--noheader", "--format=%i|%T"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if shown.returncode and "Invalid job id" not in shown.stderr:
        return None
    rows = (line.split("|", 1) for line in shown.stdout.splitlines() if "|" in line)
    return {row[0]: row[1] for row in rows}


def _look(jobs: Mapping[str, Job], states: Mapping[str, str]) -> None:
    """Bring jobs up to date with what SLURM says."""
    for external, job in jobs.items():
        state = states.get(external, "")
        if state in _GOING:
            job.state, job.cause = "running", ""
        elif state in _WAITING and job.state == "running":
            job.state, job.cause = "requeued", "unknown cause"
        elif state not in _WAITING:
            job.state, job.cause = "gone", state.lower().replace("_", " ")
