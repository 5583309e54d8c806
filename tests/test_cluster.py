"""A transfer job on a real one-node SLURM: taken away again and again, it loses nothing and does nothing twice."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from studies import small_zoo

from kt.cli import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "plugins/snakemake-executor-plugin-submitit/tests"))

from slurm_node import SlurmNode, missing  # noqa: E402

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 200, "validation": 20, "test": 60}},
    "zoo": small_zoo(
        byob={"arch": "test_byobnet", "train": {"epochs": 1}},
        mixer={"arch": "tiny_mixer", "train": {"epochs": 1}},
    ),
    "pairs": {"select": "all"},
    "transfer": {"methods": {"kl_dp": {}}, "seeds": [0], "training": {"epochs": 40, "batch_size": 10, "lr": 1e-3}},
}
TABLE = "results/transfer/mixer/0.parquet"


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmNode]:
    if reason := missing():
        pytest.skip(f"no SLURM here: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)
        with SlurmNode(Path(folder)) as node:
            yield node


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that lacks only its transfers."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "config.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data"]) == 0
        for stage in ("weights", "predictions"):
            for model in STUDY["zoo"]["models"]:
                assert main([stage, "--model", model]) == 0
    return folder


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run has ended"
        assert time.monotonic() < end
        time.sleep(0.05)


def steps(folder: Path) -> int:
    """Steps that the training has done so far."""
    return sum(int.from_bytes(path.read_bytes(), "little") for path in folder.glob("results/checkpoints/*.steps"))


def minutes(slurm: SlurmNode, job: str) -> int:
    """For how many whole minutes a job has been running."""
    clock = slurm.run("squeue", "--noheader", f"--jobs={job}", "--format=%M")
    return int(clock.split(":")[-2])


def training(folder: Path) -> psutil.Process:
    """The process that trains in a folder."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(folder) and process.info["cmdline"][1:4] == ["-m", "kt", "transfer"]:
            return process
    raise LookupError


def test_a_transfer_preempted_three_times_and_timed_out_once_ends_as_an_undisturbed_one(
    slurm: SlurmNode, prepared: Path, tmp_path: Path
) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        shutil.copytree(prepared, folder)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--nocolor"]
    command += ["--profile", str(ROOT / "slurm"), "--workflow-profile", "none", "--submitit-poll-seconds", "1"]
    command += ["--submitit-poll-max-seconds", "2", "--submitit-grace-seconds", "5", TABLE]
    by_hand = [sys.executable, "-m", "kt", "transfer", "--student", "mixer", "--out", TABLE, "--threads", "1"]
    with (disturbed / "out.txt").open("w") as out:
        run = subprocess.Popen(command, cwd=disturbed, env=slurm.env, stdout=out, stderr=out, text=True)
    reference = subprocess.Popen(by_hand, cwd=undisturbed, env={**os.environ, "KT_CONFIG": "config.yaml"})

    def log() -> str:
        return "".join(path.read_text() for path in disturbed.glob("slurm_logs/*/transfer*.log"))

    def starts() -> int:
        return len(re.findall(r"^=== \S+ \S+ job \S+ on ", log(), re.MULTILINE))

    try:
        for count, cause in enumerate(("preempted", "preempted", "preempted", "timed out"), 1):
            done = steps(disturbed)
            wait_until(lambda: steps(disturbed) > done, run)  # noqa: B023
            # a fast machine would be done before SLURM acts
            trained = training(disturbed)
            trained.suspend()
            job = next(disturbed.glob("slurm_logs/*/jobs.tsv")).read_text().splitlines()[-1].split("\t")[0]
            if cause == "preempted":
                slurm.run("sbatch", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=true")
            else:  # less than the signal delay is left
                slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes(slurm, job) + 2}")
            wait_until(lambda: log().count("told the job to write its checkpoint") == count, run)  # noqa: B023
            with contextlib.suppress(psutil.NoSuchProcess):  # SLURM's own SIGCONT was faster
                trained.resume()
            wait_until(lambda: log().count("back in the queue") == count, run)  # noqa: B023
            if cause == "timed out":
                slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60", check=False)
            # where SLURM takes the end of the last start for the job's, the executor submits it anew
            wait_until(lambda: starts() > count or slurm.release_held(), run)  # noqa: B023
        assert run.wait(timeout=300) == 0, (disturbed / "out.txt").read_text() + log()
        assert reference.wait(timeout=300) == 0
    finally:
        for process in (run, reference):
            process.kill()
            process.wait()
    found = re.findall(r"(preempted|timed out); told the job to write its checkpoint", log())
    assert found == ["preempted"] * 3 + ["timed out"]
    stopped = re.findall(r"stopped by a signal after step (\d+)", log())
    resumed = re.findall(r"goes on from its checkpoint after step (\d+): (\d+) steps are done twice", log())
    assert len(stopped) == 4
    assert resumed == [(step, "0") for step in stopped]
    assert not slurm.run("squeue", "--noheader")
    tables = (pd.read_parquet(folder / TABLE).drop(columns="seconds") for folder in (disturbed, undisturbed))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
