"""``ensemble_max`` and ``ensemble_mean``: no training; they show what is lost by keeping one model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kt.tasks import partition
from kt.tasks.task import Task
from kt.transfer.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from kt.transfer.ledger import Record
    from kt.transfer.session import Session


class Ensemble(Method):
    """Both models answer the test images: the reference that FG's reviewers asked for.

    Where both predict the same class, that is the answer, as for any mean or choice of the two; so an ensemble of a
    model with itself is that model. The cached answers decide; logits are rounded to float16 such that their largest is
    the predicted class. Answers that are resized to their truths are so after rounding: a few pixels at borders of
    classes may differ from the model's own.
    """

    trains: ClassVar[bool] = False

    @abstractmethod
    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """The common answers, [N, …], from those of two models, [N, …]."""

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The outcome of the ensemble; nothing is random in it."""
        import torch

        task, parts = session.task, []
        for batch in session.answered((session.student, *teachers)).blocks():
            student, teacher = batch.teachers
            answer = self.combine(task, teacher, student)
            if task.has_classes:  # combined, close logits might become equal
                answer = partition.merge(student.argmax(1) == teacher.argmax(1), student, answer)
            parts.append(task.kept(answer, batch.truth))
        return session.untrained(torch.cat(parts))

    def budget(self, teachers: int) -> int:
        """No training."""
        return 0


class EnsembleMax(Ensemble):
    """The more confident model answers: that with the larger probability of any class; of equals the teacher.

    Source of the tie: FG's published code.
    """

    name: ClassVar[str] = "ensemble_max"
    version: ClassVar[int] = 2
    by_confidence: ClassVar[bool] = True

    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """The more confident model's answer; of a dense task that is decided for each element."""
        return partition.merge(task.confidence(student) > task.confidence(teacher), student, teacher)


class EnsembleMean(Ensemble):
    """The mean of both models' answers: of their probabilities, or of maps."""

    name: ClassVar[str] = "ensemble_mean"

    @classmethod
    def lacks(cls, task: Task) -> str | None:
        """A mean of answers, where the task defines none."""
        return super().lacks(task) or ("a mean of answers" if type(task).averaged is Task.averaged else None)

    def combine(self, task: Task, teacher: Tensor, student: Tensor) -> Tensor:
        """The mean; of logits the logarithm of the mean probability."""
        return task.averaged(teacher, student)
