"""One partitioned transfer, done our way and the usual way, in turns within one run.

- `cached`: this project's engine; targets are merged once from cached logits, a step runs the student alone.
- `vectorised`: teacher, frozen student and student run on every batch; the partition is one vectorised expression.
- `loop`: the same three forward passes, and a Python loop over the batch's samples chooses each target, as the code
  published with the method does.

All three train the same student on the same batches for the same epochs, validation aside, and end with the same
weights up to float16 rounding of the cached logits. Making the cache (one forward pass of the teacher and of the
student over the transfer images) is counted in full for a single transfer in `cached_with_cache`; a study shares it
among all pairs, methods and seeds.

    python benchmarks/engine.py --repeats 5

The last line is JSON: median seconds of each way, and the ratios to ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.config import load
from kt.data.datasets import load as load_data
from kt.data.views import Inputs
from kt.transfer import engine
from kt.transfer.losses import distillation
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.partition import by_label
from kt.transfer.spec import Training
from kt.zoo import models
from kt.zoo.inference import logits

ROOT = Path(__file__).resolve().parent.parent
Choice = Callable[[Tensor, Tensor, Tensor], Tensor]


def vectorised(teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """Targets of a batch in one expression."""
    return teacher.where(by_label(teacher, frozen, labels)[:, None], frozen)


def looped(teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """Targets of a batch, sample by sample."""
    p_teacher, p_frozen = teacher.softmax(-1), frozen.softmax(-1)
    rows = []
    for i, label in enumerate(labels):
        rows.append(teacher[i] if p_teacher[i, label] > p_frozen[i, label] else frozen[i])
    return torch.stack(rows)


def usual(
    student: nn.Module,
    frozen: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    choose: Choice,
    training: Training,
) -> None:
    """The usual loop: three forward passes a step."""
    per_epoch = len(inputs) // training.batch_size
    optimiser = torch.optim.AdamW(student.parameters(), training.lr, weight_decay=training.weight_decay, fused=True)
    student.train()
    for epoch in range(training.epochs):
        order = engine.epoch_order(len(inputs), 0, epoch)
        for step in range(per_epoch):
            rate = engine.learning_rate(epoch * per_epoch + step, training.epochs * per_epoch, training.lr)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch = order[step * training.batch_size : (step + 1) * training.batch_size]
            x, y = inputs[batch.numpy()], labels[batch.to(labels.device)]
            with torch.no_grad():
                targets = choose(teacher(x).float(), frozen(x).float(), y)
            distillation(targets, student(x), 1.0).mean().backward()
            optimiser.step()
            optimiser.zero_grad()


def main() -> None:
    """Time the three ways in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml", help="the study (default: %(default)s)")
    parser.add_argument("--student", default="resnet", help="a name in zoo.models (default: %(default)s)")
    parser.add_argument("--teacher", default="vit", help="a name in zoo.models (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study, device = load(args.config), torch.device(args.device)
    models.import_modules(study.zoo.modules)
    data, training = load_data(study.data.source), study.transfer.training
    rows = np.arange(study.data.splits.known("transfer"))
    inputs = Inputs(data.images, rows, study.zoo.input_of(args.student), device)
    labels = torch.from_numpy(data.labels[rows]).to(device)

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        member = study.zoo.models[name]
        model = models.build(member.arch, member.args, int(data.labels.max()) + 1, data.images.shape[-1])
        return model.to(device).to(memory_format=torch.channels_last).eval()

    student, frozen, teacher = build(args.student), build(args.student), build(args.teacher)
    start = frozen.state_dict()
    method = KLDP()

    def cached(scratch: Path, of_teacher: Tensor, of_frozen: Tensor) -> None:
        targets, _ = method.targets(of_teacher, of_frozen, labels)
        nothing = Checkpoint(scratch / "none.pt", "none", float("inf"))
        engine.train(student, inputs, targets, labels, method.loss, lambda model: 0.0, training, 0, nothing)

    def cache() -> tuple[Tensor, Tensor]:
        made = [torch.from_numpy(logits(model, inputs)).to(device, torch.float32) for model in (teacher, frozen)]
        return made[0], made[1]

    seconds: dict[str, list[float]] = {"cached": [], "cached_with_cache": [], "vectorised": [], "loop": []}
    with TemporaryDirectory() as scratch:
        shared = cache()
        ways: dict[str, Callable[[], None]] = {
            "cached": lambda: cached(Path(scratch), *shared),
            "cached_with_cache": lambda: cached(Path(scratch), *cache()),
            "vectorised": lambda: usual(student, frozen, teacher, inputs, labels, vectorised, training),
            "loop": lambda: usual(student, frozen, teacher, inputs, labels, looped, training),
        }
        for turn in range(args.repeats + 1):
            for name, way in ways.items():
                student.load_state_dict(start)
                began = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"{name}_to_cached": round(median[name] / median["cached"], 2) for name in median if name != "cached"}
    print(json.dumps({**{name: round(value, 4) for name, value in median.items()}, **ratios}))


if __name__ == "__main__":
    main()
