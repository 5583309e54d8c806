"""Saliency: metrics of maps by hand, by slow loops and in their limits; losses and the task itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from kt.errors import KtError
from kt.tasks import maps, partition
from kt.tasks.saliency import METRICS, Saliency
from kt.tasks.task import Words, named
from kt.transfer.ledger import pack, unpack

TASK = Saliency()
SEEDS = st.integers(0, 2**32)
EPS = 2.2204e-16


def of(*rows: list[float]) -> Tensor:
    """One map, [1, H, W]."""
    return torch.tensor([rows], dtype=torch.float32)


# nine pixels: the sum of the truth is 16, that of the map 20
TRUTH = of([0, 1, 0], [1, 8, 2], [0, 4, 0])
MAP = of([0, 2, 1], [2, 4, 8], [0, 2, 1])
FIXATIONS = of([0, 0, 0], [0, 1, 1], [0, 0, 0])
OTHERS = of([1, 0, 1], [0, 2, 0], [1, 0, 0])
CONSTANT = torch.full((1, 3, 3), 0.3)


def truth_of(density: Tensor = TRUTH, fixations: Tensor = FIXATIONS, others: Tensor = OTHERS) -> Tensor:
    return torch.stack([density, fixations, others], 1)


def draw(seed: int, n: int = 3, height: int = 7, width: int = 9, steps: int = 0) -> tuple[Tensor, Tensor]:
    """Maps [n, H, W], of some steps with ties, and truths [n, 3, H, W] with fixations of both kinds."""
    generator = torch.Generator().manual_seed(seed)
    own, density = torch.rand(2, n, height, width, generator=generator)
    if steps:
        own = (own * steps).round() / steps
    counts = torch.randint(0, 12, (2, n, height, width), generator=generator).sub(9).clamp(min=0).float()
    counts[:, :, 0, 0] = 1
    own[:, 0, 0], own[:, 0, 1] = 0.0, 1.0  # not constant
    return own, torch.stack([density, *counts], 1)


# by hand


def test_correlation_by_hand():
    # means 20/9 and 16/9; covariance 9·Σst − Σs·Σt, variances 9·Σs² − (Σs)²
    covariance = 9 * (2 + 2 + 32 + 16 + 8) - 20 * 16
    variances = (9 * (4 + 1 + 4 + 16 + 64 + 4 + 1) - 400) * (9 * (1 + 1 + 64 + 4 + 16) - 256)
    assert maps.cc(MAP, TRUTH).tolist() == pytest.approx([covariance / math.sqrt(variances)], rel=1e-6)


def test_similarity_by_hand():
    # of the sum 1: truth 0 1 0 / 1 8 2 / 0 4 0 over 16, map 0 2 1 / 2 4 8 / 0 2 1 over 20
    expected = 1 / 16 + 1 / 16 + 4 / 20 + 2 / 16 + 2 / 20
    assert maps.sim(MAP, TRUTH).tolist() == pytest.approx([expected], rel=1e-6)
    assert maps.sim(MAP + 3, TRUTH).tolist() == pytest.approx([expected], rel=1e-6)  # values start at their smallest


def test_scanpath_saliency_by_hand():
    deviation = math.sqrt(94 / 9 - (20 / 9) ** 2)
    expected = ((4 - 20 / 9) + (8 - 20 / 9)) / 2 / deviation
    assert maps.nss(MAP, FIXATIONS).tolist() == pytest.approx([expected], rel=1e-6)
    twice = FIXATIONS * of([1, 1, 1], [1, 1, 2], [1, 1, 1])
    expected = ((4 - 20 / 9) + 2 * (8 - 20 / 9)) / 3 / deviation
    assert maps.nss(MAP, twice).tolist() == pytest.approx([expected], rel=1e-6)


def test_divergence_by_hand():
    terms = [(1 / 16, 2 / 20), (1 / 16, 2 / 20), (8 / 16, 4 / 20), (2 / 16, 8 / 20), (4 / 16, 2 / 20)]
    expected = sum(g * math.log(EPS + g / (s + EPS)) for g, s in terms)
    assert maps.kld(MAP, TRUTH).tolist() == pytest.approx([expected], rel=1e-5)
    nowhere = maps.kld(of([1, 0, 0], [0, 0, 0], [0, 0, 0]), TRUTH)  # the map is 0 where the truth is
    expected = sum(g * math.log(EPS + g / EPS) for g, _ in terms)
    assert nowhere.tolist() == pytest.approx([expected], rel=1e-6)


def test_the_area_of_judd_by_hand():
    # fixations have the values 8 and 4; 2 2 2 1 1 0 0 have none: no false positive at either threshold, then all
    assert maps.auc_judd(MAP, FIXATIONS).tolist() == [1.0]
    # fixations at 2 (the first) and 1 (the last): thresholds 2 and 1. ≥ 2 are 5 of 9, ≥ 1 are 7
    fixations = of([0, 1, 0], [0, 0, 0], [0, 0, 1])
    points = [(0, 0), ((5 - 1) / 7, 1 / 2), ((7 - 2) / 7, 1), (1, 1)]
    expected = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert maps.auc_judd(MAP, fixations).tolist() == pytest.approx([expected], rel=1e-6)


def test_the_shuffled_area_by_hand():
    # positives 8 4; negatives 0, 1, 4 twice, 0: of ten comparisons eight are won and two are ties
    assert maps.s_auc(MAP, FIXATIONS, OTHERS).tolist() == pytest.approx([(8 + 2 / 2) / 10], rel=1e-6)


def test_a_filter_by_hand():
    # three pixels in a row, mirrored about the outermost: b a | a b c would repeat a; here c b a b c b a
    weights = {k: math.exp(-(k**2) / 2) for k in (-1, 0, 1)}
    w0, w1 = weights[0] / sum(weights.values()), weights[1] / sum(weights.values())
    found = maps.blur(torch.tensor([[[9.0, 3.0, 1.0]]]), width=3, sigma=1.0)
    expected = [w0 * 9 + 2 * w1 * 3, w1 * 9 + w0 * 3 + w1 * 1, w0 * 1 + 2 * w1 * 3]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_a_perfect_map_has_the_best_value_of_each_metric():
    for scale in (1.0, 1e-6, 1e4):
        same = scale * TRUTH
        assert maps.cc(same, TRUTH).tolist() == pytest.approx([1.0], abs=1e-6)
        assert maps.sim(same, TRUTH).tolist() == pytest.approx([1.0], abs=1e-6)
        assert maps.kld(same, TRUTH).tolist() == pytest.approx([0.0], abs=1e-6)
        assert TASK.supervised(same, truth_of()).tolist() == pytest.approx([-1.0], abs=1e-5)
        assert TASK.imitate(same, TRUTH, 1.0).tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.3, 1e-12, 7e3])
def test_a_constant_map_has_areas_of_a_half_and_an_undefined_correlation(level):
    flat = torch.full((1, 3, 3), level)
    assert maps.constant(flat).tolist() == [True]
    assert maps.auc_judd(flat, FIXATIONS).tolist() == [0.5]
    assert maps.s_auc(flat, FIXATIONS, OTHERS).tolist() == [0.5]
    undefined = [maps.cc(flat, TRUTH), maps.sim(flat, TRUTH), maps.nss(flat, FIXATIONS), maps.cc(TRUTH, flat)]
    assert all(value.isnan().all() for value in undefined)
    uniform = sum(g * math.log(9 * g) for g in (1 / 16, 1 / 16, 1 / 2, 1 / 8, 1 / 4))
    assert maps.kld(flat, TRUTH).tolist() == pytest.approx([uniform], rel=1e-5)
    assert maps.entropy(flat).tolist() == pytest.approx([math.log(9)], rel=1e-6)
    kept = TASK.kept(flat, truth_of())
    assert [name for name, value in zip(METRICS, kept[0], strict=True) if value.isnan()] == ["cc", "sim", "nss"]
    assert TASK.scores(kept.numpy(), np.zeros(1)).tolist() == [0.0]


def test_without_fixations_only_metrics_of_maps_are_defined():
    none = torch.zeros(1, 3, 3)
    kept = TASK.kept(MAP, truth_of(fixations=none))[0]
    assert [name for name, value in zip(METRICS, kept, strict=True) if value.isnan()] == ["nss", "auc_judd", "s_auc"]
    kept = TASK.kept(MAP, truth_of(others=none))[0]
    assert [name for name, value in zip(METRICS, kept, strict=True) if value.isnan()] == ["s_auc"]


def test_a_map_of_the_bias_to_the_centre_has_a_shuffled_area_of_a_half_but_not_that_of_judd():
    y, x = torch.meshgrid(*[torch.arange(21) - 10.0] * 2, indexing="ij")
    centre = (-(x**2 + y**2) / (2 * 4.0**2)).exp()[None]
    rng = np.random.default_rng(0)
    videos = torch.zeros(40, 21, 21)
    for video in videos:  # people look at the centre, whatever there is to be seen
        for place in (10 + 4 * rng.standard_normal((25, 2))).round().clip(0, 20).astype(int):
            video[tuple(place)] += 1
    others = videos.sum(0) - videos
    centres = centre.expand_as(videos)
    shuffled, judd = maps.s_auc(centres, videos, others), maps.auc_judd(centres, videos)
    assert float(shuffled.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(judd.mean()) > 0.8
    assert maps.s_auc(centre, videos.sum(0)[None], videos.sum(0)[None]).tolist() == pytest.approx([0.5], rel=1e-6)


# slow loops


def slow_area(own: NDArray[np.float64], positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Share of the pairs of a positive and a negative that are in order, ties half."""
    up = np.repeat(own.ravel(), positives.ravel().astype(int))
    down = np.repeat(own.ravel(), negatives.ravel().astype(int))
    return float(np.mean([(p > q) + 0.5 * (p == q) for p in up for q in down]))


