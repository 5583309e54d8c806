"""Fixtures: one real SLURM for all tests of a session, and workflows to run on it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from slurm_node import SlurmNode, missing

FAST = ["--submitit-poll-seconds", "1", "--submitit-poll-max-seconds", "2", "--submitit-grace-seconds", "4"]


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[..., SlurmNode]]:
    """Real SLURMs, with and without accounting, of one or several nodes, each started when a test first needs it."""
    running: dict[tuple[bool, Sequence[str]], SlurmNode] = {}
    with contextlib.ExitStack() as stack:

        def get(accounting: bool = False, nodes: Sequence[str] = ()) -> SlurmNode:
            if (accounting, nodes) not in running:
                if reason := missing(accounting=accounting):
                    pytest.skip(f"no SLURM{' with accounting' if accounting else ''} here: {reason}")
                # pytest's own folders can be too long for the path of a socket
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm")))
                folder.chmod(0o755)
                node = SlurmNode(folder, accounting=accounting, nodes=nodes)
                running[accounting, nodes] = stack.enter_context(node)
            return running[accounting, nodes]

        yield get


@pytest.fixture
def slurm(clusters: Callable[..., SlurmNode], request: pytest.FixtureRequest) -> SlurmNode:
    """A real one-node SLURM, the same for all tests; without accounting unless the test says ``ACCOUNTING``."""
    return clusters(getattr(request, "param", False))


ACCOUNTING = pytest.mark.parametrize("slurm", [True], ids=["accounting"], indirect=True)
WITH_AND_WITHOUT_ACCOUNTING = pytest.mark.parametrize("slurm", [False, True], ids=["", "accounting"], indirect=True)


@pytest.fixture
def three(clusters: Callable[..., SlurmNode]) -> Iterator[SlurmNode]:
    """A SLURM of three nodes; all of them are idle at the start, and see the same files."""
    cluster = clusters(nodes=("a", "b", "c"))
    if not cluster.may_mount:
        pytest.skip("may not make a mount namespace for each node")
    yield cluster
    cluster.repair()


class Project:
    """A folder with a Snakefile."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.process: subprocess.Popen[str] | None = None

    def start(self, snakefile: str, *arguments: str, jobs: int = 100) -> subprocess.Popen[str]:
        """Start Snakemake; its output goes to ``out.txt``."""
        (self.folder / "Snakefile").write_text(snakefile)
        command = [sys.executable, "-m", "snakemake", "--executor", "submitit", "--jobs", str(jobs), "--nocolor"]
        command += ["--scheduler", "greedy", "--latency-wait", "5", "--keep-going", *FAST, *arguments]
        with (self.folder / "out.txt").open("w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                # a test run in the background of a shell inherits SIGINT as ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return self.process

    def stop(self) -> None:
        """End Snakemake if a failed test left it running."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def run(self, snakefile: str, *arguments: str, status: int = 0) -> str:
        """Run Snakemake and return what it printed."""
        process = self.start(snakefile, *arguments)
        code = process.wait(timeout=300)
        assert code == status, self.output
        return self.output

    @property
    def output(self) -> str:
        """Output of Snakemake so far."""
        return (self.folder / "out.txt").read_text()

    def wait_for(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """Wait until Snakemake prints something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.output):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} not in:\n{self.output}{self.queue()}")

    def wait_for_file(self, name: str, seconds: float = 120) -> None:
        """Wait until a job has made a file."""
        end = time.monotonic() + seconds
        while not (self.folder / name).exists():
            assert time.monotonic() < end, self.output + self.logs() + self.queue()
            time.sleep(0.1)

    def queue(self) -> str:
        """State of SLURM, for the message of a failed test."""
        if "SLURM_CONF" not in self.env:
            return ""
        shown = (["squeue", "--states=all"], ["sinfo", "--list-reasons"])
        return "".join(subprocess.run(each, env=self.env, capture_output=True, text=True).stdout for each in shown)

    def logs(self, pattern: str = "*") -> str:
        """The job logs of all runs."""
        files = sorted((self.folder / ".snakemake/submitit").glob(f"*/{pattern}.log"))
        return "".join(file.read_text() for file in files)


@pytest.fixture
def project(slurm: SlurmNode, tmp_path: Path) -> Iterator[Project]:
    """A project whose jobs go to SLURM."""
    made = Project(tmp_path, slurm.env)
    yield made
    made.stop()
    slurm.clear()


@pytest.fixture
def three_project(three: SlurmNode, tmp_path: Path) -> Iterator[Project]:
    """A project whose jobs go to a SLURM of three nodes."""
    made = Project(tmp_path, three.env)
    yield made
    made.stop()


@pytest.fixture
def local_project(tmp_path: Path) -> Iterator[Project]:
    """A project without SLURM."""
    made = Project(tmp_path, dict(os.environ))
    yield made
    made.stop()
