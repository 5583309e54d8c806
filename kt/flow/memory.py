"""What a training with teachers attached takes, found before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kt.experiments import memory
from kt.experiments.needs import Needs
from kt.flow.network import Flow
from kt.transfer.memory import size
from kt.transfer.training import Training
from kt.zoo.models import macs

Shape = tuple[int, int, int]


class _Attached(nn.Module):
    """The network on given images, whatever it is called with: what measures a model passes the student's alone."""

    def __init__(self, network: Flow, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network([image.expand(len(x), *image.shape[1:]) for image in self.images])
        return logits


def needs(network: Flow, shapes: Sequence[Shape], training: Training, more: Mapping[str, int]) -> Needs:
    """What a training of ``network`` takes: student, Q and scalars, the teachers, and the forward passes of all.

    Args:
        network: before training; it is left as it is.
        shapes: channels, height and width of what each network sees, the student first.
        training: batch size and optimiser.
        more: bytes that are held beside it, by what they are.
    """
    images = [torch.zeros(1, *shape, device=network.scalars.device) for shape in shapes]
    teachers = {"teachers": sum(map(size, network.teachers))}
    forward = sum(macs(teacher, shape) for teacher, shape in zip(network.teachers, shapes[1:], strict=True))
    return memory.needs(_Attached(network, images), shapes[0], training, {**teachers, **more}, -forward * 2 / 3)
