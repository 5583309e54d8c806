"""``self``: the control that shows the effect of training on the transfer images without a teacher."""

from __future__ import annotations

from typing import ClassVar

from kt.transfer.methods.kl import Distillation


class SelfDistillation(Distillation):
    """The student as it was before transfer teaches every image; its loss starts at zero."""

    name: ClassVar[str] = "self"
    control: ClassVar[bool] = True
