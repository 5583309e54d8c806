"""``kl_dp`` and ``kl_dp_unsup``: distillation with supervised and with unsupervised data partitioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.transfer.method import Partitioned
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task


class KLDP(Partitioned, Distillation):
    """Teacher or frozen student teaches an image, whichever fits the truth better: gives the label more probability.

    Source: FG section 4.3, T = 1; ties go to the frozen student.
    """

    name: ClassVar[str] = "kl_dp"
    uses_labels: ClassVar[bool] = True

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's answers where it fits the truth better, the frozen student's elsewhere."""
        taught = partition.by_fit(task, teacher, frozen, truth, self.level)
        return partition.merge(taught, teacher, frozen), taught


class KLDPUnsupervised(Partitioned, Distillation):
    """Teacher or frozen student teaches an image, whichever is more confident; no labels are used.

    Source: FG section 4.3, T = 1; ties go to the frozen student.
    """

    name: ClassVar[str] = "kl_dp_unsup"
    by_confidence: ClassVar[bool] = True

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's answers where it is more confident, the frozen student's elsewhere."""
        taught = partition.by_confidence(task, teacher, frozen, truth, self.level)
        return partition.merge(taught, teacher, frozen), taught
