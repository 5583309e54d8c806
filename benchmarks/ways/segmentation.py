"""Variants of a training that `benchmarks/segmentation.py` times: three forward passes, ours, and the lower bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.tasks.segmentation import IGNORED
from kt.tasks.task import named
from kt.transfer import engine
from kt.transfer.batch import Examples
from kt.transfer.engine import learning_rate, optimiser_of
from kt.transfer.method import registry
from kt.transfer.training import Training
from kt.zoo import models
from kt.zoo.inference import autocast, batches

TASK = named("segmentation")
METHOD = registry()["kl_dp"].model_validate({"level": "pixel"})
Answers = NDArray[np.float16]


class Case(NamedTuple):
    """Models and images of one comparison.

    Attributes:
        arch: of all models, with fresh weights.
        args: of the architecture, beside its encoder.
        student, teacher: their encoders.
        side: of the images and masks, pixels.
        classes: number of classes.
        batch: images per step.
        images: transfer images.
    """

    arch: str
    args: dict[str, Any]
    student: str
    teacher: str
    side: int
    classes: int
    batch: int
    images: int


UNET = {"encoder_depth": 4, "decoder_channels": (64, 32, 16, 16)}
FPN = {"upsampling": 1}
CASES = {
    "48": Case("smp_unet", UNET, "resnet10t", "resnet10t", side=48, classes=11, batch=32, images=256),
    "256": Case("smp_fpn", FPN, "resnet18", "resnet50", side=256, classes=21, batch=8, images=24),
    "256-equal": Case("smp_fpn", FPN, "resnet18", "resnet18", side=256, classes=21, batch=8, images=24),
}
"""Logits at the size of the image, and at a stride of 4."""


class Bench:
    """Images, student and teacher, identical in every process.

    Args:
        case: what is trained.
        folder: of the answers that are kept.
        epochs: of a training.
        device: of all models.
        threads: of torch in this process.
        layout: of weights and images in memory.
    """

    def __init__(
        self,
        case: Case,
        folder: Path,
        epochs: int,
        device: torch.device,
        threads: int,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        torch.set_num_threads(threads)
        self.case, self.folder, self.device, self.layout = case, folder, device, layout
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (case.images, case.side, case.side, 3), np.uint8)
        masks = rng.integers(0, case.classes, (case.images, case.side, case.side), np.uint8)
        masks[rng.random(masks.shape) < 0.05] = IGNORED
        spec = InputSpec(size=case.side, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.inputs, self.masks = Inputs(images, np.arange(case.images), spec, device), masks
        self.training = Training(epochs=epochs, batch_size=case.batch, lr=1e-4, weight_decay=0.01)
        self.student, self.frozen, self.teacher = (
            self._built(encoder, seed) for encoder, seed in ((case.student, 0), (case.student, 0), (case.teacher, 1))
        )
        self.start = {name: tensor.clone() for name, tensor in self.frozen.state_dict().items()}
        self.scratch = Checkpoint(folder / "none.pt", "none", float("inf"))

    def _built(self, encoder: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        args = {**self.case.args, "encoder": encoder}
        model = models.build(self.case.arch, args, self.case.classes, 3)
        return model.to(self.device, memory_format=self.layout).eval()

    def keep(self) -> None:
        """Write the answers of teacher and student before training."""
        for name, model in (("teacher", self.teacher), ("frozen", self.frozen)):
            parts = [TASK.cached(found.answer) for found in batches(model, self.inputs)]
            np.save(self.folder / f"{name}.npy", torch.cat(parts).cpu().numpy())

    def kept(self, name: str) -> Answers:
        """Such answers, memory-mapped."""
        found: Answers = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return found

    def ours(self) -> Tensor:
        """Train by our engine from kept answers; returns the student's final weights, flat."""
        self.student.load_state_dict(self.start)
        merge = partial(METHOD.merge, TASK)
        kept = [self.kept("teacher")], self.kept("frozen")
        examples = Examples(self.device, self.masks, *kept, merge=merge, task=TASK)
        engine.train(
            self.student,
            self.inputs,
            examples,
            lambda output, batch: METHOD.loss(TASK, TASK.aligned(output, batch.truth), batch),
            lambda model: 0.0,
            self.training,
            0,
            self.scratch,
        )
        return flat(self.student)

    def published(self) -> Tensor:
        """Train by a plain loop with three forward passes per step and torch's default optimiser."""
        training = self.training
        optimiser = torch.optim.AdamW(self.student.parameters(), training.lr, weight_decay=training.weight_decay)
        return self._plain(self._merged, optimiser)

    def tuned(self) -> Tensor:
        """The same with the engine's optimiser."""
        return self._plain(self._merged, optimiser_of(list(self.student.parameters()), self.training))

    def _merged(self, x: Tensor, masks: Tensor) -> Tensor:
        answers = (TASK.aligned(model(x).float(), masks) for model in (self.teacher, self.frozen))
        return METHOD.targets(TASK, *answers, masks)[0]

    def limit(self) -> Tensor:
        """Train the student alone, on given targets."""
        given = torch.zeros(self.case.batch, self.case.classes, self.case.side, self.case.side, device=self.device)
        optimiser = optimiser_of(list(self.student.parameters()), self.training)
        return self._plain(lambda x, masks: given, optimiser)

    def _plain(self, targets_of: Callable[[Tensor, Tensor], Tensor], optimiser: torch.optim.Optimizer) -> Tensor:
        self.student.load_state_dict(self.start)
        torch.manual_seed(0)  # of dropout, as in the engine
        per_epoch = self.case.images // self.case.batch
        masks = torch.from_numpy(self.masks).to(self.device)
        self.student.train()
        for epoch in range(self.training.epochs):
            order = engine.epoch_order(self.case.images, 0, epoch)
            for step in range(per_epoch):
                for group in optimiser.param_groups:
                    done = epoch * per_epoch + step
                    group["lr"] = learning_rate(done, self.training.epochs * per_epoch, self.training)
                positions = order[step * self.case.batch : (step + 1) * self.case.batch]
                x, truth = self.inputs[positions.numpy()].contiguous(memory_format=self.layout), masks[positions]
                with autocast(self.device):
                    with torch.no_grad():
                        targets = targets_of(x, truth)
                    output = TASK.aligned(self.student(x), truth)
                TASK.mean(TASK.imitate(targets, output, 1.0), truth).mean().backward()
                optimiser.step()
                optimiser.zero_grad()
        return flat(self.student)


def flat(model: nn.Module) -> Tensor:
    """All weights on the CPU, float32 [P]; waits for the device."""
    return torch.cat([tensor.detach().flatten() for tensor in model.parameters()]).cpu()
