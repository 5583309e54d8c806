"""Time of a training step in segmentation, `kl_dp` per pixel, for five variants in turns within one run.

- `published`: as a published script does it. Three forward passes per step, of teacher, frozen student and student, in
  torch's default memory layout and with its default optimiser; targets are divided pixel by pixel in one expression.
- `tuned`: the same three forward passes in this project's memory layout (channels last), with its fused optimiser.
- `ours`: this project's engine with answers of teacher and frozen student that are kept in float16 at the size that the
  networks give. As in the pipeline, each process uses one core and trains a student of its own; there is one process
  per core, with the same allocator settings as the stages.
- `alone`: the same in one process with all cores.
- `limit`: forward and backward pass of the student alone, on given targets, in that same process: a lower bound for one
  student at a time.

`published` and `tuned` are one process with `--threads` threads, torch's default. At 48 pixels teacher and student are
equal Unets, with logits for each pixel; at 256 pixels they are FPNs, with logits at a stride of 4, on ResNet-50 and
ResNet-18, or both on ResNet-18 (`256-equal`). All variants train the same student on the same batches, and all but
`limit` must end with the same weights but for rounding. Starting Python, building the models and keeping their answers
is not counted; the latter is one forward pass per model and image for all pairs, methods and seeds.

With equal models a step in one process cannot be more than 1.67 times as fast as `tuned`, if a backward pass costs two
forward passes: 5 of them against 3. The rest of the gain is that of the memory layout and of one process per core.

    python benchmarks/segmentation.py
    python benchmarks/segmentation.py --sizes 256-equal --threads 1

The last line is JSON, of the sizes the worse value each: the seconds of `published` and of `tuned` divided by those of
`ours`, and `over_limit`, the seconds of `alone` divided by those of `limit`. The lines before it give seconds per step
and size, and the seconds of `published` divided by those of `alone`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ways.segmentation import CASES, Bench, Case, flat

from kt.stages import common

_bench: Bench


def _begin(case: Case, folder: Path, epochs: int, device: torch.device, threads: int) -> None:
    """Set up a worker process, like kt.stages.common.pick_device."""
    global _bench
    common.keep_freed()
    _bench = Bench(case, folder, epochs, device, threads)


def _run(variant: str) -> NDArray[np.float32]:
    found: Tensor = getattr(_bench, variant)()
    return found.numpy()


def _ready(_: int) -> None:
    """Wait a moment, so that every worker has started."""
    time.sleep(1)


def compared(args: argparse.Namespace, size: str) -> dict[str, float]:
    """Median seconds per step of every variant at a size."""
    case, processes = CASES[size], args.processes or (1 if args.device.type == "cuda" else args.threads)
    seconds: dict[str, list[float]] = {}
    ends: dict[str, Tensor] = {}
    spawn = get_context("spawn")
    with TemporaryDirectory() as folder:
        shared = (case, Path(folder), args.epochs, args.device)
        bench, plain = Bench(*shared, args.threads), Bench(*shared, args.threads, torch.contiguous_format)
        bench.keep()
        with (
            ProcessPoolExecutor(processes, spawn, _begin, (*shared, max(1, args.threads // processes))) as pool,
            ProcessPoolExecutor(1, spawn, _begin, (*shared, args.threads)) as single,
        ):
            list(pool.map(_ready, range(processes)))
            single.submit(_ready, 0).result()
            ways = {
                "ours": lambda: next(iter(pool.map(_run, ["ours"] * processes))),
                "published": lambda: plain.published().numpy(),
                "tuned": lambda: bench.tuned().numpy(),
                "alone": lambda: single.submit(_run, "ours").result(),
                "limit": lambda: single.submit(_run, "limit").result(),
            }
            steps = args.epochs * (case.images // case.batch)
            for turn in range(args.repeats):
                for name, way in ways.items():
                    began = time.perf_counter()
                    ends[name] = torch.from_numpy(way())
                    taken = (time.perf_counter() - began) / steps / (processes if name == "ours" else 1)
                    seconds.setdefault(name, []).append(taken)
                    print(f"{size}, turn {turn + 1}: {name} {1000 * taken:.0f} ms per step", flush=True)
    moved = float((ends["published"] - flat(bench.frozen)).norm())
    apart = {name: float((ends[name] - ends["published"]).norm()) / moved for name in ("tuned", "ours", "alone")}
    print(f"{size}: difference of the final weights, relative to the change by training:", apart)
    if max(apart.values()) > 0.3:  # other numbers of threads round differently
        raise SystemExit("the variants do not compute the same result")
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Time the variants in turns and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=CASES, default=["48", "256"], help="default: 48 256")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a training (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU cores (default: all, %(default)s)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="processes of `ours` (default: one per core; on a GPU one)")
    args = parser.parse_args()
    found = []
    for size in args.sizes:
        wall = compared(args, size)
        ratios = {f"ratio_{name}": wall[name] / wall["ours"] for name in ("published", "tuned")}
        ratios["over_limit"] = wall["alone"] / wall["limit"]
        print(f"{size}: ms per step", {name: round(1000 * value, 1) for name, value in wall.items()})
        print(f"{size}: over one process {wall['published'] / wall['alone']:.2f}", json.dumps(ratios))
        found.append(ratios)
    worst = {"ratio_published": min, "ratio_tuned": min, "over_limit": max}
    print(json.dumps({name: round(of([one[name] for one in found]), 3) for name, of in worst.items()}))


if __name__ == "__main__":
    main()
