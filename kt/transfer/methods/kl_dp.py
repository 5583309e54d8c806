"""``kl_dp``: distillation with supervised data partitioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.transfer.methods.kl import Distillation

if TYPE_CHECKING:
    from torch import Tensor


class KLDP(Distillation):
    """Each image is taught by whoever gives its label the higher probability: the teacher or the frozen student.

    Source: FG section 4.3, T = 1; ties go to the frozen student.
    """

    name: ClassVar[str] = "kl_dp"
    uses_labels: ClassVar[bool] = True

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher logits where the teacher is better on the label, the frozen student's elsewhere."""
        taught = partition.by_label(teacher, frozen, labels)
        return partition.merge(taught, teacher, frozen), taught
