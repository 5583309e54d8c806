"""Run a model over images: the one way in which logits come about, before and after transfer."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.data.views import Inputs

BATCH = 256


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where it pays (CUDA), plain float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def logits(model: nn.Module, inputs: Inputs) -> NDArray[np.float16]:
    """Logits float16 [n, C] of a model on the inputs' device; the model's mode is left as it was."""
    training = model.training
    model.eval()
    with torch.inference_mode(), autocast(inputs.device):
        parts = [model(inputs[slice(i, i + BATCH)]).to(torch.float16) for i in range(0, len(inputs), BATCH)]
    model.train(training)
    return torch.cat(parts).cpu().numpy()