def slow_judd(own: NDArray[np.float64], fixations: NDArray[np.float64]) -> float:
    """The trapezoids between the thresholds, one after another."""
    at, free = np.repeat(own.ravel(), fixations.ravel().astype(int)), own[fixations == 0]
    thresholds = sorted(set(at), reverse=True)
    inner = [(float((free >= threshold).mean()), float((at >= threshold).mean())) for threshold in thresholds]
    points = [(0.0, 0.0), *inner, (1.0, 1.0)]
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0, 4, 1]))
def test_metrics_are_those_of_slow_loops(seed, steps):
    own, truth = draw(seed, steps=steps)
    density, fixations, others = (truth[:, i] for i in range(3))
    judd, shuffled = maps.auc_judd(own, fixations), maps.s_auc(own, fixations, others)
    for i, s in enumerate(own.double().numpy()):
        g, f, o = (part[i].double().numpy() for part in (density, fixations, others))
        assert float(maps.cc(own, density)[i]) == pytest.approx(np.corrcoef(s.ravel(), g.ravel())[0, 1], abs=1e-5)
        from_zero = [(each - each.min()) / (each - each.min()).sum() for each in (s, g)]
        assert float(maps.sim(own, density)[i]) == pytest.approx(np.minimum(*from_zero).sum(), abs=1e-5)
        assert float(maps.nss(own, fixations)[i]) == pytest.approx(
            (f * (s - s.mean()) / s.std()).sum() / f.sum(), abs=1e-4
        )
        p, q = s / s.sum(), g / g.sum()
        expected = (q * np.log(EPS + q / (p + EPS))).sum()
        assert float(maps.kld(own, density)[i]) == pytest.approx(expected, rel=1e-5)
        assert float(judd[i]) == pytest.approx(slow_judd(s, f), abs=1e-6)
        assert float(shuffled[i]) == pytest.approx(slow_area(s, f, o), abs=1e-6)
        some = p[p > 0]
        assert float(maps.entropy(own)[i]) == pytest.approx(-(some * np.log(some)).sum(), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_thresholds_of_judd_are_those_of_the_published_formula_where_no_values_are_equal(seed):
    own, truth = draw(seed, n=1)
    fixations = (truth[:, 1] > 0).float()
    own = own + torch.arange(own.numel()).view_as(own) * 1e-4
    values = own[fixations > 0].sort(descending=True).values
    pixels, found = own.numel(), [(0.0, 0.0)]
    for i, threshold in enumerate(values, 1):
        above = int((own >= threshold).sum())
        found.append(((above - i) / (pixels - len(values)), i / len(values)))
    found.append((1.0, 1.0))
    expected = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(found))
    assert float(maps.auc_judd(own, fixations)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 14), st.integers(1, 14))
