"""Time and memory of the complementarity of all ordered pairs, compared with plain loops in one run.

Simulated predicted classes of a zoo are in a file, like those of the pipeline. Timed is the whole stage: from that file
to the Parquet table of all ordered pairs (flips, entropy, expertise counts, agreement, kappa, double fault, Q).

- `ratio_per_pair`: CPU seconds per pair of a plain loop over classes and images, as in the code published with the
  measure, divided by ours, which include agreement and writing. The loop runs on a few pairs; its flips, entropy and
  expertise must equal ours. `ratio_one_pass` is the ratio for a loop that passes over the images once.
- `ratio_add_one`: CPU seconds for a table of 1,001 models from scratch, divided by those for adding one model to a
  table of 1,000.
- `peak_gb_images`: peak memory for 300 models with 100,000 and with 400,000 images.
- `seconds_capa`: the table with flips and CAPA only, for 300 models. Simulated logits (float16) are copied from memory,
  so that no disk is measured. A few pairs are compared with the plain sum.

    python benchmarks/complementarity.py                 # 300 models × 50,000 images × 1,000 classes
    python benchmarks/complementarity.py --whole-zoo     # 1,826 models: 3.3 million pairs
    python benchmarks/complementarity.py --capa          # 300 models, CAPA alone

The last line is JSON. `seconds` are wall time on `--threads` threads, `cpu_seconds` their CPU time. Ratios are of CPU
time, because other work on the machine lengthens wall time. Every part runs in a separate process, so that its peak
memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kt.complementarity import table
from kt.complementarity.spec import ComplementaritySpec
from kt.tables import schema
from kt.tables.columns import SHARES

CLASSES = 1000
PATTERN = 1 << 12
"""Rows of noise from which all simulated logits are taken."""
COUNTED = ComplementaritySpec(measures=("agreement", "kappa", "double_fault", "q_statistic"))
CAPA = ComplementaritySpec(measures=("capa",))


@dataclass(frozen=True)
class MadeUp:
    """Simulated models of 65 to 85 % accuracy that find the same images hard; their predicted classes are in a file."""

    file: Path
    models: int
    images: int

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""
        return [f"model_{i:04}" for i in range(self.models)]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels with the same number of images per class, shuffled."""
        return np.random.default_rng(0).permutation(np.arange(self.images) % CLASSES)

    def write(self) -> None:
        """Write the file, one model at a time."""
        hardness = np.random.default_rng(1).standard_normal(self.images, np.float32)
        with self.file.open("wb") as file:
            for model in range(self.models):
                rng = np.random.default_rng([2, model])
                right = rng.standard_normal(self.images, np.float32) + 0.5 + 0.8 * rng.random() > hardness
                wrong = (self.labels + rng.integers(1, CLASSES, self.images)) % CLASSES
                np.where(right, self.labels, wrong).astype(np.uint16).tofile(file)

    def kept(self, model: int, rows: slice) -> NDArray[np.unsignedinteger]:
        """Predicted classes of one model."""
        start, stop, _ = rows.indices(self.images)
        return np.fromfile(self.file, np.uint16, stop - start, offset=2 * (model * self.images + start))

    def content(self, model: int) -> str:
        """Substitute for the hash in a predictions file."""
        return f"{model} of {self.images} images"

    @cached_property
    def noise(self) -> NDArray[np.float16]:
        """Logits that favour no class, float16 [PATTERN, CLASSES]."""
        return np.random.default_rng(4).standard_normal((PATTERN, CLASSES), np.float32).astype(np.float16)

    def logits(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Noise, from different rows for every model, raised for the predicted class."""
        start, stop, _ = rows.indices(self.images)
        logits = self.noise.take(np.arange(start + 131 * model, stop + 131 * model) % PATTERN, 0)
        logits[np.arange(stop - start), self.kept(model, rows)] += np.float16(9)
        return logits

    def features(self, model: int, rows: slice) -> NDArray[np.floating]:
        """Not simulated."""
        raise NotImplementedError

    top = features


def stage(zoo: MadeUp, out: Path, threads: int, spec: ComplementaritySpec = COUNTED) -> tuple[float, float, int]:
    """Make or update the table: seconds, CPU seconds, and pairs measured."""
    labels, start, worked = zoo.labels, time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        made = table.make(zoo, labels, CLASSES, "test", spec, out, pool)
        schema.write_pieces(out, "complementarity", made.pieces, made.facts.metadata())
    return time.perf_counter() - start, time.process_time() - worked, made.measured


def areas(flips: list[int]) -> tuple[float, list[int]]:
    """Entropy and number of classes in each area of expertise, computed plainly."""
    total, sizes = sum(flips), []
    for share in SHARES:
        held = size = 0
        for count in sorted(flips, reverse=True):
            if 100 * held >= share * total:
                break
            held, size = held + count, size + 1
        sizes.append(size)
    return -sum(f / total * math.log(f / total) for f in flips if f), sizes


def loop(labels: list[int], teacher: list[int], student: list[int]) -> tuple[float, list[int]]:
    """Entropy and areas by a loop over classes and images."""
    flips = [0] * CLASSES
    for c in range(CLASSES):
        for y, t, s in zip(labels, teacher, student, strict=True):
            if y == c and t == y and s != y:
                flips[c] += 1
    return areas(flips)


def one_pass(labels: list[int], teacher: list[int], student: list[int]) -> tuple[float, list[int]]:
    """Entropy and areas by one pass over the images."""
    flips = [0] * CLASSES
    for y, t, s in zip(labels, teacher, student, strict=True):
        if t == y and s != y:
            flips[y] += 1
    return areas(flips)


def by_loops(zoo: MadeUp, out: Path, pairs: int) -> dict[str, float]:
    """CPU seconds per pair of both loops, on a few pairs of the table; stops if their results differ from ours."""
    everything, labels = slice(0, zoo.images), zoo.labels.tolist()
    numbers = np.random.default_rng(3).integers(0, zoo.models * (zoo.models - 1), pairs)
    columns = ["teacher", "student", "class_entropy", *(f"expertise_{share}" for share in SHARES)]
    found = pq.read_table(out, columns=columns).take(numbers).to_pylist()
    seconds = {"loop": 0.0, "one_pass": 0.0}
    for row in found:
        models = [zoo.kept(zoo.names.index(row[role]), everything).tolist() for role in ("teacher", "student")]
        for name, way in (("loop", loop), ("one_pass", one_pass)):
            start = time.process_time()
            entropy, sizes = way(labels, *models)
            seconds[name] += (time.process_time() - start) / pairs
            same = math.isclose(entropy, row["class_entropy"], rel_tol=1e-9)
            if not same or sizes != [row[f"expertise_{share}"] for share in SHARES]:
                raise SystemExit(f"{name}: not the same as ours for {row}")
    return seconds


def check_capa(zoo: MadeUp, out: Path, pairs: int) -> None:
    """Stop if CAPA of a pair differs from its definition, computed in float64."""
    everything, at = slice(0, zoo.images), np.arange(zoo.images)
    numbers = np.random.default_rng(3).integers(0, zoo.models * (zoo.models - 1), pairs)
    for row in pq.read_table(out, columns=["teacher", "student", "capa"]).take(numbers).to_pylist():
        p, q = (
            np.exp(z) / np.exp(z).sum(1, keepdims=True)
            for z in (zoo.logits(zoo.names.index(row[r]), everything).astype(float) for r in ("teacher", "student"))
        )
        a, b = (probability[at, zoo.labels].mean() for probability in (p, q))
        expected = a * b + (1 - a) * (1 - b) / (CLASSES - 1)
        if not math.isclose(((p * q).sum(1).mean() - expected) / (1 - expected), row["capa"], abs_tol=1e-5):
            raise SystemExit(f"capa: not the same as the plain sum for {row}")


def part(name: str, folder: Path, threads: int, sample: int) -> dict[str, float]:
    """Run one part of the benchmark in this process."""
    models, images = {"300": (300, 50_000), "1826": (1826, 50_000), "add": (1001, 50_000), "capa": (300, 50_000)}.get(
        name, (300, 0)
    )
    zoo = MadeUp(folder / "predicted.u2", models, images or int(name.removeprefix("images_")))
    out = folder / "complementarity.parquet"
    zoo.write()
    if name == "add":
        stage(MadeUp(zoo.file, 1000, images), out, threads)
        added, cpu_added, measured = stage(zoo, out, threads)
        again, cpu_again, everything = stage(zoo, folder / "again.parquet", threads)
        same = pq.read_table(out).equals(pq.read_table(folder / "again.parquet"))
        if not same or everything != 1001 * 1000:
            raise SystemExit("adding a model gives a different table from computing it from scratch")
        seconds = {"seconds_add_one": added, "seconds_1001": again}
        return {**seconds, "pairs_add_one": measured, "ratio_add_one": cpu_again / cpu_added}
    seconds, cpu, measured = stage(zoo, out, threads, CAPA if name == "capa" else COUNTED)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    found = {"seconds": seconds, "cpu_seconds": cpu, "pairs": measured, "peak_gb": peak}
    if name == "capa":
        check_capa(zoo, out, sample)
        return {"seconds_capa": seconds, "cpu_seconds_capa": cpu, "peak_gb_capa": peak}
    found["table_gb"] = out.stat().st_size / 1e9
    if name == "300":
        loops = by_loops(zoo, out, sample)
        found |= {
            "ratio_per_pair": loops["loop"] * measured / cpu,
            "ratio_one_pass": loops["one_pass"] * measured / cpu,
        }
    return found


def apart(name: str, threads: int, sample: int) -> dict[str, float]:
    """Run a part in a separate process."""
    with TemporaryDirectory() as folder:
        options = ["--part", name, "--folder", folder, "--threads", str(threads), "--sample", str(sample)]
        done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = {k: round(v, 3) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
    print(f"{name}: {found}", flush=True)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole-zoo", action="store_true", help="1,826 models instead of 300")
    parser.add_argument("--capa", action="store_true", help="only the part with CAPA")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=3, help="pairs for the plain loops (default: %(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(part(args.part, args.folder, args.threads, args.sample)))
    elif args.capa:
        print(json.dumps(apart("capa", args.threads, args.sample)))
    elif args.whole_zoo:
        found = apart("1826", args.threads, args.sample)
        print(json.dumps({f"{k}_1826": v for k, v in found.items()}))
    else:
        found = apart("300", args.threads, args.sample)
        sizes = {n: apart(f"images_{n}", args.threads, args.sample)["peak_gb"] for n in (100_000, 400_000)}
        renamed = {(k if k.startswith("ratio") else f"{k}_300"): v for k, v in found.items()}
        more = {**apart("add", args.threads, args.sample), **apart("capa", args.threads, args.sample)}
        print(json.dumps({**renamed, **more, "peak_gb_images": sizes}))


if __name__ == "__main__":
    main()
