"""The executor on a real one-node SLURM."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import WITH_AND_WITHOUT_ACCOUNTING, Project
from slurm_node import SlurmNode

TWENTY = """
rule all:
    input: expand("out/{i}", i=range(20))

rule one:
    output: "out/{i}"
    shell: "test {wildcards.i} != 13 || exit 3; echo {wildcards.i} > {output}"
"""
SLEEP = """
rule all:
    input: expand("out/{i}", i=range(3))

rule nap:
    output: "out/{i}"
    shell: "touch started.{wildcards.i}; sleep 600; touch {output}"
"""
# Counts to 60 in tenths of seconds; when stopped, it saves its position in a file that Snakemake does not know.
COUNTER = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1] + ".place")
step = int(place.read_text()) if place.exists() else 0
def stop(number, frame):
    place.write_text(str(step))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("from", step, flush=True)
for step in range(step, int(sys.argv[2])):
    with open(sys.argv[1] + ".steps", "a") as file:
        print(step, file=file)
    time.sleep(0.1)
pathlib.Path(sys.argv[1]).touch()
"""


def calls(project: Project, *commands: str) -> dict[str, int]:
    """Count of Snakemake's calls of SLURM's commands, by wrapper scripts."""
    log = project.folder / "calls.txt"
    return {command: log.read_text().split().count(command) if log.exists() else 0 for command in commands}


def count_calls(project: Project, slurm: SlurmNode, **extra: str) -> None:
    """Put the counting scripts on the PATH; ``extra`` is shell code to run instead of the plain command."""
    shims = project.folder / "shims"
    shims.mkdir()
    for command in ("sbatch", "squeue", "sacct", "scancel", "sinfo"):
        real = shutil.which(command, path=slurm.env["PATH"])
        shim = shims / command
        log = project.folder / "calls.txt"
        body = extra.get(command, 'exec "$REAL" "$@"')
        shim.write_text(f"#!/bin/bash\necho {command} >> {log}\nREAL={real}\n{body}\n")
        shim.chmod(0o755)
    project.env = {**project.env, "PATH": f"{shims}:{project.env['PATH']}"}


def in_queue(slurm: SlurmNode) -> list[str]:
    """Ids of all jobs that have not ended."""
    return slurm.run("squeue", "--noheader", "--array", "--format=%i").split()


def job_of(project: Project, label: str) -> str:
    """The SLURM id of the latest submission of a job."""
    tables = sorted((project.folder / ".snakemake/submitit").glob("*/jobs.tsv"))
    rows = [line.split("\t") for line in tables[-1].read_text().splitlines()]
    return next(row[0] for row in reversed(rows) if row[1] == f"{label}.log")


def release_until_end(slurm: SlurmNode, process: subprocess.Popen[str], seconds: float) -> None:
    """Wait for Snakemake, and release requeued jobs, which SLURM would hold for two minutes."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < end, slurm.run("squeue", "--array") + slurm.run("sinfo", "--list-reasons")
        slurm.release_held()
        time.sleep(0.5)


@WITH_AND_WITHOUT_ACCOUNTING
def test_ready_jobs_leave_as_one_array_and_a_failing_one_is_named(project: Project, slurm: SlurmNode) -> None:
    count_calls(project, slurm)
    # one of the two with a Snakemake for each job
    nested, exit_status = (["--submitit-nested", "always"], 1) if slurm.accounting else ([], 3)
    output = project.run(TWENTY, "--retries", "0", *nested, status=1)
    assert sorted(int(path.read_text()) for path in (project.folder / "out").iterdir()) == [*range(13), *range(14, 20)]
    assert re.search(rf"submitit: one\.i=13: code error \(exit status {exit_status}.*given up", output)
    assert output.count("given up") == 1
    counted = calls(project, "sbatch", "sacct")
    assert counted == {"sbatch": 1, "sacct": 0}
    log = project.logs("one.i=7")
    assert "completed" in log
    assert ("rule one:" in log) == bool(nested)
    assert "Nothing to be done" in project.run(TWENTY, "out/7", *nested)


def test_each_ending_is_told_apart(project: Project, slurm: SlurmNode) -> None:
    process = project.start(
        """
rule all:
    input: "cancelled", "memory", "time", "late", "preempted"

rule cancelled:
    output: "cancelled"
    shell: "touch started; sleep 600"

rule memory:
    output: "memory"
    resources: mem_mb=200
    shell: "python3 -c 'x = bytearray(500 << 20)'"

