"""What the trials of an experiment work with: images, teachers and the student, on one device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.checkpoint import Checkpoint
from kt.costs import EVALUATED
from kt.data.datasets import Dataset
from kt.data.inputs import IN_MEMORY, Inputs
from kt.data.spec import InputSpec, ViewsSpec
from kt.data.views import draw_views
from kt.errors import KtError
from kt.experiments.spec import Problem
from kt.predictions import Logits
from kt.transfer.engine import History, weights_of
from kt.transfer.ledger import Record, pack
from kt.zoo.classes import positions
from kt.zoo.inference import classes
from kt.zoo.models import build

Architecture = tuple[str, dict[str, Any]]
"""``arch`` and ``args`` of a member or a student."""


class Trained(NamedTuple):
    """What a trial leaves: a model, its ``arch`` and ``args``, and the colour channels that it sees."""

    model: nn.Module
    architecture: Architecture
    channels: int


class Teachers(Protocol):
    """What a trial reads of its teachers, by their names."""

    def load(self, name: str) -> nn.Module:
        """The teacher with its weights."""

    def fresh(self, name: str) -> nn.Module:
        """Its architecture with fresh weights, from torch's global generator."""

    def architecture(self, name: str) -> Architecture:
        """Its ``arch`` and ``args``."""

    def input_of(self, name: str) -> InputSpec:
        """What the teacher sees of an image."""

    def logits(self, name: str, split: str) -> Logits:
        """Cached logits on all images of a split, float16 [N, K]."""

    def predicted(self, name: str, split: str) -> NDArray[np.int64]:
        """The outputs that the teacher said on all images of a split, int64 [N]."""


