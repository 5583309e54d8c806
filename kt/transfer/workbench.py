"""What all units of a transfer job share: one student, the models that it reads, and their images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.data.datasets import Dataset
from kt.data.inputs import Inputs, inputs
from kt.data.spec import InputSpec, ViewsSpec
from kt.predictions import Logits
from kt.transfer.engine import State, weights_of
from kt.transfer.memory import estimate
from kt.transfer.training import Training
from kt.zoo.inference import classes

log = logging.getLogger(__name__)


class Models(Protocol):
    """What a job reads of the zoo, by a model's name."""

    def fingerprint(self, name: str) -> str:
        """Identifies architecture, input and weights."""

    def logits(self, name: str, split: str) -> Logits:
        """Cached logits, float16 [N, C]."""

    def predicted(self, name: str, split: str) -> NDArray[np.int64]:
        """The classes that the model said, int64 [N]."""

    def features(self, name: str, split: str) -> NDArray[np.float16]:
        """Cached penultimate features, float16 [N, D]."""

    def load(self, name: str) -> nn.Module:
        """The model with its weights."""

    def input_of(self, name: str) -> InputSpec:
        """What the model sees of an image."""


@dataclass(frozen=True)
class Workbench:
    """What all units of a job share: one student, its images on the device, its training plan.

    Attributes:
        name: the student's name.
        student: the student, on ``device``.
        weights: its original weights, to start every unit from.
        models: the zoo.
        data: the data set.
        labels: classes of the splits that training reads, int64 [n].
        training: epochs, batch size, optimiser, schedule.
        checkpoints: folder of the checkpoints.
        every: seconds between two checkpoints.
        device: where students train.
        stop: set to end the running training after its next step, with a checkpoint.
        crops: fixed views of the transfer images, if any.
        views: images of a split as some input shows them, made when they are first asked for.
    """

    name: str
    student: nn.Module
    weights: State
    models: Models
    data: Dataset
    labels: Mapping[str, NDArray[np.int64]]
    training: Training
    checkpoints: Path
    every: float
    device: torch.device
    stop: Event
    crops: ViewsSpec | None
    views: dict[tuple[str, InputSpec], Inputs]

    @classmethod
    def set_up(
        cls,
        name: str,
        models: Models,
        data: Dataset,
        training: Training,
        checkpoints: Path,
        every: float,
        device: torch.device,
        stop: Event,
        crops: ViewsSpec | None = None,
    ) -> Workbench:
        """Put the student on the device."""
        student = models.load(name).to(device).to(memory_format=torch.channels_last)
        weights = weights_of(student)
        labels = {split: data.labels[data.rows(split)] for split in ("transfer", "validation")}
        labels["transfer"] = np.tile(labels["transfer"], crops.n if crops else 1)
        return cls(name, student, weights, models, data, labels, training, checkpoints, every, device, stop, crops, {})

    def memory(self) -> int:
        """Estimate, and log, the bytes that a plain training takes; on a GPU beside what is free."""
        image = self.view(self.name, "transfer")[slice(0, 1)]
        needed = estimate(self.student, image, self.training)
        free = ""
        if self.device.type == "cuda":
            free = f" of {torch.cuda.mem_get_info(self.device)[0] / 1e9:.2f} GB free"
        log.info("a training of %s takes about %.2f GB of memory%s", self.name, needed / 1e9, free)
        return needed

    def forget(self, key: str) -> None:
        """Delete the checkpoints of a unit that needs them no more."""
        for path in self.checkpoints.glob(f"{key}*"):
            path.unlink(missing_ok=True)

    def model(self, name: str, weights: State | None = None) -> nn.Module:
        """The student with given weights, or else its original ones; or another model, from its file."""
        if name == self.name:
            self.student.load_state_dict(weights or self.weights)
            return self.student
        return self.models.load(name).to(self.device).to(memory_format=torch.channels_last)

    def view(self, name: str, split: str) -> Inputs:
        """The images of a split as a model sees them."""
        place = (split, self.models.input_of(name))
        if place not in self.views:
            self.views[place] = inputs(self.data, split, place[1], self.device, self.crops)
        return self.views[place]

    def classes(self, model: nn.Module, name: str, split: str) -> NDArray[np.int64]:
        """The classes that a model, by its name's input, gives the images of a split, int64 [n]."""
        return classes(model, self.view(name, split))
