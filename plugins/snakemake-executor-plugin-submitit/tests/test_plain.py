"""Plain shell commands, which run without a Snakemake on the node, do what they do with it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from conftest import Project
from snakemake_executor_plugin_submitit.history import History
from snakemake_executor_plugin_submitit.payload import Shell
from snakemake_executor_plugin_submitit.task import Task, _Run

# Prints the commands of the ready jobs that are plain: as they are, with a limit of one core, and with another prefix.
DECIDE = """
import json, os
from snakemake.cli import main
from snakemake.shell import shell
from snakemake_executor_plugin_submitit import executor
def decide(self, jobs):
    def plain():
        payloads = {job.name: self._payload(job, self._request(job)) for job in jobs}
        return {name: each.command for name, each in payloads.items() if type(each).__name__ == "Shell"}
    decided = [plain()]
    self.workflow.resource_settings.cores = 1
    decided.append(plain())
    shell.prefix("set -eu; ")
    decided.append(plain())
    print(json.dumps([len(jobs), *decided]), flush=True)
    os._exit(0)
executor.Executor.run_jobs = decide
main()
"""
KINDS = """
import os
WORD = os.environ.get("WORD", "word")
jobid = "ours"
rule all:
    input: "m.out", lambda _: [f"{rule.name}.out" for rule in workflow.rules if rule.name not in ("all", "of_module")]
rule plain_one:
    output: "plain_one.out"
    log: "one.log"
    threads: 2
    shell: "echo {threads} {rule} {{}} {log:q} "
           "> {output}"
rule plain_two:
    input: ancient(workflow.main_snakefile)
    output: b=temp("plain_two.out"), a="plain_two.a"
    conda: "not-deployed.yaml"
    params: unused=WORD
    shell: "cat {input} > {output.a}; touch {output[0]}"
rule plain_folder:
    output: directory("plain_folder.out")
    shell: "mkdir {output}"
checkpoint plain_checkpoint:
    output: "plain_checkpoint.out"
    shell: "touch {output}"
rule formatted:
    output: "formatted.out"
    shell: f"echo {WORD} > {{output}}"
rule added:
    output: "added.out"
    shell: "echo " + WORD + " > {output}"
rule of_global:
    output: "of_global.out"
    shell: "echo {WORD} > {output}"
rule of_params:
    output: "of_params.out"
    params: [1, "two words"]
    shell: "echo {params[0]:q} > {output}"
rule of_cores:
    output: "of_cores.out"
    resources: cpus_per_task=2
    shell: "echo {resources.cpus_per_task} > {output}"
rule of_hidden:
    output: "of_hidden.out"
    shell: "echo {jobid} > {output}"
rule of_function:
    output: "of_function.out"
    params: lambda wildcards, resources: resources.tmpdir[:3]
    shell: "echo {params} > {output}"
module other:
    snakefile: "other.smk"
use rule * from other
rule of_resources:
    output: "of_resources.out"
    shell: "echo {resources.tmpdir} > {output}"
rule nested_field:
    output: "nested_field.out"
    shell: "echo {threads:{WORD}} > {output}"
rule plain_cores:
    output: "plain_cores.out"
    resources: cpus_per_task=2
    shell: "echo {threads} > {output}"
rule other_tmpdir:
    output: "other_tmpdir.out"
    resources: tmpdir="here"
    shell: "touch {output}"
rule other_shell:
    output: "other_shell.out"
    resources: shell_exec="sh"
    shell: "touch {output}"
rule touched:
    output: touch("touched.out")
    shell: "true"
rule updated:
    output: update("updated.out")
    shell: "touch {output}"
rule ensured:
    output: ensure("ensured.out", non_empty=True)
    shell: "echo > {output}"
rule write_protected:
    output: protected("write_protected.out")
    shell: "touch {output}"
rule measured:
    output: "measured.out"
    benchmark: "measured.tsv"
    shell: "touch {output}"
rule shadowed:
    output: "shadowed.out"
    shadow: "minimal"
    shell: "touch {output}"
rule python:
    output: "python.out"
    run: shell("touch {output}")
rule scripted:
    output: "scripted.out"
    script: "x.py"
rule grouped:
    output: "grouped.out"
    group: "g"
    shell: "touch {output}"
