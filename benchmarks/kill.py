"""Kill a study repeatedly with SIGKILL, continue it, and compare its tables with those of an undisturbed run.

The whole process group is killed at random moments: Snakemake, its shells, its stages. Each kill is followed by a plain
rerun, which the next kill interrupts; the last rerun finishes. Both runs start from scratch, in separate folders.

    python benchmarks/kill.py --kills 10

The last line is JSON: the kills that hit a running study, and the table rows that are missing or differ (except in
columns of wall time).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "zoo": ["name"],
    "complementarity": ["teacher", "student"],
    "pairs": ["teacher", "student"],
    "transfers": ["teacher", "student", "method", "seed", "key"],
    "methods": ["method", "group"],
    "flow": ["key", "epoch", "stage", "source", "source_stage"],
    "returns": ["key", "epoch"],
}
SECONDS = ["seconds", "train_seconds"]


def start(folder: Path, config: Path, cores: int) -> subprocess.Popen[bytes]:
    """Start the study in its own process group; its output goes to ``folder/run.log``."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += [
        "--workflow-profile",
        str(ROOT / "profiles/default"),
        "--configfile",
        str(config),
        "--cores",
        str(cores),
    ]
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def prepare(folder: Path, config: Path) -> Path:
    """A copy of the configuration that writes below ``folder``."""
    folder.mkdir(parents=True)
    study = yaml.safe_load(config.read_text("utf-8"))
    study["results"] = str(folder / "results")
    copy = folder / "config.yaml"
    copy.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
    return copy


def finish(folder: Path, config: Path, cores: int) -> float:
    """Run the study to its end and return the seconds it took."""
    began = time.monotonic()
    if start(folder, config, cores).wait() != 0:
        sys.exit(f"the study failed; see {folder / 'run.log'}")
    return time.monotonic() - began


def disturb(folder: Path, config: Path, cores: int, kills: int, length: float, seed: int) -> int:
    """Start the study and kill it, ``kills`` times; returns how many kills hit a running study."""
    chance, hits = random.Random(seed), 0
    while hits < kills:
        wait = chance.uniform(0.5, 1.5 * length / kills)
        run = start(folder, config, cores)
        try:
            status = run.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            hits += 1
            units = len(list((folder / "results/ledger").glob("??/*.json")))
            print(f"kill {hits} of {kills} after {wait:.1f} s, {units} trainings in the ledger", flush=True)
        else:
            if status != 0:
                sys.exit(f"a rerun failed after {hits} kills; see {folder / 'run.log'}")
            print(f"finished before kill {hits + 1}; the remaining kills would hit nothing", flush=True)
            break
    return hits


def plain(value: object) -> object:
    """Convert a cell to a value with a unique text; missing cells equal each other."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def compare(undisturbed: Path, disturbed: Path) -> tuple[int, int]:
    """Rows that are missing (or too many) and rows that differ, over all tables."""
    lost = changed = 0
    for name, keys in KEYS.items():
        files = [folder / f"results/tables/{name}.parquet" for folder in (undisturbed, disturbed)]
        if not any(file.exists() for file in files):  # a table that the study does not have
            continue
        ours, theirs = (pd.read_parquet(file).drop(columns=SECONDS, errors="ignore") for file in files)
        ours, theirs = (frame.set_index(keys).map(lambda value: repr(plain(value))) for frame in (ours, theirs))
        common = ours.index.intersection(theirs.index)
        lost += len(ours) + len(theirs) - 2 * len(common)
        changed += int((ours.loc[common] != theirs.loc[common]).any(axis=1).sum())
    return lost, changed


def main() -> None:
    """Run both studies and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", help="the study (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="cores (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kt-kill-") as scratch:
        calm, stormy = Path(scratch) / "undisturbed", Path(scratch) / "disturbed"
        length = finish(calm, prepare(calm, args.config), args.cores)
        print(f"undisturbed run: {length:.0f} s", flush=True)
        config = prepare(stormy, args.config)
        hits = disturb(stormy, config, args.cores, args.kills, length, args.seed)
        print(f"last rerun: {finish(stormy, config, args.cores):.0f} s", flush=True)
        lost, changed = compare(calm, stormy)
    print(json.dumps({"kills": hits, "rows_lost": lost, "rows_changed": changed}))


if __name__ == "__main__":
    main()
