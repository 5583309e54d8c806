"""One unit on the workbench: the trainings that its method asks for, one after another, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.tasks.task import named
from kt.transfer import engine
from kt.transfer.engine import State
from kt.transfer.failures import attempt_in_pieces, resumes
from kt.transfer.learners import Views
from kt.transfer.ledger import Record, pack
from kt.transfer.method import Method
from kt.transfer.samples import Samples
from kt.transfer.units import Unit
from kt.transfer.workbench import Workbench
from kt.zoo.inference import logits

Order = Literal["ascending", "descending", "random", "given"]


@dataclass(frozen=True)
class Trained:
    """What one training, or several, leave.

    Attributes:
        last: the learner's weights after the last epoch.
        best: those after the epoch with the best validation accuracy.
        loss: mean training loss of each epoch.
        validation: validation accuracy after each epoch, percent.
        steps: optimiser steps taken.
        best_epoch: the epoch of ``best``, counted from 1; None where it is not one epoch.
        shares: of the transfer images, for each model that trained: how many had a teacher, percent.
        pieces: how many pieces a batch was cut into, to save memory.
    """

    last: State
    best: State
    loss: list[float]
    validation: list[float]
    steps: int
    best_epoch: int | None
    shares: list[float]
    pieces: int


def follow(stages: Sequence[Trained]) -> Trained:
    """Trainings that continue each other, as one; the best epoch is the best of all of them, the first of equals."""
    best = max(stages, key=lambda stage: max(stage.validation))
    before = stages[: next(i for i, stage in enumerate(stages) if stage is best)]
    assert best.best_epoch is not None
    return replace(
        _together(stages),
        last=stages[-1].last,
        best=best.best,
        best_epoch=best.best_epoch + sum(len(stage.loss) for stage in before),
    )


def average(stages: Sequence[Trained]) -> Trained:
    """Independent trainings, as one: the mean of their last and of their best weights."""
    if len(stages) == 1:
        return stages[0]
    return replace(
        _together(stages),
        last=_mean([stage.last for stage in stages]),
        best=_mean([stage.best for stage in stages]),
        best_epoch=None,
    )


def _together(stages: Sequence[Trained]) -> Trained:
    return replace(
        stages[0],
        loss=[loss for stage in stages for loss in stage.loss],
        validation=[accuracy for stage in stages for accuracy in stage.validation],
        steps=sum(stage.steps for stage in stages),
        shares=[float(np.mean([stage.shares[0] for stage in stages]))],
        pieces=max(stage.pieces for stage in stages),
    )


def _mean(states: Sequence[State]) -> State:
    """Mean of weights and statistics; whole numbers are the first one's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


