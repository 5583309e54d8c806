"""How much memory a training with teachers attached will take, estimated before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kt.flow.network import Flow
from kt.transfer import memory
from kt.transfer.training import Training


class _Attached(nn.Module):
    """The network on given images, whatever it is called with: what measures memory passes the student's alone."""

    def __init__(self, network: Flow, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network([image.expand(len(x), *image.shape[1:]) for image in self.images])
        return logits


def estimate(network: Flow, images: Sequence[Tensor], training: Training) -> int:
    """Bytes that a training of ``network`` holds at once, its teachers included, without the images.

    What `kt.transfer.memory` counts for the student with Q and scalars, and the teachers' weights.

    Args:
        network: before training; it is left as it is.
        images: one image as each network sees it, the student first, [1, C, S, S] each.
        training: batch size and optimiser.
    """
    held: int = sum(t.numel() * t.element_size() for teacher in network.teachers for t in teacher.state_dict().values())
    return held + memory.estimate(_Attached(network, images), images[0], training)
