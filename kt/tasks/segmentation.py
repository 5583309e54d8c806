"""Semantic segmentation: a class per pixel, judged by the mean IoU.

From each image three counts per class are kept: pixels that are rightly predicted (TP), predicted, and of the truth.
All metrics come from their sums over a split: IoU_c = TP / (predicted + truth − TP), their mean over the classes that
are in the truth, the mean accuracy of these classes, the IoU weighted by truth, and the share of right pixels. Pixels
without a truth count nowhere.

The mean IoU is no mean over images. The score of an image is the mean IoU plus N times what the image alone moves it
by, to first order:

    s_i = mIoU + N / |P| · Σ_{c ∈ P} (tp_ic − IoU_c · union_ic) / union_c,

summed over the classes P in the truth. Scores average to the mean IoU exactly, so that gains, losses and flips in them
add up to differences of the mean IoU, and their standard deviation over √N is its standard error over images: that of
the infinitesimal jackknife, the limit of resampling images.

Source of the error: Efron and Stein 1981, Annals of Statistics 9(3); Efron 1982, The Jackknife, the Bootstrap and Other
Resampling Plans, chapter 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kt.errors import KtError
from kt.tasks import losses
from kt.tasks.classification import rounded
from kt.tasks.task import Array, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = 255
"""Truth of a pixel that has none."""

MOST_CLASSES = 255


class Segmentation(Task):
    """Answers are logits [b, C, h, w], truths the class of each pixel, uint8 [b, H, W]; ``IGNORED`` where it has none.

    Logits of another size than the truth are resized bilinearly, as networks do themselves that enlarge their output.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[Metric] = Metric("miou", "mean IoU", "%", "percentage points", "pp", 100.0)
    has_classes: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    spatial: ClassVar[bool] = True

    def check_truth(self, at: str, truth: Array) -> Array:
        """Masks uint8 [N, H, W]; readers of data sets check them against the classes."""
        if truth.ndim != 3 or truth.dtype != np.uint8:
            raise KtError(f"{at}: masks are uint8 [N, H, W], not {truth.dtype} {list(truth.shape)}")
        return truth

    def outputs(self, truth: Array, class_names: list[str]) -> int:
        """One output per class."""
        return len(class_names)

    def answer_shape(self, outputs: int) -> tuple[int | None, ...]:
        """A logit per class and pixel, at any size."""
        return (outputs, None, None)

    def supervised(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy of each pixel, float32 [b, H, W]; that of one without a truth means nothing."""
        return losses.cross_entropy(answer, _classes(truth))

    def smoothed(self, answer: Tensor, truth: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy of each pixel with smoothed labels, float32 [b, H, W]."""
        return losses.cross_entropy(answer, _classes(truth), smoothing)

    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        """T² · KL(softmax(target / T) ‖ softmax(answer / T)) of each pixel, float32 [b, H, W]."""
        return losses.distillation(target, answer, temperature)

    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Log-probability of each pixel's class, float32 [b, H, W]; its mean is the task loss of an image, negated."""
        return losses.log_softmax(answer).gather(1, _classes(truth)[:, None])[:, 0]

    def confidence(self, answer: Tensor) -> Tensor:
        """Largest log-probability of each pixel, float32 [b, H, W]."""
        return losses.log_softmax(answer).amax(1)

    def mean(self, values: Tensor, truth: Tensor) -> Tensor:
        """Mean over the pixels that have a truth, float32 [b]; 0 where none has one."""
        valid = truth != IGNORED
        total = values.float().where(valid, values.new_zeros(())).flatten(1).sum(1)
        return total / valid.flatten(1).sum(1).clamp(min=1)

    def aligned(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Logits at the size of the truth, [b, C, H, W]; bilinear, corners not aligned."""
        if answer.shape[2:] == truth.shape[1:]:
            return answer
        from torch.nn.functional import interpolate

        return interpolate(answer.float(), truth.shape[1:], mode="bilinear")

    def averaged(self, first: Tensor, second: Tensor) -> Tensor:
        """Logarithm of the mean probability, float32 [b, C, h, w]."""
        return losses.mean_probability(first, second)

    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Of each class the pixels rightly predicted, predicted, and of the truth, int32 [b, C, 3]."""
        import torch

        images, classes = answer.shape[:2]
        predicted, valid = self.predicted(answer).long(), truth != IGNORED
        first = torch.arange(0, images * classes, classes, device=truth.device).view(-1, 1, 1)

        def count(labels: Tensor, which: Tensor) -> Tensor:
            return (first + labels)[which].bincount(minlength=images * classes).view(images, classes)

        right, said = count(predicted, valid & (predicted == truth)), count(predicted, valid)
        return torch.stack([right, said, count(_classes(truth), valid)], -1).int()

    def cached(self, answer: Tensor) -> Tensor:
        """Logits in float16 whose largest, the first of equals, is the predicted class, at the network's own size."""
        return rounded(answer.float(), self.predicted(answer)[:, None].long())

    def predicted(self, answer: Tensor) -> Tensor:
        """The predicted class of each pixel in float32, the lowest of equals, uint8 [b, h, w]."""
        found: Tensor = answer.float().argmax(1).byte()
        return found

    def likeliest(self, answer: Tensor) -> Tensor:
        """The predicted class of each pixel, uint8 [b, H, W]."""
        return self.predicted(answer)

    def shown(self, answer: Tensor) -> Tensor:
        """The predicted class of each pixel, uint8 [b, H, W]."""
        return self.predicted(answer)

    def scores(self, kept: Array, truth: Array) -> Array:
        """Score of each image, float64 [n], from counts [n, C, 3]; see the top of this file."""
        right, union = _right_and_union(kept)
        present = kept[..., 2].sum(0) > 0
        iou = right.sum(0)[present] / union.sum(0)[present]
        moved = (right[:, present] - iou * union[:, present]) / union.sum(0)[present]
        scores: NDArray[np.float64] = iou.mean() + len(kept) * moved.mean(1)
        return scores

    def describe(self, answers: Array | None, kept: Array, scores: Array) -> dict[str, Any]:
        """The other metrics of the split, and the IoU of every class."""
        by_class = [None if np.isnan(iou) else iou for iou in class_iou(kept).tolist()]
        return {**metrics(kept), "iou_by_class": by_class}


def metrics(kept: Array) -> dict[str, float]:
    """Metrics of a split in percent, from the counts of its images, [N, C, 3].

    Returns:
        ``pixel_accuracy``: right pixels. ``mean_accuracy``: right pixels of a class, the mean over the classes in the
        truth. ``fw_iou``: the IoU of these classes, weighted by their pixels in the truth.
    """
    right, union = (counts.sum(0) for counts in _right_and_union(kept))
    truth = kept[..., 2].sum(0, dtype=np.int64)
    present = truth > 0
    return {
        "pixel_accuracy": 100 * float(right.sum() / truth.sum()),
        "mean_accuracy": 100 * float((right[present] / truth[present]).mean()),
        "fw_iou": 100 * float((truth[present] * right[present] / union[present]).sum() / truth.sum()),
    }


def class_iou(kept: Array) -> NDArray[np.float64]:
    """IoU of every class in percent, float64 [C], from counts [N, C, 3]; NaN where it is not in the truth."""
    right, union = (counts.sum(0) for counts in _right_and_union(kept))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(kept[..., 2].sum(0) > 0, 100 * right / union, np.nan)


def _right_and_union(kept: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels rightly predicted, and predicted or of the truth, int64 [N, C] each."""
    counts = kept.astype(np.int64)
    right: NDArray[np.int64] = counts[..., 0]
    return right, counts[..., 1] + counts[..., 2] - right


def _classes(truth: Tensor) -> Tensor:
    """Truths as classes, int64; those of pixels without one are 0."""
    return truth.long().where(truth != IGNORED, 0)
