"""Faults of a cluster that would lose a job or run it twice, each provoked in front of a real SLURM."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ACCOUNTING, Project
from slurm_node import SlurmNode
from snakemake_executor_plugin_submitit import lease as leases
from snakemake_executor_plugin_submitit.lease import Lease
from test_slurm import calls, count_calls, in_queue, job_of

ONE = "rule one:\n    output: 'one'\n    shell: 'echo $$ >> times; touch {output}'\n"
# A writer that notes when it begins and ends, as a line each.
WRITER = """
rule one:
    output: "one"
    shell: "echo begin >> times; touch started; sleep {seconds}; echo end >> times; touch {{output}}"
"""
BANNER = 'echo "*** Welcome | to the | cluster ***"; '


def test_a_cancellation_that_fails_is_repeated(project: Project, slurm: SlurmNode) -> None:
    fails_once = 'test -e refused && exec "$REAL" "$@"; touch refused; echo "scancel: error: no answer" >&2; exit 1'
    count_calls(project, slurm, scancel=fails_once)
    process = project.start(WRITER.format(seconds=600))
    project.wait_for_file("started")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert not in_queue(slurm)
    assert calls(project, "scancel")["scancel"] >= 2
    assert list((project.folder / ".snakemake/submitit").glob("*/ended"))


def test_a_run_whose_jobs_cannot_be_cancelled_has_not_ended(project: Project, slurm: SlurmNode) -> None:
    count_calls(project, slurm, scancel="exit 1")
    process = project.start(WRITER.format(seconds=600))
    project.wait_for_file("started")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert "1 cancelled jobs are still in the queue" in project.output
    assert not list((project.folder / ".snakemake/submitit").glob("*/ended"))
    (project.folder / "shims/scancel").unlink()
    output = project.run(WRITER.format(seconds=0), "--rerun-incomplete")
    assert "cancelling 1 jobs that" in output
    assert (project.folder / "times").read_text() == "begin\nbegin\nend\n"


def test_nothing_starts_before_slurm_says_what_it_still_runs(project: Project, slurm: SlurmNode) -> None:
    fails_twice = 'test -e fail && { test -e failed && rm fail; touch failed; exit 1; }; exec "$REAL" "$@"'
    count_calls(project, slurm, squeue=fails_twice)
    process = project.start(WRITER.format(seconds=600))
    project.wait_for_file("started")
    process.kill()
    process.wait()
    (project.folder / "fail").touch()
    output = project.run(WRITER.format(seconds=0), "--nolock", "--rerun-incomplete")
    waits, cancels, submits = (output.index(text) for text in ("it may still run 1 jobs", "cancelling 1", "submitted"))
    assert waits < cancels < submits
    assert (project.folder / "times").read_text() == "begin\nbegin\nend\n"


def test_lines_of_a_banner_are_not_taken_for_jobs_or_partitions(project: Project, slurm: SlurmNode) -> None:
    banner = BANNER + 'exec "$REAL" "$@"'
    count_calls(project, slurm, squeue=banner, sinfo=banner, sbatch=banner, sacct=banner)
    project.run(ONE.replace("    shell", "    resources: partition='main'\n    shell"))
    assert len((project.folder / "times").read_text().split()) == 1


@ACCOUNTING
def test_a_job_is_not_lost_while_the_accounts_do_not_answer(project: Project, slurm: SlurmNode) -> None:
    # sacct refuses for longer than the grace time of 4 s, about a job that squeue has forgotten
    refuses = 'test -e open && exec "$REAL" "$@"; echo "sacct: error: slurmdbd: Connection refused" >&2; exit 1'
    forgets = 'test -e open || test ! -e forgotten || { echo "error: Invalid job id specified" >&2; exit 1; }; '
    count_calls(project, slurm, sacct=refuses, squeue=forgets + 'exec "$REAL" "$@"')
    process = project.start(WRITER.format(seconds=600), "--retries", "0")
    project.wait_for_file("started")
    (project.folder / "forgotten").touch()
    slurm.run("scancel", job_of(project, "one"))
    project.wait_for("sacct does not answer; waiting for the endings of 1 jobs")
    time.sleep(8)
    assert process.poll() is None, project.output
    (project.folder / "open").touch()
    assert process.wait(timeout=120) == 1
    assert re.search(r"one: cancelled \(SLURM says CANCELLED\); given up", project.output)
    assert "one: lost" not in project.output


@pytest.mark.parametrize(
    ("resources", "environment", "message"),
    [
        ('sbatch="--ntasks=2"', {}, "sbatch flag '--ntasks=2': the executor sets --ntasks itself"),
        ('gpu_type="fake"', {}, "resource gpu_type='fake' requests a GPU type, but gpus is 0"),
        ("mem_mb=100", {"SBATCH_CLUSTERS": "other"}, "SBATCH_CLUSTERS=other is set, but jobs go to one cluster"),
        ("mem_mb=100", {"SBATCH_PARTITION": "mian"}, "this cluster has no partition 'mian' (did you mean main?)"),
    ],
)
def test_what_would_run_a_job_twice_or_elsewhere_is_refused(
    project: Project, resources: str, environment: dict[str, str], message: str
) -> None:
    project.env = {**project.env, **environment}
    snakefile = f"rule one:\n    output: 'one'\n    resources: {resources}\n    shell: 'touch {{output}}'\n"
    output = project.run(snakefile, status=1)
    assert message in output
    assert "jobs submitted" not in output
    assert "Traceback" not in output


def test_variables_of_sbatch_and_srun_do_not_change_what_is_asked(project: Project, slurm: SlurmNode) -> None:
    would = {"SBATCH_TIMELIMIT": "1", "SBATCH_ARRAY_INX": "0-2", "SBATCH_WAIT": "1", "SLURM_NTASKS": "2"}
    would |= {"SBATCH_PARTITION": "high", "SBATCH_EXPORT": "NONE", "SBATCH_MEM_PER_NODE": "1"}
    project.env = {**project.env, **would}
    resources = "    resources: runtime=7, sbatch='--exclusive'\n    shell"
    output = project.run(ONE.replace("    shell", resources))
    assert len((project.folder / "times").read_text().split()) == 1
    assert len(re.findall(r"^=== .* job ", project.logs(), re.MULTILINE)) == 1  # one task, even on a whole node
    job = job_of(project, "one")
    assert slurm.run("squeue", "-h", "-t", "all", "-j", job, "--format=%P %l") == "high 7:00"
    assert "SBATCH_ARRAY_INX, SBATCH_EXPORT, SBATCH_MEM_PER_NODE, SBATCH_TIMELIMIT, SBATCH_WAIT, SLURM_NTASKS" in output


def test_a_node_that_does_not_see_the_files_is_named(project: Project, slurm: SlurmNode) -> None:
    if not slurm.may_mount:
        pytest.skip("may not mount a folder that jobs don't see")
    unseen = slurm.folder / "unseen/files"
    unseen.mkdir(exist_ok=True)
    (unseen / "in").touch()
    output = project.run(
        f"""
