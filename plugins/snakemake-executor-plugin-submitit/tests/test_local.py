"""The same workflow without SLURM."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import Project

WORKFLOW = """
rule all:
    input: expand("out/{i}", i=range(4))

rule one:
    output: "out/{i}"
    shell: "test {wildcards.i} != 2 || exit 3; date +%s.%N > {output}; sleep 0.2; date +%s.%N >> {output}"
"""


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_behaves_as_on_a_cluster(local_project: Project, cluster: str) -> None:
    output = local_project.run(
        WORKFLOW, "--submitit-cluster", cluster, "--submitit-parallel", "1", "--retries", "0", status=1
    )
    assert sorted(os.listdir(local_project.folder / "out")) == ["0", "1", "3"]
    assert "submitit: one.i=2: code error (exit status 1); given up" in output
    assert "completed" in local_project.logs("one.i=3")
    times = sorted(tuple(map(float, path.read_text().split())) for path in (local_project.folder / "out").iterdir())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), "ran at once"


def test_interrupt_leaves_no_process(local_project: Project) -> None:
    snakefile = "rule one:\n    output: 'one'\n    shell: 'echo $$ > pid; sleep 600; touch {output}'\n"
    process = local_project.start(snakefile, "--submitit-cluster", "local")
    local_project.wait_for_file("pid")
    pid = int((local_project.folder / "pid").read_text())
    process.send_signal(signal.SIGINT)
    process.wait(timeout=300)
    end = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_missing_gpus_are_named_with_what_to_do(local_project: Project) -> None:
    local_project.env["CUDA_VISIBLE_DEVICES"] = ""
    snakefile = "rule one:\n    output: 'one'\n    resources: gpus=1\n    shell: 'touch {output}'\n"
    output = local_project.run(snakefile, "--submitit-cluster", "local", status=1)
    assert "rule one asks for 1 GPU(s), this machine has 0: --set-resources one:gpus=0" in output


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