def test_the_filter_is_that_of_scipy(seed, height, width):
    from scipy.ndimage import gaussian_filter

    own = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    expected = [gaussian_filter(each.double().numpy(), 2.0, mode="mirror", radius=5) for each in own]
    assert maps.blur(own).numpy() == pytest.approx(np.stack(expected), abs=1e-6)


# what must not matter


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1e-8, 3.0, 2e5]))
def test_the_scale_of_a_map_and_its_batch_change_nothing(seed, scale):
    own, truth = draw(seed)
    kept = TASK.kept(own, truth)
    assert TASK.kept(scale * own, truth).numpy() == pytest.approx(kept.numpy(), rel=1e-4, abs=1e-5)
    assert TASK.supervised(scale * own, truth).tolist() == pytest.approx(TASK.supervised(own, truth).tolist(), rel=1e-4)
    alone = torch.cat([TASK.kept(own[i : i + 1], truth[i : i + 1]) for i in range(len(own))])
    assert alone.numpy() == pytest.approx(kept.numpy(), rel=1e-6)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(TASK.kept(own[order], truth[order]), kept[order])


@pytest.mark.parametrize("flipped", [1, 2])
def test_mirrored_maps_and_truths_have_the_same_metrics(flipped):
    own, truth = draw(5)
    mirrored = TASK.kept(own.flip(flipped), truth.flip(flipped + 1))
    assert mirrored.numpy() == pytest.approx(TASK.kept(own, truth).numpy(), rel=1e-5)