rule all:
    input: "{unseen}/one", "{unseen}/two"

rule reads:
    input: "{unseen}/in"
    output: "{unseen}/one"
    resources: mem_mb=lambda wildcards, attempt: 100 * attempt
    shell: "cp {{input}} {{output}}"

rule writes:
    output: "{unseen}/two"
    shell: "echo x >> {project.folder}/times; touch {{output}}"
""",
        "--retries",
        "2",
        status=1,
    )
    assert re.search(r"submitit: reads: unseen files \(\S+ does not see \S+/files/in\); retry 1 of 1", output)
    assert re.search(
        r"submitit: writes: unseen files \(completed on its node, but this machine does not see \S+/files/two", output
    )
    assert output.count("given up") == 2
    assert (project.folder / "times").read_text() == "x\nx\n"  # once more, and with no more memory
    assert not in_queue(slurm)


def test_a_reason_that_does_not_pass_is_told_once_for_all_jobs(project: Project, slurm: SlurmNode) -> None:
    snakefile = (
        "rule all:\n    input: expand('{i}', i=range(3))\n\nrule one:\n    output: '{i}'\n    shell: 'touch {output}'\n"
    )
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        process = project.start(snakefile)
        project.wait_for(r"and 2 more may wait for ever: PartitionDown")
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert process.wait(timeout=120) == 0
    assert project.output.count("may wait for ever") == 1


def _hold(path: Path, ready: Path) -> None:
    held = Lease(path)
    held.take(print)
    ready.touch()
    while held.beat():
        time.sleep(0.05)
    sys.exit(7)


def test_a_lease_is_taken_over_from_a_process_that_shows_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "DEAD_SECONDS", 3.0)
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "lease", tmp_path / "ready"))
    holder.start()
    assert holder.pid
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        started, told = time.monotonic(), list[str]()
        assert not Lease(tmp_path / "lease").take(told.append, waits=lambda: time.monotonic() < started + 5)
        assert len(told) == 1  # it lives, so it keeps the lease beyond the time after which it would count as dead
        os.kill(holder.pid, signal.SIGSTOP)  # a hanging node: the process exists, but sends no heartbeat
        heir = Lease(tmp_path / "lease")
        assert heir.take(told.append)
        os.kill(holder.pid, signal.SIGCONT)  # it must notice, and not take the lease back
        holder.join(timeout=20)
        assert holder.exitcode == 7
        assert heir.beat()
    finally:
        holder.kill()
        holder.join()


def _take(path: Path, order: Path) -> None:
    held = Lease(path)
    held.take(lambda text: None)
    for text in ("begin\n", "end\n"):
        with order.open("a") as file:
            file.write(text)
        time.sleep(0.3)
    held.release()


@pytest.mark.parametrize("left", [False, True])
def test_of_several_that_wait_for_a_lease_one_gets_it(tmp_path: Path, left: bool) -> None:
    if left:  # by a dead process of this host
        gone = subprocess.Popen(["true"])
        gone.wait()
        (tmp_path / "lease").write_text(f"{os.uname().nodename} {gone.pid} 0123 1")
    context = multiprocessing.get_context("fork")
    waiting = [context.Process(target=_take, args=(tmp_path / "lease", tmp_path / "order")) for _ in range(4)]
    for each in waiting:
        each.start()
    for each in waiting:
        each.join()
    assert (tmp_path / "order").read_text() == "begin\nend\n" * 4


def test_a_lease_of_a_process_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = os.uname().nodename
    (tmp_path / "lease").write_text(f"{host} {gone.pid} 0123 1")
    held = Lease(tmp_path / "lease")
    assert held.take(lambda text: pytest.fail(text))
    other = Lease(tmp_path / "lease")
    other.release()
    assert (tmp_path / "lease").exists()  # that of another process
    held.release()
    assert not (tmp_path / "lease").exists()
