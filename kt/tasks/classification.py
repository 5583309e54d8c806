"""Classification: one class per image, judged by accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kt.errors import KtError
from kt.tasks import losses
from kt.tasks.task import Array, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Task):
    """Answers are logits [b, C], truths are labels int64 [b], −1 where an image has none."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[Metric] = Metric("acc", "accuracy", "%", "percentage points", "pp", 100.0, binary=True)
    has_classes: ClassVar[bool] = True

    def check_truth(self, at: str, truth: Array) -> Array:
        """Labels int64 [N]; readers of data sets check them against the names of classes."""
        if truth.ndim != 1 or truth.dtype.kind not in "iu":
            raise KtError(f"{at}: labels are whole numbers, one per image, not {truth.dtype} {list(truth.shape)}")
        return truth.astype(np.int64, copy=False)

    def outputs(self, truth: Array, class_names: list[str]) -> int:
        """One output per class."""
        return len(class_names)

    def labelled(self, truth: Array) -> Array:
        """Where the label is not −1."""
        return np.asarray(truth >= 0)

    def answer_shape(self, outputs: int) -> tuple[int, ...]:
        """A logit per class."""
        return (outputs,)

    def supervised(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy, float32 [b]."""
        return losses.cross_entropy(answer, truth)

    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        """T² · KL(softmax(target / T) ‖ softmax(answer / T)), float32 [b]."""
        return losses.distillation(target, answer, temperature)

    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Log-probability of the label, float32 [b]."""
        return answer.float().log_softmax(-1).gather(-1, truth[:, None])[:, 0]

    def confidence(self, answer: Tensor) -> Tensor:
        """Largest log-probability, float32 [b]."""
        return answer.float().log_softmax(-1).amax(-1)

    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        """The predicted class in float32, the lowest of equals, int64 [b]."""
        return answer.float().sort(dim=-1, descending=True, stable=True).indices[:, 0]

    def scores(self, kept: Array, truth: Array) -> Array:
        """Whether the predicted class is the label, bool [n]."""
        return np.asarray(kept == truth)
