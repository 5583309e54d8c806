"""Assignment of each example, or each of its elements, to the model that teaches it, from cached answers.

Answers are [N, …], of a dense task [N, C, H, W]. A mask or a choice [N] holds for the whole answer to an example, one
of [N, H, W] for each element. Like tasks, these functions use tensor methods only, and import torch for its types
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task

Level = Literal["image", "pixel"]
"""Whether one model teaches a whole image, or each of its pixels has a model of its own."""


def by_fit(task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor, level: Level = "image") -> Tensor:
    """True where the teacher's answer fits the truth better than the frozen student's; ties are False.

    Args:
        task: what is learnt.
        teacher: the teacher's answers, [N, …].
        frozen: answers of the student before transfer, [N, …].
        truth: [N, …].
        level: of the partition.

    Returns:
        bool [N]; of pixels [N, H, W].

    Source: FG section 4.3, supervised data partitioning; BiKD section 3 for the task loss of a whole image.
    """
    return _at(level, task, task.fit(teacher, truth), truth) > _at(level, task, task.fit(frozen, truth), truth)


def by_confidence(task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor, level: Level = "image") -> Tensor:
    """True where the teacher is more confident than the frozen student; ties are False; shapes as in ``by_fit``.

    Args:
        task: what is learnt.
        teacher: the teacher's answers, [N, …].
        frozen: answers of the student before transfer, [N, …].
        truth: [N, …]; only which elements have one plays a part.
        level: of the partition.

    Source: FG section 4.3, unsupervised data partitioning.
    """
    return _at(level, task, task.confidence(teacher), truth) > _at(level, task, task.confidence(frozen), truth)


def flips(teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where only the teacher is correct, and where only the frozen student is; two masks bool [N, …].

    Args:
        teacher: the teacher's logits, [N, C, …].
        frozen: logits of the student before transfer, [N, C, …].
        labels: integers [N, …]; where one is no class, nobody is correct.

    Source: FG section 3, positive and negative flips.
    """
    teacher_right, frozen_right = teacher.argmax(1) == labels, frozen.argmax(1) == labels
    return teacher_right & ~frozen_right, ~teacher_right & frozen_right


def fits(task: Task, models: Tensor, truth: Tensor, level: Level = "image") -> Tensor:
    """Fit of the answers [M, N, …] of several models to the truth [N, …]; float32 [M, N], of pixels [M, N, H, W]."""
    repeated = _repeated(truth, models)
    return _of_models(_at(level, task, task.fit(models.flatten(0, 1), repeated), repeated), models)


def best_by_fit(task: Task, models: Tensor, truth: Tensor, level: Level = "image") -> Tensor:
    """The model whose answer fits the truth best, the first of equals; int64 [N], of pixels [N, H, W].

    Args:
        task: what is learnt.
        models: answers of several models, [M, N, …].
        truth: [N, …].
        level: of the partition.

    Source: FG section 4.4, parallel transfer.
    """
    return fits(task, models, truth, level).argmax(0)


def best_by_confidence(task: Task, models: Tensor, truth: Tensor, level: Level = "image") -> Tensor:
    """The most confident model, the first of equals; arguments and result as of ``best_by_fit``."""
    repeated = _repeated(truth, models)
    return _of_models(_at(level, task, task.confidence(models.flatten(0, 1)), repeated), models).argmax(0)


def pick(models: Tensor, which: Tensor) -> Tensor:
    """The answers of the models ``which`` (int64 [N] or [N, H, W]): [N, …] from [M, N, …]."""
    return models.gather(0, _spread(which, models[0]).expand(1, *models.shape[1:]))[0]


def merge(taught: Tensor, teacher: Tensor, frozen: Tensor) -> Tensor:
    """The teacher's answers where ``taught`` (bool [N] or [N, H, W]) is true, the frozen student's elsewhere."""
    return teacher.where(_spread(taught, teacher), frozen)


def _at(level: Level, task: Task, values: Tensor, truth: Tensor) -> Tensor:
    """Values of elements as they are, or their means over each example."""
    return values if level == "pixel" else task.mean(values, truth)


def _repeated(truth: Tensor, models: Tensor) -> Tensor:
    """The truth [N, …] for each of M models, [M · N, …]."""
    return truth.expand(len(models), *truth.shape).flatten(0, 1)


def _of_models(values: Tensor, models: Tensor) -> Tensor:
    """Values [M · N, …] by model, [M, N, …]."""
    return values.reshape(*models.shape[:2], *values.shape[1:])


def _spread(values: Tensor, answers: Tensor) -> Tensor:
    """Values [N] or [N, H, W], shaped so that they broadcast over answers [N, …] or [N, C, H, W]."""
    return values[:, None] if values.ndim > 1 else values.reshape(-1, *[1] * (answers.ndim - 1))
