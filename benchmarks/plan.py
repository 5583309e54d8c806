"""Time and memory of `snakemake -n` and of `kt status` for a large study, also with its trainings finished.

Writes to a temporary folder a study of many timm architectures with training recipes, random pairs, four methods and
two controls, and the properties of every model, with simulated sizes.

    python benchmarks/plan.py                      # 1,000 models, 100,000 pairs
    python benchmarks/plan.py --done 100000        # and both with this many simulated finished trainings

The last line is JSON: seconds and peak memory of the dry run, its jobs, pairs and trainings, and the GPU-hours that it
predicts. With finished trainings, the same of a dry run and of `kt status` that read every record, and of those after
them, which read the ledger's index; `kt status` writes it, a dry run does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from kt import pairs, store
from kt.layout import Layout
from kt.study import load, recipes
from kt.transfer.ledger import Ledger
from kt.transfer.unit import Plans, of_pairs
from kt.zoo import registry, segmentation

ROOT = Path(__file__).resolve().parent.parent


def study(models: int, chosen: int, per_job: int) -> dict[str, Any]:
    """Return the configuration as plain values."""
    known = sorted(name for name in registry.load(()).models if not name.startswith(segmentation.PREFIX))
    members = {
        f"{known[i % len(known)]}.{i}": {"arch": known[i % len(known)], "train": {"epochs": 100, "seed": i}}
        for i in range(models)
    }
    return {
        "title": "A large plan",
        "data": {"source": "digits", "splits": {"zoo": 400, "transfer": 500, "validation": 150, "test": 747}},
        "zoo": {"input": {"size": 224, "mean": [0.5], "std": [0.25]}, "models": members},
        "pairs": {"select": "random", "n": chosen},
        "transfer": {
            "methods": {name: {} for name in ("kl", "xekl", "kl_dp", "kl_dp_unsup", "self", "finetune")},
            "seeds": [0],
            "training": {"epochs": 20, "batch_size": 125, "lr": 1e-4},
            "pairs_per_job": per_job,
        },
    }


def write_members(folder: Path) -> None:
    """Write the facts of the data set, and the properties of every model, with simulated sizes."""
    plan, layout, rng = load.load(folder / "config.yaml"), Layout(folder / "results"), random.Random(0)
    for name in plan.names:
        macs = int(10 ** rng.uniform(8, 10.5))
        facts = {"name": name, "params": macs // 200, "macs": macs, "fingerprint": store.digest(name)}
        store.write_json(layout.member(name), facts | {recipes.RECIPE: recipes.of_member(plan, name)})
        layout.weights(name).touch()
    store.write_json(
        layout.data / "meta.json",
        {"classes": [str(digit) for digit in range(10)], "hash": "made-up", "source": "digits"},
    )
    store.write_json(layout.recipe_of_data, {recipes.RECIPE: recipes.of_data(plan)})


def write_records(folder: Path, count: int) -> None:
    """Write records of finished trainings, the first ``count`` of the study."""
    plan = load.load(folder / "config.yaml")
    layout, methods = Layout(folder / "results"), list(plan.transfer.methods.chosen().values())
    ledger = Ledger(layout.ledger)
    prints = {name: store.digest(name) for name in plan.names}
    plans = Plans("made-up", plan.transfer.training)
    units = (
        unit
        for teacher, student in pairs.candidates(plan.names, plan.pairs)
        for unit in of_pairs(methods, student, [teacher], plan.transfer.seeds, plans, controls=False)
    )
    outcome = {
        "status": "ok",
        "last": "A" * 600,
        "best": "A" * 600,
        "steps": 80,
        "seconds": 90.0,
        "device": "made-up GPU",
    }
    for unit in islice(units, count):
        description = unit.describe(prints)
        path = ledger.path(store.digest(description))
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"unit": description, "outcome": outcome, "hash": store.digest([description, outcome])}
        path.write_text(
            json.dumps(record, sort_keys=True), "utf-8"
        )  # faster than the ledger's own writes, which wait for the disk


def measure(folder: Path, *command: str) -> tuple[dict[str, float], str]:
    """Run a command: wall and CPU seconds (equal on an idle machine), peak memory in MB, and the output."""
    start = time.perf_counter()
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    text = (folder / "out.txt").read_text("utf-8")
    if status:
        sys.exit(text[-3000:])
    facts = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return {**{name: round(value, 1) for name, value in facts.items()}, "peak_mb": usage.ru_maxrss // 1024}, text


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--pairs-per-job", type=int, default=100)
    parser.add_argument("--done", type=int, default=0, help="simulated finished trainings")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="plan") as name:
        folder = Path(name)
        plain = study(arguments.models, arguments.pairs, arguments.pairs_per_job)
        (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")
        write_members(folder)
        profile = ["--snakefile", f"{ROOT}/Snakefile", "--workflow-profile", f"{ROOT}/profiles/default"]
        facts, text = measure(folder, "snakemake", *profile, "-n")
        summary = next(line for line in text.splitlines() if line.startswith("kt: "))
        print(summary, flush=True)
        result: dict[str, Any] = dict(facts)
        result["jobs"] = int(re.findall(r"^total\s+(\d+)$", text, re.MULTILINE)[-1])
        result["pairs"] = int(re.findall(r"(\d+) pairs", summary)[0])
        result["units"] = int(re.findall(r"(\d+) trainings", summary)[0])
        result["hours"] = float(re.findall(r"about ([\d,.]+) hours", summary)[0].replace(",", ""))
        if arguments.done:
            write_records(folder, arguments.done)
            plan, status = ["snakemake", *profile, "-n"], ["kt", "status"]
            (planned, _), (first, shown) = measure(folder, *plan), measure(folder, *status)
            print(shown, flush=True)
            (replanned, _), (again, _) = measure(folder, *plan), measure(folder, *status)
            result["done"] = arguments.done
            result["plan"] = {"first": planned, "again": replanned}
            result["status"] = {"first": first, "again": again}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
