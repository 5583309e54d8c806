"""Small networks on digits, trained by ``kt`` and by a plain loop, so that their final weights can be compared.

The plain loop runs in float64 and looks everything up as it goes: no merged targets, no shared optimiser step, no
pieces. What a method does within it is written in ``test_published*.py`` from the described behaviour of the published
code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.tasks.classification import Classification
from kt.transfer import bench
from kt.transfer.bench import Begun, Settings
from kt.transfer.engine import State, epoch_order, weights_of
from kt.transfer.method import Method
from kt.transfer.session import Session, Trained
from kt.transfer.training import Training
from kt.transfer.unit import Plan, Unit

CPU = torch.device("cpu")
TRAINING = Training(
    epochs=2, batch_size=10, lr=0.05, optimiser="sgd", momentum=0.9, weight_decay=1e-4, schedule="constant"
)
SEED = 3


class Net(nn.Module):
    """A classifier with BatchNorm, whose answers in train mode differ from those in eval mode."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Zoo:
    """A student and two teachers that have learnt a little; the teachers' features are narrower or wider."""

    WIDTHS: ClassVar = {"s": 12, "t": 9, "u": 15}

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.models = {name: self._learn(Net(width, seed)) for seed, (name, width) in enumerate(self.WIDTHS.items())}

    def _learn(self, model: Net) -> Net:
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        x, y = self.images("transfer"), torch.from_numpy(self.data.labels[self.data.rows("transfer")])
        for i in torch.cat([torch.randperm(len(x))[:48] for _ in range(3)]).split(12):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x[i]), y[i]).backward()
            optimiser.step()
        return model.eval()

    def images(self, split: str) -> Tensor:
        return Inputs(self.data.images, self.data.rows(split), self.input_of(""), CPU)[slice(None)]

    def fingerprint(self, name: str) -> str:
        return f"print of {name}"

    def load(self, name: str) -> nn.Module:
        return copy.deepcopy(self.models[name])

    def input_of(self, name: str) -> InputSpec:
        return InputSpec(size=8, mean=(0.3,), std=(0.33,))

    def logits(self, name: str, split: str) -> np.ndarray:
        """In float32, so that the comparison does not depend on how predictions are rounded."""
        with torch.inference_mode():
            return self.models[name](self.images(split)).numpy()

    def predicted(self, name: str, split: str) -> np.ndarray:
        return self.logits(name, split).argmax(1)

    def features(self, name: str, split: str) -> np.ndarray:
        with torch.inference_mode():
            return self.models[name].body(self.images(split)).numpy()


class Batch(NamedTuple):
    """What the plain loop hands to a loss: images and what is known of them, float64; ``positions`` in the split."""

    images: Tensor
    labels: Tensor
    teachers: list[Tensor]
    frozen: Tensor
    features: Tensor
    positions: Tensor


class Bench:
    """The same student, teachers and images for both ways of training."""

    def __init__(self, data: Dataset, folder: Path) -> None:
        self.zoo = Zoo(data)
        begun = Begun("s", ("net", {}), self.zoo.input_of("s"), 1, member=True)
        settings = Settings(TRAINING, folder, 3600, CPU, Event())
        self.bench = bench.Bench(begun, self.zoo, Classification(), data, settings)
        self.weights = weights_of(self.zoo.load("s"))
        self.labels = torch.from_numpy(data.labels[data.rows("transfer")])

    def session(self, method: Method, teachers: Sequence[str] = ("t",), seed: int = SEED) -> Session:
        return Session(self.bench, Unit(method, Plan({}), "s", tuple(teachers), seed), "unit")

    def trained(self, method: Method, teachers: Sequence[str] = ("t",), seed: int = SEED) -> Trained:
        """By ``kt``."""
        return self.session(method, teachers, seed).train(method, list(teachers), seed)

    def double(self, name: str = "s") -> nn.Module:
        """A model to train by the plain loop."""
        return self.zoo.load(name).double().train()

    def plainly(
        self,
        models: Sequence[nn.Module],
        loss: Callable[[Batch], Tensor],
        teachers: Sequence[str] = ("t",),
        frozen: Tensor | None = None,
        lr: float = TRAINING.lr,
        adam: bool = False,
        stepped: Callable[[int], None] = lambda step: None,
        evaluated: Callable[[], None] = lambda: None,
    ) -> list[State]:
        """Train by the plain loop and return the models' weights.

        Args:
            models: what trains, each with an optimiser of its own.
            loss: the mean or sum over a batch, as the published code has it.
            teachers: whose logits and, of the first, features a batch holds.
            frozen: logits of the frozen student where it is not the original one.
            lr: learning rate.
            adam: train by Adam instead of SGD.
            stepped: called after each step with its number in the epoch, from 0.
            evaluated: called after each epoch.
        """
        x = self.zoo.images("transfer").double()
        of = [torch.from_numpy(self.zoo.logits(name, "transfer")).double() for name in teachers]
        if frozen is None:
            frozen = torch.from_numpy(self.zoo.logits("s", "transfer"))
        frozen, features = frozen.double(), torch.from_numpy(self.zoo.features(teachers[0], "transfer")).double()
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(model.parameters(), lr, weight_decay=TRAINING.weight_decay)
            if adam
            else torch.optim.SGD(model.parameters(), lr, TRAINING.momentum, weight_decay=TRAINING.weight_decay)
            for model in models
        ]
        for epoch in range(TRAINING.epochs):
            for step, i in enumerate(epoch_order(len(x), SEED, epoch).split(TRAINING.batch_size)):
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss(Batch(x[i], self.labels[i], [z[i] for z in of], frozen[i], features[i], i)).backward()
                for optimiser in optimisers:
                    optimiser.step()
                stepped(step)
            evaluated()
        return [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]

    def logits_of(self, weights: State) -> Tensor:
        """Logits on the transfer images of the student with some weights, in eval mode, as predictions round them."""
        model = self.double().eval()
        model.load_state_dict(weights)
        with torch.inference_mode():
            return model(self.zoo.images("transfer").double()).half()


def kl(target: Tensor, own: Tensor) -> Tensor:
    """KL divergence of two distributions given by one image's logits."""
    p, q = target.softmax(0), own.softmax(0)
    return (p * (p / q).log()).sum()


def each(targets: Iterable[Tensor], own: Tensor) -> Tensor:
    """The mean over a batch of the divergences from targets that were chosen image by image."""
    return sum((kl(t, z) for t, z in zip(targets, own, strict=True)), own.new_zeros(())) / len(own)


def difference(ours: State, plain: State, prefix: str = "") -> float:
    """The largest difference of any weight or BatchNorm statistic; ``prefix`` stands before ours' names."""
    found = [
        (ours[prefix + name].double() - tensor.double()).abs().max().item()
        for name, tensor in plain.items()
        if ours[prefix + name].is_floating_point()
    ]
    assert len(found) >= 7
    return max(found)
