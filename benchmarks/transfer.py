"""Time of transfers to one student from several teachers by several methods, for five variants in turns within one run.

- `published`: as in the published code. For every pair, teacher, frozen student and student run on every batch, and a
  Python loop over the batch's samples selects each target.
- `vectorised`: the same three forward passes; the selection is one expression.
- `ours`: this project's engine, including its cache. Every model runs once over the transfer images, targets are merged
  once per pair, and a step runs the student alone. As in the pipeline, each process uses one core and trains the
  students of some of the teachers; there is one process per core, with the same allocator settings as the stages.
- `alone`: the same in one process with all cores, one student at a time.
- `limit`: a loop that only trains the student, on given targets; a lower bound for one student at a time.

`published`, `vectorised` and `limit` are one process with `--threads` threads, torch's default. Teachers and student
have the same architecture, and all variants train the same student on the same batches for the same epochs, without
validation. All round logits to float16, as the cache does, and must end with the same weights. Starting Python and
building the models is not counted for any of them. On a GPU all variants use bfloat16 autocast, and `ours` is one
process unless `--processes` is given.

    python benchmarks/transfer.py --teachers 8 --epochs 4
    python benchmarks/transfer.py --device cuda --processes 4

The last line is JSON: the seconds of `published` and `vectorised` divided by those of `ours`, and `over_limit`, the
seconds of `alone` divided by those of `limit`. The lines before it give seconds, images per second, and the seconds of
`published` and `vectorised` divided by those of `alone`: the part of the gain that is not due to one process per core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ways.transfer import METHODS, Bench, Settings, flat, looped, vectorised

from kt.compression import Logits
from kt.data import datasets
from kt.stages import common
from kt.study.load import load

ROOT = Path(__file__).resolve().parent.parent

_bench: Bench


def _begin(settings: Settings, threads: int) -> None:
    """Set up a worker process, like kt.stages.common.pick_device."""
    global _bench
    common.keep_freed()
    _bench = Bench(settings, threads)


def _ready(_: int) -> None:
    """Wait a moment, so that every worker has started."""
    time.sleep(1)


def _cached(teacher: int | None) -> Logits:
    return _bench.cached(teacher)


def _transfer(teacher: Logits, own: Logits) -> NDArray[np.float32]:
    return _bench.transfer(teacher, own).numpy()


def _alone() -> NDArray[np.float32]:
    return _bench.alone().numpy()


def shared(pool: ProcessPoolExecutor, teachers: int) -> Tensor:
    """Run our variant on the worker processes."""
    own, *cached = pool.map(_cached, [None, *range(teachers)])
    return torch.from_numpy(list(pool.map(_transfer, cached, [own] * teachers))[-1])


def main() -> None:
    """Time the variants in turns and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", help="the study (default: %(default)s)")
    parser.add_argument("--model", default="resnet", help="architecture of all models (default: %(default)s)")
    parser.add_argument("--teachers", type=int, default=8, help="number of teachers (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a training (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU cores (default: all, %(default)s)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="processes of `ours` (default: one per core; on a GPU one)")
    args = parser.parse_args()
    folder = Path(mkdtemp())  # memory-mapped files must outlive their use
    try:
        datasets.write(folder, load(args.config).data, args.threads)
        run(args, folder)
    finally:
        shutil.rmtree(folder)


def run(args: argparse.Namespace, folder: Path) -> None:
    """Run all turns."""
    settings = Settings(args.config, folder, args.model, args.teachers, args.epochs, args.device)
    on_gpu = args.device.type == "cuda"
    processes = args.processes or (1 if on_gpu else args.threads)
    bench = Bench(settings, args.threads)
    seconds: dict[str, list[float]] = {}
    ends: dict[str, Tensor] = {}
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(processes, spawn, _begin, (settings, max(1, args.threads // processes))) as pool,
        ProcessPoolExecutor(1, spawn, _begin, (settings, args.threads)) as single,
    ):
        list(pool.map(_ready, range(processes)))
        single.submit(_ready, 0).result()
        ways: dict[str, Callable[[], Tensor]] = {
            "ours": lambda: shared(pool, args.teachers),
            "alone": lambda: torch.from_numpy(single.submit(_alone).result()),
            "limit": bench.limit,
            "vectorised": lambda: bench.forwarding(vectorised),
            "published": lambda: bench.forwarding(looped),
        }
        for turn in range(args.repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                ends[name] = way()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                print(f"turn {turn + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    moved = float((ends["alone"] - flat(bench.frozen)).norm())
    apart = {name: float((ends[name] - ends["alone"]).norm()) / moved for name in ("ours", "vectorised", "published")}
    print("difference of the final weights, relative to the change by training:", apart)
    if any(apart[name] > (0.3 if on_gpu or name == "ours" else 0.01) for name in apart):  # these round differently
        raise SystemExit("the variants do not compute the same result")
    batch = bench.training.batch_size
    trained = args.teachers * len(METHODS) * args.epochs * (len(bench.labels) // batch) * batch
    wall = {name: statistics.median(times) for name, times in seconds.items()}
    speed = {name: round(trained / value) for name, value in wall.items()}
    print("seconds", {name: round(value, 2) for name, value in wall.items()}, "images per second", speed)
    usually = ("published", "vectorised")
    print("over one process:", json.dumps({f"ratio_{name}": round(wall[name] / wall["alone"], 2) for name in usually}))
    found = {f"ratio_{name}": round(wall[name] / wall["ours"], 2) for name in usually}
    print(json.dumps(found | {"over_limit": round(wall["alone"] / wall["limit"], 3)}))


if __name__ == "__main__":
    main()
