"""``parallel`` and ``parallel_unsup``: several teachers at once, each image taught by the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kt.tasks import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor


class Parallel(Distillation):
    """Each image is taught by whoever gives its label the highest probability: a teacher or the frozen student.

    With one teacher this is ``kl_dp``. Source: FG section 4.4, T = 1; ties go to the frozen student, then to the
    teacher named first.
    """

    name: ClassVar[str] = "parallel"
    uses_labels: ClassVar[bool] = True
    takes: ClassVar[Literal["group"]] = "group"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The best model's logits on each image, from teachers [K, N, C]."""
        models = frozen.new_empty((1 + len(teacher), *frozen.shape))
        models[0], models[1:] = frozen, teacher
        which = self.best(models, labels)
        return partition.pick(models, which), which > 0

    def best(self, models: Tensor, labels: Tensor) -> Tensor:
        """Who teaches: 0 for the frozen student, k for the k-th teacher; int64 [N] from logits [1 + K, N, C]."""
        return partition.best_by_label(models, labels)


class ParallelUnsupervised(Parallel):
    """Each image is taught by the most confident of the teachers and the frozen student; no labels are used.

    With one teacher this is ``kl_dp_unsup``. Source: FG section 4.4, T = 1; ties as in ``parallel``.
    """

    name: ClassVar[str] = "parallel_unsup"
    uses_labels: ClassVar[bool] = False

    def best(self, models: Tensor, labels: Tensor) -> Tensor:
        """Who teaches, by confidence alone."""
        return partition.best_by_confidence(models)
