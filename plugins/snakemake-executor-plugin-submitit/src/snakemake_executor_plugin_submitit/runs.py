"""Folder of a run: logs, ids of the submitted jobs, and submitit's files."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from snakemake.io import is_flagged

_NAME_BYTES = 180


class RunFolder:
    """``<logdir>/<time>-<pid>``: one log per job, and the record of the run.

    ``jobs.tsv`` lists the jobs: the cluster's id, the log, and the members of a group, as ``rule.wildcard=value``
    separated by spaces. ``events.tsv`` has their events. ``owner.json`` holds host, process and cluster, the working
    directory, and the configuration files given. ``ended`` exists once no job of the run is in the queue. ``submitit/``
    is internal.
    """

    def __init__(self, logdir: Path, cluster: str = "slurm", configs: Sequence[str] = ()) -> None:
        """Make the folder.

        Args:
            logdir: Parent folder of all runs.
            cluster: Name of the cluster.
            configs: The workflow's configuration files.

        Raises:
            OSError: The folder cannot be made or written.
        """
        self.logdir = logdir.expanduser().absolute()
        now = datetime.datetime.now().astimezone()
        self.path = self.logdir / f"{now:%Y-%m-%d_%H-%M-%S}-{os.getpid()}"
        self.submitit = self.path / "submitit"
        self.submitit.mkdir(parents=True)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "cluster": cluster,
            "folder": str(Path.cwd()),
            "configs": [str(Path(config).absolute()) for config in configs],
        }
        (self.path / "owner.json").write_text(json.dumps(owner), "utf-8")
        self._names: dict[str, str] = {}

    def log(self, job: Any) -> Path:
        """Path of a job's log, named after rule and wildcards; a retried job appends to the same file."""
        name = label(job)
        if self._names.setdefault(name, str(job.jobid)) != str(job.jobid):
            name = f"{name}.{job.jobid}"
        return self.path / f"{name}.log"

    def lease(self, job: Any) -> Path:
        """Path of the lease on a job's outputs, the same in all runs."""
        key = json.dumps([str(Path.cwd()), sorted(paths(job, "output")) or label(job)])
        return self.logdir / ".leases" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def record(self, ids: Sequence[str], jobs: Sequence[Any], logs: Sequence[str]) -> None:
        """Record submitted jobs at once, before anything else can fail."""
        with (self.path / "jobs.tsv").open("a", encoding="utf-8") as file:
            for external, job, log in zip(ids, jobs, logs, strict=True):
                members = job.jobs if job.is_group() else [job]
                names = sorted(_single(member) for member in members)
                file.write(f"{external}\t{Path(log).name}\t{' '.join(names)}\n")

    def close(self) -> None:
        """Mark that no job of this run is left in the queue."""
        (self.path / "ended").touch()

    def left_behind(self) -> list[tuple[Path, list[str]]]:
        """Find earlier runs of this machine that died before their jobs ended, with the ids of the jobs."""
        found = []
        for folder in self._others():
            jobs, owner = folder / "jobs.tsv", folder / "owner.json"
            if (folder / "ended").exists() or not jobs.exists() or not owner.exists() or _owner_lives(owner):
                continue
            ids = [line.split("\t")[0] for line in jobs.read_text("utf-8").splitlines()]
            found.append((folder, ids))
        return found

    def prune(self, keep: int) -> None:
        """Delete the oldest ended runs until ``keep`` are left."""
        ended = [folder for folder in self._others() if (folder / "ended").exists()]
        for folder in ended[: max(0, len(ended) - keep + 1)]:
            shutil.rmtree(folder, ignore_errors=True)

    def _others(self) -> list[Path]:
        return sorted(path for path in self.logdir.glob("????-??-??_??-??-??-*") if path != self.path)


def paths(job: Any, kind: str, without: Sequence[str] = ("pipe", "service")) -> list[str]:
    """List absolute paths of a job's files on the shared file system.

    Args:
        job: A job, or a group of jobs.
        kind: ``input`` or ``output``.
        without: Flags of files to leave out.
    """
    files = [file for member in (job.jobs if job.is_group() else [job]) for file in getattr(member, kind)]
    return [
        os.path.abspath(str(file))
        for file in files
        if not file.is_storage and not any(is_flagged(file, flag) for flag in without)
    ]


def _owner_lives(path: Path) -> bool:
    """Return whether the process that made a run's folder may still live; True for one on another machine."""
    owner = json.loads(path.read_text("utf-8"))
    if owner["host"] != socket.gethostname():
        return True
    try:
        started: float = psutil.Process(owner["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - float(owner["started"])) < 1  # otherwise another process has this id now


def _single(job: Any) -> str:
    parts = [job.rule.name, *(f"{key}={value}" for key, value in sorted(job.wildcards_dict.items()))]
    return re.sub(r"[^\w.,=+-]+", "-", ".".join(parts))


def label(job: Any) -> str:
    """Name of a job that is a valid file name: ``rule.wildcard=value…``; a group is named after its first job."""
    if job.is_group():
        names = sorted(_single(member) for member in job.jobs)
        more = f".and-{len(names) - 1}-more" if len(names) > 1 else ""
        name = f"{re.sub(r'[^0-9A-Za-z_.-]+', '-', str(job.groupid))}.{names[0]}"
    else:
        name, more = _single(job), ""
    if len(os.fsencode(name)) > _NAME_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore") + f"~{digest}"
    return name + more
