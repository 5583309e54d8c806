"""Video saliency: a map of where people look, for a frame of a video, judged by its correlation with the truth.

Of each frame six metrics are kept (``METRICS``), of the map at the size of the truth after a Gaussian filter, as in
BiKD's published evaluation. The score of a frame is its correlation; that of a constant map, which is undefined, is 0:
such a map tells nothing. ``undefined`` counts them. Frames of one video are no independent sample: standard errors are
those over videos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kt.errors import KtError
from kt.tasks import maps
from kt.tasks.task import Array, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

METRICS = ("cc", "sim", "nss", "kld", "auc_judd", "s_auc")
"""Metrics of a frame, in the order in which they are kept."""

PIXELS = 1 << 18
"""Pixels of the maps that are scored at once, which takes about 200 bytes of each."""


class Saliency(Task):
    """Answers are maps ≥ 0, [b, h, w], of any size and scale; truths are float32 [b, 3, H, W].

    The first channel of a truth is the map in [0, 1], the second the number of fixations at each pixel, the third that
    of the fixations of the other videos of the split. Models take clips [b, C, T, H, W], whose target frame is one
    example. Maps of another size than the truth are resized bilinearly.
    """

    name: ClassVar[str] = "saliency"
    metric: ClassVar[Metric] = Metric("cc", "correlation (CC)", "", "correlation", "CC")
    example: ClassVar[str] = "frame"
    spatial: ClassVar[bool] = True
    clips: ClassVar[bool] = True
    cluster: ClassVar[str] = "video"
    tempered: ClassVar[bool] = False
    least: ClassVar[float] = 0.0

    def check_truth(self, at: str, truth: Array) -> Array:
        """Maps uint8 [N, H, W]."""
        if truth.ndim != 3 or truth.dtype != np.uint8:
            raise KtError(f"{at}: maps are uint8 [N, H, W], not {truth.dtype} {list(truth.shape)}")
        return truth

    def outputs(self, truth: Array, class_names: list[str]) -> int:
        """One map."""
        return 1

    def answer_shape(self, outputs: int) -> tuple[int | None, ...]:
        """A value per pixel, at any size."""
        return (None, None)

    def supervised(self, answer: Tensor, truth: Tensor) -> Tensor:
        """KLD − CC, float32 [b]. Source: BiKD, the task loss of saliency."""
        return maps.kld(answer, truth[:, 0]) - maps.correlation(answer, truth[:, 0])

    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        """KLD of the answer from the target, float32 [b]; there is no temperature. Source: BiKD."""
        return maps.kld(answer, target)

    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        """CC − KLD, float32 [b]: the model with the lowest task loss teaches. Source: BiKD."""
        return -self.supervised(answer, truth)

    def confidence(self, answer: Tensor) -> Tensor:
        """Negative entropy of the map, nats, float32 [b]. Ours: the paper partitions by the truth alone."""
        return -maps.entropy(answer)

    def aligned(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Maps at the size of the truth, [b, H, W]; bilinear, corners not aligned."""
        if answer.shape[1:] == truth.shape[2:]:
            return answer
        from torch.nn.functional import interpolate

        return interpolate(answer.float()[:, None], truth.shape[2:], mode="bilinear")[:, 0]

    def averaged(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean of both maps, each divided by its sum, float32 [b, h, w]."""
        return ((maps.density(first) + maps.density(second)) / 2).view(first.shape)

    def judged(self, answer: Tensor) -> Tensor:
        """Maps after the filter of the published evaluation, float64 [b, H, W]."""
        return filtered(answer)

    def shown(self, answer: Tensor) -> Tensor:
        """Maps as they are judged, the largest value 255, uint8 [b, H, W]."""
        judged = self.judged(answer)
        found: Tensor = (255 * judged / judged.amax((1, 2), keepdim=True).clamp(min=1e-30)).round().byte()
        return found

    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        """``METRICS`` of each map after the filter, float32 [b, 6]; NaN where one is undefined."""
        import torch

        some = max(1, PIXELS // truth[0, 0].numel())
        return torch.cat([metrics(answer[i : i + some], truth[i : i + some]) for i in range(0, len(answer), some)])

    def cached(self, answer: Tensor) -> Tensor:
        """Maps divided by their largest values, float16 [b, h, w]: small values of a sum of 1 would be lost."""
        return (answer.float() / answer.float().amax((1, 2), keepdim=True).clamp(min=1e-30)).half()

    def clusters(self, truth: Any) -> NDArray[np.int64]:
        """Number of each frame's video, int64 [n]."""
        found: NDArray[np.int64] = truth.clusters
        return found

    def scores(self, kept: Array, truth: Array) -> Array:
        """Correlation of each frame, float64 [n]; 0 where it is undefined."""
        found = np.asarray(kept[:, METRICS.index("cc")], np.float64)
        return np.where(np.isnan(found), 0.0, found)

    def describe(self, answers: Array | None, kept: Array, scores: Array) -> dict[str, Any]:
        """Means of the other metrics over the frames where they are defined, and the number of constant maps."""
        found: dict[str, Any] = {}
        for name in METRICS[1:]:
            values = np.asarray(kept[:, METRICS.index(name)], np.float64)
            known = values[~np.isnan(values)]
            found[name] = float(known.mean()) if len(known) else None
        return {**found, "undefined": int(np.isnan(kept[:, METRICS.index("cc")]).sum())}


def filtered(answer: Tensor) -> Tensor:
    """Maps after the filter of the published evaluation, float64 [b, H, W], so that a batch's size changes nothing."""
    return maps.blur(answer.double())


def metrics(answer: Tensor, truth: Tensor) -> Tensor:
    """``METRICS`` of each map after the filter, float32 [b, 6], from maps [b, H, W] and truths [b, 3, H, W]."""
    import torch

    shown = filtered(answer)
    density, fixations, others = truth.unbind(1)
    found = {
        "cc": maps.cc(shown, density),
        "sim": maps.sim(shown, density),
        "nss": maps.nss(shown, fixations),
        "kld": maps.kld(shown, density),
        "auc_judd": maps.auc_judd(shown, fixations),
        "s_auc": maps.s_auc(shown, fixations, others),
    }
    return torch.stack([found[name] for name in METRICS], 1).float()
