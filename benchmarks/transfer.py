"""Transfers to one student from several teachers by several methods, done three ways, in turns within one run.

- `published`: as the published code does it: for every pair, teacher, frozen student and student run on every batch,
  and a Python loop over the batch's samples chooses each target.
- `vectorised`: the same three forward passes; the choice is one expression.
- `ours`: this project's engine, its cache included: every model runs once over the transfer images, targets are
  merged once a pair, and a step runs the student alone. As in the pipeline, a process takes one core and trains the
  students of some of the teachers; as many processes run as there are cores, with the allocator set as the stages do.
- `alone`: the same in one process with all cores, one student at a time.
- `limit`: a loop that only trains the student, on targets that are there: what one student at a time must take.

The usual ways and `limit` are one process with `--threads` threads, as torch does it unless told otherwise.
Teachers and student have the same architecture, and all ways train the same student on the same batches for the same
epochs; validation plays no part. All round logits to float16, as the cache does, and it is checked that they end with
the same weights. Starting Python and building the models is not counted for any of them. On a GPU all ways use bfloat16
autocast, and `ours` is one process unless `--processes` says otherwise.

    python benchmarks/transfer.py --teachers 8 --epochs 4
    python benchmarks/transfer.py --device cuda --processes 4

The last line is JSON: the seconds of the two usual ways over those of `ours`, and `over_limit`, the seconds of `alone`
over those of `limit`. The lines before it give seconds, images a second, and what the usual ways take over `alone`:
the part of the gain that does not come from one core a process.
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
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt import malloc
from kt.checkpoint import Checkpoint
from kt.config import load
from kt.data import datasets
from kt.data.views import Inputs
from kt.transfer import engine, losses
from kt.transfer.method import Method, registry
from kt.transfer.optimise import learning_rate, optimiser_of
from kt.transfer.samples import Samples
from kt.transfer.training import Training
from kt.zoo import models
from kt.zoo.inference import autocast, logits

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("kl", "xekl", "kl_dp", "kl_dp_unsup")
Targets = Callable[[Method, Tensor, Tensor, Tensor], Tensor]


def rounded(z: Tensor) -> Tensor:
    """Logits as the cache holds them, so that near ties fall alike in all ways."""
    return z.half().float()


def vectorised(method: Method, teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """Targets of a batch in one expression."""
    return method.targets(teacher, frozen, labels)[0]


def looped(method: Method, teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """Targets of a batch, sample by sample."""
    if method.name in ("kl", "xekl"):
        return teacher
    p_teacher, p_frozen = teacher.softmax(-1), frozen.softmax(-1)
    rows = []
    for i, label in enumerate(labels):
        by = (lambda p, i=i, y=label: p[i, y]) if method.name == "kl_dp" else (lambda p, i=i: p[i].max())
        rows.append(teacher[i] if by(p_teacher) > by(p_frozen) else frozen[i])
    return torch.stack(rows)


def usual(
    student: nn.Module, inputs: Inputs, labels: Tensor, method: Method, training: Training,
    targets_of: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:  # fmt: skip
    """A training loop as anybody writes it; the targets come from images, labels and positions."""
    per_epoch = len(inputs) // training.batch_size
    optimiser = optimiser_of(list(student.parameters()), training)
    student.train()
    for epoch in range(training.epochs):
        order = engine.epoch_order(len(inputs), 0, epoch)
        for step in range(per_epoch):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(epoch * per_epoch + step, training.epochs * per_epoch, training)
            positions = order[step * training.batch_size : (step + 1) * training.batch_size]
            x, y = inputs[positions.numpy()], labels[positions]
            with autocast(inputs.device):
                with torch.no_grad():
                    targets = targets_of(x, y, positions)
                output = student(x)
            loss = losses.distillation(targets, output, 1.0)
            if method.name == "xekl":
                loss = 0.5 * loss + 0.5 * losses.cross_entropy(output, y)
            loss.mean().backward()
            optimiser.step()
            optimiser.zero_grad()


class Settings(NamedTuple):
    """What a run is about.

    Attributes:
        config: the study that gives data, input, architecture and training plan.
        folder: of the decoded data set.
        model: a member of the study's zoo; all models here have its architecture.
        teachers: how many of them.
        epochs: of a training.
        device: that all models run on.
    """

    config: Path
    folder: Path
    model: str
    teachers: int
    epochs: int
    device: torch.device


class Bench:
    """Data, student and teachers, alike in every process.

    Args:
        settings: what this run is about.
        threads: of torch in this process.
    """

    def __init__(self, settings: Settings, threads: int) -> None:
        config, folder, model, teachers, epochs, device = settings
        torch.set_num_threads(threads)
        study = load(config)
        models.import_modules(study.zoo.modules)
        data = datasets.Dataset.open(folder)
        self.training = study.transfer.training.model_copy(update={"epochs": epochs})
        rows = data.rows("transfer")
        self.inputs = Inputs(data.images, rows, study.zoo.input_of(model), device)
        self.labels = torch.from_numpy(data.labels[rows]).to(device)
        self.methods = [registry()[name]() for name in METHODS]
        self.scratch = Checkpoint(folder / "none.pt", "none", float("inf"))
        self.empty = torch.zeros(len(rows), data.classes, device=device)
        member = study.zoo.models[model]

        def build(seed: int) -> nn.Module:
            torch.manual_seed(seed)
            built = models.build(member.arch, member.args, data.classes, data.channels)
            return built.to(device, memory_format=torch.channels_last).eval()

        self.student, self.frozen = build(0), build(0)
        self.teachers = [build(1 + i) for i in range(teachers)]
        self.start = {name: tensor.clone() for name, tensor in self.frozen.state_dict().items()}

    def cached(self, teacher: int | None) -> Tensor:
        """Logits of a teacher, or of the student, on all transfer images."""
        model = self.frozen if teacher is None else self.teachers[teacher]
        return torch.from_numpy(logits(model, self.inputs)).float()

    def transfer(self, teacher: Tensor, own: Tensor) -> Tensor:
        """Our transfers from one teacher by all methods; the student's last weights, flat."""
        teacher, own = teacher.to(self.labels.device), own.to(self.labels.device)
        for method in self.methods:
            self.student.load_state_dict(self.start)
            targets, taught = method.targets(teacher, own, self.labels)
            samples = Samples(targets, self.labels, taught, torch.arange(len(self.labels), device=self.labels.device))
            engine.train(
                self.student, self.inputs, samples, method.loss, lambda model: 0.0, self.training, 0, self.scratch
            )
        return flat(self.student)

    def alone(self) -> Tensor:
        """Our way, in this process."""
        own = self.cached(None)
        return [self.transfer(self.cached(i), own) for i in range(len(self.teachers))][-1]

    def forwarding(self, choose: Targets) -> Tensor:
        """A usual way: three forward passes a step."""
        for teacher in self.teachers:
            for method in self.methods:
                self.student.load_state_dict(self.start)
                usual(
                    self.student, self.inputs, self.labels, method, self.training,
                    lambda x, y, _, m=method, t=teacher: choose(m, rounded(t(x)), rounded(self.frozen(x)), y),
                )  # fmt: skip
        return flat(self.student)

    def limit(self) -> Tensor:
        """The student alone, on targets that are there."""
        for _ in self.teachers:
            for method in self.methods:
                self.student.load_state_dict(self.start)
                usual(self.student, self.inputs, self.labels, method, self.training, lambda x, y, at: self.empty[at])
        return flat(self.student)


