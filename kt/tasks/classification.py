"""Classification: one class per image, judged by accuracy.

The class of an answer is that of the largest of its logits in float32, the lowest class number of equals. Only then are
logits rounded to float16, which makes ties: where these would let a lower class number win, its logit goes down by the
smallest step, so that the largest rounded logit, first of equals, is the class too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kt.errors import KtError
from kt.predictions import blocks
from kt.tasks import losses
from kt.tasks.task import Array, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor


TOP = 5
"""Likeliest classes of each image that are kept."""


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

    def smoothed(self, answer: Tensor, truth: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy with smoothed labels, float32 [b]."""
        return losses.cross_entropy(answer, truth, smoothing)

    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        """T² · KL(softmax(target / T) ‖ softmax(answer / T)), float32 [b]."""
        return losses.distillation(target, answer, temperature)

    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Log-probability of the label, float32 [b]."""
        return answer.float().log_softmax(-1).gather(-1, truth[:, None])[:, 0]

    def confidence(self, answer: Tensor) -> Tensor:
        """Largest log-probability, float32 [b]."""
        return answer.float().log_softmax(-1).amax(-1)

    def averaged(self, first: Tensor, second: Tensor) -> Tensor:
        """Logarithm of the mean probability, float32 [b, C]."""
        return losses.mean_probability(first, second)

    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        """The predicted class in float32, the lowest of equals, int64 [b]."""
        return self.likeliest(answer)[:, 0]

    def cached(self, answer: Tensor) -> Tensor:
        """Logits in float16 whose largest, the first of equals, is the predicted class, [b, C]."""
        return rounded(answer.float(), self.likeliest(answer)[:, :1])

    def likeliest(self, answer: Tensor) -> Tensor:
        """The min(``TOP``, C) likeliest classes in float32, int64 [b, k]; the first is the predicted class."""
        return answer.float().sort(dim=-1, descending=True, stable=True).indices[:, :TOP].contiguous()

    def scores(self, kept: Array, truth: Array) -> Array:
        """Whether the predicted class is the label, bool [n]."""
        return np.asarray(kept == truth)

    def describe(self, answers: Array | None, kept: Array, scores: Array) -> dict[str, float | None]:
        """Calibration and sharpness of the probabilities."""
        assert answers is not None, "logits are always kept"
        return {"ece": calibration_error(answers, scores), **sharpness(answers)}


def positions(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each label among ``classes``, int64 [N]; −1 for a label that is not one of them.

    Args:
        labels: of the data set, int64 [N]; negative where there is none.
        classes: distinct labels, int64 [K].
    """
    where = np.full(max(int(classes.max()), int(labels.max(initial=-1))) + 2, -1, np.int64)
    where[classes] = np.arange(len(classes))
    found: NDArray[np.int64] = where[labels.clip(-1)]
    return found


def rounded(exact: Tensor, predicted: Tensor) -> Tensor:
    """Logits in float16 whose largest, the first of equals, is the predicted class.

    Args:
        exact: logits float32 [b, C, …].
        predicted: the class of the largest of them, int64 [b, 1, …].
    """
    import torch

    logits = exact.half()
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = classes.view(-1, *[1] * (logits.ndim - 2)) < predicted
    ties = before & (logits == logits.gather(1, predicted))
    return torch.where(ties, next_below(logits), logits)


def next_below(x: Tensor) -> Tensor:
    """The largest float16 below each: their bits count up from zero on either side."""
    import torch

    bits = x.view(torch.int16)
    smallest = torch.full_like(bits, -0x7FFF)  # below zero, of either sign, lies −2⁻²⁴
    return torch.where(x == 0, smallest, torch.where(x > 0, bits - 1, bits + 1)).view(torch.float16)


def calibration_error(logits: Array, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error in percent: mean |confidence − accuracy| over equal-width bins, weighted by size.

    Args:
        logits: [N, C].
        right: which images the model gets right, bool [N].
        bins: number of equal-width confidence bins.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    gap, start = np.zeros(bins), 0
    for block in blocks(logits):
        z = block.astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        confidence = p.max(1) / p.sum(1)
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        gap += np.bincount(which, confidence - right[start : start + len(block)], minlength=bins)
        start += len(block)
    return float(100 * np.abs(gap).sum() / len(right))


def sharpness(logits: Array) -> dict[str, float | None]:
    """Sharpness of a model's probabilities, from logits [N, C].

    Returns:
        ``log_ratio``: mean over the images of ln(p₁/p₂), of the first and the second probability, nats; None for one
        class. ``entropy``: mean entropy of the probabilities, nats.

    Source: Gosal et al. 2026, arXiv 2605.15689, whose Ratio 1-2 is the mean of p₁/p₂ itself. That mean is made by the
    few images of which a model is surest, as p₁/p₂ grows exponentially with the logits; its logarithm is not.
    """
    ratio = entropy = 0.0
    for block in blocks(logits):
        z = block.astype(np.float64)
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        total = p.sum(1)
        entropy += float((np.log(total) - (p * z).sum(1) / total).sum())
        ratio -= float(np.partition(z, -2, 1)[:, -2].sum()) if z.shape[1] > 1 else 0
    return {"log_ratio": ratio / len(logits) if logits.shape[1] > 1 else None, "entropy": entropy / len(logits)}
