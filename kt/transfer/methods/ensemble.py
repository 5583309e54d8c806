"""``ensemble_max`` and ``ensemble_mean``: no training; they show what is lost by keeping one model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.transfer.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.ledger import Record
    from kt.transfer.session import Session


class Ensemble(Method):
    """Both models answer the test images: the reference that FG's reviewers asked for.

    Where both predict the same class, that is the answer, as for any mean or choice of the two; so an ensemble of a
    model with itself is that model. The cached logits decide; rounded to float16, their largest is the predicted class.
    Those of a dense task are resized after rounding, so that a few pixels at borders may differ from the model's own.
    """

    trains: ClassVar[bool] = False
    of_classes: ClassVar[bool] = True

    @abstractmethod
    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """Scores of the classes, [N, C, …], from two models' logits [N, C, …]."""

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The outcome of the ensemble; nothing is random in it."""
        import torch

        task, parts = session.task, []
        for batch in session.answered((session.student, *teachers)).blocks():
            student, teacher = batch.teachers
            agreed = student.argmax(1) == teacher.argmax(1)  # combined, close logits might become equal
            answer = partition.merge(agreed, student, self.combine(task, teacher, student))
            parts.append(task.kept(answer, batch.truth))
        return session.untrained(torch.cat(parts))

    def budget(self, teachers: int) -> int:
        """No training."""
        return 0


class EnsembleMax(Ensemble):
    """The model with the larger probability of any class answers; the teacher where they are equally confident.

    Source of the tie: FG's published code.
    """

    name: ClassVar[str] = "ensemble_max"
    version: ClassVar[int] = 2

    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """The more confident model's logits; of a dense task that is decided for each element."""
        return partition.merge(task.confidence(student) > task.confidence(teacher), student, teacher)


class EnsembleMean(Ensemble):
    """The mean of both models' probabilities answers."""

    name: ClassVar[str] = "ensemble_mean"

    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """The logarithm of the mean probability."""
        return partition.mean_probability(teacher, student)
