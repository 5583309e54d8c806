"""Studies on a real SLURM: jobs that are taken away again and again lose nothing and do nothing twice."""

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
import warm
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
MODELS = list(STUDY["zoo"]["models"])
TABLE = "results/transfer/mixer/0.parquet"


@contextlib.contextmanager
def running(*nodes: str) -> Iterator[SlurmNode]:
    if reason := missing():
        pytest.skip(f"no SLURM here: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)
        with SlurmNode(Path(folder), nodes=nodes) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmNode]:
    with running() as node:
        yield node


@pytest.fixture
def three() -> Iterator[SlurmNode]:
    with running("a", "b", "c") as cluster:
        if not cluster.may_mount:
            pytest.skip("may not make a mount namespace for each node")
        yield cluster


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that lacks only its transfers."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "config.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data"]) == 0
        for stage in ("weights", "predictions"):
            for model in MODELS:
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


def trainings(folder: Path) -> list[psutil.Process]:
    """The processes that train in a folder."""
    found = psutil.process_iter(["cmdline", "cwd"])
    return [
        each
        for each in found
        if each.info["cwd"] == str(folder) and each.info["cmdline"][1:4] == ["-m", "kt", "transfer"]
    ]


def started(slurm: SlurmNode, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run of a study through the profile."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--nocolor"]
    command += ["--profile", str(ROOT / "slurm"), "--workflow-profile", "none", "--submitit-poll-seconds", "1"]
    command += ["--submitit-poll-max-seconds", "2", "--submitit-grace-seconds", "5", *arguments]
    with (folder / "out.txt").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=slurm.env, stdout=out, stderr=out, text=True)


def test_a_transfer_preempted_three_times_and_timed_out_once_ends_as_an_undisturbed_one(
    slurm: SlurmNode, prepared: Path, tmp_path: Path
) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        shutil.copytree(prepared, folder)
    by_hand = [sys.executable, "-m", "kt", "transfer", "--student", "mixer", "--out", TABLE, "--threads", "1"]
    run = started(slurm, disturbed, TABLE)
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
            trained = trainings(disturbed)[0]
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


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """All tables of a study, without the times that its jobs took; the index of the ledger is none."""
    paths = [path for path in folder.glob("results/**/*.parquet") if path.parent.name != "ledger"]
    found = {str(path.relative_to(folder)): pd.read_parquet(path) for path in paths}
    return {path: table.drop(columns=[name for name in table if "seconds" in name]) for path, table in found.items()}


def test_a_study_on_three_nodes_of_which_none_is_trusted_is_that_of_one_machine(
    three: SlurmNode, tmp_path: Path
) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(STUDY).replace("epochs: 40", "epochs: 15"))
    here = [warm.python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    here += ["--workflow-profile", str(ROOT / "profiles/default"), "--cores", "1"]
    reference = subprocess.Popen(here, cwd=undisturbed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    on: dict[str, psutil.Process] = {}

    def caught() -> bool:
        """Suspend each training; a fast machine would be done before SLURM acts."""
        for process in trainings(disturbed):
            if on.setdefault(process.environ()["SLURMD_NODENAME"], process) == process:
                process.suspend()
        return len(on) == 2

    # all that does not run on the machine of Snakemake anyway
    wanted = ["results/complementarity/test.parquet", *(f"results/transfer/{name}/0.parquet" for name in MODELS)]
    run = started(three, disturbed, "--submitit-sbatch=--exclusive --no-requeue", *wanted)

    def log(rule: str = "transfer") -> str:
        return "".join(path.read_text() for path in disturbed.glob(f"slurm_logs/*/{rule}*.log"))

    try:
        wait_until(caught, run)
        first, second = sorted(on)
        (third,) = {"a", "b", "c"} - {first, second}
        on[first].resume()
        wait_until(lambda: steps(disturbed), run)
        three.fail(first)
        three.run("scontrol", "update", f"NodeName={second}", "State=DRAIN", "Reason=repair")
        for lease in disturbed.glob("slurm_logs/.leases/*"):
            if lease.read_text().startswith(f"{first} "):
                lease.unlink()  # as if a minute and a half had passed without a sign of life
        wait_until(lambda: f" on {third} ===" in log(), run)
        three.stop_slurmd(second)  # its job goes on, though SLURM gives it up
        three.give_up(second)
        three.set_clock(first, 200)
        three.start_slurmd(first, "-b")
        wait_until(lambda: f"on {second} may still work on this job; waiting for its end" in log(), run)
        on[second].resume()
        assert run.wait(timeout=300) == 0, (disturbed / "out.txt").read_text() + log()
    finally:
        run.kill()
        run.wait()
    output = (disturbed / "out.txt").read_text()
    assert output.count("node failure (SLURM says NODE_FAIL); retry 1 of 5") == 2
    assert "given up" not in output
    assert {*re.findall(r" job \S+ on (\w) ===", log("member"))} == {"a", "b"}
    assert log().count(" of 1, took ") == 2  # one training of each student has ended
    finished = subprocess.run(here, cwd=disturbed, check=True, capture_output=True, text=True).stderr
    assert not re.search(r"^(local)?rule (data|member|transfer)", finished, re.MULTILINE)
    assert (disturbed / "results/report.html").exists()
    assert reference.wait(timeout=300) == 0
    found, expected = tables(disturbed), tables(undisturbed)
    assert found.keys() == expected.keys()
    assert {"results/tables/transfers.parquet", "results/complementarity/test.parquet"} < found.keys()
    for path, table in expected.items():
        pd.testing.assert_frame_equal(found[path], table, check_exact=True, obj=path)
