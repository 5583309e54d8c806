"""One unit on the bench: the trainings that its method asks for, one after another, and its outcome."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.seen import InputSpec
from kt.transfer import engine
from kt.transfer.batch import Batch, Examples, Rows, mapped
from kt.transfer.bench import Architecture, Bench
from kt.transfer.engine import History, Images, Rates, Shown, State, weights_of
from kt.transfer.failures import attempt_in_pieces, resumes
from kt.transfer.learners import Views
from kt.transfer.ledger import Record, pack
from kt.transfer.method import Method
from kt.transfer.unit import Unit
from kt.zoo.inference import at_once, each, forward

Order = Literal["ascending", "descending", "random", "given"]


@dataclass(frozen=True)
class Trained:
    """Result of one training, or of several.

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

    @classmethod
    def of(cls, learner: nn.Module, history: History, shares: list[float]) -> Trained:
        """Of a learner that has just been trained."""
        last = weights_of(learner)
        return cls(
            last,
            history.best,
            history.loss,
            history.validation,
            history.steps,
            history.best_epoch,
            shares,
            history.pieces,
        )


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


class Left(NamedTuple):
    """The student that a unit leaves.

    Attributes:
        model: with its last weights.
        architecture: ``arch`` and ``args``.
        channels: colour channels that it sees.
        spec: its input.
    """

    model: nn.Module
    architecture: Architecture
    channels: int
    spec: InputSpec