def test_a_constant_answer_of_any_size_stays_constant_through_resizing_and_filter():
    for side in (2, 5, 24, 31):
        answer = torch.full((1, side, side), 0.7)
        truth = truth_of(
            *(torch.nn.functional.interpolate(part[None], (24, 24))[0] for part in (TRUTH, FIXATIONS, OTHERS))
        )
        kept = TASK.kept(TASK.aligned(answer, truth), truth)
        assert kept[0, METRICS.index("cc")].isnan()
        assert kept[0, METRICS.index("auc_judd")] == pytest.approx(0.5, abs=1e-6)


# losses


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    own = at.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(own).sum(), own)
    return found


@pytest.mark.parametrize("own", [MAP, CONSTANT, torch.zeros(1, 3, 3), 1e-9 * MAP, 1e4 * MAP])
def test_losses_and_gradients_are_finite_for_every_map(own):
    for loss in (
        lambda x: TASK.supervised(x, truth_of()),
        lambda x: TASK.imitate(TRUTH, x, 1.0),
        lambda x: TASK.imitate(x, TRUTH, 1.0),
    ):
        assert loss(own).isfinite().all()
        assert gradient(loss, own).isfinite().all()


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_gradients_are_those_of_differences(seed):
    own, truth = draw(seed, n=1, height=3, width=3)
    own = own + 0.1
    for loss in (lambda x: TASK.supervised(x, truth), lambda x: TASK.imitate(x, truth[:, 0] + 0.1, 1.0)):
        found, step = gradient(loss, own), 1e-2
        for y, x in ((0, 0), (1, 2)):
            up, down = own.clone(), own.clone()
            up[0, y, x] += step
            down[0, y, x] -= step
            slope = float(loss(up) - loss(down)) / (2 * step)
            assert float(found[0, y, x]) == pytest.approx(slope, rel=0.05, abs=0.01)


def test_a_model_learns_nothing_from_itself():
    own = draw(8)[0] + 0.01  # towards a pixel where both are exactly 0 there is a slope on one side
    assert TASK.imitate(own, own, 1.0).tolist() == pytest.approx([0.0] * len(own), abs=1e-6)
    assert gradient(lambda x: TASK.imitate(own, x, 1.0), own).abs().max() < 1e-6