class Bench:
    """An experiment's images are those of its student's classes, in every split; without labels, all of them.

    Args:
        at: the experiment's place in the configuration, for errors.
        architecture: the student's ``arch`` and ``args``.
        spec: what the student sees of an image.
        channels: colour channels that the student sees.
        problem: what is to be told apart.
        teachers: the zoo.
        data: the data set.
        checkpoints: folder of the checkpoints.
        every: seconds between two checkpoints.
        device: where students train.
        stop: set to end the running training after its next step, with a checkpoint.
        crops: fixed views of the transfer images, if any.
        given: makes the student with given weights and so many outputs; None where weights are fresh.

    Attributes:
        trained: what the last trial left, if it trained.
        pieces: how many pieces the running trial shall cut its batches into.
    """

    def __init__(
        self,
        at: str,
        architecture: Architecture,
        spec: InputSpec,
        channels: int,
        problem: Problem,
        teachers: Teachers,
        data: Dataset,
        checkpoints: Path,
        every: float,
        device: torch.device,
        stop: Event,
        crops: ViewsSpec | None = None,
        given: Callable[[int], nn.Module] | None = None,
    ) -> None:
        self.at, self.architecture, self.spec, self.channels = at, architecture, spec, channels
        self.problem, self.classes, self.teachers, self.data = problem, problem.classes, teachers, data
        self.checkpoints, self.every, self.device, self.stop, self.crops = checkpoints, every, device, stop, crops
        self.given = given
        self.trained: Trained | None = None
        self.pieces = 1
        self._views: dict[tuple[str, InputSpec], Inputs] = {}

    # images

    @cached_property
    def chosen(self) -> dict[str, NDArray[np.int64]]:
        """Which images of each split belong to the experiment: positions in the split, int64 [n], in its order.

        Position i + k · N is the k-th view of the i-th of N images.
        """
        found = {
            split: np.flatnonzero((self._where(split) >= 0) | (self._labels(split) < 0))
            for split in ("transfer", "validation", "test")
        }
        for split, images in found.items():
            if not len(images):
                raise KtError(f"{self.at}: no image of the student's classes is in the split {split!r}")
        return found

    @property
    def learnt_from(self) -> int:
        """Number of chosen transfer images, each counted once, however many views of it there are."""
        return len(self.chosen["transfer"]) // self.views("transfer")

    def labels(self, split: str) -> NDArray[np.int64]:
        """Where the classes of a split's chosen images stand among the student's, int64 [n]; −1 where unknown."""
        return self._where(split)[self.chosen[split]]

    def _where(self, split: str) -> NDArray[np.int64]:
        return positions(self._labels(split), self.classes)

    def _labels(self, split: str) -> NDArray[np.int64]:
        return np.tile(self.data.labels[self.data.rows(split)], self.views(split))

    def views(self, split: str) -> int:
        """How often every image of a split is seen by a model, in as many crops."""
        return self.crops.n if self.crops and split == "transfer" else 1

    def images(self, split: str, some: NDArray[np.int64], spec: InputSpec) -> Inputs:
        """Images of a split, by their positions there, as a model with some input sees them."""
        rows = self.data.rows(split)
        drawn = None
        if self.crops and split == "transfer":
            drawn = draw_views(self.crops, rows, *self.data.images.shape[1:3]).at(some)
        return Inputs(self.data.images, rows[some % len(rows)], spec, self.device, drawn=drawn)

    def view(self, split: str, spec: InputSpec | None = None) -> Inputs:
        """The chosen images of a split as a model with some input sees them; the student where None."""
        place = (split, spec or self.spec)
        if place not in self._views:
            self._views[place] = self.images(split, self.chosen[split], place[1])
        return self._views[place]

    def positions(self, teacher: str) -> NDArray[np.int64]:
        """Where a teacher's classes stand among the student's, int64 [K']; −1 where they do not."""
        return self.problem.own[teacher]

    def cached(self, teacher: str, split: str) -> torch.Tensor:
        """A teacher's cached logits on the chosen images, float32 [n, K'], on the device."""
        found = torch.from_numpy(self.teachers.logits(teacher, split)[self.chosen[split]])
        return found.to(self.device, torch.float32)

    def predicted(self, teacher: str, split: str) -> NDArray[np.int64]:
        """The positions among the student's classes that a teacher says of the chosen images, int64 [n]."""
        return self.positions(teacher)[self.teachers.predicted(teacher, split)[self.chosen[split]]]

    def shape(self, teacher: str | None = None) -> tuple[int, int, int]:
        """Channels, height and width of what the student, or a teacher, sees."""
        if teacher is None:
            return self.channels, *self.spec.sides
        spec = self.teachers.input_of(teacher)
        return spec.shape(self.data.channels)

    def prepared(self, teachers: Sequence[str] = ()) -> int:
        """Bytes that images take as the student sees them; the learnt and validation images as teachers do, too."""
        seen = {(split, self.spec) for split in self.chosen}
        seen |= {(split, self.teachers.input_of(name)) for name in teachers for split in ("transfer", "validation")}
        return sum(
            min(IN_MEMORY, 4 * len(self.chosen[split]) * math.prod(spec.shape(self.data.channels)))
            for split, spec in seen
        )

    # models

    def teacher(self, name: str) -> nn.Module:
        """A teacher on the device, in eval mode, without gradients."""
        return self.teachers.load(name).to(self.device).eval().requires_grad_(False)

    def untaught(self, name: str) -> nn.Module:
        """The same with fresh weights, from torch's global generator."""
        return self.teachers.fresh(name).to(self.device).eval().requires_grad_(False)

    def instead(self, name: str) -> Bench:
        """The same bench, with a teacher's architecture in the student's place."""
        other = copy.copy(self)
        other.given = None
        other.architecture, other.spec = self.teachers.architecture(name), self.teachers.input_of(name)
        other.channels = self.shape(name)[0]
        return other

    def student(self, seed: int) -> nn.Module:
        """The student with its first weights, on the device: fresh ones, or a fresh head, are those of the seed.

        Raises:
            KtError: it cannot be built, its weights cannot be had or are another architecture's, or it has another
                number of outputs than classes.
        """
        torch.manual_seed(seed)
        (arch, args), shape, classes = self.architecture, self.shape(), len(self.classes)
        try:
            model = self.given(classes) if self.given else build(arch, args, classes, self.channels)
        except KtError as error:
            raise KtError(f"{self.at}.student: {str(error).removeprefix('zoo: ')}") from error
        try:
            with torch.no_grad():
                outputs = copy.deepcopy(model).eval()(torch.zeros(1, *shape)).shape[-1]
        except Exception as error:  # an architecture may raise anything
            text = (str(error).splitlines() or [type(error).__name__])[0]
            raise KtError(f"{self.at}.student: {arch} does not take an image of {list(shape)}: {text}") from error
        if outputs != classes:
            raise KtError(f"{self.at}.student: {arch} has {outputs} outputs, but there are {classes} classes")
        return model.to(self.device).to(memory_format=torch.channels_last)

    # trials

    @property
    def at_once(self) -> int:
        """Images in one forward pass of teachers, without gradients: fewer where batches are cut into pieces."""
        return max(1, EVALUATED // self.pieces)

    def checkpoint(self, key: str) -> Checkpoint:
        """Where a trial keeps its progress."""
        return Checkpoint(self.checkpoints / f"{key}.pt", key, self.every, self.stop)

    def forget(self, key: str) -> None:
        """Delete the checkpoints of a trial that needs them no more."""
        for path in self.checkpoints.glob(f"{key}*"):
            path.unlink(missing_ok=True)

    def said(self, student: nn.Module, split: str) -> NDArray[np.int64]:
        """The positions among the student's classes that it gives the chosen images of a split, int64 [n]."""
        return classes(student, self.view(split))

    def validation_accuracy(self, student: nn.Module) -> float:
        """Accuracy of the student on the chosen validation images, percent."""
        return 100 * float((self.said(student, "validation") == self.labels("validation")).mean())

    def outcome(self, learner: nn.Module, student: nn.Module, history: History) -> Record:
        """The record of a trial that trained ``student``, alone or in ``learner``, which ends with its last weights."""
        last = weights_of(learner)
        learner.load_state_dict(history.best)
        best = pack(self.said(student, "test"))
        learner.load_state_dict(last)
        self.trained = Trained(student, self.architecture, self.channels)
        return {
            "status": "ok",
            "last": pack(self.said(student, "test")),
            "best": best,
            "best_epoch": history.best_epoch,
            "steps": history.steps,
            "loss": history.loss,
            "validation": history.validation,
            "pieces": history.pieces,
            "budget": 1,
        }

    def untrained(self, said: NDArray[np.int64]) -> Record:
        """The record of a trial that answers the chosen test images without training, int64 [n]."""
        text = pack(said)
        return {"status": "ok", "last": text, "best": text, "best_epoch": None, "steps": 0, "pieces": 1, "budget": 0}