class Session:
    """One unit on the bench: all that a method's ``run`` works with.

    Args:
        bench: the student, the images and the models.
        unit: method, teachers, seed, and the split that the outcome is measured on.
        key: the unit's key.
        pieces: cut every batch into so many parts, to save memory.

    Attributes:
        left: the trained student; None before a training.
    """

    def __init__(self, bench: Bench, unit: Unit, key: str, pieces: int = 1) -> None:
        self.bench, self.unit, self.key, self.pieces, self.split = bench, unit, key, pieces, unit.split
        self.student, self.task = bench.at, bench.task
        self.left: Left | None = None
        self._learner: nn.Module
        self._members: list[tuple[str, nn.Module]] = []

    def answered(self, names: Sequence[str]) -> Examples:
        """The images of the unit's split, with cached answers of some models."""
        answers = [self.bench.cached(name, self.split) for name in names]
        return Examples(self.bench.device, self.bench.truth(self.split), answers, task=self.task)

    def ordered(self, teachers: Sequence[str], order: Order, seed: int) -> list[str]:
        """Teachers by their metric on validation, the first named first of equals; or by the seed; or as given."""
        if order == "given":
            return list(teachers)
        if order == "random":
            return [teachers[i] for i in np.random.default_rng(seed).permutation(len(teachers))]
        task, zoo, truth = self.task, self.bench.zoo, self.bench.truth("validation")
        value = {name: task.value(task.scores(zoo.predicted(name, "validation"), truth)) for name in teachers}
        return sorted(teachers, key=lambda name: value[name] if order == "ascending" else -value[name])

    def train(
        self, method: Method, teachers: Sequence[str], seed: int, start: State | None = None, stage: int | None = None
    ) -> Trained:
        """Train the student once, or all models where the method is joint.

        Args:
            method: supplies targets, loss and learner.
            teachers: names; none for a control.
            seed: of the order of images and of anything random in the learner.
            start: the student's weights to start from, and those of the frozen student; its original ones if None.
            stage: number of this training among those of the unit; a finished one is kept until the unit is. None if
                it is the only one.
        """
        bench = self.bench
        names = sorted([self.student, *teachers], key=bench.zoo.fingerprint) if method.joint else [self.student]
        models = [bench.model(name, start) for name in names]
        frozen = bench.cached(self.student, "transfer") if start is None else self._now(start)
        examples = {name: self._examples(method, name, teachers, frozen) for name in names}
        torch.manual_seed(seed)
        learner = method.learner(models, examples[self.student])
        self._takes(learner, list(zip(names, models, strict=True)))
        suffix = "" if stage is None else f".{stage}"
        finished = self.checkpoint(f"{suffix}.done", suffix, 0)
        if stage is not None and (state := finished.load(bench.device)):
            return Trained(**state["trained"])
        shares = [0.0 if method.control else of_model.share() for of_model in examples.values()]
        views = [bench.view("transfer", bench.zoo.input_of(name)) for name in names]
        progress = self.checkpoint(suffix, suffix)
        history = engine.train(
            learner,
            Views(views) if method.joint else views[0],
            examples[self.student],
            partial(self._loss, method),
            self._value,
            method.trained(bench.settings.training),
            seed,
            progress,
            method.slow_weights(),
            self.pieces,
            bench.shown,
            method.together,
        )
        trained = Trained.of(learner, history, shares)
        if stage is not None:
            finished.save({"trained": vars(trained)})
            progress.remove()
        return trained

    def fit(
        self,
        learner: nn.Module,
        student: nn.Module,
        images: Images,
        examples: Examples,
        loss: Callable[[Any, Batch], Tensor],
        validate: Callable[[], float] | None = None,
        rates: Rates = (),
        whole: bool = False,
    ) -> Trained:
        """Train the student of an experiment, alone or in a learner, with the unit's training and seed.

        Args:
            learner: all that trains.
            student: the part of it that stays.
            images: the transfer images as the learner takes them.
            examples: their truths and cached answers.
            loss: of each image, as for ``kt.transfer.engine.train``.
            validate: the metric on validation; the student's own where None.
            rates: parts of the learner that move faster or slower than the rest.
            whole: ``loss`` compares the images of its batch.
        """
        bench, method = self.bench, self.unit.method
        self._takes(learner, [(self.student, student)])
        drawn = bench.settings.images is not None  # `images` are then fewer than the bench has
        history = engine.train(
            learner,
            images,
            examples,
            loss,
            self._value if validate is None else lambda _: validate(),
            method.trained(bench.settings.training),
            self.unit.seed,
            self.checkpoint(),
            pieces=self.pieces,
            shown=Shown.views(len(images), bench.views("transfer")) if drawn else bench.shown,
            whole=whole,
            rates=rates,
        )
        return Trained.of(learner, history, [])

    def checkpoint(self, ending: str = "", of_key: str = "", every: float | None = None) -> Checkpoint:
        """A file for progress of the unit.

        Args:
            ending: of its name.
            of_key: added to the unit's key, by which the file is known.
            every: seconds between two writes; those of the bench where None.
        """
        settings = self.bench.settings
        path = settings.checkpoints / f"{self.key}{ending}.pt"
        return Checkpoint(path, self.key + of_key, settings.every if every is None else every, settings.stop)

    def outcome(self, trained: Trained) -> Record:
        """The record of a unit that trained; the student is left with its last weights."""
        kept: dict[str, list[str]] = {}
        only = trained.best_epoch == len(trained.loss)
        for which in ("last",) if only else ("best", "last"):
            self._learner.load_state_dict(getattr(trained, which))
            kept[which] = [pack(self.bench.kept(model, self.split, self._spec(name))) for name, model in self._members]
        shown = [self._shown(name, model) for name, model in self._members]
        record: Record = {
            "status": "ok",
            "best_epoch": trained.best_epoch,
            "steps": trained.steps,
            "loss": trained.loss,
            "validation": trained.validation,
            "pieces": trained.pieces,
        }
        each = [
            {"last": last, "best": best, **shown[i]} | ({"teacher_share": trained.shares[i]} if trained.shares else {})
            for i, (last, best) in enumerate(zip(kept["last"], kept.get("best", kept["last"]), strict=True))
        ]
        if len(each) == 1:
            return record | each[0]
        prints = [self.bench.zoo.fingerprint(name) for name, _ in self._members]
        return record | {"models": dict(zip(prints, each, strict=True))}

    def _shown(self, name: str, model: nn.Module) -> Record:
        """Of a task of maps: a member's pictures of a few test images after its training, and where it would be taught.

        The images are those that tell most of what the other models of the unit did better before.
        """
        bench, task, method = self.bench, self.task, self.unit.method
        others = [other for other in (self.student, *self.unit.teachers) if other != name]
        if not task.spatial or not others or self.split != "test":
            return {}
        images = bench.telling(name, tuple(others))
        truth = bench.truth(self.split)
        known = torch.from_numpy(truth[images]).to(bench.device)
        answer = forward(model.eval(), bench.view(self.split, self._spec(name))[images]).answer
        after = task.shown(task.aligned(answer, known))
        if after is None:
            return {}
        found = {"images": images.tolist(), "after": pack(after.cpu().numpy())}
        if method.takes != "group":
            answers = [bench.cached(other, self.split) for other in others]
            examples = Examples(bench.device, truth, answers, bench.cached(name, self.split), task=task)
            taught = method.merge(task, examples.at(torch.from_numpy(images)))[1]
            whole = taught if taught.ndim > 1 else taught[:, None, None].expand(after.shape)
            found["taught"] = pack(whole.cpu().numpy().astype(np.uint8))
        return {"shown": found}

    def untrained(self, kept: Tensor | NDArray[np.int64]) -> Record:
        """The record of a unit that answers its split's examples without training, [n, …] as the task keeps them."""
        text = pack(kept.cpu().numpy() if isinstance(kept, Tensor) else kept)
        record: Record = {"status": "ok", "last": text, "best": text, "best_epoch": None, "steps": 0}
        return record | {"loss": [], "validation": [], "teacher_share": None, "pieces": 1}

    def _examples(self, method: Method, name: str, teachers: Sequence[str], frozen: Rows) -> Examples:
        """The transfer images with what a method teaches one of the models that train.

        Args:
            method: merges the targets.
            name: of the model that is taught.
            teachers: names.
            frozen: answers of the unit's student before this training.
        """
        bench = self.bench
        answers = {other: bench.cached(other, "transfer") for other in teachers} | {self.student: frozen}
        own = answers.pop(name)

        features = bench.zoo.features(teachers[0], "transfer") if method.uses_features else None
        truth, merge = bench.truth("transfer"), partial(method.merge, self.task)
        return Examples(bench.device, truth, list(answers.values()), own, features, merge, self.task)

    def _loss(self, method: Method, output: Any, batch: Batch) -> Tensor:
        """The method's loss per image, from what the learner gives."""
        if isinstance(output, Tensor):
            output = self.task.aligned(output, batch.truth)
        return method.loss(self.task, output, batch)

    def _now(self, start: State) -> Rows:
        """Answers of the student as it is, rounded like cached ones.

        They lie in a mapped file beside the checkpoints, or are computed when they are read, as those of the members.
        """
        student = self.bench.model(self.student, start)
        if self.task.spatial and self.bench.zoo.logits(self.student, "transfer") is None:
            return self.bench.recomputed(copy.deepcopy(student), "transfer", self.bench.spec)
        training = student.training
        student.eval()
        view = self.bench.view("transfer")
        most = at_once(student, view, self.bench.truth("transfer"), self.task)
        answers = each(student, view, lambda found, _: self.task.cached(found.answer).cpu(), most=most)
        rows = mapped((part.numpy() for part in answers), self.bench.settings.checkpoints)
        student.train(training)
        return rows

    def _takes(self, learner: nn.Module, members: list[tuple[str, nn.Module]]) -> None:
        """Remember what trains."""
        begun = self.bench.begun
        self._learner, self._members = learner, members
        self.left = Left(dict(members)[self.student], begun.architecture, begun.channels, begun.spec)

    def _spec(self, name: str) -> InputSpec:
        return self.bench.spec if name == self.student else self.bench.zoo.input_of(name)

    def _value(self, learner: nn.Module) -> float:
        """The metric on validation, as the mean over the models that train."""
        found = [self.bench.value(model, "validation", self._spec(name)) for name, model in self._members]
        return float(np.mean(found))


def compute(bench: Bench, unit: Unit, key: str) -> tuple[Record, Left | None]:
    """The outcome of one unit for the ledger, and the student that it leaves; a failure is an outcome too.

    A batch that does not fit in memory is cut into two, four, … parts.

    Args:
        bench: the student, the images and the models.
        unit: method, teachers and seed.
        key: the unit's key.

    Raises:
        Interrupted: the bench was told to stop; the unit goes on from its checkpoint next time.
    """
    left: Left | None = None

    def run(pieces: int) -> Record:
        nonlocal left
        session = Session(bench, unit, key, pieces)
        record = unit.method.run(session, unit.teachers, unit.seed)
        left = session.left
        share = None if unit.method.control else record.get("teacher_share")
        return record | {"teacher_share": share, "budget": unit.method.budget(len(unit.teachers))}

    record = attempt_in_pieces(run, key, unit.method.trained(bench.settings.training).batch_size, bench.device)
    if not resumes(record):
        bench.forget(key)
    return record, left
