"""What a training of an experiment will take, and whether there is memory for it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping

import torch
from torch import nn

from kt.errors import KtError
from kt.experiments.needs import Needs
from kt.transfer import memory
from kt.transfer.failures import most_pieces
from kt.transfer.training import Training
from kt.zoo.models import macs

log = logging.getLogger(__name__)


def needs(
    model: nn.Module, shape: tuple[int, int, int], training: Training, more: Mapping[str, int], operations: float = 0
) -> Needs:
    """What a training takes, without what libraries take for themselves.

    Args:
        model: all that runs in a step, as a function of one image; on its device.
        shape: channels, height and width of the image.
        training: batch size and optimiser.
        more: bytes that are held beside it, by what they are.
        operations: to be added to the multiply-accumulate operations of the model's forward pass.
    """
    image = torch.zeros(1, *shape, device=next(model.parameters()).device)
    held = {"training": memory.held(model, training), **more}
    return Needs(held, memory.activations(model, image), training.batch_size, round(macs(model, shape) + operations))


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
