"""All faults of jobs at once: none must affect other jobs."""

from __future__ import annotations

import re
import signal
import time

from conftest import Project
from slurm_node import SlurmNode
from test_slurm import calls, count_calls, in_queue, job_of, release_until_end

FIFTY = """
rule all:
    input: expand("out/{i}", i=range(45)), "memory", "code", "cancelled", "preempted", "node"

rule one:
    output: "out/{i}"
    resources: sbatch="--nice=100"  # the others first
    shell: "echo {wildcards.i} > {output}"

rule memory:
    output: "memory"
    resources: mem_mb=200
    shell: "test -e mended || python3 -c 'x = bytearray(500 << 20)'; touch {output}"

rule code:
    output: "code"
    shell: "test -e mended || exit 3; touch {output}"

rule cancelled:
    output: "cancelled"
    shell: "test -e mended || {{ touch started; sleep 600; }}; touch {output}"

rule node:
    output: "node"
    shell: "test -e gone || {{ touch gone; sleep 600; }}; touch {output}"

# SLURM must not requeue it
rule preempted:
    output: "preempted"
    resources: partition="cancel", gpus=4, sbatch="--no-requeue"
    shell: "test -e again || {{ touch again; sleep 600; }}; touch {output}"
"""


def lose_node(slurm: SlurmNode) -> None:
    """Kill the node's daemon, and start it again once the controller has given the node up."""
    slurm.stop_slurmd()
    slurm.wait_for_nodes("down", *slurm.nodes)
    slurm.start_slurmd()


def test_of_fifty_jobs_each_ends_as_it_should_and_a_second_call_does_the_rest(
    project: Project, slurm: SlurmNode
) -> None:
    process = project.start(FIFTY, "--retries", "0")
    project.wait_for_file("started")
    project.wait_for_file("again")
    jobs = {label: job_of(project, label) for label in ("code", "cancelled", "preempted")}
    slurm.run("scancel", jobs["cancelled"])
    slurm.run("sbatch", "--partition=high", "--gpus-per-node=4", "--output=/dev/null", "--wrap=sleep 1")
    for label in jobs:
        project.wait_for(f"submitit: {label}: ")
    project.wait_for_file("gone")
    lose_node(slurm)
    release_until_end(slurm, process, 500)

    failed = {"code": "code error (exit status 3)", "cancelled": "cancelled (SLURM says CANCELLED)"}
    if slurm.limits_memory:
        failed["memory"] = "out of memory (exit status 137)"
    assert process.returncode == 1
    endings = re.findall(r"^submitit: (\S+): (.*); (.*) \[job", project.output, re.MULTILINE)
    assert {name: why for name, why, follows in endings if follows == "given up"} == failed
    others = {(name, why.partition(" (")[0]) for name, why, follows in endings if follows != "given up"}
    assert ("preempted", "preempted") in others
    assert {why for name, why in others if name != "preempted"} <= {"node failure"}
    assert len(re.findall(r"^=== \S+ \S+ job \S+ on ", project.logs("node"), re.MULTILINE)) > 1
    special = {"memory", "code", "cancelled", "preempted", "node"}
    assert {name for name in special if (project.folder / name).exists()} == special - failed.keys()
    assert sorted(int(path.read_text()) for path in (project.folder / "out").iterdir()) == list(range(45))
    rows = slurm.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
    states = dict(row.split() for row in rows)
    assert [states[job] for job in jobs.values()] == ["FAILED", "CANCELLED", "PREEMPTED"]
    assert not in_queue(slurm)

    (project.folder / "mended").touch()
    project.run(FIFTY)
    assert sum(map(int, re.findall(r"submitit: (\d+) jobs submitted", project.output))) == len(failed)
    assert not in_queue(slurm)


TWO_HUNDRED = """
rule all:
    input: expand("out/{i}", i=range(200))

rule nap:
    output: "out/{i}"
    shell: "sleep 600; touch {output}"
"""


def test_an_array_of_two_hundred_costs_one_squeue_a_poll_and_no_sacct(project: Project, slurm: SlurmNode) -> None:
    count_calls(project, slurm)
    process = project.start(TWO_HUNDRED, "--verbose", "--max-jobs-per-timespan", "10000/1s", jobs=1000)
    project.wait_for("submitit: 200 jobs submitted")
    counted = {"squeue": 0}
    end = time.monotonic() + 120
    while counted["squeue"] < 10:
        assert time.monotonic() < end
        time.sleep(0.3)
        counted = calls(project, "sbatch", "squeue", "sacct")
    polls = project.output.count("submitit: looking at")
    assert counted["squeue"] <= polls
    assert (counted["sbatch"], counted["sacct"]) == (1, 0)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=300)
    slurm.clear()


def test_a_job_that_the_controller_has_forgotten_is_sent_again_though_its_id_is_given_anew(
    project: Project, slurm: SlurmNode
) -> None:
    process = project.start(
        "rule one:\n    output: 'one'\n    shell: 'test -e again || {{ touch again; sleep 600; }}; touch {output}'\n"
    )
    project.wait_for_file("again")
    slurm.stop("slurmctld", signal.SIGKILL)
    slurm.run("slurmctld", "-c", "-f", slurm.env["SLURM_CONF"])  # without its saved state
    assert process.wait(timeout=300) == 0, project.output
    assert re.search(r"submitit: one: lost; retry 1 of 1 ", project.output)
    assert project.logs("one").count("completed") == 1
    assert not in_queue(slurm)
