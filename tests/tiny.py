"""A model of a few hundred numbers, and its checkpoints as training scripts leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kt.zoo import weights

Tensors = dict[str, torch.Tensor]


class Tiny(nn.Module):
    """A classifier with a few hundred parameters, BatchNorm and dropout."""

    num_features = 6

    def __init__(self, num_classes: int = 3, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.stem(x)).relu().mean((2, 3))))


def trained(seed: int = 0, classes: int = 3) -> Tensors:
    """Weights of ``Tiny`` with running statistics that are not those of a fresh model."""
    torch.manual_seed(seed)
    model = Tiny(classes)
    model(torch.rand(4, 1, 8, 8))
    return model.state_dict()


def under(prefix: str, tensors: Tensors | None = None) -> Tensors:
    """Weights, by default those of ``trained()``, with a prefix before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in (tensors or trained()).items()}


class Settings(dict[str, Any]):
    """A dictionary of a user's class, as Lightning's and MMEngine's."""


def saved(content: Any, path: Path, **options: Any) -> str:
    """A file of ``torch.save``."""
    torch.save(content, path, **options)
    return str(path)


def loaded(path: str, classes: int = 3, new_head: bool = False) -> Tensors:
    """What ``Tiny`` holds after a checkpoint was given to it."""
    torch.manual_seed(99)
    return weights.given("zoo.models.a.checkpoint", Tiny, path, classes, new_head).state_dict()


def equal(found: Tensors, wanted: Tensors) -> bool:
    """Whether all tensors are the same bit by bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
