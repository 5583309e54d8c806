"""What a transfer method is, and the registry that finds every file in ``kt/transfer/methods``."""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from kt.spec import Spec
from kt.transfer import methods

if TYPE_CHECKING:
    from torch import Tensor


class Method(Spec):
    """A transfer method: its fields are its parameters, its two functions are all the engine needs.

    The teacher and the frozen student do not change during training, so ``targets`` runs once, over all transfer
    images; a step then costs one forward and backward pass of the student.

    Attributes:
        name: the method's name in ``config.yaml``.
        version: raise it when the method's results change: finished units of older versions are not reused.
        uses_labels: true where the labels of the transfer images have a say: its gain must then be held against the
            control `finetune`, that of other methods against `self`.
        control: true where the teacher plays no part; ``targets`` then gets the frozen student as its teacher.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    control: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    @abstractmethod
    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Target logits [N, C], and bool [N] where they come from the teacher.

        Args:
            teacher: teacher logits on all transfer images, float32 [N, C].
            frozen: logits of the student before transfer, float32 [N, C].
            labels: int64 [N].
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample, float32 [B].

        Args:
            logits: logits of the student in training, [B, C].
            targets: the batch's part of what ``targets`` returned, [B, C].
            labels: int64 [B].
        """


@cache
def registry() -> dict[str, type[Method]]:
    """All methods by name; importing them does not import torch."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    found: dict[str, type[Method]] = {}
    pending = list(Method.__subclasses__())
    while pending:
        method = pending.pop()
        pending += method.__subclasses__()
        if "name" in method.__dict__:
            found[method.name] = method
    return dict(sorted(found.items()))
