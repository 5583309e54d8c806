"""Metrics of saliency maps: pure functions, one value per map, NaN where a metric is undefined.

Maps are [b, H, W], values ≥ 0 of any scale; no metric depends on the scale. Fixations are numbers of fixations at each
pixel, [b, H, W]. A map counts as constant where its values differ by rounding alone. Arithmetic is in float32; in
float64 where a map is.

Source of the definitions, unless a function names another: Bylinskii, Judd, Oliva, Torralba and Durand 2019, What do
different evaluation metrics tell us about saliency models?, arXiv 1604.03605.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 2.2204e-16
"""Regularisation of the divergence, MATLAB's ``eps``."""

ROUNDING = 1e-6
"""Relative range of values up to which a map is constant."""


def constant(maps: Tensor) -> Tensor:
    """Where all values of a map are equal up to rounding, bool [b]."""
    low, high = _flat(maps).aminmax(dim=1)
    return high - low <= ROUNDING * high.abs()


def density(maps: Tensor) -> Tensor:
    """Maps divided by their sums, [b, P] of P pixels; a map of zeros is uniform, as any constant one."""
    flat = _flat(maps)
    flat = flat / flat.detach().amax(1, keepdim=True).clamp(min=1e-30)  # the sum of tiny values would lose digits
    total = flat.sum(1, keepdim=True)
    return (flat / total.where(total > 0, 1)).where(total > 0, 1 / flat.shape[1])


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation, [b], with finite gradients everywhere; 0 where either map is constant."""
    a, b = (_centred(each) for each in (maps, others))
    scale = a.square().sum(1) * b.square().sum(1)
    return ((a * b).sum(1) / scale.where(scale > 0, 1).sqrt()).where(~(constant(maps) | constant(others)), 0)


def cc(maps: Tensor, truth: Tensor) -> Tensor:
    """Correlation coefficient, [b], −1 to 1; undefined where either map is constant."""
    return correlation(maps, truth).where(~(constant(maps) | constant(truth)), float("nan"))


def sim(maps: Tensor, truth: Tensor) -> Tensor:
    """Similarity: both maps from 0 to 1, then to the sum 1; the sum of their minima, [b], 0 to 1.

    Undefined where either map is constant. ``pysaliency`` leaves out the first step, which changes nothing where the
    smallest value is 0.
    """
    common = density(_from_zero(maps)).minimum(density(_from_zero(truth))).sum(1)
    return common.where(~(constant(maps) | constant(truth)), float("nan"))


def nss(maps: Tensor, fixations: Tensor) -> Tensor:
    """Normalised scanpath saliency: the mean over fixations of (s − mean) / standard deviation, [b].

    Undefined for a constant map or without a fixation. The deviation is that of the population.
    """
    a, counts = _centred(maps), fixations.flatten(1)
    deviation = a.square().mean(1).sqrt()
    return ((a * counts).sum(1) / counts.sum(1) / deviation).where(~constant(maps), float("nan"))


def kld(maps: Tensor, truth: Tensor) -> Tensor:
    """Divergence Σ ĝ · ln(ε + ĝ / (ŝ + ε)) of a map s from the truth g, both with the sum 1; nats, [b].

    Both arguments carry gradient. Source: BiKD's task loss; ``MIT_KLDiv`` of ``pysaliency``.
    """
    s, g = density(maps), density(truth)
    return (g * (EPSILON + g / (s + EPSILON)).log()).sum(1)


def entropy(maps: Tensor) -> Tensor:
    """Entropy of a map with the sum 1, nats, [b]: ln P for a constant map of P pixels."""
    s = density(maps)
    return -s.xlogy(s).sum(1)


def auc_judd(maps: Tensor, fixations: Tensor) -> Tensor:
    """Area under the curve of AUC-Judd, [b], 0 to 1; 0.5 for a constant map, undefined without a fixation.

    Thresholds are the values at fixations, in descending order. At the i-th of N_f, the share of true positives is
    i / N_f, that of false ones (#{s ≥ threshold} − i) / (N_p − N_f) of N_p pixels; the area is that of the trapezoids
    between these points, (0, 0) and (1, 1). Fixations of equal value share a threshold, so that nothing is random.
    Several fixations at a pixel count as several, and the pixel not as a negative.

    Source: Judd, Ehinger, Durand and Torralba 2009. BiKD's published code subtracts i − 1 instead of i.
    """
    import torch

    fixated = (fixations > 0).flatten(1)
    flat = _settled(maps)
    values, order = flat.sort(1)
    known = values.where(fixated.gather(1, order), -torch.inf).cummax(1).values
    last = torch.searchsorted(values, flat, right=True) - 1
    # trapezoids: a value between two thresholds counts as the lower one
    return auc(known.gather(1, last), fixations.flatten(1), ~fixated)


def s_auc(maps: Tensor, fixations: Tensor, others: Tensor) -> Tensor:
    """Shuffled AUC, [b]: positives are fixations, negatives the fixations of other videos.

    Args:
        maps: [b, H, W].
        fixations: of the frame, [b, H, W].
        others: numbers of fixations of the other videos at each pixel, [b, H, W].

    A map of the bias that all videos share, as to the centre, has 0.5. Undefined without a fixation of either kind.

    Source: Zhang, Tong, Marks, Shan and Cottrell 2008; Borji, Tavakoli, Sihite and Itti 2013, who draw as many
    negatives as there are fixations 100 times, with thresholds at steps of 0.1. This is the expectation over all
    draws, with a threshold at every value, as ``pysaliency`` has it.
    """
    return auc(_settled(maps), fixations.flatten(1), others.flatten(1))


def auc(values: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Probability that a positive has a larger value than a negative, ties half; [b], NaN if one is lacking.

    Args:
        values: [b, P].
        positives: numbers of positives with these values, [b, P].
        negatives: numbers of negatives with these values, [b, P].
    """
    import torch

    ordered, order = values.sort(1)
    below = torch.nn.functional.pad(positives.double().gather(1, order).cumsum(1), (1, 0))
    smaller, up_to = (below.gather(1, torch.searchsorted(ordered, ordered, right=side)) for side in (False, True))
    of_each = negatives.double().gather(1, order)
    larger = below[:, -1:] - (smaller + up_to) / 2
    return (larger * of_each).sum(1) / (below[:, -1] * of_each.sum(1))


def blur(maps: Tensor, width: int = 11, sigma: float = 2.0) -> Tensor:
    """Maps after a Gaussian filter, [b, H, W]; beyond the border they are mirrored about the outermost pixels.

    Args:
        maps: [b, H, W] of any size.
        width: pixels of the filter, odd.
        sigma: its standard deviation, pixels.

    Source: ``cv2.GaussianBlur(map, (11, 11), 0)`` in BiKD's published evaluation.
    """
    import torch

    reach = width // 2
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    blurred = maps if maps.element_size() == 8 else maps.float()
    for axis in (1, 2):
        side = blurred.shape[axis]
        places = torch.arange(-reach, side + reach, device=maps.device) % max(1, 2 * side - 2)
        mirrored = blurred.index_select(axis, places.minimum(2 * side - 2 - places) if side > 1 else 0 * places)
        # one order of summation at every pixel: a constant map stays constant
        blurred = torch.zeros_like(blurred)
        for k, weight in enumerate(weights):
            blurred += mirrored.narrow(axis, k, side) * (weight / sum(weights))
    return blurred


def _flat(maps: Tensor) -> Tensor:
    """Maps as rows, [b, P]."""
    return (maps if maps.element_size() == 8 else maps.float()).flatten(1).contiguous()


def _settled(maps: Tensor) -> Tensor:
    """Maps as rows whose order is meant, [b, P]: constant ones have no other values than one."""
    flat = _flat(maps)
    return flat.where(~constant(maps)[:, None], 0)


def _centred(maps: Tensor) -> Tensor:
    """Maps less their means, [b, P], scaled so that squares of tiny values are not lost."""
    flat = _flat(maps)
    flat = flat / flat.detach().abs().amax(1, keepdim=True).clamp(min=1e-30)
    return flat - flat.mean(1, keepdim=True)


def _from_zero(maps: Tensor) -> Tensor:
    """Maps less their smallest values, [b, P]."""
    flat = _flat(maps)
    return flat - flat.amin(1, keepdim=True)
