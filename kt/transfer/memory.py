"""Memory that a training will take, estimated before it starts."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kt.costs import Needs
from kt.errors import KtError
from kt.transfer.failures import most_pieces
from kt.transfer.training import Training
from kt.zoo.models import macs

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


log = logging.getLogger(__name__)


def needs(
    model: nn.Module, shape: tuple[int, ...], training: Training, more: Mapping[str, int], operations: float = 0
) -> Needs:
    """Memory and operations of a training, without the memory of libraries.

    Args:
        model: all that runs in a step, as a function of one image; on its device.
        shape: channels, height and width of the image.
        training: batch size and optimiser.
        more: bytes that are held beside it, by what they are.
        operations: to be added to the multiply-accumulate operations of the model's forward pass.
    """
    image = torch.zeros(1, *shape, device=next(model.parameters()).device)
    parts = {"training": held(model, training), **more}
    return Needs(parts, activations(model, image), training.batch_size, round(macs(model, shape) + operations))


def check(at: str, needs: Needs, device: torch.device) -> None:
    """Log what a training will take.

    Args:
        at: the place in the configuration.
        needs: what it takes.
        device: where it runs.

    Raises:
        KtError: it is more than the machine has; or, on a GPU, more than is free with batches in the smallest pieces.
    """
    free, batch = available(device), needs.batch
    parts = {**needs.held, f"{batch} images at once": needs.image * batch}
    listed = ", ".join(f"{part} {size / 1e9:.3f}" for part, size in parts.items())
    log.info("%s: about %.3f of %.1f GB of memory (%s)", at, needs.total(batch) / 1e9, free / 1e9, listed)
    least = math.ceil(batch / most_pieces(batch)) if device.type == "cuda" else batch
    if (needed := needs.total(least)) > free:
        few = f" for {least} images at once" if least < batch else ""
        there = f"{free / 1e9:.1f} GB are there"
        hint = "take smaller models" if few else f"lower training.batch_size ({batch})"
        raise KtError(f"{at}: needs about {needed / 1e9:.3f} GB of memory{few} ({listed}), but {there}; {hint}")


def available(device: torch.device) -> int:
    """Bytes that a GPU has free, or that the machine has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
