"""``parallel`` and ``parallel_unsup``: several teachers at once, the best of them for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kt.tasks import partition
from kt.transfer.method import Partitioned
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task


class Parallel(Partitioned, Distillation):
    """The model that fits the truth best teaches an image: one of the teachers, or the frozen student.

    With one teacher this is ``kl_dp``. Source: FG section 4.4, T = 1; ties go to the frozen student, then to the
    teacher named first.
    """

    name: ClassVar[str] = "parallel"
    uses_labels: ClassVar[bool] = True
    takes: ClassVar[Literal["group"]] = "group"

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The best model's answer to each image, from the teachers' [K, N, …]."""
        models = frozen.new_empty((1 + len(teacher), *frozen.shape))
        models[0], models[1:] = frozen, teacher
        which = self.best(task, models, truth)
        return partition.pick(models, which), which > 0

    def best(self, task: Task, models: Tensor, truth: Tensor) -> Tensor:
        """The teaching model, 0 for the frozen student, k for the k-th teacher; int64 [N] from [1 + K, N, …]."""
        return partition.best_by_fit(task, models, truth, self.level)


class ParallelUnsupervised(Parallel):
    """The most confident model teaches an image: one of the teachers, or the frozen student; no labels are used.

    With one teacher this is ``kl_dp_unsup``. Source: FG section 4.4, T = 1; ties as in ``parallel``.
    """

    name: ClassVar[str] = "parallel_unsup"
    uses_labels: ClassVar[bool] = False
    by_confidence: ClassVar[bool] = True

    def best(self, task: Task, models: Tensor, truth: Tensor) -> Tensor:
        """The most confident model."""
        return partition.best_by_confidence(task, models, truth, self.level)
