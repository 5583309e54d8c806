"""``kl_dp_unsup``: distillation with unsupervised data partitioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor


class KLDPUnsupervised(Distillation):
    """Each image is taught by the more confident of the teacher and the frozen student; no labels are used.

    Source: FG section 4.3, T = 1; ties go to the frozen student.
    """

    name: ClassVar[str] = "kl_dp_unsup"

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher logits where the teacher is more confident, the frozen student's elsewhere."""
        taught = partition.by_confidence(teacher, frozen)
        return partition.merge(taught, teacher, frozen), taught
