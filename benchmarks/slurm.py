"""Our SLURM executor and the official one, like for like: the same trivial jobs on a real SLURM.

Starts a one-node SLURM in a temporary folder (needs root and Debian's slurmctld, slurmd, slurm-client, munge), runs
every pair of variants on it one after the other, and counts the calls of SLURM's commands with wrapper scripts.

    official="snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep throttler"
    pip install --no-deps --target FOLDER $official
    python benchmarks/slurm.py --official FOLDER      # 200 jobs; up to ten minutes per variant
    python benchmarks/slurm.py --official FOLDER --jobs 40 --ways packed --polls equal_polls
    python benchmarks/slurm.py --official FOLDER --minutes 30     # leaves out what would take longer

Every Snakemake loads all executors that it finds, so the official one is on the path of its own runs only. It is set to
query squeue, because this SLURM keeps no accounts. Jobs have room for two Snakemakes and a step, which the official
executor starts on the node.

Ways: ``plain`` submits every job by itself, ``arrays`` in arrays of 50, and ``packed`` packs 20 into one with
Snakemake's groups. Polls: at their ``defaults``, the official executor looks at jobs 40 s after the first submission,
ours after 5 s; with ``equal_polls`` both look every 5 s. Each variant is run once, then those that take less than
``--quick`` seconds twice more; the median counts.

The rule is a plain shell command, for which our executor starts no Snakemake on the node. With ``--nested`` it does, as
for other rules.

``cpu`` are the CPU seconds of everything in a run: Snakemake, SLURM's daemons, and the jobs; other work on the machine
does not change them much. They are counted by a control group (version 1), where there is one.

Of our runs it also says where the time of a job goes, in mean seconds: until it is submitted (all jobs are ready at the
start), until its task starts on the node, until that ends, and until Snakemake notices.

The last line is JSON, also if the benchmark is stopped: for each way, at each polls, the official executor's seconds
over ours; null if one of them was not run, or if an output is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
COMMON = ["--scheduler", "greedy", "--latency-wait", "5", "--max-jobs-per-timespan", "10000/1s", "--jobs", "1000"]
COMMON += ["--default-resources", "mem_mb=1000"]
TOOLS = {
    "ours": [*COMMON, "--executor", "submitit"],
    "official": [*COMMON, "--executor", "slurm", "--slurm-status-command", "squeue"],
}
PACKED = ["--groups", "one=pack", "--group-components", "pack=20", "--cores", "2"]
WAYS = {
    "plain": {"ours": ["--submitit-array-size", "1"], "official": []},
    "arrays": {
        "ours": ["--submitit-array-size", "50"],
        "official": ["--slurm-array-jobs", "all", "--slurm-array-limit", "50"],
    },
    "packed": {"ours": PACKED, "official": PACKED},
}
POLLS = {
    "equal_polls": {
        "ours": ["--submitit-poll-seconds", "5", "--submitit-poll-max-seconds", "5"],
        "official": ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"],
    },
    "defaults": {"ours": [], "official": []},
}
COUNTED = ("sbatch", "squeue", "sacct", "srun", "scontrol", "sinfo", "scancel")

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


@contextlib.contextmanager
def cpu_counter() -> Iterator[Callable[[], float]]:
    """Count the CPU seconds of this process and all that it starts from now on; NaN where nothing counts them."""
    root = Path("/sys/fs/cgroup/cpuacct")
    if not root.is_dir():
        yield lambda: math.nan
        return
    group = root / f"benchmark-{os.getpid()}"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield lambda: int((group / "cpuacct.usage").read_text()) / 1e9
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                (root / "cgroup.procs").write_text(process)
        group.rmdir()


def measure(options: list[str], jobs: int, env: dict[str, str], cpu: Callable[[], float]) -> Result:
    """Run all jobs with one variant, check their files, and return seconds, calls, and the number of wrong outputs."""
    # jobs of a run that is stopped may still write
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs), "utf-8")
        counting = count_calls(folder, env)
        began, started, used = time.time(), time.monotonic(), cpu()
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *options], cwd=folder, env=counting, capture_output=True, text=True
        )
        seconds = time.monotonic() - started
        wrong = sum(_content(folder / f"out/{i}") != str(i) for i in range(jobs))
        calls = _content(folder / "calls").split()
        if done.returncode or wrong:
            logs = sorted(folder.glob(".snakemake/s*/**/*.log"), key=lambda path: path.stat().st_mtime)
            print(done.stderr[-2000:], *(path.read_text("utf-8")[-1000:] for path in logs[-1:]), file=sys.stderr)
        counts = {name: calls.count(name) for name in COUNTED if name in calls}
        return {
            "seconds": round(seconds, 1),
            "cpu": round(cpu() - used, 1),
            **counts,
            "wrong": wrong,
            **phases(folder, began),
        }


def phases(folder: Path, began: float) -> Result:
    """Mean seconds that our jobs spend in each phase, packs counted as jobs; empty for other executors.

    All are recorded in whole seconds, which are half a second early on average.
    """
    times: dict[str, list[float]] = {"submitted": [], "started": [], "done": [], "noticed": []}
    for file in folder.glob(".snakemake/submitit/*/events.tsv"):
        rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
        for kind, phase in (("submitted", "submitted"), ("ended", "noticed")):
            times[phase] += [
                datetime.datetime.fromisoformat(row[0]).timestamp() + 0.5 for row in rows if row[3] == kind
            ]
        for log in file.parent.glob("*.log"):
            own = re.findall(r"^=== (.{25}) (job|completed)", log.read_text("utf-8"), re.MULTILINE)
            for date, kind in own:
                phase = "started" if kind == "job" else "done"
                times[phase].append(datetime.datetime.fromisoformat(date).timestamp() + 0.5)
    if not times["done"] or len({len(found) for found in times.values()}) > 1:
        return {}
    means = [began, *(statistics.mean(found) for found in times.values())]
    return {f"until_{name}": round(b - a, 1) for name, a, b in zip(times, means, means[1:], strict=False)}


def _content(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


class Variants:
    """Runs of each variant: polls, way, and tool."""

    def __init__(self, measured: Callable[[str, str, str], Result], *, quick: float, minutes: float) -> None:
        """Set the limits.

        Args:
            measured: Runs a variant.
            quick: Seconds below which a variant is run three times.
            minutes: Minutes for all runs; none starts that would probably end later.
        """
        self._measured, self._quick, self._until = measured, quick, time.monotonic() + minutes * 60
        self.found: dict[tuple[str, str, str], list[Result]] = {}

    def run(self, polls: str, way: str, tool: str) -> None:
        """Run a variant, unless it was run and is slow, or there is no time left."""
        runs = self.found.setdefault((polls, way, tool), [])
        alike = [each["seconds"] for key, found in self.found.items() if key[1:] == (way, tool) for each in found]
        late = time.monotonic() + max(alike, default=0.0) > self._until
        if late or (runs and runs[0]["seconds"] >= self._quick):
            return
        runs.append(self._measured(polls, way, tool))
        print(polls, way, tool, runs[-1], flush=True)

    def ratio(self, polls: str, way: str) -> float | None:
        """Return the official executor's median seconds over ours; None if one is missing, or an output is wrong."""
        both = [self.found.get((polls, way, tool), []) for tool in ("official", "ours")]
        if not all(both) or any(run["wrong"] for runs in both for run in runs):
            return None
        official, ours = (statistics.median(run["seconds"] for run in runs) for runs in both)
        return round(official / ours, 2)


