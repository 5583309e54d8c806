"""Accounting and limits of a site, on a real one-node SLURM that keeps accounts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator

import pytest
from conftest import ACCOUNTING, WITH_AND_WITHOUT_ACCOUNTING, Project
from slurm_node import SlurmNode
from snakemake_executor_plugin_submitit.slurm import Slurm
from test_slurm import calls, count_calls, in_queue, job_of

MANY = """
rule all:
    input: expand("out/{{i}}", i=range({count}))

rule one:
    output: "out/{{i}}"
    shell: "echo {{wildcards.i}} > {{output}}"
"""
ENDINGS = """
rule all:
    input: "good", "bad", "cancelled", "time", "memory", expand("never/{i}", i=range(3))

rule good:
    output: "good"
    shell: "touch {output}"

rule bad:
    output: "bad"
    shell: "exit 3"

rule cancelled:
    output: "cancelled"
    shell: "touch started.{output}; sleep 600"

rule time:
    output: "time"
    resources: runtime=10
    shell: "touch started.{output}; sleep 600"

rule memory:
    output: "memory"
    resources: mem_mb=200
    shell: "python3 -c 'x = bytearray(500 << 20)'"

# never starts
rule never:
    output: "never/{i}"
    resources: sbatch="--hold"
    shell: "touch {output}"
"""
# endings of jobs without our task
PLAIN = {"COMPLETED": "true", "FAILED": "exit 3", "CANCELLED": "sleep 600", "TIMEOUT": "sleep 600"}


@contextlib.contextmanager
def limit(slurm: SlurmNode, **values: int) -> Iterator[None]:
    """Set limits of the user's association temporarily."""
    for setting in ({key: str(value) for key, value in values.items()}, dict.fromkeys(values, "-1")):
        command = [f"{key}={value}" for key, value in setting.items()]
        slurm.run("sacctmgr", "-i", "modify", "user", "root", "set", *command)
        if setting != dict.fromkeys(values, "-1"):
            yield


@ACCOUNTING
def test_jobs_that_squeue_has_forgotten_are_judged_from_the_accounts(
    project: Project, slurm: SlurmNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_calls(project, slurm)
    with slurm.configured(MinJobAge=2):
        plain = {
            state: slurm.run("sbatch", "--parsable", "--output=/dev/null", "--time=10", f"--wrap={command}")
            for state, command in PLAIN.items()
        }
        process = project.start(ENDINGS, "--retries", "0")
        project.wait_for(r"jobs submitted(.*\n)+.*jobs submitted(.*\n)+.*jobs submitted")
        for name in ("cancelled", "time"):
            project.wait_for_file(f"started.{name}")
        process.send_signal(
            signal.SIGSTOP
        )  # Snakemake pauses until all jobs have ended and squeue no longer lists them
        assert calls(project, "sacct") == {"sacct": 0}
        for job in (job_of(project, "time"), plain["TIMEOUT"]):
            slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now")
        slurm.run("scancel", job_of(project, "cancelled"), job_of(project, "never.i=0").split("_")[0])
        slurm.run("scancel", plain["CANCELLED"])
        end = time.monotonic() + 90
        while slurm.run("squeue", "--noheader", "--states=all"):
            assert time.monotonic() < end, slurm.run("squeue", "--states=all")
            time.sleep(0.5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", slurm.env)
            cluster = Slurm(project.folder, array_size=0, parallel=0, signal_delay=90, setup=[])
            assert cluster.states(plain.values()) == {job: (state, "") for state, job in plain.items()}
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=300) == 1
    output = project.output
    assert (project.folder / "good").exists()
    assert re.search(r"submitit: bad: code error \(exit status 3\); given up", output)
    assert re.search(r"submitit: cancelled: cancelled \(SLURM says CANCELLED\); given up", output)
    assert re.search(r"submitit: time: timed out .*; given up", output)
    assert len(re.findall(r"submitit: never.i=\d: cancelled \(SLURM says CANCELLED\); given up", output)) == 3
    if slurm.limits_memory:
        assert re.search(r"submitit: memory: out of memory .*; given up", output)
    assert "lost" not in output
    assert 0 < calls(project, "sacct")["sacct"] <= calls(project, "squeue")["squeue"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ('account="nix"', "SLURM refuses --account=nix: Invalid account or account/partition combination"),
        ('qos="nix"', "SLURM refuses --qos=nix: Invalid qos specification"),
    ],
)
@ACCOUNTING
def test_an_unknown_account_or_qos_is_named_beside_what_there_is(
    project: Project, slurm: SlurmNode, resources: str, message: str
) -> None:
    snakefile = f"rule one:\n    output: 'one'\n    resources: {resources}\n    shell: 'touch {{output}}'\n"
    output = project.run(snakefile, status=1)
    assert re.search(rf"submitit: rule one: {message}.*; root has account root and qos normal", output)
    assert "jobs submitted" not in output
    assert "Traceback" not in output


@ACCOUNTING
def test_a_known_account_is_charged(project: Project, slurm: SlurmNode) -> None:
    resources = "resources: account='root', qos='normal'"
    snakefile = f"rule one:\n    output: 'one'\n    {resources}\n    shell: 'touch {{output}}'\n"
    project.run(snakefile)
    assert slurm.run("sacct", "-X", "-n", "-P", "-o", "Account", "-j", job_of(project, "one")) == "root"


@ACCOUNTING
def test_a_limit_on_submitted_jobs_is_waited_for(project: Project, slurm: SlurmNode) -> None:
    with limit(slurm, MaxSubmitJobs=3):
        output = project.run(MANY.format(count=7))
    assert output.count("the cluster accepts no more jobs for now") == 1
    assert "AssocMaxSubmitJobLimit" in output
    assert len(list((project.folder / "out").iterdir())) == 7


def test_a_limit_on_all_jobs_of_the_site_is_waited_for(project: Project, slurm: SlurmNode) -> None:
    count_calls(project, slurm)
    with slurm.configured(MaxJobCount=6, MinJobAge=2, MessageTimeout=2):
        output = project.run(MANY.format(count=8))
    assert output.count("the cluster accepts no more jobs for now") == 1
    assert len(list((project.folder / "out").iterdir())) == 8
    assert calls(project, "sacct") == {"sacct": 0}


@WITH_AND_WITHOUT_ACCOUNTING
def test_more_jobs_than_an_array_may_hold_leave_as_several(project: Project, slurm: SlurmNode) -> None:
    count_calls(project, slurm)
    with slurm.configured(MaxArraySize=4):
        project.run(MANY.format(count=9))
    assert len(list((project.folder / "out").iterdir())) == 9
    assert calls(project, "sbatch", "sacct") == {"sbatch": 3, "sacct": 0}
    assert not in_queue(slurm)
