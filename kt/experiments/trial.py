"""The unit of work of an experiment. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kt.transfer.approach import Approach


@dataclass(frozen=True)
class Trial:
    """One unit of work of an experiment.

    Attributes:
        approach: the method.
        teachers: those that have a part in it.
        seed: of the student's first weights, the order of images and anything random.
        settings: what else determines its result, as plain JSON values.
    """

    approach: Approach
    teachers: tuple[str, ...]
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