def flat(model: nn.Module) -> Tensor:
    """All weights, float32 [P], on the CPU once they are there."""
    return torch.cat([tensor.detach().flatten() for tensor in model.parameters()]).cpu()


_bench: Bench


def _begin(settings: Settings, threads: int) -> None:
    """Set a worker process up, as kt.stages.common.pick_device does."""
    global _bench
    malloc.keep_freed()
    _bench = Bench(settings, threads)


def _ready(_: int) -> None:
    """Wait a moment, so that every worker has begun."""
    time.sleep(1)


def _cached(teacher: int | None) -> NDArray[np.float32]:
    return _bench.cached(teacher).numpy()


def _transfer(teacher: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    return _bench.transfer(torch.from_numpy(teacher), torch.from_numpy(own)).numpy()


def _alone() -> NDArray[np.float32]:
    return _bench.alone().numpy()


def shared(pool: ProcessPoolExecutor, teachers: int) -> Tensor:
    """Our way, on the worker processes."""
    own, *cached = pool.map(_cached, [None, *range(teachers)])
    return torch.from_numpy(list(pool.map(_transfer, cached, [own] * teachers))[-1])


def main() -> None:
    """Time the ways in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", help="the study (default: %(default)s)")
    parser.add_argument("--model", default="resnet", help="architecture of all models (default: %(default)s)")
    parser.add_argument("--teachers", type=int, default=8, help="number of teachers (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a training (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="turns, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU cores (default: all, %(default)s)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="of `ours` (default: one a core; on a GPU one)")
    args = parser.parse_args()
    folder = Path(mkdtemp())  # what is mapped into memory outlives its use
    try:
        datasets.write(folder, load(args.config).data, args.threads)
        run(args, folder)
    finally:
        shutil.rmtree(folder)


def run(args: argparse.Namespace, folder: Path) -> None:
    """All turns."""
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
    print("difference between last weights, in units of what training changed:", apart)
    if any(apart[name] > (0.3 if on_gpu or name == "ours" else 0.01) for name in apart):  # others round otherwise
        raise SystemExit("the ways do not do the same work")
    batch = bench.training.batch_size
    trained = args.teachers * len(METHODS) * args.epochs * (len(bench.labels) // batch) * batch
    wall = {name: statistics.median(times) for name, times in seconds.items()}
    speed = {name: round(trained / value) for name, value in wall.items()}
    print("seconds", {name: round(value, 2) for name, value in wall.items()}, "images a second", speed)
    usually = ("published", "vectorised")
    print("over one process:", json.dumps({f"ratio_{name}": round(wall[name] / wall["alone"], 2) for name in usually}))
    found = {f"ratio_{name}": round(wall[name] / wall["ours"], 2) for name in usually}
    print(json.dumps(found | {"over_limit": round(wall["alone"] / wall["limit"], 3)}))


if __name__ == "__main__":
    main()