def test_the_partition_by_hand():
    off = of([8, 1, 0], [1, 0, 0], [0, 0, 0])
    models = torch.cat([MAP, off, TRUTH]), torch.cat([off, MAP, TRUTH])
    truths = truth_of().expand(3, -1, -1, -1)
    assert partition.by_fit(TASK, *models, truths).tolist() == [True, False, False]  # ties are the student's
    sharp = of([0, 0, 0], [0, 1, 0], [0, 0, 0])
    assert partition.by_confidence(TASK, torch.cat([sharp, MAP]), torch.cat([MAP, sharp]), truths[:2]).tolist() == [
        True,
        False,
    ]
    assert TASK.fit(MAP, truth_of()).tolist() == pytest.approx((-TASK.supervised(MAP, truth_of())).tolist())


def test_the_mean_of_two_maps_gives_both_the_same_weight():
    found = TASK.averaged(MAP, 100 * TRUTH)
    assert found.shape == MAP.shape
    assert found.numpy() == pytest.approx(((MAP / 20 + TRUTH / 16) / 2).numpy(), rel=1e-6)


# the task


def test_the_task_is_known_by_its_name_and_its_words():
    task = named("saliency")
    assert isinstance(task, Saliency)
    assert (task.spatial, task.clips, task.dense, task.has_classes, task.classifies) == (
        True,
        True,
        False,
        False,
        False,
    )
    assert Words.from_json(task.words.to_json()) == task.words
    assert (task.answer_shape(1), task.outputs(np.zeros(0), []), task.example) == ((None, None), 1, "frame")
    stored = np.zeros((2, 3, 3), np.uint8)
    assert task.check_truth("data", stored) is stored
    for truth in (stored[0], stored.astype(np.float32)):
        with pytest.raises(KtError, match=r"^data: maps are uint8 \[N, H, W\], not "):
            task.check_truth("data", truth)


def test_maps_are_resized_without_aligned_corners():
    small, truth = torch.rand(2, 3, 4), torch.zeros(2, 3, 9, 8)
    found = TASK.aligned(small, truth)
    expected = torch.nn.functional.interpolate(small[:, None], (9, 8), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(found, expected)
    assert TASK.aligned(found, truth) is found
    assert TASK.loss(small, truth + 1).shape == (2,)


def test_cached_maps_keep_their_small_values():
    own = torch.rand(2, 40, 60) / 2400  # of a sum of about 1, as a softmax over pixels gives
    own[1] *= 1e-6
    cached = TASK.cached(own)
    assert cached.dtype == torch.float16
    for a, b in zip(cached.float(), own, strict=True):
        assert (a / a.sum()).numpy() == pytest.approx((b / b.sum()).numpy(), rel=1e-3, abs=1e-9)
    assert not TASK.cached(torch.zeros(1, 3, 3)).any()
    assert TASK.least == 0


def test_means_are_over_frames_where_a_metric_is_defined_and_constant_maps_are_counted():
    answers = torch.cat([MAP, CONSTANT, TRUTH, MAP])
    truths = torch.cat([truth_of()] * 3 + [truth_of(fixations=torch.zeros(1, 3, 3))])
    kept = TASK.kept(answers, truths).numpy()
    scores = TASK.scores(kept, np.zeros(4))
    found = TASK.describe(None, kept, scores)
    assert found["undefined"] == 1
    assert list(found) == [*METRICS[1:], "undefined"]
    for i, name in enumerate(METRICS[1:], 1):
        assert found[name] == pytest.approx(float(np.nanmean(kept[:, i])))
    assert TASK.value(scores) == pytest.approx(float(np.nansum(kept[:, 0])) / 4)  # a constant map counts as 0
    nothing = TASK.kept(CONSTANT, truth_of()).numpy()
    assert TASK.describe(None, nothing, TASK.scores(nothing, np.zeros(1)))["sim"] is None


def test_kept_metrics_come_back_from_the_ledger():
    kept = TASK.kept(torch.cat([MAP, CONSTANT]), truth_of().expand(2, -1, -1, -1)).numpy()
    assert kept.dtype == np.float32
    assert np.array_equal(unpack(pack(kept)), kept.astype(np.float64), equal_nan=True)
