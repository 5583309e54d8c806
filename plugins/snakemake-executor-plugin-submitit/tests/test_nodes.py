"""A SLURM of three nodes that fail, have other clocks, or do not see the files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from conftest import Project
from slurm_node import SlurmNode
from test_slurm import release_until_end

# One job per node; each notes where it starts, and waits for the test.
SPREAD = """
rule all:
    input: expand("out/{i}", i=range(3))

rule one:
    output: "out/{i}"
    resources: cpus_per_task=8
    shell: "hostname >> where.{wildcards.i}; until test -e go; do sleep 0.2; done; touch {output}"
"""
# First on c, then on b.
CHAIN = """
rule last:
    input: "first"
    output: "last"
    resources: sbatch="--nodelist=b"
    shell: "hostname > {output}"

rule first:
    output: "first"
    resources: sbatch="--nodelist=c"
    shell: "hostname > {output}"
"""
READ = """
rule all:
    input: "one", "two"

rule one:
    input: "in"
    output: "one"
    shell: "hostname > {output}; wc -c < {input} >> {output}"

use rule one as two with:
    input: "other"
    output: "two"
"""
ORPHAN = """
rule one:
    output: "one"
    resources: sbatch="--no-requeue"
    shell: "echo begin >> times; touch started; until test -e go; do sleep 0.2; done; echo end >> times; touch {output}"
"""


def details(project: Project, event: str) -> list[str]:
    """Details of all events of a kind."""
    (path,) = (project.folder / ".snakemake/submitit").glob("*/events.tsv")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[4] for row in rows if row[3] == event]


def wait_until(condition: Callable[[], object], project: Project) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, project.output + project.logs() + project.queue()
        time.sleep(0.1)


def test_jobs_of_failed_drained_and_rebooted_nodes_go_on_elsewhere(three_project: Project, three: SlurmNode) -> None:
    folder = three_project.folder
    process = three_project.start(SPREAD)
    for i in range(3):
        three_project.wait_for_file(f"where.{i}")
    places = {(folder / f"where.{i}").read_text().strip(): i for i in range(3)}
    assert sorted(places) == ["a", "b", "c"]
    wait_until(lambda: len(details(three_project, "running")) == 3, three_project)
    three.fail("b")
    three.fail("c")
    three.start_slurmd("c", "-b")
    three.run("scontrol", "update", "NodeName=a", "State=DRAIN", "Reason=repair")
    wait_until(lambda: len(details(three_project, "requeued")) == 2, three_project)
    for lease in folder.glob(".snakemake/submitit/.leases/*"):
        lease.unlink()  # as if a minute and a half had passed without a sign of life from the dead processes
    (folder / "go").touch()
    release_until_end(three, process, 120)
    assert process.returncode == 0, three_project.output
    where = {node: (folder / f"where.{i}").read_text().split() for node, i in places.items()}
    assert where == {"a": ["a"], "b": ["b", "c"], "c": ["c", "c"]}
    assert details(three_project, "requeued") == ["node failure", "node failure"]
    assert set(details(three_project, "ended")) == {"completed"}


def test_clocks_of_nodes_may_differ(three_project: Project, three: SlurmNode) -> None:
    three.set_clock("b", -8)
    three.set_clock("c", 200)
    three_project.run(CHAIN)
    assert [(three_project.folder / name).read_text() for name in ("first", "last")] == ["c\n", "b\n"]
    assert re.search(r"first is dated \d\.\d s after now by the clock of this node; waiting", three_project.logs())
    assert "Nothing to be done" in three_project.run(CHAIN)


def test_a_node_with_old_files_or_an_old_clock_is_left(three_project: Project, three: SlurmNode) -> None:
    file, old = three_project.folder / "in", three_project.folder / "old"
    old.write_bytes(bytes(500))
    os.utime(old, (0, 1e9))
    file.write_bytes(bytes(1000))
    (three_project.folder / "other").write_bytes(bytes(10))
    three.stop_slurmd("a")
    three.start_slurmd("a", sees=f"mount --bind {old} {file}")
    three.set_clock("a", -1000)
    output = three_project.run(READ)
    state = r"one: unseen files \(a sees an old state of \S+/in: 500 bytes from \d+ s before the latest 1000\); retry 1"
    clock = r"two: node failure \(\S+/other is dated \d{3} s after now by the clock of a\); retry 1 of 3"
    assert re.search(state, output)
    assert re.search(clock, output)
    assert [(three_project.folder / name).read_text() for name in ("one", "two")] == ["b\n1000\n", "b\n10\n"]


def test_a_node_that_does_not_see_the_folder_is_left(three_project: Project, three: SlurmNode) -> None:
    (three_project.folder / "in").write_text("x")
    three.stop_slurmd("a")
    three.start_slurmd("a", sees=f"mount -t tmpfs none {three_project.folder}")
    output = three_project.run(READ, "one")
    line = r"one: unseen files \(.*no log was written: does its node see the folder of --submitit-logdir\?\); retry 1"
    assert re.search(line, output)
    assert (three_project.folder / "one").read_text() == "b\n1\n"


def test_a_job_that_outlives_its_node_for_slurm_is_not_done_twice(three_project: Project, three: SlurmNode) -> None:
    process = three_project.start(ORPHAN)
    three_project.wait_for_file("started")
    three.stop_slurmd("a")
    three.give_up("a")
    three_project.wait_for(r"one: node failure \(SLURM says NODE_FAIL\); retry 1 of 3")
    wait_until(lambda: "may still work on this job; waiting for its end" in three_project.logs(), three_project)
    (three_project.folder / "go").touch()
    assert process.wait(timeout=120) == 0, three_project.output
    assert (three_project.folder / "times").read_text().split() == ["begin", "end"]
