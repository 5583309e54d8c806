"""What knowledge flow adds to a student's own loss: pure functions, in float32. Source: KF."""

from __future__ import annotations

from torch import Tensor

from kt.tasks.losses import distillation


def mixing(scalars: Tensor) -> Tensor:
    """Normalised weights of each stage's own features and its candidates: a softmax, float32 [J, 1 + K].

    Args:
        scalars: free scalars, of each stage's own features first, [J, 1 + K].
    """
    return scalars.float().softmax(1)


def dependency(scalars: Tensor) -> Tensor:
    """−Σ_j log w_self_j over the stages j, float32 []: zero where no stage takes anything from a teacher.

    Args:
        scalars: as for ``mixing``.
    """
    return -scalars.float().log_softmax(1)[:, 0].sum()


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
