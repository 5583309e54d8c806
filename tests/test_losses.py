"""Distances between logits, and the masks that say who teaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kt.tasks import losses, partition
from kt.tasks.classification import Classification

UNUSED = torch.empty(0)
TASK = Classification()


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(v / temperature) for v in z]
    return [p / sum(powers) for p in powers]


def draw(seed: int, n: int = 12, classes: int = 5, count: int = 2) -> list[torch.Tensor]:
    """``count`` matrices of random logits [n, classes]."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, classes, generator=generator) for _ in range(count)]


def labels_of(seed: int, n: int = 12, classes: int = 5) -> torch.Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed + 1))


SEEDS = st.integers(0, 2**32)


def test_distillation_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2
    target, logits = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert losses.distillation(target, logits, 1.0).item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))
    assert losses.distillation(target, logits, 1.0).item() == pytest.approx(0.1308120, abs=1e-6)
    # at T = 2 from doubled logits: the same distributions, times T² = 4
    assert losses.distillation(2 * target, logits, 2.0).item() == pytest.approx(4 * 0.1308120, abs=1e-6)
    # the distance has a direction: KL(q ‖ p) = 1/2 ln 2/3 + 1/2 ln 2
    assert losses.distillation(logits, target, 1.0).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    found = losses.cross_entropy(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-6)


@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]))
def test_distillation_agrees_with_a_loop_over_samples(seed, temperature):
    target, logits = draw(seed)
    for found, t, z in zip(
        losses.distillation(target, logits, temperature), target.tolist(), logits.tolist(), strict=True
    ):
        p, q = softmax(t, temperature), softmax(z, temperature)
        expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS)
def test_cross_entropy_agrees_with_a_loop_over_samples(seed):
    (logits,), labels = draw(seed, count=1), labels_of(seed)
    expected = [-math.log(softmax(z)[y]) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert losses.cross_entropy(logits, labels).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS)
def test_losses_agree_with_torch(seed):
    (target, logits), labels = draw(seed), labels_of(seed)
    kl = F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(losses.distillation(target, logits, 1.0), kl)
    torch.testing.assert_close(losses.cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]))
def test_identical_logits_have_zero_distance_and_others_never_less(seed, temperature):
    target, logits = draw(seed)
    assert losses.distillation(logits, logits, temperature).tolist() == [0.0] * len(logits)
    assert (losses.distillation(target, logits, temperature) > -1e-5).all()


@given(SEEDS)
def test_a_constant_added_to_all_logits_changes_nothing(seed):
    (target, logits), labels = draw(seed), labels_of(seed)
    torch.testing.assert_close(
        losses.distillation(target + 7, logits - 3, 1.0), losses.distillation(target, logits, 1.0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(losses.cross_entropy(logits + 7, labels), losses.cross_entropy(logits, labels))


@given(SEEDS)
def test_the_order_of_images_does_not_matter_to_losses_and_masks(seed):
    (teacher, frozen), labels = draw(seed), labels_of(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    t, f, y = teacher[order], frozen[order], labels[order]
    torch.testing.assert_close(losses.distillation(t, f, 2.0), losses.distillation(teacher, frozen, 2.0)[order])
    torch.testing.assert_close(losses.cross_entropy(f, y), losses.cross_entropy(frozen, labels)[order])
    assert torch.equal(partition.by_fit(TASK, t, f, y), partition.by_fit(TASK, teacher, frozen, labels)[order])
    assert torch.equal(
        partition.by_confidence(TASK, t, f, UNUSED), partition.by_confidence(TASK, teacher, frozen, UNUSED)[order]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_float32(dtype):
    (target, logits), labels = draw(0), labels_of(0)
    target, logits = target.to(dtype), logits.to(dtype)
    found = losses.distillation(target, logits, 1.0), losses.cross_entropy(logits, labels)
    assert [loss.dtype for loss in found] == [torch.float32] * 2
    assert torch.equal(found[0], losses.distillation(target.float(), logits.float(), 1.0))
    assert torch.equal(found[1], losses.cross_entropy(logits.float(), labels))


def test_large_logits_stay_finite_and_so_do_their_gradients():
    target, logits = torch.tensor([[6e4, -6e4]]), torch.tensor([[-6e4, 6e4]], requires_grad=True)
    loss = losses.distillation(target, logits, 1.0) + losses.cross_entropy(logits, torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2.4e5)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-2.0, 2.0]]


@given(SEEDS)
def test_the_gradient_of_distillation_is_the_difference_of_probabilities(seed):
    target, logits = draw(seed)
    logits.requires_grad_(True)
    losses.distillation(target, logits, 1.0).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - target.softmax(1), rtol=1e-4, atol=1e-5)


def test_masks_by_hand():
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
    frozen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    # on the label the teacher is better, worse, better, equal; its confidence is higher, higher, lower, equal
    assert partition.by_fit(TASK, teacher, frozen, labels).tolist() == [True, False, True, False]
    assert partition.by_confidence(TASK, teacher, frozen, UNUSED).tolist() == [True, True, False, False]


@given(SEEDS)
def test_masks_agree_with_a_loop_over_samples(seed):
    (teacher, frozen), labels = draw(seed), labels_of(seed)
    pairs = [(softmax(t), softmax(f)) for t, f in zip(teacher.double().tolist(), frozen.double().tolist(), strict=True)]
    by_label = [p[y] > q[y] for (p, q), y in zip(pairs, labels.tolist(), strict=True)]
    assert partition.by_fit(TASK, teacher, frozen, labels).tolist() == by_label
    assert partition.by_confidence(TASK, teacher, frozen, UNUSED).tolist() == [max(p) > max(q) for p, q in pairs]


@given(SEEDS)
def test_ties_go_to_the_frozen_student(seed):
    (frozen,), labels = draw(seed, count=1), labels_of(seed)
    assert not partition.by_fit(TASK, frozen, frozen.clone(), labels).any()
    assert not partition.by_confidence(TASK, frozen, frozen.clone(), UNUSED).any()
    # a permutation of the classes keeps the largest probability: that is a tie of confidence too
    assert not partition.by_confidence(TASK, torch.zeros(4, 3), torch.full((4, 3), 5.0), UNUSED).any()


@given(SEEDS)
def test_exactly_one_of_two_different_models_teaches_each_image(seed):
    (teacher, frozen), labels = draw(seed), labels_of(seed)
    for there, back in (
        (partition.by_fit(TASK, teacher, frozen, labels), partition.by_fit(TASK, frozen, teacher, labels)),
        (
            partition.by_confidence(TASK, teacher, frozen, UNUSED),
            partition.by_confidence(TASK, frozen, teacher, UNUSED),
        ),
    ):
        assert torch.equal(there, ~back)


@given(SEEDS)
def test_merge_takes_each_row_from_the_one_that_teaches(seed):
    teacher, frozen = draw(seed)
    taught = torch.from_numpy(np.random.default_rng(seed).random(len(teacher)) < 0.5)
    merged = partition.merge(taught, teacher, frozen)
    for i, from_teacher in enumerate(taught.tolist()):
        assert torch.equal(merged[i], (teacher if from_teacher else frozen)[i])
