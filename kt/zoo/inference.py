"""Run a model over images: the one way in which logits come about, before and after transfer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.data.views import Inputs
from kt.errors import KtError
from kt.resources import EVALUATED

log = logging.getLogger(__name__)

CPU_BYTES = 1 << 24
"""Bytes of the largest batch on the CPU, whose memory does not say when it is full."""


class Outputs(NamedTuple):
    """Of one batch: logits float16 [b, C], and penultimate features float16 [b, D] where they were asked for."""

    logits: Tensor
    features: Tensor | None


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where it pays (CUDA), plain float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def forward(model: nn.Module, x: Tensor, features: bool) -> Outputs:
    """A batch through a model in eval mode; the features are timm's ``forward_head(…, pre_logits=True)``.

    Raises:
        KtError: the model has no such features.
    """
    with torch.inference_mode(), autocast(x.device):
        if not features:
            return Outputs(model(x).to(torch.float16), None)
        for part in ("forward_features", "forward_head"):
            if not hasattr(model, part):
                raise KtError(f"{type(model).__name__} has no {part}, so no penultimate features")
        timm_model: Any = model
        hidden = timm_model.forward_features(x)
        penultimate = timm_model.forward_head(hidden, pre_logits=True).flatten(1)
        return Outputs(timm_model.forward_head(hidden).to(torch.float16), penultimate.to(torch.float16))


def batches(model: nn.Module, inputs: Inputs, start: int = 0, features: bool = False) -> Iterator[Outputs]:
    """A model's outputs, batch by batch in order; a batch that does not fit into memory is halved.

    Args:
        model: in eval mode, on the inputs' device.
        inputs: the images.
        start: position of the first image.
        features: whether penultimate features are wanted.

    Raises:
        torch.OutOfMemoryError: a single image does not fit.
    """
    size = EVALUATED
    if inputs.device.type == "cpu" and len(inputs):
        size = max(1, min(EVALUATED, CPU_BYTES // (inputs[slice(0, 1)].nbytes)))
    while start < len(inputs):
        found = None
        try:
            found = forward(model, inputs[slice(start, start + size)], features)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if found is None:  # outside of `except`, whose error holds the batch's memory
            size //= 2
            torch.cuda.empty_cache()
            log.info("out of memory: batches of %d images from here on", size)
            continue
        start += len(found.logits)
        yield found


def logits(model: nn.Module, inputs: Inputs) -> NDArray[np.float16]:
    """Logits float16 [n, C] of a model on the inputs' device; the model's mode is left as it was."""
    training = model.training
    model.eval()
    parts = [found.logits for found in batches(model, inputs)]
    model.train(training)
    return torch.cat(parts).cpu().numpy()
