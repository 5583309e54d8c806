"""Time and memory of ``kt analyse`` on a million rows of transfers, bootstrap included.

    taskset -c 0,1 python benchmarks/analysis.py --rows 1000000

Simulates a zoo with all ordered pairs and several methods and seeds, and writes it as Parquet; ``kt analyse`` reads it
and writes its tables. The last line is JSON: rows, seconds from reading to writing, peak memory of the process, and the
number of bootstrap samples.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted import simulate

METHODS, SEEDS = ("kl", "kl_dp", "kl_dp_unsup", "xekl"), 3


def main() -> None:
    """Simulate, analyse in a separate process, and print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of transfers (default: %(default)s)")
    parser.add_argument("--bootstrap", type=int, default=1_000, help="bootstrap samples (default: %(default)s)")
    args = parser.parse_args()
    models = math.ceil((1 + math.sqrt(1 + 4 * args.rows / len(METHODS) / SEEDS)) / 2)
    with TemporaryDirectory() as folder:
        tables = simulate(models, np.random.default_rng(0), True, METHODS, SEEDS, correlated=True)
        names = ("transfers", "zoo", "complementarity")
        paths = [Path(folder) / f"{name}.parquet" for name in names]
        for path, table in zip(paths, tables, strict=True):
            table.head(args.rows).to_parquet(path)
        rows = min(args.rows, len(tables[0]))
        del tables
        options = [text for name, path in zip(names, paths, strict=True) for text in (f"--{name}", str(path))]
        command = [sys.executable, "-m", "kt", "analyse", *options, "--out", str(Path(folder) / "out")]
        began = time.perf_counter()
        subprocess.run([*command, "--bootstrap", str(args.bootstrap)], check=True)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "rows": rows,
        "models": models,
        "bootstrap": args.bootstrap,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss / 1024**2, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
