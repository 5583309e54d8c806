"""Segmentation: losses, counts, metrics and their errors, by hand, by slow loops and by other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import classification as torchmetrics

from kt.errors import KtError
from kt.tasks import partition
from kt.tasks.segmentation import IGNORED, Segmentation, class_iou, metrics
from kt.tasks.task import Words, named
from kt.transfer.ledger import pack, unpack
from kt.transfer.rows import change, measured

TASK = Segmentation()
SEEDS = st.integers(0, 2**32)
UNSEEN = np.zeros(0)


def logits_of(first: list[list[float]]) -> Tensor:
    """Logits [1, 2, H, W] of one image, from the probabilities of class 1."""
    p = torch.tensor(first)
    return torch.stack([1 - p, p]).log()[None]


# An image of 3 × 3 pixels of which two have no truth; 9 is written there.
MASK = torch.tensor([[[0, 0, 1], [1, 255, 0], [1, 1, 255]]], dtype=torch.uint8)
STUDENT = logits_of([[1 / 2, 1 / 4, 1 / 2], [3 / 4, 0.9, 1 / 2], [3 / 4, 1 / 4, 0.9]])
TEACHER = logits_of([[1 / 4, 1 / 2, 1 / 2], [1 / 4, 0.1, 1 / 4], [3 / 4, 3 / 4, 0.1]])


def draw(seed: int, n: int = 4, classes: int = 4, side: int = 5) -> tuple[Tensor, Tensor]:
    """Logits [n, classes, side, side], and masks in which about a fifth of the pixels has no truth."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, classes, (n, side, side), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = IGNORED
    return 2 * torch.randn(n, classes, side, side, generator=generator), masks.byte()


def counted(seed: int, n: int, classes: int = 5, flipped: float = 0.4) -> NDArray[np.int64]:
    """Counts of n images whose difficulty differs; a share ``flipped`` of the pixels is predicted anew."""
    rng = np.random.default_rng(seed)
    masks = rng.choice(classes, (n, 12, 12), p=rng.dirichlet(np.full(classes, 8.0)))
    wrong = rng.random(masks.shape) < 2 * flipped * rng.random((n, 1, 1))
    said = np.where(wrong, rng.integers(0, classes, masks.shape), masks)
    answers = torch.nn.functional.one_hot(torch.from_numpy(said), classes).movedim(-1, 1)
    return TASK.kept(answers, torch.from_numpy(masks.astype(np.uint8))).numpy().astype(np.int64)


def mean_iou(kept: NDArray[np.int64]) -> float:
    """The mean IoU by a plain loop over classes, percent."""
    found = []
    for right, said, truth in kept.sum(0).tolist():
        if truth:
            found.append(right / (said + truth - right))
    return 100 * sum(found) / len(found)


# by hand


def test_losses_by_hand():
    # p(y) of the student, in order: 1/2 3/4 1/2 3/4 1/2 3/4 1/4
    expected = (3 * math.log(2) + 3 * math.log(4 / 3) + math.log(4)) / 7
    assert TASK.loss(STUDENT, MASK).tolist() == pytest.approx([expected], rel=1e-6)
    divergence = TASK.mean(TASK.imitate(TEACHER, STUDENT, 1.0), MASK)
    a = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)  # of (3/4, 1/4) from (1/2, 1/2)
    b = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)  # the reverse
    c = 1 / 2 * math.log(3)  # of (1/4, 3/4) from (3/4, 1/4)
    assert divergence.tolist() == pytest.approx([(2 * a + b + 2 * c) / 7], rel=1e-6)


def test_the_partition_by_hand():
    pixels = partition.by_fit(TASK, TEACHER, STUDENT, MASK, "pixel")
    valid = MASK != IGNORED
    assert (pixels & valid).int().tolist() == [[[1, 0, 0], [0, 0, 1], [0, 1, 0]]]  # ties are the student's
    # products of p(y): teacher (3/4)^4 (1/2)^2 (1/4), student (3/4)^3 (1/2)^3 (1/4)
    assert partition.by_fit(TASK, TEACHER, STUDENT, MASK, "image").tolist() == [True]
    # the larger probability: teacher 3/4 in five of seven pixels, student in four
    assert partition.by_confidence(TASK, TEACHER, STUDENT, MASK, "image").tolist() == [True]
    confident = partition.by_confidence(TASK, TEACHER, STUDENT, MASK, "pixel") & valid
    assert confident.int().tolist() == [[[1, 0, 0], [0, 0, 1], [0, 0, 0]]]
    positive, negative = partition.flips(TEACHER, STUDENT, MASK)
    assert positive.int().tolist() == [[[0, 0, 0], [0, 0, 0], [0, 1, 0]]]
    assert negative.int().tolist() == [[[0, 0, 0], [1, 0, 0], [0, 0, 0]]]


