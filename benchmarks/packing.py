"""Trainings per minute of one job with 1, 2, 4, 8 processes (`transfer.processes`), on a GPU or on the CPU's cores.

    python benchmarks/packing.py                         # on whatever device there is
    python benchmarks/packing.py --processes 1 2 --trainings 4 --epochs 1     # in seconds

Writes a study of small students on the digits to a temporary folder, and trains as many students with each number of
processes, whose start does not count. A process has an equal share of the cores, at least one; the CPU's numbers need
as many cores. The last line is JSON: the device, trainings per minute by processes, how many times as many as with one,
and whether all records are those of one process, which they are on the CPU where a process has as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kt import stages
from kt.study.check import check
from kt.study.load import parse
from kt.study.study import Study


def study(folder: Path, trainings: int, epochs: int, processes: int, device: str) -> Study:
    """A study whose one job trains so many students, each for so many epochs."""
    recipe = {"arch": "resnet10t", "args": {"channels": [16, 32, 64, 128], "stem_width": 16}}
    raw: dict[str, Any] = {
        "results": str(folder / "results"),
        "device": device,
        "data": {"source": "digits", "splits": {"zoo": 300, "transfer": 1000, "validation": 150, "test": 300}},
        "zoo": {
            "input": {"size": 16, "mean": [0.3], "std": [0.33]},
            "models": {name: {**recipe, "train": {"epochs": 1, "seed": seed}} for seed, name in enumerate("ab")},
        },
        "pairs": {"select": "explicit", "pairs": [{"teacher": "b", "student": "a"}]},
        "transfer": {
            "methods": {"kl": {}},
            "seeds": list(range(trainings)),
            "training": {"epochs": epochs, "batch_size": 125, "lr": 1e-3},
            "processes": processes,
        },
    }
    return check(parse(raw, "study"))


def records(ledger: Path) -> tuple[dict[str, Any], float]:
    """Outcomes by key, without their seconds, and the seconds from the first training's start to the last one's end."""
    found, starts, ends = {}, [], []
    for path in ledger.glob("??/*.json"):
        outcome, end = json.loads(path.read_bytes())["outcome"], path.stat().st_mtime
        starts.append(end - outcome.pop("seconds"))
        ends.append(end)
        found[path.stem] = outcome
    return found, max(ends) - min(starts)


def measure(counts: list[int], trainings: int, epochs: int, device: str = "auto") -> dict[str, Any]:
    """Trainings per minute by number of processes."""
    cores, alone = len(os.sched_getaffinity(0)), dict[str, Any]()
    found: dict[str, Any] = {"cores": cores, "trainings": trainings, "per_minute": {}, "times": {}, "same": {}}
    with TemporaryDirectory(prefix="packing") as name:
        folder = Path(name)
        made = study(folder, trainings, epochs, 1, device)
        layout = made.layout
        stages.data(made, layout, cores)
        for member in made.names:
            stages.weights(made, layout, member, 1)
            stages.predict(made, layout, member, 1)
        for processes in counts:
            shutil.rmtree(layout.ledger, ignore_errors=True)
            each = study(folder, trainings, epochs, processes, device)
            # one process alone has the threads that each of several has, so that only their number differs
            threads = max(1, cores // max(counts)) * processes
            stages.transfer(each, layout, "a", 0, None, folder / "rows.parquet", threads)
            outcomes, seconds = records(layout.ledger)
            alone = alone or outcomes
            rate = 60 * len(outcomes) / seconds
            found["device"] = next(iter(outcomes.values()))["device"]
            found["per_minute"][str(processes)] = round(rate, 2)
            first = next(iter(found["per_minute"].values()))
            found["times"][str(processes)] = round(rate / first, 2)
            found["same"][str(processes)] = outcomes == alone
            print(f"{processes} processes: {rate:.1f} trainings per minute on {found['device']}", file=sys.stderr)
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trainings", type=int, default=16, help="students to train each time")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.processes, arguments.trainings, arguments.epochs, arguments.device)))


if __name__ == "__main__":
    main()
