"""Distances between logits or features: pure functions, always in float32, softmax through log_softmax.

They use tensor methods only, so that the configuration can name methods without importing torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities of the classes, float32 [B, C, …] as the logits.

    torch has another kernel for a last dimension than for an inner one, with other roundings. Where an example has one
    element, the result is bit by bit that of logits [B, C].
    """
    z = logits.float()
    return z.flatten(1).log_softmax(1).view_as(z) if math.prod(z.shape[2:]) == 1 else z.log_softmax(1)


def distillation(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(target / T) ‖ softmax(logits / T)), float32 [B, …].

    Args:
        target: logits to imitate, [B, C, …].
        logits: logits of the model in training, [B, C, …].
        temperature: T > 0.

    Source: Hinton et al. 2015; FG equation 1.
    """
    if temperature != 1:  # a division by 1 changes no bit, but costs a pass over all pixels
        target, logits = target.float() / temperature, logits.float() / temperature
    log_p, log_q = log_softmax(target), log_softmax(logits)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def mean_probability(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the mean of two models' probabilities, float32 [N, C, …], from logits [N, C, …]."""
    return log_softmax(first).logaddexp(log_softmax(second)) - math.log(2)


def cosines(features: Tensor) -> Tensor:
    """Cosines of all pairs of rows, float32 [B, B] from features [B, D]; 0 with a row of zeros."""
    rows = features.float()
    lengths: Tensor = rows.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()  # its gradient is finite at 0
    rows = rows / lengths
    return rows @ rows.T


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """(1 − smoothing) · (−log p(label)) + smoothing · mean over classes of −log p, float32 [B, …].

    Args:
        logits: [B, C, …]; p is their softmax.
        labels: int64 [B, …].
        smoothing: share of the target that is spread over all classes. Source: Szegedy et al. 2016, section 7. FG's
            published code smooths the predicted probabilities instead.
    """
    log_p = log_softmax(logits)
    at_label = -log_p.gather(1, labels[:, None])[:, 0]
    return (1 - smoothing) * at_label - smoothing * log_p.mean(1) if smoothing else at_label