def test_counts_and_metrics_by_hand():
    kept = TASK.kept(STUDENT, MASK)  # says 0 0 0 / 1 · 0 / 1 0 ·
    assert kept.dtype == torch.int32
    assert kept.tolist() == [[[3, 5, 3], [2, 2, 4]]]
    scores = TASK.scores(kept.numpy(), MASK.numpy())
    assert TASK.value(scores) == pytest.approx(100 * (3 / 5 + 2 / 4) / 2, rel=1e-12)
    assert class_iou(kept.numpy()).tolist() == pytest.approx([60.0, 50.0])
    expected = {"pixel_accuracy": 500 / 7, "mean_accuracy": 75.0, "fw_iou": 100 * (3 * 0.6 + 4 * 0.5) / 7}
    described = TASK.describe(None, kept.numpy(), scores)
    assert described.pop("iou_by_class") == pytest.approx([60.0, 50.0])
    assert described == pytest.approx(expected)


def test_the_task_is_known_by_its_name_and_its_words():
    task = named("segmentation")
    assert isinstance(task, Segmentation)
    assert (task.dense, task.has_classes, task.classifies, task.metric.binary) == (True, True, False, False)
    assert Words.from_json(task.words.to_json()) == task.words
    assert TASK.answer_shape(7) == (7, None, None)
    assert TASK.outputs(np.zeros((2, 3, 3), np.uint8), ["a", "b", "c"]) == 3
    for truth in (np.zeros((2, 3, 3), np.int64), np.zeros((2, 9), np.uint8)):
        with pytest.raises(KtError, match=r"^data: masks are uint8 \[N, H, W\], not "):
            TASK.check_truth("data", truth)


# other implementations


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 12), st.integers(1, 4))
def test_counts_and_metrics_are_those_of_torchmetrics(seed, classes, n):
    logits, masks = draw(seed, n, classes, side=7)
    kept, target = TASK.kept(logits, masks), masks.long()
    options = {"num_classes": classes, "ignore_index": IGNORED}
    matrix = torchmetrics.multiclass_confusion_matrix(logits, target, **options)
    assert torch.equal(kept.sum(0), torch.stack([matrix.diag(), matrix.sum(0), matrix.sum(1)], -1))
    for image, one, truth in zip(kept, logits, target, strict=True):
        matrix = torchmetrics.multiclass_confusion_matrix(one[None], truth[None], **options)
        assert torch.equal(image, torch.stack([matrix.diag(), matrix.sum(0), matrix.sum(1)], -1))
    present = kept[..., 2].sum(0) > 0
    iou = 100 * torchmetrics.multiclass_jaccard_index(logits, target, average="none", **options).double()
    found = class_iou(kept.numpy())
    assert found[present].tolist() == pytest.approx(iou[present].tolist(), rel=1e-5)
    assert np.isnan(found[~present]).all()
    assert measured(TASK, kept.numpy(), masks.numpy())["acc"] == pytest.approx(float(iou[present].mean()), rel=1e-5)
    recall = torchmetrics.multiclass_accuracy(logits, target, average="none", **options)
    weighted = torchmetrics.multiclass_jaccard_index(logits, target, average="weighted", **options)
    micro = torchmetrics.multiclass_accuracy(logits, target, average="micro", **options)
    expected = {"pixel_accuracy": micro, "mean_accuracy": recall[present].mean(), "fw_iou": weighted}
    assert metrics(kept.numpy()) == pytest.approx({name: 100 * float(value) for name, value in expected.items()}, 1e-5)


def test_logits_are_resized_as_by_a_plain_loop():
    small, masks = draw(1, n=2, classes=3, side=3)[0], torch.zeros(2, 12, 9, dtype=torch.uint8)

    def ends(at: int, size: int, coarse: int) -> tuple[int, int, float]:
        place = max(0.0, (at + 0.5) * coarse / size - 0.5)
        return int(place), min(int(place) + 1, coarse - 1), place - int(place)

    found = TASK.aligned(small, masks)
    assert found.shape == (2, 3, 12, 9)
    for y in range(12):
        for x in range(9):
            top, bottom, down = ends(y, 12, 3)
            left, right, across = ends(x, 9, 3)
            upper = (1 - across) * small[..., top, left] + across * small[..., top, right]
            lower = (1 - across) * small[..., bottom, left] + across * small[..., bottom, right]
            torch.testing.assert_close(found[..., y, x], (1 - down) * upper + down * lower)
    assert TASK.aligned(small, masks[:, :3, :3]) is small


