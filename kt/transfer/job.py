"""Compute the units of one student that the ledger does not have yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.checkpoint import Checkpoint
from kt.data.datasets import Dataset
from kt.data.spec import InputSpec
from kt.data.views import Inputs
from kt.errors import Interrupted
from kt.predictions import Logits
from kt.transfer import engine
from kt.transfer.ledger import Record, pack
from kt.transfer.spec import Training
from kt.transfer.units import Unit
from kt.zoo.inference import logits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workbench:
    """What all units of a job share: one student, its images on the device, its training plan.

    Attributes:
        student: the student with its original weights, on ``device``.
        weights: those weights, to start every unit from.
        frozen: the student's cached logits on the transfer split, float16 [N, C].
        inputs: the images of each split as the student sees them.
        labels: classes of each split, int64 [n].
        training: epochs, batch size, learning rate.
        checkpoints: folder of the checkpoints.
        every: seconds between two checkpoints.
        device: where students train.
        stop: set to end the running training after its next step, with a checkpoint.
    """

    student: nn.Module
    weights: dict[str, torch.Tensor]
    frozen: torch.Tensor
    inputs: Mapping[str, Inputs]
    labels: Mapping[str, NDArray[np.int64]]
    training: Training
    checkpoints: Path
    every: float
    device: torch.device
    stop: Event

    @classmethod
    def set_up(
        cls,
        student: nn.Module,
        frozen: Logits,
        data: Dataset,
        spec: InputSpec,
        training: Training,
        checkpoints: Path,
        every: float,
        device: torch.device,
        stop: Event,
    ) -> Workbench:
        """Put the student and the three splits that transfer needs on the device."""
        student = student.to(device).to(memory_format=torch.channels_last)
        splits = ("transfer", "validation", "test")
        return cls(
            student,
            {name: tensor.clone() for name, tensor in student.state_dict().items()},
            torch.from_numpy(frozen).to(device, torch.float32),
            {split: Inputs(data.images, data.rows(split), spec, device) for split in splits},
            {split: data.labels[data.rows(split)] for split in splits},
            training,
            checkpoints,
            every,
            device,
            stop,
        )

    def compute(self, unit: Unit, key: str, teacher: Logits | None) -> Record:
        """Train the student for one unit and return the outcome for the ledger; a failure is an outcome too.

        Args:
            unit: method, teacher and seed.
            key: the unit's key.
            teacher: the teacher's cached logits on the transfer split, float16 [N, C]; None for a control.

        Raises:
            Interrupted: ``stop`` was set; the unit goes on from its checkpoint next time.
        """
        try:
            return self._train(unit, key, teacher)
        except Interrupted:
            raise
        except engine.Diverged as error:
            self._checkpoint(key).remove()
            return {"status": "failed", "cause": "diverged", "reason": f"diverged: {error}"}
        except torch.OutOfMemoryError as error:
            return {"status": "failed", "cause": "out_of_memory", "reason": f"out_of_memory: {_first_line(error)}"}
        except Exception as error:  # one bad unit is a row with a reason, not the end of the job
            log.exception("unit %s failed", key[:12])
            reason = f"error: {type(error).__name__}: {_first_line(error)}"
            return {"status": "failed", "cause": "error", "reason": reason}

    def _train(self, unit: Unit, key: str, teacher: Logits | None) -> Record:
        start = time.perf_counter()
        self.student.load_state_dict(self.weights)
        labels = torch.from_numpy(self.labels["transfer"]).to(self.device)
        source = self.frozen if teacher is None else torch.from_numpy(teacher).to(self.device, torch.float32)
        targets, taught = unit.method.targets(source, self.frozen, labels)
        checkpoint = self._checkpoint(key)
        history = engine.train(
            self.student, self.inputs["transfer"], targets, labels, unit.method.loss,
            self._validation_accuracy, self.training, unit.seed, checkpoint,
        )  # fmt: skip
        last = best = self._classes("test")
        if history.best_epoch < self.training.epochs:
            self.student.load_state_dict(history.best)
            best = self._classes("test")
        checkpoint.remove()
        return {
            "status": "ok",
            "last": pack(last),
            "best": pack(best),
            "best_epoch": history.best_epoch,
            "steps": history.steps,
            "loss": history.loss,
            "validation": history.validation,
            "teacher_share": None if unit.method.control else 100 * float(taught.double().mean()),
            "seconds": time.perf_counter() - start,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }

    def _checkpoint(self, key: str) -> Checkpoint:
        return Checkpoint(self.checkpoints / f"{key}.pt", key, self.every, self.stop)

    def _classes(self, split: str) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = logits(self.student, self.inputs[split]).argmax(1)
        return classes

    def _validation_accuracy(self, student: nn.Module) -> float:
        return 100 * float((self._classes("validation") == self.labels["validation"]).mean())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