def main() -> None:
    """Measure the selected variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--polls", nargs="+", choices=POLLS, default=list(POLLS))
    parser.add_argument("--quick", type=float, default=60.0, help="seconds below which a variant is run three times")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time for all runs")
    parser.add_argument("--nested", action="store_true", help="ours starts Snakemake on the node for each job")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="folder with the official executor")
    arguments = parser.parse_args()
    if arguments.official and not (arguments.official / "snakemake_executor_plugin_slurm").is_dir():
        parser.error(f"--official: no snakemake_executor_plugin_slurm in {arguments.official}")
    if reason := missing():
        sys.exit(f"cannot start a SLURM here: {reason}")
    # otherwise the daemons would keep running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with contextlib.ExitStack() as stack:
        cpu = stack.enter_context(cpu_counter())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        node = stack.enter_context(SlurmNode(folder))
        envs = {"ours": node.env}
        if arguments.official:
            path = os.pathsep.join(filter(None, [str(arguments.official.absolute()), node.env.get("PYTHONPATH")]))
            envs["official"] = {**node.env, "PYTHONPATH": path}

        def measured(polls: str, way: str, tool: str) -> Result:
            nested = ["--submitit-nested", "always"] if arguments.nested and tool == "ours" else []
            options = [*TOOLS[tool], *WAYS[way][tool], *POLLS[polls][tool], *nested]
            return measure(options, arguments.jobs, envs[tool], cpu)

        variants = Variants(measured, quick=arguments.quick, minutes=arguments.minutes)
        try:
            for _, *variant in itertools.product(range(3), arguments.polls, arguments.ways, envs):
                variants.run(*variant)
        finally:
            ratios = {polls: {way: variants.ratio(polls, way) for way in arguments.ways} for polls in arguments.polls}
            print(json.dumps(ratios), flush=True)


if __name__ == "__main__":
    main()
