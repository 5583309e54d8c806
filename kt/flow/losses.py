"""What knowledge flow adds to a student's own loss: pure functions, in float32. Source: KF."""

from __future__ import annotations

from torch import Tensor

from kt.transfer.losses import distillation


def mixing(scalars: Tensor) -> Tensor:
    """Normalised weights of a layer's own features and its candidates: their softmax, float32 [1 + K].

    Args:
        scalars: one free scalar for the layer itself, then one a candidate, [1 + K].
    """
    return scalars.float().softmax(0)


def dependency(scalars: list[Tensor]) -> Tensor:
    """−Σ_j log w_self_j over the layers j, float32 []: zero where no layer takes anything from a teacher.

    Args:
        scalars: of each layer, [1 + K_j], the layer's own first.
    """
    total = scalars[0].new_zeros(())
    for free in scalars:
        total = total - free.float().log_softmax(0)[0]
    return total


def stability(previous: Tensor, logits: Tensor) -> Tensor:
    """KL(previous output ‖ current output) of each sample, float32 [B]; the previous output gets no gradient.

    Args:
        previous: logits that the network gave the same images before, [B, C].
        logits: those that it gives now, [B, C].
    """
    return distillation(previous.detach(), logits, 1.0)


def grown(progress: float, until: float) -> float:
    """Share of λ1 that counts at a point of the training: a line from 0 at its start to 1 at ``until``.

    Args:
        progress: share of the training that is done, 0 to 1.
        until: share after which the student is on its own, above 0.
    """
    return min(1.0, progress / until)
