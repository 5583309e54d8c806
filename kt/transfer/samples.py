"""What a training loop gets beside the images: what is known of them, and the weights that follow. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Samples(NamedTuple):
    """What is known of the transfer images before training: all N of them, or the B of a batch; one row an image.

    Attributes:
        targets: answers to imitate, float32 [N, …].
        truth: [N, …].
        taught: where the targets come from a teacher, bool [N].
        positions: of the images in the transfer split, int64 [N].
        features: the teacher's penultimate features, float32 [N, D]; for methods that ask for them.
        frozen: answers of the student before transfer, float32 [N, …]; for methods that ask for them.
    """

    targets: Tensor
    truth: Tensor
    taught: Tensor
    positions: Tensor
    features: Tensor | None = None
    frozen: Tensor | None = None

    def at(self, positions: Tensor) -> Samples:
        """The rows at some positions, int64 [B]."""
        return Samples(*(None if rows is None else rows[positions] for rows in self))  # type: ignore[arg-type]


class SlowWeights(NamedTuple):
    """Weights that follow those in training: at each update, slow ← tau · slow + (1 − tau) · fast.

    Attributes:
        tau: share of the slow weights that stays.
        every: steps between two updates.
        each_epoch: count the steps of each epoch anew and update after its first, then after every ``every`` more; if
            false, steps are counted through all epochs and the first update follows ``every`` of them.
        shared: the slow weights are the fast ones until the first update has passed; if false, they start as a copy
            of the weights before the first step.
        overwrites: the fast weights go on from the slow ones after each validation; if false, from where they were.
    """

    tau: float
    every: int
    each_epoch: bool = False
    shared: bool = False
    overwrites: bool = False

    def stays(self, done: int, step: int) -> float | None:
        """Share of the slow weights that stays after a step; None where they are not updated.

        Args:
            done: steps of the training before this one.
            step: steps of its epoch before this one.
        """
        first = 0 if self.each_epoch else self.every - 1
        if self.shared and done <= first:
            return 0.0
        due = step % self.every == 0 if self.each_epoch else (done + 1) % self.every == 0
        return self.tau if due else None
