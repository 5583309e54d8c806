"""Transfers to one student from several teachers by several methods, done three ways, in turns within one run.

- `published`: as the published code does it: for every pair, teacher, frozen student and student run on every batch,
  and a Python loop over the batch's samples chooses each target.
- `vectorised`: the same three forward passes; the choice is one expression.
- `ours`: this project's engine, its cache included: every model runs once over the transfer images, targets are
  merged once a pair, and a step runs the student alone.
- `limit`: a loop that only trains the student, on targets that are there: what one student at a time must take.

Teachers and student have the same architecture, and all ways train the same student on the same batches for the same
epochs; validation plays no part. All round logits to float16, as the cache does, and it is checked that they end with
the same weights.

    python benchmarks/transfer.py --teachers 8 --epochs 4

The last line is JSON: the ratios of the two usual ways to ours, and `over_limit`, our seconds over the limit's. The
lines before it give seconds, images a second, and the same ratios of CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.config import load
from kt.data import datasets
from kt.data.views import Inputs
from kt.transfer import engine, losses
from kt.transfer.method import Method, Samples, registry
from kt.transfer.optimise import learning_rate, optimiser_of
from kt.transfer.training import Training
from kt.zoo import models
from kt.zoo.inference import logits

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
            with torch.no_grad():
                targets = targets_of(x, y, positions)
            output = student(x)
            loss = losses.distillation(targets, output, 1.0)
            if method.name == "xekl":
                loss = 0.5 * loss + 0.5 * losses.cross_entropy(output, y)
            loss.mean().backward()
            optimiser.step()
            optimiser.zero_grad()


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
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study, device = load(args.config), torch.device("cpu")
    models.import_modules(study.zoo.modules)
    with TemporaryDirectory() as folder:  # what is mapped into memory outlives it
        datasets.write(Path(folder), study.data, args.threads)
        data = datasets.Dataset.open(Path(folder))
    training = study.transfer.training.model_copy(update={"epochs": args.epochs})
    rows = data.rows("transfer")
    inputs = Inputs(data.images, rows, study.zoo.input_of(args.model), device)
    labels = torch.from_numpy(data.labels[rows])
    methods = [registry()[name]() for name in METHODS]
    member = study.zoo.models[args.model]

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = models.build(member.arch, member.args, data.classes, data.channels)
        return model.to(memory_format=torch.channels_last).eval()

    student, frozen, teachers = build(0), build(0), [build(1 + i) for i in range(args.teachers)]
    start = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    ready = torch.zeros(len(rows), data.classes)

    def forwarding(choose: Targets) -> None:
        for teacher in teachers:
            for method in methods:
                student.load_state_dict(start)
                usual(
                    student, inputs, labels, method, training,
                    lambda x, y, _, m=method, t=teacher: choose(m, rounded(t(x)), rounded(frozen(x)), y),
                )  # fmt: skip

    def only_student() -> None:
        for _ in teachers:
            for method in methods:
                student.load_state_dict(start)
                usual(student, inputs, labels, method, training, lambda x, y, at: ready[at])

    def ours(scratch: Path) -> None:
        own = torch.from_numpy(logits(frozen, inputs)).float()
        for teacher in teachers:
            cached = torch.from_numpy(logits(teacher, inputs)).float()
            for method in methods:
                student.load_state_dict(start)
                samples = Samples(*method.targets(cached, own, labels)[:1], labels, labels > 0, torch.arange(len(rows)))
                nothing = Checkpoint(scratch / "none.pt", "none", float("inf"))
                engine.train(student, inputs, samples, method.loss, lambda model: 0.0, training, 0, nothing)

    seconds: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}
    ends: dict[str, Tensor] = {}
    with TemporaryDirectory() as scratch:
        ways: dict[str, Callable[[], None]] = {
            "ours": lambda: ours(Path(scratch)),
            "limit": only_student,
            "vectorised": lambda: forwarding(vectorised),
            "published": lambda: forwarding(looped),
        }
        for turn in range(args.repeats):
            for name, way in ways.items():
                began, work = time.perf_counter(), time.process_time()
                way()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                busy.setdefault(name, []).append(time.process_time() - work)
                ends[name] = torch.cat([tensor.detach().flatten() for tensor in student.parameters()])
                print(f"turn {turn + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    apart = {name: float((ends[name] - ends["ours"]).abs().max()) for name in ("vectorised", "published")}
    moved = float((ends["ours"] - torch.cat([p.detach().flatten() for p in frozen.parameters()])).abs().max())
    print(f"largest difference between weights: {apart}; largest change by training: {moved}")
    if max(apart.values()) > 0.1 * moved:
        raise SystemExit("the ways do not do the same work")
    trained = len(teachers) * len(methods) * args.epochs * (len(rows) // training.batch_size) * training.batch_size
    wall, cpu = ({name: statistics.median(v) for name, v in times.items()} for times in (seconds, busy))
    speed = {name: round(trained / value) for name, value in wall.items()}
    print("seconds", {name: round(value, 2) for name, value in wall.items()}, "images a second", speed)
    print("CPU seconds, which a busy machine does not stretch:", json.dumps(ratios(cpu)))
    print(json.dumps(ratios(wall)))


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """What the other ways take, in units of ours, and what we take in units of the limit."""
    return {
        "ratio_published": round(seconds["published"] / seconds["ours"], 2),
        "ratio_vectorised": round(seconds["vectorised"] / seconds["ours"], 2),
        "over_limit": round(seconds["ours"] / seconds["limit"], 3),
    }


if __name__ == "__main__":
    main()