def test_losses_of_logits_at_a_stride_are_those_of_the_resized_logits():
    logits, _ = draw(2, n=3, side=3)
    _, masks = draw(3, n=3, side=12)
    resized = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(TASK.loss(logits, masks), TASK.loss(resized, masks))
    assert torch.equal(TASK.aligned(logits.half(), masks), TASK.aligned(logits.half().float(), masks))


# scores and their errors


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 40), st.integers(2, 20))
def test_scores_average_to_the_mean_iou_exactly(seed, n, classes):
    kept = counted(seed, n, classes)
    scores = TASK.scores(kept, UNSEEN)
    assert (scores.shape, scores.dtype) == ((n,), np.float64)
    assert TASK.value(scores) == pytest.approx(mean_iou(kept), rel=1e-12)
    order = np.random.default_rng(seed).permutation(n)
    assert TASK.scores(kept[order], UNSEEN) == pytest.approx(scores[order], rel=1e-12)


def resampled(seed: int, *counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean IoU of each of the models on 2,000 samples of the images with replacement, [models, 2000]."""
    rng, n = np.random.default_rng(seed), len(counts[0])
    weights = rng.multinomial(n, np.full(n, 1 / n), 2000)
    sums = [np.tensordot(weights, kept, 1) for kept in counts]
    return np.array([[mean_iou(of_sample[None]) for of_sample in of_model] for of_model in sums])


def test_the_standard_error_is_that_of_a_bootstrap_and_of_the_jackknife():
    kept = counted(0, 150)
    error = measured(TASK, kept, UNSEEN)["acc_se"]
    assert error == pytest.approx(TASK.error(TASK.scores(kept, UNSEEN)), rel=1e-12)
    assert error == pytest.approx(resampled(1, kept)[0].std(), rel=0.06)
    without = np.array([mean_iou(np.delete(kept, i, 0)) for i in range(len(kept))])
    jackknife = math.sqrt((len(kept) - 1) / len(kept) * ((without - without.mean()) ** 2).sum())
    assert error == pytest.approx(jackknife, rel=0.01)


def test_the_error_of_a_paired_delta_is_that_of_a_paired_bootstrap():
    before, after = counted(0, 150), counted(0, 150, flipped=0.36)
    found = change(TASK, TASK.scores(before, UNSEEN), TASK.scores(after, UNSEEN))
    assert found["delta"] == pytest.approx(mean_iou(after) - mean_iou(before), rel=1e-10)
    assert found["delta"] == pytest.approx(found["knowledge_gain"] - found["knowledge_loss"], rel=1e-10)
    first, second = resampled(1, before, after)
    assert found["delta_se"] == pytest.approx((second - first).std(), rel=0.06)
    unpaired = math.hypot(first.std(), second.std())
    assert found["delta_se"] < 0.6 * unpaired  # the same images make both models' errors


def test_a_model_has_nothing_that_itself_lacks():
    scores = TASK.scores(counted(3, 30), UNSEEN)
    found = change(TASK, scores, scores.copy())
    assert [found[name] for name in ("delta", "delta_se", "knowledge_gain", "knowledge_loss")] == [0.0] * 4


# edges


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([0.0, 1e4, -1e4, 3e38]))
def test_pixels_without_a_truth_change_nothing(seed, extreme):
    logits, masks = draw(seed)
    other = logits.clone()
    other.movedim(1, -1)[masks == IGNORED] = torch.tensor([extreme, -1.0, 0.0, 1.0])
    teacher, _ = draw(seed + 1)
    assert torch.equal(TASK.loss(logits, masks), TASK.loss(other, masks))
    assert torch.equal(TASK.kept(logits, masks), TASK.kept(other, masks))
    for rule in (partition.by_fit, partition.by_confidence):
        assert torch.equal(rule(TASK, teacher, logits, masks), rule(TASK, teacher, other, masks))
        valid, pixel = masks != IGNORED, [rule(TASK, teacher, own, masks, "pixel") for own in (logits, other)]
        assert torch.equal(pixel[0] & valid, pixel[1] & valid)


def test_an_image_tiled_twice_each_way_has_the_same_loss_and_metrics():
    logits, masks = draw(4)
    tiled, masks_tiled = logits.repeat(1, 1, 2, 2), masks.repeat(1, 2, 2)
    torch.testing.assert_close(TASK.loss(tiled, masks_tiled), TASK.loss(logits, masks))
    kept, kept_tiled = (TASK.kept(*of).numpy() for of in ((logits, masks), (tiled, masks_tiled)))
    assert np.array_equal(kept_tiled, 4 * kept)
    assert metrics(kept_tiled) == pytest.approx(metrics(kept), rel=1e-12)
    assert TASK.scores(kept_tiled, UNSEEN) == pytest.approx(TASK.scores(kept, UNSEEN), rel=1e-12)


def test_the_last_of_255_classes_is_no_pixel_without_a_truth():
    masks = torch.tensor([[[254, 0], [IGNORED, 254]], [[127, 128], [254, 254]]], dtype=torch.uint8)
    said = torch.tensor([[[254, 254], [254, 0]], [[127, 128], [0, 254]]])
    answers = torch.nn.functional.one_hot(said, 255).movedim(-1, 1).float()
    kept = TASK.kept(answers, masks)
    assert kept[0, [0, 254]].tolist() == [[0, 1, 1], [1, 2, 2]]
    assert kept[1, [0, 127, 128, 254]].tolist() == [[0, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 2]]
    assert kept.sum((0, 1)).tolist() == [4, 7, 7]
    assert torch.equal(TASK.likeliest(answers).long(), said)
    assert TASK.likeliest(answers).dtype == torch.uint8
    assert TASK.loss(300 * answers, masks).tolist() == pytest.approx(
        [200.0, 75.0]
    )  # two of three and one of four are wrong


def test_an_image_without_any_truth_counts_nowhere():
    logits, masks = draw(5, n=3)
    masks[1] = IGNORED
    logits.requires_grad_(True)
    loss = TASK.loss(logits, masks)
    loss.sum().backward()
    assert loss[1] == 0
    assert logits.grad is not None
    assert not logits.grad[1].any()
    kept = TASK.kept(logits, masks).numpy()
    assert not kept[1].any()
    assert mean_iou(kept) == pytest.approx(mean_iou(kept[[0, 2]]), rel=1e-12)
    assert TASK.scores(kept, UNSEEN)[1] == pytest.approx(mean_iou(kept) / 100)  # it moves the mean IoU by nothing
    assert not partition.by_fit(TASK, -logits, logits, masks)[1]  # a tie


def test_a_class_that_is_predicted_but_nowhere_true_makes_errors_but_no_iou_of_its_own():
    masks = torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8)
    answers = torch.nn.functional.one_hot(torch.tensor([[[0, 2], [1, 1]]]), 3).movedim(-1, 1)
    kept = TASK.kept(answers, masks).numpy()
    assert class_iou(kept).tolist() == pytest.approx([50.0, 100.0, math.nan], nan_ok=True)
    assert TASK.value(TASK.scores(kept, UNSEEN)) == pytest.approx(75.0)
    assert metrics(kept) == pytest.approx({"pixel_accuracy": 75.0, "mean_accuracy": 75.0, "fw_iou": 75.0})


def test_a_single_image_has_its_own_mean_iou_and_an_unknown_error():
    logits, masks = draw(6, n=1)
    found = measured(TASK, TASK.kept(logits, masks).numpy(), masks.numpy())
    expected = {"n": 1, "acc": mean_iou(TASK.kept(logits, masks).numpy()), "acc_se": math.nan}
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("side", [3, 300])  # counts below and above 16 bits
def test_counts_come_back_from_the_ledger(side):
    kept = TASK.kept(*draw(7, n=2, classes=2, side=side)).numpy()
    assert (kept.max() > 1 << 15) == (side == 300)
    found = unpack(pack(kept))
    assert np.array_equal(found, kept)
    assert np.array_equal(TASK.scores(found, UNSEEN), TASK.scores(kept, UNSEEN))
    big = kept.astype(np.int64) * 1000
    assert np.array_equal(unpack(pack(big)), big)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([2, 4, 255]), st.sampled_from([1.0, 1e-3, 1e-7, 1e3]))
def test_the_largest_cached_logit_is_the_predicted_class(seed, classes, scale):
    logits = scale * draw(seed, 2, classes)[0]
    logits[0] = logits[0].round(decimals=1)  # equal logits
    logits[1] += 1
    cached, said = TASK.cached(logits), logits.argmax(1)
    assert (cached.dtype, cached.shape) == (torch.float16, logits.shape)
    assert torch.equal(cached.argmax(1), said)
    assert torch.equal(cached.float().argmax(1), said)
    torch.testing.assert_close(cached.float(), logits, rtol=2e-3, atol=1e-6)
