"""Cost of watching an array of jobs: calls of SLURM's commands, and CPU time of the Snakemake process.

Starts a one-node SLURM in a temporary folder (needs root and Debian's slurmctld, slurmd, slurm-client, munge) with an
array of sleeping jobs, and counts while Snakemake watches them. Poll settings are the executor's defaults.

    python benchmarks/watch.py                  # 200 jobs, a minute and a half
    python benchmarks/watch.py --jobs 1000 --seconds 300

The last line is JSON: jobs, seconds, polls, calls of squeue and sacct, and CPU seconds per minute of Snakemake itself
(including its scheduler) and of the commands that it called.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from slurm import ROOT, count_calls

sys.path.insert(0, str(ROOT / "plugins/snakemake-executor-plugin-submitit/tests"))

from slurm_node import SlurmNode, missing

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))

rule nap:
    output: "out/{{i}}"
    resources: mem_mb=200
    shell: "sleep 100000"
"""
COMMAND = ["--executor", "submitit", "--jobs", "10000", "--max-jobs-per-timespan", "10000/1s", "--scheduler", "greedy"]


def watch(folder: Path, env: dict[str, str], jobs: int, seconds: float) -> dict[str, float]:
    """Count calls and CPU seconds while Snakemake watches sleeping jobs and submits nothing."""
    (folder / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs), "utf-8")
    out = folder / "out.txt"
    with out.open("w") as file:
        command = [sys.executable, "-m", "snakemake", "--verbose", *COMMAND]
        run = subprocess.Popen(command, cwd=folder, env=count_calls(folder, env), stdout=file, stderr=file)
    try:
        while f"submitit: {jobs} jobs submitted" not in out.read_text("utf-8"):
            if run.poll() is not None:
                sys.exit(out.read_text("utf-8"))
            time.sleep(0.2)
        time.sleep(10)
        before, began = look(run.pid, folder), time.monotonic()
        time.sleep(seconds)
        after, minutes = look(run.pid, folder), (time.monotonic() - began) / 60
    finally:
        run.kill()
        run.wait()
    found = {name: after[name] - before[name] for name in after}
    for name in ("cpu_seconds", "commands_cpu_seconds"):
        found[f"{name}_a_minute"] = round(found.pop(name) / minutes, 3)
    return {"jobs": jobs, "seconds": round(60 * minutes), **found}


def look(pid: int, folder: Path) -> dict[str, float]:
    """Return the counts so far."""
    times = psutil.Process(pid).cpu_times()
    calls = (folder / "calls").read_text("utf-8").split()
    return {
        "squeue": calls.count("squeue"),
        "sacct": calls.count("sacct"),
        "polls": (folder / "out.txt").read_text("utf-8").count("submitit: looking at"),
        "cpu_seconds": times.user + times.system,
        "commands_cpu_seconds": times.children_user + times.children_system,
    }


def main() -> None:
    """Start a SLURM and watch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="size of the array (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="duration of the watch (default: %(default)s)")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"cannot start a SLURM here: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm") as slurm, tempfile.TemporaryDirectory(prefix="bench") as folder:
        Path(slurm).chmod(0o755)
        with SlurmNode(Path(slurm)) as node:
            found = watch(Path(folder), node.env, arguments.jobs, arguments.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