rule time:
    output: "time"
    resources: runtime=1
    shell: "sleep 600"

# ignores the signal, and is killed at its limit before it could be requeued
rule late:
    output: "late"
    resources: runtime=1, requeues=1
    shell: "test -e second || {{ touch second; trap '' TERM; sleep 600; }}; touch {output}"

rule preempted:
    output: "preempted"
    resources: partition="cancel", cpus_per_task=5, sbatch="--no-requeue"
    shell: "test -e again || {{ touch again; sleep 600; }}; touch {output}"
""",
        "--retries",
        "0",
    )
    project.wait_for_file("started")
    project.wait_for_file("again")
    slurm.run("scancel", job_of(project, "cancelled"))
    # more CPUs than are free beside the others, so that the job in the partition below has to go
    slurm.run("sbatch", "--partition=high", "--cpus-per-task=5", "--output=/dev/null", "--wrap=sleep 1")
    assert process.wait(timeout=400) == 1
    output = project.output
    assert re.search(r"submitit: cancelled: cancelled \(SLURM says CANCELLED\); given up", output)
    assert re.search(r"submitit: time: timed out.*; given up", output)
    assert re.search(r"submitit: late: timed out \(SLURM says TIMEOUT\); retry 1 of 1 ", output)
    assert (project.folder / "late").exists()
    assert re.search(r"submitit: preempted: preempted.*; retry 1 of 20", output)
    assert (project.folder / "preempted").exists()
    if slurm.limits_memory:
        assert re.search(r"submitit: memory: out of memory.*; given up", output)
    assert not in_queue(slurm)


def test_preempted_and_timed_out_jobs_go_on_where_they_stopped(project: Project, slurm: SlurmNode) -> None:
    (project.folder / "count.py").write_text(COUNTER)
    process = project.start(
        """
rule all:
    input: "low", "short"

rule low:
    output: "low"
    resources: cpus_per_task=7
    shell: "python3 count.py {output} 100"

rule short:
    output: "short"
    resources: runtime=60, requeues=1
    shell: "python3 count.py {output} 100"
