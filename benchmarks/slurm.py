"""The same trivial jobs through our SLURM executor, the existing one, and Snakemake's local one, on one real SLURM.

Starts its own one-node SLURM in a temporary folder (needs root and Debian's slurmctld, slurmd, slurm-client, munge),
runs every way on it one after the other, and counts the calls of SLURM's commands with scripts in front of them.

    python benchmarks/slurm.py                  # 200 jobs; the existing executor takes minutes
    python benchmarks/slurm.py --jobs 20 --ways submitit local

The last line is JSON: seconds and calls of each way, null for a way whose plugin is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
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
OURS = [*CLUSTER, "--executor", "submitit", "--submitit-poll-seconds", "2"]
# without accounting its default, sacct, waits for ever
THEIRS = [*CLUSTER, "--executor", "slurm", "--slurm-status-command", "squeue"]
WAYS = {
    "submitit": [*OURS, "--groups", "one=pack", "--group-components", "pack=20", "--cores", "2"],
    "submitit_arrays": OURS,
    "official": THEIRS,
    # its default limit mixes tasks up; 50 is the largest that gave right results
    "official_arrays": [*THEIRS, "--slurm-array-jobs", "all", "--slurm-array-limit", "50"],
    "official_arrays_unlimited": [*THEIRS, "--slurm-array-jobs", "all"],
    "official_groups": [*THEIRS, "--groups", "one=pack", "--group-components", "pack=20", "--cores", "2"],
    "local": [*COMMON, "--cores", "2"],
}
COUNTED = ("sbatch", "squeue", "sacct", "srun")


def count_calls(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """An environment in which each call of SLURM's commands leaves a line in ``folder/calls``."""
    shims = folder / "shims"
    shims.mkdir()
    for command in COUNTED:
        shim = shims / command
        real = shutil.which(command, path=env["PATH"])
        conf = env["SLURM_CONF"]
        shim.write_text(f'#!/bin/sh\necho {command} >> {folder}/calls\nSLURM_CONF={conf} exec {real} "$@"\n')
        shim.chmod(0o755)
    return {**env, "PATH": f"{shims}{os.pathsep}{env['PATH']}"}


def measure(way: str, jobs: int, env: dict[str, str]) -> dict[str, float]:
    """Run all jobs one way, check their files, and return seconds and calls."""
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        (folder / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs), "utf-8")
        started = time.monotonic()
        command = [sys.executable, "-m", "snakemake", *WAYS[way]]
        done = subprocess.run(
            command, cwd=folder, env=count_calls(folder, env), capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        wrong = [i for i in range(jobs) if _content(folder / f"out/{i}") != str(i)]
        calls = (folder / "calls").read_text("utf-8").split() if (folder / "calls").exists() else []
        result = {"seconds": round(seconds, 1), **{command: calls.count(command) for command in COUNTED}}
        if done.returncode or wrong:
            logs = sorted(folder.glob(".snakemake/*/**/*.log"), key=lambda path: path.stat().st_mtime)
            print(done.stderr[-2000:], *(path.read_text("utf-8")[-1000:] for path in logs[-1:]), file=sys.stderr)
            result["wrong"] = len(wrong)
        return result


def _content(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


def main() -> None:
    """Measure the chosen ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"cannot start a SLURM here: {reason}")
    results: dict[str, dict[str, float] | None] = {}
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
    print(json.dumps(results))


if __name__ == "__main__":
    main()
