"""Time of the same trivial jobs with our SLURM executor, the official one, and Snakemake's local one, on a real SLURM.

Starts a one-node SLURM in a temporary folder (needs root and Debian's slurmctld, slurmd, slurm-client, munge), runs
every variant on it one after the other, and counts the calls of SLURM's commands with wrapper scripts.

    pip install -e .[benchmark]                 # the official executor, snakemake-executor-plugin-slurm
    python benchmarks/slurm.py                  # 200 jobs; the official executor takes up to ten minutes per variant
    python benchmarks/slurm.py --jobs 20 --ways submitit local

The official executor may also be in a separate folder: ``pip install --no-deps --target FOLDER
snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep throttler``, then ``PYTHONPATH=FOLDER``.
It is set to query squeue, because this SLURM keeps no accounts. Otherwise both executors have their default settings,
except for packing and arrays. Jobs have room for two Snakemakes and a step, which the official executor starts on the
node.

Variants: ``submitit`` and ``official_groups`` pack 20 jobs into one with Snakemake's groups; ``submitit_arrays`` and
``official`` do not. ``official_arrays`` has arrays of 50 tasks. ``official_arrays_default`` does not limit arrays: here
they are too long for a command line, and then every task runs the first job.

The last line is JSON: for each variant seconds, calls, and the number of missing or wrong outputs; null if its plugin
is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "plugins/snakemake-executor-plugin-submitit/tests"))

from slurm_node import SlurmNode, missing  # noqa: E402

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))

rule one:
    output: "out/{{i}}"
    resources: mem_mb=1000, runtime=10
    shell: "echo {{wildcards.i}} > {{output}}"
"""
COMMON = ["--scheduler", "greedy", "--latency-wait", "5", "--max-jobs-per-timespan", "10000/1s"]
CLUSTER = [*COMMON, "--jobs", "1000", "--default-resources", "mem_mb=1000"]
OURS = [*CLUSTER, "--executor", "submitit"]
THEIRS = [*CLUSTER, "--executor", "slurm", "--slurm-status-command", "squeue"]
PACKED = ["--groups", "one=pack", "--group-components", "pack=20", "--cores", "2"]
WAYS = {
    "submitit": [*OURS, *PACKED],
    "submitit_arrays": OURS,
    "official": THEIRS,
    "official_groups": [*THEIRS, *PACKED],
    "official_arrays": [*THEIRS, "--slurm-array-jobs", "all", "--slurm-array-limit", "50"],
    "official_arrays_default": [*THEIRS, "--slurm-array-jobs", "all"],
    "local": [*COMMON, "--cores", "2"],
}
USUAL = ["submitit", "official", "official_groups", "official_arrays", "local"]
COUNTED = ("sbatch", "squeue", "sacct", "srun")

Result = dict[str, float]


def count_calls(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which each call of SLURM's commands adds a line to ``folder/calls``."""
    shims = folder / "shims"
    shims.mkdir()
    for command in COUNTED:
        shim = shims / command
        real = shutil.which(command, path=env["PATH"])
        # the official executor hides SLURM_CONF from the srun on the node, which then finds no cluster
        set_conf = f"SLURM_CONF={env['SLURM_CONF']}"
        shim.write_text(f'#!/bin/sh\necho {command} >> {folder}/calls\n{set_conf} exec {real} "$@"\n')
        shim.chmod(0o755)
    return {**env, "PATH": f"{shims}{os.pathsep}{env['PATH']}"}


def measure(way: str, jobs: int, env: dict[str, str]) -> Result:
    """Run all jobs with one variant, check their files, and return seconds, calls, and the number of wrong outputs."""
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        (folder / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs), "utf-8")
        command = [sys.executable, "-m", "snakemake", *WAYS[way]]
        counting = count_calls(folder, env)
        started = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=counting, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        wrong = sum(_content(folder / f"out/{i}") != str(i) for i in range(jobs))
        calls = _content(folder / "calls").split()
        if done.returncode or wrong:
            logs = sorted(folder.glob(".snakemake/s*/**/*.log"), key=lambda path: path.stat().st_mtime)
            print(done.stderr[-2000:], *(path.read_text("utf-8")[-1000:] for path in logs[-1:]), file=sys.stderr)
        return {"seconds": round(seconds, 1), **{name: calls.count(name) for name in COUNTED}, "wrong": wrong}


def _content(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


def claims(jobs: int, results: dict[str, Result | None]) -> list[str]:
    """Summarise our executor's results in words."""
    ours = results.get("submitit")
    if not ours:
        return []
    lines = [f"submitit: {ours['sbatch']:.0f} sbatch for {jobs} jobs"]
    for way, other in results.items():
        if other and way.startswith("official"):
            wrong = f", with {other['wrong']:.0f} of {jobs} outputs wrong" if other["wrong"] else ""
            lines.append(f"submitit: {other['seconds'] / ours['seconds']:.1f} times as fast as {way}{wrong}")
    return lines


def main() -> None:
    """Measure the selected variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=USUAL)
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"cannot start a SLURM here: {reason}")
    # otherwise the daemons would keep running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    results: dict[str, Result | None] = {}
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)
        with SlurmNode(Path(folder)) as node:
            for way in arguments.ways:
                if way.startswith("official") and not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
                    print(f"{way}: snakemake-executor-plugin-slurm is not installed", flush=True)
                    results[way] = None
                    continue
                results[way] = measure(way, arguments.jobs, node.env)
                print(f"{way}: {results[way]}", flush=True)
                node.clear()
    print(*claims(arguments.jobs, results), sep="\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