class Session:
    """What a method's ``run`` works with.

    Args:
        bench: the student, the images and the models.
        key: the unit's key.
        pieces: cut every batch into so many pieces, to save memory.
        split: the images that the outcome is measured on.
    """

    def __init__(self, bench: Workbench, key: str, pieces: int = 1, split: str = "test") -> None:
        self.bench, self.key, self.pieces, self.split = bench, key, pieces, split
        self.student, self.task = bench.name, named("classification")
        self._learner: nn.Module = bench.student
        self._names = [bench.name]

    def cached(self, name: str, split: str) -> Tensor:
        """A model's cached logits on a split, float32 [N, C], on the device."""
        return torch.from_numpy(self.bench.models.logits(name, split)).to(self.bench.device, torch.float32)

    def predicted(self, name: str, split: str) -> Tensor:
        """The classes that a model said on a split, int64 [N], on the device."""
        return torch.from_numpy(self.bench.models.predicted(name, split)).to(self.bench.device)

    def ordered(self, teachers: Sequence[str], order: Order, seed: int) -> list[str]:
        """Teachers by validation accuracy, the first named first of equals; or by the seed; or as given."""
        if order == "given":
            return list(teachers)
        if order == "random":
            return [teachers[i] for i in np.random.default_rng(seed).permutation(len(teachers))]
        models, labels = self.bench.models, self.bench.labels["validation"]
        right = {name: int((models.predicted(name, "validation") == labels).sum()) for name in teachers}
        return sorted(teachers, key=lambda name: right[name] if order == "ascending" else -right[name])

    def train(
        self, method: Method, teachers: Sequence[str], seed: int, start: State | None = None, stage: int | None = None
    ) -> Trained:
        """Train the student once, or all models where the method is joint.

        Args:
            method: supplies targets, loss and learner.
            teachers: names; none for a control.
            seed: of the order of images and of anything random in the learner.
            start: the student's weights to start from, and those of the frozen student; its original ones if None.
            stage: which of the unit's trainings this is; a finished one is kept until the unit is. None if it is one.
        """
        bench = self.bench
        self._names = [self.student]
        if method.joint:
            self._names = sorted([self.student, *teachers], key=bench.models.fingerprint)
        models = [bench.model(name, start) for name in self._names]
        frozen = self.cached(self.student, "transfer") if start is None else self._now()
        samples, shares = self._samples(method, teachers, frozen)
        torch.manual_seed(seed)
        self._learner = method.learner(models, samples)
        suffix = "" if stage is None else f".{stage}"
        finished = Checkpoint(bench.checkpoints / f"{self.key}{suffix}.done.pt", f"{self.key}{suffix}", 0, bench.stop)
        if stage is not None and (state := finished.load(bench.device)):
            return Trained(**state["trained"])
        progress = Checkpoint(bench.checkpoints / f"{self.key}{suffix}.pt", self.key + suffix, bench.every, bench.stop)
        views = [bench.view(name, "transfer") for name in self._names]
        history = engine.train(
            self._learner, Views(views) if method.joint else views[0], samples, partial(method.loss, self.task),
            self._validation_accuracy,
            method.trained(bench.training), seed, progress, method.slow_weights(), self.pieces,
            bench.crops.n if bench.crops else 1, method.together,
        )  # fmt: skip
        last = engine.weights_of(self._learner)
        trained = Trained(
            last, history.best, history.loss, history.validation, history.steps, history.best_epoch, shares,
            history.pieces,
        )  # fmt: skip
        if stage is not None:
            finished.save({"trained": vars(trained)})
            progress.remove()
        return trained

    def outcome(self, trained: Trained) -> Record:
        """The record of a unit that trained; the student is left with its last weights."""
        said: dict[str, list[str]] = {}
        only = trained.best_epoch == len(trained.loss)
        for which in ("last",) if only else ("best", "last"):
            self._learner.load_state_dict(getattr(trained, which))
            said[which] = [pack(self.bench.classes(model, name, self.split)) for name, model in self._members()]
        record: Record = {
            "status": "ok",
            "best_epoch": trained.best_epoch,
            "steps": trained.steps,
            "loss": trained.loss,
            "validation": trained.validation,
            "pieces": trained.pieces,
        }
        each = [
            {"last": last, "best": best, "teacher_share": share}
            for last, best, share in zip(said["last"], said.get("best", said["last"]), trained.shares, strict=True)
        ]
        if len(each) == 1:
            return record | each[0]
        return record | {
            "models": {self.bench.models.fingerprint(n): e for n, e in zip(self._names, each, strict=True)}
        }

    def untrained(self, classes: Tensor) -> Record:
        """The record of a unit that answers its split's images with some classes, int64 [N], without training."""
        said = pack(classes.cpu().numpy())
        record: Record = {"status": "ok", "last": said, "best": said, "best_epoch": None, "steps": 0}
        return record | {"loss": [], "validation": [], "teacher_share": None, "pieces": 1}

    def _samples(self, method: Method, teachers: Sequence[str], frozen: Tensor) -> tuple[Samples, list[float]]:
        """What is known of the transfer images, and the share of them that a teacher teaches, for each model."""
        bench = self.bench
        labels = torch.from_numpy(bench.labels["transfer"]).to(bench.device)
        sources = {name: self.cached(name, "transfer") for name in teachers} | {self.student: frozen}
        features = None
        if method.uses_features:
            features = torch.from_numpy(bench.models.features(teachers[0], "transfer")).to(bench.device, torch.float32)
        parts = {}
        for name in self._names:
            others = [logits for other, logits in sources.items() if other != name]
            source = torch.stack(others) if method.takes != "pair" else (others or [frozen])[0]
            parts[name] = method.targets(self.task, source, sources[name], labels)
        targets, taught = parts[self.student]
        positions = torch.arange(len(labels), device=bench.device)
        kept = frozen if method.uses_frozen else None
        samples = Samples(targets, labels, taught, positions, features, kept)
        return samples, [100 * float(mask.double().mean()) for _, mask in parts.values()]

    def _now(self) -> Tensor:
        """Logits of the student as it is, rounded as cached ones are; float32 [N, C]."""
        now = logits(self.bench.student, self.bench.view(self.student, "transfer"))
        return torch.from_numpy(now).to(self.bench.device, torch.float32)

    def _members(self) -> list[tuple[str, nn.Module]]:
        """The models that train, by their names."""
        together = getattr(self._learner, "models", None)
        return list(zip(self._names, together or [self.bench.student], strict=True))

    def _validation_accuracy(self, learner: nn.Module) -> float:
        """Mean over the models that train, percent."""
        labels = self.bench.labels["validation"]
        found = [self.bench.classes(model, name, "validation") == labels for name, model in self._members()]
        return float(np.mean([100 * float(right.mean()) for right in found]))


def compute(bench: Workbench, unit: Unit, key: str) -> Record:
    """Train the student for one unit and return the outcome for the ledger; a failure is an outcome too.

    A batch that does not fit in memory is cut into two, four, … pieces.

    Args:
        bench: the student, the images and the models.
        unit: method, teachers and seed.
        key: the unit's key.

    Raises:
        Interrupted: the bench's ``stop`` was set; the unit goes on from its checkpoint next time.
    """

    def run(pieces: int) -> Record:
        record = unit.method.run(Session(bench, key, pieces, unit.split), unit.teachers, unit.seed)
        share = None if unit.method.control else record.get("teacher_share")
        return record | {"teacher_share": share, "budget": unit.method.budget(len(unit.teachers))}

    record = attempt_in_pieces(run, key, unit.method.trained(bench.training).batch_size, bench.device)
    if not resumes(record):
        bench.forget(key)
    return record
