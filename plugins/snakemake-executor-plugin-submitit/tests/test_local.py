"""The same workflow without SLURM."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from conftest import Project
from snakemake_executor_plugin_submitit.cpus import quotas

WORKFLOW = """
rule all:
    input: expand("out/{i}", i=range(4))

rule one:
    output: "out/{i}"
    shell: "test {wildcards.i} != 2 || exit 3; date +%s.%N > {output}; sleep 0.2; date +%s.%N >> {output}"
"""


@pytest.mark.parametrize(
    ("cluster", "limit"),
    [("local", ["--submitit-parallel", "1"]), ("local", ["--cores", "1"]), ("debug", [])],
    ids=["parallel", "cores", "debug"],
)
def test_behaves_as_on_a_cluster(local_project: Project, cluster: str, limit: list[str]) -> None:
    output = local_project.run(WORKFLOW, "--submitit-cluster", cluster, *limit, "--retries", "0", status=1)
    assert sorted(os.listdir(local_project.folder / "out")) == ["0", "1", "3"]
    status = 1 if cluster == "debug" else 3  # of the Snakemake in between
    assert f"submitit: one.i=2: code error (exit status {status}); given up" in output
    assert "completed" in local_project.logs("one.i=3")
    times = sorted(tuple(map(float, path.read_text().split())) for path in (local_project.folder / "out").iterdir())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), "ran at once"


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_an_interrupt_waits_for_checkpoints_and_leaves_no_process(local_project: Project, cluster: str) -> None:
    (local_project.folder / "train.py").write_text(
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(2)\n"
        "    open('checkpoint', 'w').close()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open('started', 'w').close()\n"
        "time.sleep(600)\n"
    )
    command = f"trap : TERM; {sys.executable} train.py; touch {{output}}"  # a bare machine has no `python`
    snakefile = f"rule one:\n    output: 'one'\n    shell: '{command}'\n"
    setup = ["--submitit-setup", "true", "true"]
    process = local_project.start(snakefile, "--submitit-cluster", cluster, *setup)
    local_project.wait_for_file("started")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 1
    assert (local_project.folder / "checkpoint").exists()
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(local_project.folder)]


def test_missing_gpus_are_named_with_what_to_do(local_project: Project) -> None:
    local_project.env["CUDA_VISIBLE_DEVICES"] = ""
    snakefile = "rule one:\n    output: 'one'\n    resources: gpus=1\n    shell: 'touch {output}'\n"
    output = local_project.run(snakefile, "--submitit-cluster", "local", status=1)
    assert "rule one requests 1 GPU(s), but this machine has 0: --set-resources one:gpus=0" in output


def test_old_logs_are_cleaned_on_request_but_never_those_of_a_run_that_goes_on(local_project: Project) -> None:
    runs = [local_project.folder / f".snakemake/submitit/2020-01-0{day}_00-00-00-1" for day in (1, 2, 3, 4)]
    for run in runs:
        run.mkdir(parents=True)
        if run != runs[1]:
            (run / "ended").touch()
    snakefile = "rule one:\n    output: 'one'\n    shell: 'touch {output}'\n"
    local_project.run(snakefile, "--submitit-cluster", "local", "--submitit-keep-runs", "2")
    left = sorted(runs[0].parent.glob("2*"))
    assert left[:2] == [runs[1], runs[3]]
    assert len(left) == 3


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, [2.5]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 50000"}, [2.0, 4.0]),
        ("0::/not/seen/from/here", {"cpu.max": "300000 100000"}, [3.0]),
        ("4:memory:/a", {"cpu.max": "300000 100000"}, []),
        (
            "5:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            [1.5],
        ),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("0::/", {"cpu.max": "no numbers here"}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, own: str, files: dict[str, str], found: list[float]) -> None:
    (tmp_path / "own").write_text(own + "\n")
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    assert quotas(tmp_path / "root", tmp_path / "own") == found
