"""A task of three numbers per image with a real-valued score, as a user's module would define one."""

from __future__ import annotations

from typing import Any

import numpy as np

from kt.errors import KtError
from kt.tasks.task import Metric, Task


class Vectors(Task):
    """Answers and truths are float [b, 3]; the score is 1 − their mean absolute difference, below zero too."""

    name = "vectors"
    metric = Metric("fit", "fit", "", "fit", "fit")

    def check_truth(self, at: str, truth: Any) -> Any:
        if truth.ndim != 2 or truth.shape[1] != 3:
            raise KtError(f"{at}: needs [N, 3] numbers, not {list(truth.shape)}")
        return truth.astype(np.float32)

    def outputs(self, truth: Any, class_names: list[str]) -> int:
        return 3

    def answer_shape(self, outputs: int) -> tuple[int, ...]:
        return (outputs,)

    def supervised(self, answer: Any, truth: Any) -> Any:
        return (answer.float() - truth).square().mean(-1)

    def imitate(self, target: Any, answer: Any, temperature: float) -> Any:
        return (answer.float() - target.float()).square().mean(-1)

    def fit(self, answer: Any, truth: Any) -> Any:
        return -(answer.float() - truth).abs().mean(-1)

    def kept(self, answer: Any, truth: Any) -> Any:
        return (answer.float() - truth).abs().mean(-1)

    def scores(self, kept: Any, truth: Any) -> Any:
        return 1 - np.asarray(kept, np.float64)


class Percent(Vectors):
    """The same in percent."""

    name = "percent"
    metric = Metric("hits", "hits", "%", "percentage points", "pp", 100.0)


class Success(Vectors):
    """A task of success or failure, without classes."""

    name = "success"
    metric = Metric("rate", "success rate", "%", "percentage points", "pp", 100.0, binary=True)

    def scores(self, kept: Any, truth: Any) -> Any:
        return np.asarray(kept) == 0
