"""Images of one pixel are classified: losses, targets and whole trainings are those of classification to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pixels
import pytest
import torch
from batches import CPU
from pixels import CLASSES, TASK, answers, draw, everything, learnt, lesson
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.tasks.classification import Classification
from kt.tasks.task import Task
from kt.transfer.batch import Batch
from kt.transfer.engine import History, train
from kt.transfer.learners import Views
from kt.transfer.method import Method
from kt.transfer.training import Training

EVERY = pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in pixels.variants().items()])


def one_pixel(values: Tensor) -> Tensor:
    """Values of images [..., N, C], or [N], as those of their only pixel."""
    return values[..., None, None]


def flat(method: Method) -> Method:
    """The same method with one truth per image."""
    return type(method).model_validate({n: v for n, v in method.parameters().items() if n != "level"})


@EVERY
@pytest.mark.parametrize("classes", [2, 10, 21, 150])
def test_images_of_one_pixel_are_classified_to_the_bit(method, classes):
    whole = flat(method)
    for seed in range(3):
        models, labels = draw(seed, n=10, side=1, classes=classes)
        models, labels = models[..., 0, 0], labels[:, 0, 0] % classes
        plain = lesson(whole, models, labels.long(), Classification())
        dense = lesson(method, one_pixel(models), one_pixel(labels.byte()))
        first, second = everything(plain), everything(dense)
        assert torch.equal(one_pixel(first.targets), second.targets)
        assert torch.equal(first.taught, second.taught.flatten())
        assert plain.share() == pytest.approx(dense.share(), rel=1e-6)
        output = answers(method, seed, n=10, side=1, classes=classes)
        loss, gradient = learnt(method, output, dense)
        expected, gradients = learnt(whole, output[..., 0, 0], plain, Classification())
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, one_pixel(gradients))


class Student(nn.Module):
    """A network that answers with logits per image, or with those of one pixel."""

    def __init__(self, seed: int, dense: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head, self.dense = nn.Linear(8, CLASSES), dense

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.hidden(x))
        return one_pixel(found) if self.dense else found


def trained(method: Method, task: Task, tmp_path: Any) -> tuple[dict[str, Tensor], History]:
    """A small training from drawn answers of teachers and frozen student."""
    models, labels = draw(5, n=26, side=1)
    masks = one_pixel(labels[:, 0, 0] % CLASSES) if task.dense else labels[:, 0, 0].long() % CLASSES
    examples = lesson(method, models if task.dense else models[..., 0, 0], masks, task)
    images = np.random.default_rng(0).integers(0, 256, (26, 4, 4, 1), dtype=np.uint8)
    view = Inputs(images, np.arange(26), InputSpec(size=4, mean=(0.5,), std=(0.5,)), CPU)
    students = [Student(seed, task.dense) for seed in range(3 if method.joint else 1)]
    learner = method.learner(students, examples)

    def loss(output: Any, batch: Batch) -> Tensor:
        return method.loss(task, torch.stack(output) if isinstance(output, list) else output, batch)

    def value(learner: nn.Module) -> float:
        with torch.no_grad():
            found = float(task.loss(students[0].eval()(view[slice(None)]), everything(examples).truth).mean())
        learner.train()
        return found

    plan = Training(epochs=2, batch_size=6, lr=0.01, weight_decay=0.1)
    shown = Views([view] * 3) if method.joint else view
    none = Checkpoint(tmp_path / "none.pt", "none", float("inf"))
    history = train(learner, shown, examples, loss, value, plan, 7, none, method.slow_weights(), whole=method.together)
    return learner.state_dict(), history


@EVERY
def test_trainings_on_images_of_one_pixel_end_with_the_weights_of_classification(method, tmp_path):
    dense, plain = trained(method, TASK, tmp_path), trained(flat(method), Classification(), tmp_path)
    assert dense[0].keys() == plain[0].keys()
    assert all(torch.equal(weights, plain[0][name]) for name, weights in dense[0].items())
    assert dense[1].loss == plain[1].loss
    assert dense[1].validation == plain[1].validation
