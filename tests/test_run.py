"""A run as a process: stopped by a signal to it alone, in a folder that is in use, of a study outside the clone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from studies import small_zoo

from kt import progress, store
from kt.cli import main

ROOT = Path(__file__).resolve().parent.parent
STUDY: dict[str, Any] = {
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 200, "validation": 20, "test": 60}},
    "zoo": small_zoo(
        byob={"arch": "test_byobnet", "train": {"epochs": 1}},
        mixer={"arch": "tiny_mixer", "train": {"epochs": 1}},
    ),
    "pairs": {"select": "all"},
    "transfer": {"methods": {"kl_dp": {}}, "seeds": [0], "training": {"epochs": 24, "batch_size": 10, "lr": 1e-3}},
}
TABLE = "results/transfer/mixer/0.parquet"
HERE = ["--cores", "1"]
CLUSTER = ["--profile", str(ROOT / "slurm"), "--submitit-cluster", "local", "--submitit-poll-seconds", "1"]
CLUSTER += ["--submitit-poll-max-seconds", "2", "--submitit-grace-seconds", "5"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that lacks only its transfers."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KT_CONFIG", "study.yaml")
        assert main(["data"]) == 0
        for stage in ("weights", "predictions"):
            for model in STUDY["zoo"]["models"]:
                assert main([stage, "--model", model]) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> pd.DataFrame:
    """The table of a transfer that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        patch.setenv("KT_CONFIG", "study.yaml")
        assert main(["transfer", "--student", "mixer", "--out", "undisturbed.parquet"]) == 0
    shutil.rmtree(prepared / "results/ledger")
    return pd.read_parquet(prepared / "undisturbed.parquet")


@pytest.fixture
def study(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the study, in a folder that has nothing else of the clone."""
    return Path(shutil.copytree(prepared, tmp_path / "elsewhere"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--configfile", "study.yaml", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, text=True, capture_output=True, timeout=300)


def processes(folder: Path) -> list[psutil.Process]:
    """What works in a folder."""
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]


def wait_for_steps(folder: Path, least: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 180
    while sum(int.from_bytes(p.read_bytes(), "little") for p in folder.glob("results/checkpoints/*.steps")) < least:
        assert process.poll() is None, (folder / "out.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "number"),
    [(HERE, signal.SIGTERM), (HERE, signal.SIGINT), (CLUSTER, signal.SIGTERM)],
    ids=["SIGTERM", "SIGINT", "as on a cluster"],
)
def test_a_signal_to_snakemake_alone_stops_the_trainings_which_go_on_with_the_next_run(
    study: Path, undisturbed: pd.DataFrame, how: list[str], number: signal.Signals
) -> None:
    with (study / "out.txt").open("w") as out:
        process = subprocess.Popen(command(*how, "--", TABLE), cwd=study, stdout=out, stderr=out, text=True)
    try:
        wait_for_steps(study, 20, process)
        process.send_signal(number)
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
    assert not processes(study)
    assert "kt: stopped; the same command goes on where this run ended" in (study / "out.txt").read_text()
    log = study / "results/logs/transfer/mixer.0.log"
    (step,) = re.findall(r"stopped by a signal after step (\d+)", log.read_text())
    assert int(step) < 480

    again = run(study, *how, "--", TABLE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"goes on from its checkpoint after step {step}: 0 steps are done twice" in log.read_text()
    table = pd.read_parquet(study / TABLE)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), undisturbed.drop(columns="seconds"), check_exact=True)
    if how is CLUSTER:  # asked from anywhere, of a run whose profile lies elsewhere
        record = subprocess.run(
            [sys.executable, "-m", "kt", "status", "--config", "elsewhere/study.yaml"],
            cwd=study.parent, text=True, capture_output=True,
        )  # fmt: skip
        assert re.search(r"^transfer +1 .* 2$", record.stdout, re.MULTILINE), record.stdout + record.stderr
        assert (study / "results/logs/cluster").read_text().strip() == str(study / "slurm_logs")


def test_a_job_on_a_cluster_recomputes_a_damaged_record_and_then_has_nothing_to_do(
    study: Path, undisturbed: pd.DataFrame
) -> None:
    assert run(study, *CLUSTER, "--", TABLE).returncode == 0
    (record,) = (study / "results/ledger").glob("??/*.json")
    whole = record.read_bytes()
    record.write_bytes(whole[:-5])
    again = run(study, *CLUSTER, "--", TABLE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (study / "results/ledger/damaged" / record.name).read_bytes() == whole[:-5]
    table = pd.read_parquet(study / TABLE)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), undisturbed.drop(columns="seconds"), check_exact=True)
    plan = run(study, "-n", "--", TABLE)
    assert "Nothing to be done" in plan.stdout + plan.stderr


@pytest.mark.parametrize("how", [HERE, CLUSTER], ids=["here", "as on a cluster"])
def test_a_folder_in_use_is_one_line(study: Path, how: list[str]) -> None:
    with store.lock(study / "results"):
        refused = run(study, *how, "--", TABLE)
    assert refused.returncode == 1
    after = refused.stderr[refused.stderr.index("total ") :].splitlines()[1:]
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    assert [line for line in after if line] == [
        f"results: {study}/results is in use by another run ({holder}); wait for it or stop it"
    ]
    assert not (study / TABLE).exists()


@pytest.mark.parametrize("how", [[], CLUSTER], ids=["here", "the profile by its path"])
def test_a_study_outside_the_clone_is_planned_with_the_clones_profiles(study: Path, how: list[str]) -> None:
    plan = run(study, "-n", *how)
    assert plan.returncode == 0, plan.stderr
    assert f"workflow specific profile {ROOT / 'profiles/default'}" in plan.stderr
    assert re.search(r"^transfer +2$", plan.stdout + plan.stderr, re.MULTILINE)
    assert not (study / "slurm_logs").exists()


def test_jobs_of_a_cluster_need_no_default_resources(study: Path) -> None:
    (study / "results/data/meta.json").unlink()
    done = run(study, "--executor", "submitit", *CLUSTER[2:], "--jobs", "1", "--", "results/data/meta.json")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def handlers() -> Iterator[None]:
    """Sets the signals' handlers to their defaults, as `nohup` ignores some, and back."""
    numbers = (*progress.SIGNALS, signal.SIGUSR2)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [*progress.SIGNALS, signal.SIGUSR2])
def test_a_stage_takes_note_of_each_signal_and_a_second_ctrl_c_interrupts_it(
    handlers: None, number: signal.Signals
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop: Event = progress.on_signal()
    assert not stop.is_set()
    signal.raise_signal(number)
    assert stop.is_set()
    signal.raise_signal(signal.SIGTERM)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored(handlers: None) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stop = progress.on_signal()
    progress.end_stages_too()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.is_set()


def test_a_stage_that_starts_after_the_signal_is_stopped_too(tmp_path: Path) -> None:
    (tmp_path / "kt.py").write_text("import time\nopen('started', 'w').close()\ntime.sleep(600)\n")
    code = """
import subprocess, sys, threading
from kt import progress
progress.end_stages_too()
shell = subprocess.Popen(["bash", "-c", "sleep 1; cd $1; $0 -m kt; echo ended", sys.executable, sys.argv[1]])
try:
    print("ready", flush=True)
    threading.Event().wait()
except KeyboardInterrupt:
    shell.wait()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    snakemake = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert snakemake.stdout is not None
    assert snakemake.stdout.readline() == "ready\n"
    snakemake.terminate()
    assert snakemake.communicate(timeout=120)[0] == "ended\n"
