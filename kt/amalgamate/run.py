"""The trials of an amalgamation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kt.amalgamate.spec import KD, Amalgamation, EnsembleLogits, EnsembleSoftmax, Supervised, Teachers
from kt.experiments.bench import Bench
from kt.experiments.units import Trial
from kt.transfer import engine, losses
from kt.transfer.ledger import Record
from kt.transfer.method import Samples

Run = Callable[[Bench, Amalgamation, Trial, str], Record]


def concatenate(parts: Sequence[Tensor], where: Sequence[Tensor], classes: int, absent: float = 0.0) -> Tensor:
    """Scores of several teachers as scores of all classes, float32 [N, K]: the mean where several know a class.

    Args:
        parts: each teacher's scores, float32 [N, K'].
        where: where its classes stand among all, int64 [K'].
        classes: K.
        absent: the score of a class that none of them knows.
    """
    total, known = parts[0].new_zeros(len(parts[0]), classes), parts[0].new_zeros(classes)
    for scores, columns in zip(parts, where, strict=True):
        total[:, columns] += scores
        known[columns] += 1
    return torch.where(known > 0, total / known.clamp(min=1), absent)


def scores(bench: Bench, teachers: Sequence[str], split: str, softmax: bool = False) -> Tensor:
    """The teachers' concatenated logits, or probabilities, on the chosen images of a split, float32 [n, K]."""
    parts = [bench.cached(name, split) for name in teachers]
    columns = [torch.from_numpy(bench.positions(name)).to(bench.device) for name in teachers]
    return concatenate(
        [part.softmax(-1) for part in parts] if softmax else parts, columns, len(bench.classes), float("-inf")
    )


def samples(bench: Bench, trial: Trial) -> Samples:
    """What is known of the chosen transfer images: the teachers' concatenated logits, and labels for the control."""
    labels = torch.from_numpy(bench.labels("transfer")).to(bench.device)
    targets = scores(bench, trial.teachers, "transfer")
    return Samples(targets, labels, torch.ones_like(labels).bool(), torch.arange(len(labels), device=bench.device))


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """−Σ softmax(target) · log softmax(logits), float32 [B], from logits [B, K]. Source: CFL, T = 1."""
    return -(target.float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1)


def _plain(bench: Bench, experiment: Amalgamation, trial: Trial, key: str) -> Record:
    """The student alone, with soft targets or labels."""
    student, training = bench.student(trial.seed), trial.approach.trained(experiment.plan)

    def loss(output: Tensor, batch: Samples) -> Tensor:
        if trial.approach.uses_labels:
            return losses.cross_entropy(output, batch.labels)
        return soft_cross_entropy(batch.targets, output)

    history = engine.train(
        student, bench.view("transfer"), samples(bench, trial), loss, bench.validation_accuracy, training, trial.seed,
        bench.checkpoint(key),
    )  # fmt: skip
    return bench.outcome(student, student, history)


def _answer(bench: Bench, experiment: Amalgamation, trial: Trial, key: str) -> Record:
    """The teachers themselves, from their cached logits."""
    found = scores(bench, trial.teachers, "test", trial.approach.name == EnsembleSoftmax.name)
    return bench.untrained(found.argmax(-1).cpu().numpy())


RUN: dict[str, Run] = {
    KD.name: _plain,
    Supervised.name: _plain,
    Teachers.name: _answer,
    EnsembleLogits.name: _answer,
    EnsembleSoftmax.name: _answer,
}
