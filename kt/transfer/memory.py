"""How much memory a training will take, estimated before it starts."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kt.transfer.training import Training

COPIES = {"adamw": 2, "adam": 2, "sgd": 1}
"""Values that an optimiser keeps for each weight; `sgd` has none without momentum."""


def estimate(model: nn.Module, image: Tensor, training: Training) -> int:
    """Bytes that a training of ``model`` holds at once, without the images and what libraries take for themselves.

    What ``held`` counts, and what the forward pass of a batch keeps for the backward pass, measured on two images in
    float32.

    Args:
        model: the student; it is left as it is.
        image: one image as the student sees it, [1, C, S, S].
        training: batch size and optimiser.
    """
    return held(model, training) + activations(model, image) * training.batch_size


def held(model: nn.Module, training: Training) -> int:
    """Bytes of weights, gradients and the optimiser's values; the weights to start from and those of the best epoch."""
    kept = COPIES[training.optimiser] if training.optimiser != "sgd" or training.momentum else 0
    return size(model) * (4 + kept)


def size(model: nn.Module) -> int:
    """Bytes of a model's weights and statistics."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def activations(model: nn.Module, image: Tensor) -> int:
    """Bytes an image that a forward pass in train mode keeps for the backward pass; each storage counts once."""
    probe = copy.deepcopy(model).train()
    own = {p.untyped_storage().data_ptr() for p in (*probe.parameters(), *probe.buffers())}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage's address could be given out again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    state = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        probe(image.expand(2, *image.shape[1:]).contiguous()).sum()
    torch.set_rng_state(state)
    return sum(seen.values()) // 2
