"""What a transfer method is, and the registry that finds every file in ``kt/transfer/methods``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kt.transfer import methods
from kt.transfer.approach import Approach

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kt.transfer.ledger import Record
    from kt.transfer.samples import Samples, SlowWeights
    from kt.transfer.session import Session


class Method(Approach):
    """A transfer method: its fields are its parameters.

    Teachers and the frozen student do not change during training, so ``targets`` runs once, over all transfer images;
    ``loss`` is all that a step adds to the forward and backward pass of the student. Most methods are no more than
    these two. What else a method may be:

    - its ``learner`` may hold more than the student: heads or a memory, trained and kept in checkpoints with it;
    - ``slow_weights`` asks for weights that follow the student's, which are then evaluated and kept in its place;
    - a ``joint`` method trains the teachers too: its learner runs all models, each on its own view of the images;
    - ``run`` may train several times, or not at all.

    Attributes:
        control: true where the teacher plays no part; ``targets`` then gets the frozen student as its teacher.
        uses_labels: its gain must then be held against the control `finetune`, that of other methods against `self`.
        uses_features: true where the loss needs the teacher's penultimate features.
        takes: whether it runs on a pair, on a group of several teachers, or on both.
        joint: true where all models train; the unit of a set of models is then shared by all its students.
        trains: false for ensembles, which leave the student as it is.
        whole_batch: true where a loss compares the samples of its batch; where parameters decide: ``together``.
    """

    control: ClassVar[bool] = False
    uses_features: ClassVar[bool] = False
    takes: ClassVar[Literal["pair", "group", "both"]] = "pair"
    joint: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    @property
    def together(self) -> bool:
        """Whether the loss needs all pieces of a batch at once with these parameters."""
        return self.whole_batch

    @property
    def uses_frozen(self) -> bool:
        """Whether the loss needs the frozen student's logits beside the targets with these parameters."""
        return False

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Target logits [N, C], and bool [N] where they come from a teacher; as it stands, the frozen student's.

        Args:
            teacher: teacher logits on all transfer images, float32 [N, C]; [K, N, C] where ``takes`` is not "pair".
            frozen: logits of the student before transfer, float32 [N, C].
            labels: int64 [N].
        """
        return frozen, labels.new_zeros(len(labels)).bool()

    def loss(self, output: Any, batch: Samples) -> Tensor:
        """Loss of each sample, float32 [B].

        Args:
            output: of the learner: logits of the student in training, [B, C]; more where ``learner`` says so.
            batch: what is known of the batch's images.
        """
        raise NotImplementedError(f"{self.name} has no loss of its own")

    def learner(self, students: Sequence[nn.Module], samples: Samples) -> nn.Module:
        """What is trained: the student as it stands.

        Args:
            students: the student; for a joint method all models, in an order that all of them agree on.
            samples: of all transfer images.
        """
        return students[0]

    def slow_weights(self) -> SlowWeights | None:
        """How the slow weights follow, if this method has any."""
        return None

    def budget(self, teachers: int) -> int:
        """What a unit costs, in trainings of one model."""
        return 1

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The outcome of a unit: that of one training."""
        return session.outcome(session.train(self, teachers, seed))


@cache
def registry() -> dict[str, type[Method]]:
    """All methods by name; importing them does not import torch."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    found: dict[str, type[Method]] = {}
    pending = list(Method.__subclasses__())
    while pending:
        method = pending.pop()
        pending += method.__subclasses__()
        if "name" in method.__dict__:
            found[method.name] = method
    return dict(sorted(found.items()))
