"""Variants of a transfer that `benchmarks/transfer.py` times: the usual loops, ours, and the lower bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.compression import Logits
from kt.data import datasets
from kt.data.inputs import Inputs
from kt.study.load import load
from kt.tasks import losses
from kt.tasks.task import named
from kt.transfer import engine
from kt.transfer.batch import Examples
from kt.transfer.engine import learning_rate, optimiser_of
from kt.transfer.method import Method, registry
from kt.transfer.training import Training
from kt.zoo import models
from kt.zoo.inference import autocast, batches

TASK = named("classification")
METHODS = ("kl", "xekl", "kl_dp", "kl_dp_unsup")
Targets = Callable[[Method, Tensor, Tensor, Tensor], Tensor]


def rounded(z: Tensor) -> Tensor:
    """Round logits as the cache does, so that all variants resolve near ties alike."""
    return z.half().float()


def vectorised(method: Method, teacher: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """Targets of a batch in one expression."""
    return method.targets(TASK, teacher, frozen, labels)[0]


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
    student: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    method: Method,
    training: Training,
    targets_of: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Train with a plain loop; ``targets_of`` computes targets from images, labels and positions."""
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
    """Settings of a benchmark run.

    Attributes:
        config: Study with data, input, architecture and training plan.
        folder: Folder of the decoded data set.
        model: Member of the study's zoo; all models here have its architecture.
        teachers: Number of teachers.
        epochs: Epochs per training.
        device: Device of all models.
    """

    config: Path
    folder: Path
    model: str
    teachers: int
    epochs: int
    device: torch.device


class Bench:
    """Data, student and teachers, identical in every process.

    Args:
        settings: Settings of this run.
        threads: Threads of torch in this process.
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

    def cached(self, teacher: int | None) -> Logits:
        """Logits of a teacher, or of the student, on all transfer images."""
        model = self.frozen if teacher is None else self.teachers[teacher]
        return torch.cat([TASK.cached(found.answer) for found in batches(model, self.inputs)]).cpu().numpy()

    def transfer(self, teacher: Logits, own: Logits) -> Tensor:
        """Run our transfers from one teacher by all methods; returns the student's final weights, flat."""
        for method in self.methods:
            self.student.load_state_dict(self.start)
            examples = Examples(
                self.inputs.device, self.labels.cpu().numpy(), [teacher], own, merge=partial(method.merge, TASK)
            )
            examples.share()  # found before every transfer
            engine.train(
                self.student,
                self.inputs,
                examples,
                partial(method.loss, TASK),
                lambda model: 0.0,
                self.training,
                0,
                self.scratch,
            )
        return flat(self.student)

    def alone(self) -> Tensor:
        """Run our variant in this process."""
        own = self.cached(None)
        return [self.transfer(self.cached(i), own) for i in range(len(self.teachers))][-1]

    def forwarding(self, choose: Targets) -> Tensor:
        """Run a usual variant: three forward passes per step."""
        for teacher in self.teachers:
            for method in self.methods:
                self.student.load_state_dict(self.start)
                usual(
                    self.student,
                    self.inputs,
                    self.labels,
                    method,
                    self.training,
                    lambda x, y, _, m=method, t=teacher: choose(m, rounded(t(x)), rounded(self.frozen(x)), y),
                )
        return flat(self.student)

    def limit(self) -> Tensor:
        """Train the student alone, on given targets."""
        for _ in self.teachers:
            for method in self.methods:
                self.student.load_state_dict(self.start)
                usual(self.student, self.inputs, self.labels, method, self.training, lambda x, y, at: self.empty[at])
        return flat(self.student)


def flat(model: nn.Module) -> Tensor:
    """Return all weights on the CPU, float32 [P]; waits for the device."""
    return torch.cat([tensor.detach().flatten() for tensor in model.parameters()]).cpu()