"""
SAME = """
rule all:
    input: "fine", "folder", "strict", "partial", "missing"

rule fine:
    output: "fine"
    log: "logs/fine"
    threads: 2
    shell: "test ! -e {output}; test ! -e {log}; echo $0 $(env | grep -E 'THREADS|^TE?MP' | sort) > {output}"

rule folder:
    output: directory("folder")
    shell: "mkdir {output}; touch -d 2000-01-01 {output}/new"

rule strict:
    output: "strict"
    shell: "false | cat > {output}; echo $not_set"

rule partial:
    output: "partial"
    log: "logs/partial"
    shell: "echo half > {output}; echo why > {log}; kill -9 $$"

rule missing:
    output: "missing", "there"
    shell: "touch there"
"""


def files(folder: Path) -> dict[str, str]:
    """All files of a project that its jobs made."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".snakemake/" not in str(path))
    texts = {str(path.relative_to(folder)): path.read_text().replace(str(folder), "FOLDER") for path in found}
    return {path: text for path, text in texts.items() if path not in ("Snakefile", "out.txt")}


def records(folder: Path) -> dict[str, Any]:
    """Snakemake's records of the outputs, without times, and the files that it holds for incomplete."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / ".snakemake/metadata").iterdir()}
    for record in found.values():
        for varies in ("job_hash", "starttime", "endtime"):
            del record[varies]
    return found | {"incomplete": os.listdir(folder / ".snakemake/incomplete")}


def endings(folder: Path) -> dict[str, str]:
    (path,) = (folder / ".snakemake/submitit").glob("*/events.tsv")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {row[2]: row[4] for row in rows if row[3] == "ended"}


def decided(folder: Path, *way: str) -> list[dict[str, str]]:
    """What of ``KINDS`` is plain."""
    (folder / "Snakefile").write_text(KINDS)
    (folder / "other.smk").write_text(
        'WORD = "theirs"\nrule of_module:\n    output: "m.out"\n    shell: "echo {WORD} > {output}"\n'
    )
    (folder / "x.py").touch()
    command = [sys.executable, "-c", DECIDE, "--executor", "submitit", "--submitit-cluster", "local", "--jobs", "100"]
    done = subprocess.run([*command, *way], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    count, *found = json.loads(done.stdout.splitlines()[-1])
    assert count == KINDS.count("    output:") + 1
    return found


ALWAYS = ["plain_checkpoint", "plain_folder", "plain_one", "plain_two"]


def test_only_what_is_certain_to_be_the_same_runs_without_snakemake(tmp_path: Path) -> None:
    found, on_one_core, with_other_prefix = decided(tmp_path)
    assert sorted(found) == sorted([*ALWAYS, "plain_cores"])
    assert sorted(on_one_core) == ALWAYS
    assert with_other_prefix == {}


def test_on_request_the_values_of_this_machine_go_to_the_node(tmp_path: Path) -> None:
    found, on_one_core, with_other_prefix = decided(tmp_path, "--submitit-nested", "unless-shell")
    more = ["of_cores", "of_global", "of_module", "of_params"]
    assert sorted(found) == sorted([*ALWAYS, *more, "plain_cores"])
    assert sorted(on_one_core) == sorted(with_other_prefix) == sorted([*ALWAYS, "of_global", "of_module", "of_params"])
    assert found["of_module"].endswith("echo theirs > m.out")
    commands = [found["of_params"], with_other_prefix["of_params"], found["of_cores"]]
    strict = "set -euo pipefail;  echo"
    assert commands == [
        f"{strict} 1 'two words' > of_params.out",
        "set -eu;  echo 1 'two words' > of_params.out",
        f"{strict} 2 > of_cores.out",
    ]


def test_both_ways_leave_the_same(local_project: Project, tmp_path: Path) -> None:
    left = []
    for way in ([], ["--submitit-nested", "always"]):
        local_project.folder = tmp_path / f"way{len(left)}"
        (local_project.folder / "folder").mkdir(parents=True)
        (local_project.folder / "logs").mkdir()
        for stale in ("fine", "folder/old", "logs/fine", "missing", "partial"):
            (local_project.folder / stale).write_text("stale")
        setup = ["--submitit-setup", "mkdir -p scratch", "export TMPDIR=scratch"]
        local_project.run(
            SAME, "--submitit-cluster", "local", "--forceall", "--latency-wait", "1", *setup, *way, status=1
        )
        assert ("rule fine" in local_project.logs("fine")) == bool(way)
        left.append((files(local_project.folder), records(local_project.folder), endings(local_project.folder)))
    ours, theirs = left
    assert ours == theirs
    found, recorded, ended = ours
    assert sorted(found) == ["fine", "folder/.snakemake_timestamp", "folder/new", "logs/fine", "logs/partial"]
    assert "OMP_NUM_THREADS=2" in found["fine"]
    assert "TMPDIR=FOLDER/scratch" in found["fine"]
    assert recorded["incomplete"] == []
    assert {name for name, ending in ended.items() if ending == "completed"} == {"fine", "folder"}


def test_an_output_may_be_missing_of_another_kind_or_late(tmp_path: Path) -> None:
    def job(*outputs: str, folder: bool = False, keep: bool = False) -> Shell:
        paths = {str(tmp_path / path): folder for path in outputs}
        return Shell("", 1, paths, [], [str(tmp_path / "marker")], latency=0.2, keep_incomplete=keep)

    beats: list[int] = []
    (tmp_path / "marker").touch()
    (tmp_path / "a").touch()
    late = job("a", "late")
    assert late.finish(lambda: beats.append(1)) == f"{tmp_path}/late is missing, 0.2 s after the command ended"
    assert beats
    assert late.finish(lambda: (tmp_path / "late").touch()) == ""
    assert not (tmp_path / "marker").exists()
    assert job("a", folder=True).finish(lambda: None) == f"{tmp_path}/a is no folder"
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").touch()
    assert job("d").finish(lambda: None) == f"{tmp_path}/d is a folder, which the rule does not say"
    job("d", "a", keep=True).discard()
    job("d").discard()
    assert (tmp_path / "d/file").exists()
    job("a", "d", folder=True).discard()
    assert not {"a", "d"} & set(os.listdir(tmp_path))
    job("new/e").prepare()
    assert (tmp_path / "new").is_dir()


def test_outputs_that_a_successor_makes_are_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "log").touch()
    payload = Shell("true", 1, {str(tmp_path / "one"): False}, [], [], latency=0.0, keep_incomplete=False)
    task = Task(payload, "", str(tmp_path / "log"), 0, 0, 0, "", str(tmp_path / "lease"))
    environment: Any = SimpleNamespace(job_id="7", hostname="n1")
    run, heir = (_Run(task, environment, History(tmp_path / "history"), io.BytesIO()) for _ in range(2))
    assert heir.lease.take(print)
    run._discard()
    assert (tmp_path / "one").exists()
    heir._discard()
    assert not (tmp_path / "one").exists()


def test_status_0_after_a_signal_is_no_completion(local_project: Project) -> None:
    process = local_project.start(
        """
