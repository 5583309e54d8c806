"""Assignment of each example to the model that teaches it, from cached answers.

Answers are of any shape [N, …]; a mask or a choice [N] holds for the whole answer to an example. Like tasks, these
functions use tensor methods only, and import torch for its types alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task


def by_fit(task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> Tensor:
    """True where the teacher's answer fits the truth better than the frozen student's; ties are False.

    Args:
        task: what is learnt.
        teacher: the teacher's answers, [N, …].
        frozen: answers of the student before transfer, [N, …].
        truth: [N, …].

    Returns:
        bool [N].

    Source: FG section 4.3, supervised data partitioning.
    """
    return task.fit(teacher, truth) > task.fit(frozen, truth)


def by_confidence(task: Task, teacher: Tensor, frozen: Tensor) -> Tensor:
    """True where the teacher is more confident than the frozen student; ties are False; bool [N].

    Args:
        task: what is learnt.
        teacher: the teacher's answers, [N, …].
        frozen: answers of the student before transfer, [N, …].

    Source: FG section 4.3, unsupervised data partitioning.
    """
    return task.confidence(teacher) > task.confidence(frozen)


def flips(teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where only the teacher is correct, and where only the frozen student is; two masks bool [N].

    Args:
        teacher: the teacher's logits, [N, C].
        frozen: logits of the student before transfer, [N, C].
        labels: int64 [N].

    Source: FG section 3, positive and negative flips.
    """
    teacher_right, frozen_right = teacher.argmax(-1) == labels, frozen.argmax(-1) == labels
    return teacher_right & ~frozen_right, ~teacher_right & frozen_right


def fits(task: Task, models: Tensor, truth: Tensor) -> Tensor:
    """Fit of the answers [M, N, …] of several models to the truth [N, …]; float32 [M, N]."""
    repeated = truth.expand(len(models), *truth.shape)
    return task.fit(models.flatten(0, 1), repeated.flatten(0, 1)).reshape(models.shape[:2])


def best_by_fit(task: Task, models: Tensor, truth: Tensor) -> Tensor:
    """The model whose answer fits the truth best, the first of equals; int64 [N].

    Args:
        task: what is learnt.
        models: answers of several models, [M, N, …].
        truth: [N, …].

    Source: FG section 4.4, parallel transfer.
    """
    return fits(task, models, truth).argmax(0)


def best_by_confidence(task: Task, models: Tensor) -> Tensor:
    """The most confident model, the first of equals; int64 [N] from answers [M, N, …]."""
    return task.confidence(models.flatten(0, 1)).reshape(models.shape[:2]).argmax(0)


def pick(models: Tensor, which: Tensor) -> Tensor:
    """For each example i the answer of the model ``which[i]``: [N, …] from [M, N, …] and int64 [N]."""
    return models.gather(0, _spread(which, models[0]).expand(1, *models.shape[1:]))[0]


def merge(taught: Tensor, teacher: Tensor, frozen: Tensor) -> Tensor:
    """The teacher's answers where ``taught`` (bool [N]) is true, the frozen student's elsewhere; [N, …]."""
    return teacher.where(_spread(taught, teacher), frozen)


def _spread(values: Tensor, answers: Tensor) -> Tensor:
    """Values [N], shaped so that they broadcast over answers [N, …]."""
    return values.reshape(-1, *[1] * (answers.ndim - 1))


def mean_probability(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the mean of two models' probabilities, float32 [N, C], from logits [N, C]."""
    return first.float().log_softmax(-1).logaddexp(second.float().log_softmax(-1)) - math.log(2)
