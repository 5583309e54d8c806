"""Logits of a model as predictions hold them, and its classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kt.data.inputs import Inputs
from kt.tasks.classification import Classification
from kt.zoo.inference import batches, kept


def logits(model: nn.Module, inputs: Inputs) -> np.ndarray:
    """Logits float16 [n, C]; the model's mode is left as it was."""
    training = model.training
    found = [Classification().cached(found.answer) for found in batches(model.eval(), inputs)]
    model.train(training)
    return torch.cat(found).cpu().numpy()


def classes(model: nn.Module, inputs: Inputs) -> np.ndarray:
    """Predicted classes int64 [n]."""
    return kept(model, inputs, np.zeros(len(inputs), np.int64), Classification())
