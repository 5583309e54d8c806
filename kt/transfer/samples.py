"""What a training loop gets beside the images: what is known of them, and the weights that follow. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Samples(NamedTuple):
    """What is known of the transfer images before training: all N of them, or the B of a batch; one row an image.

    Attributes:
        targets: logits to imitate, float32 [N, C].
        labels: int64 [N].
        taught: where the targets come from a teacher, bool [N].
        positions: of the images in the transfer split, int64 [N].
        features: the teacher's penultimate features, float32 [N, D]; for methods that ask for them.
    """

    targets: Tensor
    labels: Tensor
    taught: Tensor
    positions: Tensor
    features: Tensor | None = None

    def at(self, positions: Tensor) -> Samples:
        """The rows at some positions, int64 [B]."""
        return Samples(*(None if rows is None else rows[positions] for rows in self))  # type: ignore[arg-type]


class SlowWeights(NamedTuple):
    """Weights that follow those in training: every ``every`` steps, slow ← tau · slow + (1 − tau) · fast."""

    tau: float
    every: int
