"""The record of a run that other programs read."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from conftest import Project
from slurm_node import SlurmNode
from snakemake_executor_plugin_submitit.events import Events
from snakemake_executor_plugin_submitit.request import Request
from snakemake_executor_plugin_submitit.verdict import Evidence, Verdict


def _events(path: Path) -> list[tuple[str, ...]]:
    rows = [tuple(line.split("\t")) for line in path.read_text().splitlines()]
    times = [datetime.fromisoformat(row[0]) for row in rows]
    assert times == sorted(times)
    assert all(time.tzinfo for time in times)
    return [row[1:] for row in rows]


def test_each_change_is_one_line(tmp_path: Path) -> None:
    history = tmp_path / "history"
    entry = SimpleNamespace(external="7_0", name="one.i=1", task=SimpleNamespace(history=str(history)))
    events = Events(tmp_path / "events.tsv", why_requeued=lambda entry: "node failure")
    events.submitted([entry], Request(cpus=4, gpus=1, gpu_type="a100", minutes=60))  # type: ignore[list-item]
    for state in ("PENDING", "PENDING", None, "RUNNING", "RUNNING", "COMPLETING", "PENDING", "RUNNING", "PREEMPTED"):
        if state == "COMPLETING":
            history.write_text(json.dumps({"ending": "preempted", "time": 0}) + "\n")
        entry.seen = Evidence(state)
        events.seen([entry])  # type: ignore[list-item]
    events.ended(entry, Verdict.NODE_FAILURE, again=True)  # type: ignore[arg-type]
    events.ended(entry, Verdict.COMPLETED)  # type: ignore[arg-type]
    assert _events(tmp_path / "events.tsv") == [
        ("7_0", "one.i=1", "submitted", "cpus=4 gpus=1 gpu_type=a100 minutes=60"),
        ("7_0", "one.i=1", "running", ""),
        ("7_0", "one.i=1", "requeued", "preempted"),
        ("7_0", "one.i=1", "running", ""),
        ("7_0", "one.i=1", "retried", "node failure"),
        ("7_0", "one.i=1", "ended", "completed"),
    ]


def test_a_run_on_slurm_leaves_its_record(project: Project, slurm: SlurmNode) -> None:
    project.run(
        "rule all:\n    input: 'good'\n"
        "rule good:\n    output: 'good'\n    resources: gpus=1\n    shell: 'sleep 6; touch {output}'\n"
        "rule bad:\n    output: 'bad'\n    shell: 'exit 3'\n",
        "--retries",
        "0",
        "good",
        "bad",
        status=1,
    )
    (path,) = (project.folder / ".snakemake/submitit").glob("*/events.tsv")
    found = _events(path)
    of_good = [(event, detail) for _, name, event, detail in found if name == "good"]
    assert of_good == [("submitted", "cpus=1 gpus=1"), ("running", ""), ("ended", "completed")]
    assert [(event, detail) for _, name, event, detail in found if name == "bad"][-1] == ("ended", "code error")
    assert all(external.isdigit() for external, *_ in found)
    owner = json.loads((path.parent / "owner.json").read_text())
    assert (owner["cluster"], owner["folder"], owner["configs"]) == ("slurm", str(project.folder), [])