"""
    )
    for label in ("low", "short"):
        project.wait_for_file(f"{label}.steps")
    slurm.run("sbatch", "--partition=high", "--cpus-per-task=7", "--output=/dev/null", "--wrap=sleep 1")
    # what slurmctld sends before a time limit; waiting for one takes a minute
    slurm.run("scancel", "--signal=USR2", job_of(project, "short"))
    for label in ("low", "short"):
        project.wait_for_file(f"{label}.place", seconds=180)
    release_until_end(slurm, process, 300)
    assert process.returncode == 0, project.output
    for label in ("low", "short"):
        done = [int(line) for line in (project.folder / f"{label}.steps").read_text().split()]
        assert sorted(set(done)) == list(range(100))
        assert len(done) <= 101  # only the step under way is done twice
        assert "start 2" in project.logs(label)
    assert "preempted; told the job to write its checkpoint" in project.logs("low")
    assert "timed out; told the job to write its checkpoint" in project.logs("short")
    assert "given up" not in project.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_without_snakemake(project: Project, slurm: SlurmNode, number: int) -> None:
    process = project.start(SLEEP)
    for index in range(3):
        project.wait_for_file(f"started.{index}")
    process.send_signal(number)
    process.wait(timeout=300)
    if (
        number == signal.SIGKILL
    ):  # the killed run could not clean up, so the next run does, before it starts the same jobs
        assert len(in_queue(slurm)) == 3
        again = SLEEP.replace("sleep 600", "sleep 0")
        assert "cancelling 3 jobs" in project.run(again, "--nolock", "--rerun-incomplete")
    end = time.monotonic() + 120
    while in_queue(slurm):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_submission_that_fails_half_way_leaves_no_orphan(project: Project, slurm: SlurmNode) -> None:
    # the job is made, but the answer is lost: the worst failure of sbatch
    lost = 'test -e failed && exec "$REAL" "$@"; touch failed; "$REAL" "$@" >/dev/null\n'
    lost += 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
    count_calls(project, slurm, sbatch=lost)
    before = set(slurm.run("squeue", "--noheader", "--states=all", "--format=%A").split())
    project.run("rule one:\n    output: 'one'\n    shell: 'echo x >> times; touch {output}'\n")
    assert (project.folder / "times").read_text() == "x\n"
    assert calls(project, "sbatch") == {"sbatch": 2}
    rows = slurm.run("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines()
    states = sorted(row.split()[1] for row in rows if row.split()[0] not in before)
    assert states == ["CANCELLED", "COMPLETED"]
    leftovers = (project.folder / ".snakemake/submitit").glob("*/submitit/*.pkl")
    assert all(re.match(r"\d+_", path.name) for path in leftovers)


@pytest.mark.parametrize(
    ("resources", "arguments", "message"),
    [
        ('partition="mian"', [], "rule one: this cluster has no partition 'mian' (did you mean main?)"),
        ('gpus=1, gpu_type="fqke"', [], "rule one: no GPU of type 'fqke' (did you mean fake?)"),
        ('partition="high", runtime=120', [], "rule one: runtime=120 min is above the limit of 60 min"),
        ('mem_mb=100, gpus="a lot"', [], "resource gpus='a lot' must be a whole number"),
        ("mem_mb=100", ["--submitit-array-size", "5000"], "is above this site's MaxArraySize=1001"),
        ('constraint="tape"', [], "rule one: SLURM refuses --constraint=tape: Invalid feature specification"),
        ('sbatch="--nodelits=a"', [], "rule one: SLURM refuses --nodelits=a: unrecognized option '--nodelits=a'"),
        ("mem_mb=100", ["--submitit-logdir", "/proc/x"], "cannot make a log folder in '/proc/x'"),
        ("mem_mb=100", ["--submitit-on-end", "preemted=fail"], "unknown ending 'preemted' (did you mean preempted?)"),
    ],
)
def test_a_bad_set_up_ends_at_once_with_one_line(
    project: Project, resources: str, arguments: list[str], message: str
) -> None:
    snakefile = f"rule one:\n    output: 'one'\n    resources: {resources}\n    shell: 'touch {{output}}'\n"
    output = project.run(snakefile, *arguments, status=1)
    assert message in output
    assert "jobs submitted" not in output
    assert "Traceback" not in output


def test_a_log_folder_that_the_nodes_do_not_see_is_suspected(project: Project, slurm: SlurmNode) -> None:
    if not slurm.may_mount:
        pytest.skip("may not mount a folder that jobs don't see")
    snakefile = "rule one:\n    output: 'one'\n    shell: 'touch {output}'\n"
    output = project.run(snakefile, "--submitit-logdir", f"{slurm.folder}/unseen/logs", "--retries", "0", status=1)
    assert re.search(
        r"submitit: one: .*no log was written: does its node see the folder of --submitit-logdir\?.*given up", output
    )


def test_a_setting_that_does_not_exist_is_named(project: Project) -> None:
    (project.folder / "profile").mkdir()
    (project.folder / "profile/config.yaml").write_text("submitit-requeus: 3\n")
    snakefile = "rule one:\n    output: 'one'\n    shell: 'touch {output}'\n"
    output = project.run(snakefile, "--profile", "profile", status=2)
    assert output.endswith("error: unrecognized arguments: --submitit-requeus=3\n")


def test_gpus_are_given(project: Project) -> None:
    project.run(
        "rule one:\n    output: 'one'\n    resources: gpus=2, gpu_type='fake'\n"
        "    shell: 'echo $CUDA_VISIBLE_DEVICES > {output}'\n"
    )
    assert re.fullmatch(r"\d,\d\n", (project.folder / "one").read_text())


def test_jobs_of_a_pack_share_a_gpu(project: Project) -> None:
    project.run(
        "rule all:\n    input: 'a.out', 'b.out'\n"
        "rule one:\n    output: '{name}.out'\n    resources: sbatch='--gres=gpu:fake:1'\n"
        # each waits for the other to have started
        "    shell: 'touch {wildcards.name}.started; until test -e a.started -a -e b.started; do sleep 0.1; done; '\n"
        "           'echo $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES > {output}'\n",
        *("--groups", "one=pack", "--group-components", "pack=2"),
    )
    first, second = ((project.folder / name).read_text() for name in ("a.out", "b.out"))
    assert re.fullmatch(r"\d+ \d\n", first)
    assert first == second


def test_without_slurm_the_first_line_says_so(local_project: Project) -> None:
    tools = local_project.folder / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to(Path("/bin/bash"))
    local_project.env["PATH"] = str(tools)
    output = local_project.run("rule one:\n    output: 'one'\n    shell: 'touch {output}'\n", status=1)
    assert "sbatch, srun, squeue, scancel, scontrol, sinfo not on the PATH" in output
