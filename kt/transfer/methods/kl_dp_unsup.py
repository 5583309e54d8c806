"""``kl_dp_unsup``: distillation with unsupervised data partitioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task


class KLDPUnsupervised(Distillation):
    """Teacher or frozen student teaches an image, whichever is more confident; no labels are used.

    Source: FG section 4.3, T = 1; ties go to the frozen student.
    """

    name: ClassVar[str] = "kl_dp_unsup"
    by_confidence: ClassVar[bool] = True

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's answers where it is more confident, the frozen student's elsewhere."""
        taught = partition.by_confidence(task, teacher, frozen)
        return partition.merge(taught, teacher, frozen), taught
