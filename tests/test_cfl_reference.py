"""Common feature learning against a plain version of its own, in double precision, the weights after training included.

The reference is written from what the published code CommonFeatureLearning does: layers from their weights, the
discrepancy with a loop over pairs of images, Adam and its rates by hand.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import all_taught
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.transfer.amalgamate import rates
from kt.transfer.batch import Batch
from kt.transfer.common_space import Learner, Output, Space, soft_cross_entropy
from kt.transfer.engine import epoch_order, train
from kt.transfer.methods.amalgamation import CFL, Amalgamation
from kt.transfer.training import Training

IMAGES, BATCH, EPOCHS = 8, 4, 4
WIDTHS = (5, 7)
METHOD = CFL(width=6, blocks=3)
Weights = dict[str, Tensor]


class Net(nn.Module):
    """A student that gives logits and the map before its pooling; ``fc`` is its classifier, as timm's models say it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = F.relu(self.conv(x))
        return self.fc(features.mean((2, 3))), [features]


class Batches:
    """Images and the teachers' features of them, by position."""

    device = torch.device("cpu")

    def __init__(self, images: Tensor, teachers: list[Tensor]) -> None:
        self.images, self.teachers = images, teachers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> tuple[Tensor, list[list[Tensor]]]:
        return self.images[positions], [[features[positions]] for features in self.teachers]


def problem() -> SimpleNamespace:
    """A learner, what it sees, and what it is taught."""
    torch.manual_seed(3)
    learner = Learner(Net(), [Space(4, WIDTHS, METHOD.width, METHOD.blocks, maps=True)], [(4, 4)])
    images = torch.randn(IMAGES, 1, 6, 6)
    teachers = [torch.randn(IMAGES, width, 4, 4).relu() for width in WIDTHS]
    return SimpleNamespace(learner=learner, images=images, teachers=teachers, targets=2 * torch.randn(IMAGES, 5))


# the reference


def residual(x: Tensor, w: Weights, at: str) -> Tensor:
    inside = F.conv2d(x, w[f"{at}.body.0.weight"], padding=1).clamp(min=0)
    inside = F.conv2d(inside, w[f"{at}.body.2.weight"], padding=1)
    beside = F.conv2d(x, w[f"{at}.shortcut.weight"]) if f"{at}.shortcut.weight" in w else x
    return (inside + beside).clamp(min=0)


def common(x: Tensor, w: Weights, align: str) -> Tensor:
    x = F.conv2d(x, w[f"spaces.0.{align}.0.weight"]).clamp(min=0)
    for block in range(METHOD.blocks):
        x = residual(x, w, f"spaces.0.extractor.{block}")
    return x


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    def unit(features: Tensor) -> list[Tensor]:
        return [one.flatten() / one.norm() for one in features]

    def alike(a: list[Tensor], b: list[Tensor]) -> Tensor:
        kernels = [torch.exp(-(p - q).pow(2).sum() / (2 * s * s)) for p in a for q in b for s in METHOD.sigmas]
        return torch.stack(kernels).sum() / (len(a) * len(b))

    a, b = unit(x), unit(y)
    return (alike(a, a) + alike(b, b) - 2 * alike(a, b)).clamp(min=0)


def parts(w: Weights, images: Tensor, teachers: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft targets, L_M and L_R of a batch."""
    features = F.conv2d(images, w["student.conv.weight"], w["student.conv.bias"]).clamp(min=0)
    logits = features.mean((2, 3)) @ w["student.fc.weight"].T + w["student.fc.bias"]
    soft = -(targets.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    h_student, moved, rebuilt = common(features, w, "align_student"), [], []
    for i, teacher in enumerate(teachers):
        h = common(teacher, w, f"align_teachers.{i}")
        moved.append(discrepancy(h_student, h))
        again = F.conv2d(h, w[f"spaces.0.decoders.{i}.0.weight"], padding=1).clamp(min=0)
        rebuilt.append((F.conv2d(again, w[f"spaces.0.decoders.{i}.2.weight"]) - teacher).pow(2).mean())
    return soft, torch.stack(moved).sum(), torch.stack(rebuilt).sum()


def trained(w: Weights, found: SimpleNamespace, lr: float, drop_after: int) -> Weights:
    """The weights after Adam with weight decay 1e-4: the block five times, the classifier ten times as fast."""
    w = {name: tensor.clone().requires_grad_() for name, tensor in w.items()}
    first = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
    second = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
    done = 0
    for epoch in range(EPOCHS):
        for positions in epoch_order(IMAGES, 0, epoch).split(BATCH):
            seen = (found.images[positions], [t[positions] for t in found.teachers], found.targets[positions])
            soft, moved, rebuilt = parts(w, seen[0].double(), [t.double() for t in seen[1]], seen[2].double())
            gradients = torch.autograd.grad(soft + 10 * (moved + rebuilt), list(w.values()))
            done += 1
            for (name, tensor), gradient in zip(w.items(), gradients, strict=True):
                gradient = gradient + 1e-4 * tensor.detach()
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, square = first[name] / (1 - 0.9**done), second[name] / (1 - 0.999**done)
                times = 5 if name.startswith("spaces") else 10 if ".fc." in name else 1
                rate = lr * times * (1 if epoch < drop_after else 0.1)
                tensor.data -= rate * mean / (square.sqrt() + 1e-8)
    return w


# ours beside it


def doubles(learner: nn.Module) -> Weights:
    return {name: tensor.detach().double() for name, tensor in learner.state_dict().items()}


def test_every_part_of_the_loss_is_that_of_the_reference():
    found = problem()
    output: Output = found.learner((found.images, [[t] for t in found.teachers]))
    ours = [soft_cross_entropy(found.targets, output.logits).mean(), output.mmd(METHOD.sigmas), output.reconstruction]
    doubled = [t.double() for t in found.teachers]
    theirs = parts(doubles(found.learner), found.images.double(), doubled, found.targets.double())
    assert [part.item() for part in ours] == pytest.approx([part.item() for part in theirs], rel=1e-6)
    assert min(part.item() for part in theirs) > 0.1, "a part that is nothing shows nothing"


def test_the_weights_after_training_are_those_of_the_reference(tmp_path: Path):
    found = problem()
    training = Amalgamation.training_of.model_copy(update={"epochs": EPOCHS, "batch_size": BATCH, "step_epochs": 2})
    assert isinstance(training, Training)
    before = doubles(found.learner)
    expected = trained(before, found, training.lr, drop_after=2)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    known = all_taught(found.targets, labels)

    def loss(output: Output, batch: Batch) -> Tensor:
        return soft_cross_entropy(batch.targets, output.logits) + 10 * (
            output.mmd(METHOD.sigmas) + output.reconstruction
        )

    train(
        found.learner, Batches(found.images, found.teachers), known, loss, lambda _: 0.0, training, 0,
        Checkpoint(tmp_path / "c.pt", "key", 3600, Event()), whole=True,
        rates=[*rates(METHOD, found.learner.student), (found.learner.spaces, METHOD.block_lr)],
    )  # fmt: skip
    for name, tensor in doubles(found.learner).items():
        assert (tensor - before[name]).abs().max() > 1e-4, "a weight that stays shows nothing"
        torch.testing.assert_close(
            tensor, expected[name].detach(), rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
