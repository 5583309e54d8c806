"""Whether there is memory for what an experiment is about to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch

from kt.errors import KtError

log = logging.getLogger(__name__)


def check(at: str, parts: Mapping[str, int], device: torch.device, hint: str) -> None:
    """Log what a training will take.

    Args:
        at: the place in the configuration.
        parts: bytes that each part takes, by what it is.
        device: where it runs.
        hint: how to make it smaller.

    Raises:
        KtError: it is more than a GPU has free, or than the machine has.
    """
    needed, free = sum(parts.values()), available(device)
    listed = ", ".join(f"{part} {size / 1e9:.3f}" for part, size in parts.items())
    log.info("%s: about %.3f of %.1f GB of memory (%s)", at, needed / 1e9, free / 1e9, listed)
    if needed > free:
        there = f"{free / 1e9:.1f} GB are there"
        raise KtError(f"{at}: needs about {needed / 1e9:.3f} GB of memory ({listed}), but {there}; {hint}")


def available(device: torch.device) -> int:
    """Bytes that a GPU has free, or that the machine has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