rule one:
    output: "one"
    resources: requeues=1
    shell: "test ! -e again || {{ echo whole > {output}; exit 0; }}; echo half > {output}; "
           "trap 'touch again; exit 0' TERM; touch started; while true; do sleep 0.1; done"
""",
        "--submitit-cluster",
        "local",
    )
    local_project.wait_for_file("started")
    for each in psutil.process_iter(["cmdline", "cwd"]):
        if each.info["cwd"] == str(local_project.folder) and "submitit.core._submit" in (each.info["cmdline"] or []):
            each.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 0, local_project.output + local_project.logs()
    assert (local_project.folder / "one").read_text() == "whole\n"
    assert "start 2" in local_project.logs("one")


def test_what_a_job_completes_after_snakemake_was_killed_is_kept(local_project: Project) -> None:
    command = "touch started; until test -e go; do sleep 0.1; done; touch {output}"
    snakefile = f"rule one:\n    output: 'one'\n    shell: '{command}'\n"
    process = local_project.start(snakefile, "--submitit-cluster", "local")
    local_project.wait_for_file("started")
    process.kill()
    process.wait()
    (local_project.folder / "go").touch()
    end = time.monotonic() + 60
    while "completed" not in local_project.logs("one"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "Nothing to be done" in local_project.run(snakefile, "--submitit-cluster", "local", "--nolock")
