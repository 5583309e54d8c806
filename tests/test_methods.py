"""The registry of transfer methods, and what every method must do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kt.transfer import losses, partition
from kt.transfer.method import Method, registry
from kt.transfer.methods.kl import KL
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.methods.kl_dp_unsup import KLDPUnsupervised
from kt.transfer.methods.xekl import XEKL
from kt.transfer.spec import Methods

SEEDS = st.integers(0, 2**32)
ALL = [pytest.param(method(), id=name) for name, method in registry().items()]
DISTILLING = ["kl", "kl_dp", "kl_dp_unsup", "self"]
PAPER = {"kl", "xekl", "kl_dp", "kl_dp_unsup", "self", "finetune"}


def draw(seed: int, n: int = 10, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a teacher, of the frozen student and of the student in training [n, classes], and labels."""
    generator = torch.Generator().manual_seed(seed)
    teacher, frozen, logits = (2 * torch.randn(n, classes, generator=generator) for _ in range(3))
    return teacher, frozen, logits, torch.randint(0, classes, (n,), generator=generator)


def test_the_registry_finds_every_method_under_its_own_name_in_alphabetical_order():
    assert set(registry()) >= PAPER
    assert all(method.name == name for name, method in registry().items())
    assert list(registry()) == sorted(registry())
    assert {name for name, method in registry().items() if method.control} >= {"self", "finetune"}
    assert all(not registry()[name].control for name in PAPER - {"self", "finetune"})


def test_the_registry_imports_no_torch(python):
    ended = python("import sys; from kt.transfer.method import registry; registry(); print('torch' in sys.modules)")
    assert ended.stdout == "False\n", ended.stderr


@pytest.mark.parametrize("method", ALL)
def test_targets_and_losses_have_one_row_a_sample(method):
    teacher, frozen, logits, labels = draw(0)
    targets, taught = method.targets(teacher, frozen, labels)
    assert targets.shape == frozen.shape
    assert (taught.shape, taught.dtype) == (labels.shape, torch.bool)
    loss = method.loss(logits, targets, labels)
    assert (loss.shape, loss.dtype) == (labels.shape, torch.float32)


@pytest.mark.parametrize("method", ALL)
def test_the_target_is_the_teachers_exactly_where_the_method_says_so(method):
    @given(SEEDS)
    def check(seed):
        teacher, frozen, _, labels = draw(seed)
        targets, taught = method.targets(teacher, frozen, labels)
        assert torch.equal(targets[taught], teacher[taught])
        assert torch.equal(targets[~taught], frozen[~taught])
        if method.control:
            assert not taught.any()

    check()


@pytest.mark.parametrize("method", ALL)
def test_the_order_of_images_does_not_matter(method):
    teacher, frozen, logits, labels = draw(3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    targets, taught = method.targets(teacher, frozen, labels)
    turned_targets, turned_taught = method.targets(teacher[order], frozen[order], labels[order])
    assert torch.equal(turned_targets, targets[order])
    assert torch.equal(turned_taught, taught[order])
    turned = method.loss(logits[order], turned_targets, labels[order])
    torch.testing.assert_close(turned, method.loss(logits, targets, labels)[order])


@pytest.mark.parametrize("method", ALL)
def test_the_loss_carries_gradient_to_the_student_in_training(method):
    teacher, frozen, logits, labels = draw(1)
    logits.requires_grad_(True)
    targets, _ = method.targets(teacher, frozen, labels)
    method.loss(logits, targets, labels).mean().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", DISTILLING)
def test_an_identical_teacher_gives_a_student_at_its_start_zero_loss(name):
    _, frozen, _, labels = draw(2)
    method = registry()[name]()
    targets, _ = method.targets(frozen.clone(), frozen, labels)
    assert method.loss(frozen, targets, labels).tolist() == [0.0] * len(labels)


@pytest.mark.parametrize("name", ["kl_dp", "kl_dp_unsup"])
def test_a_teacher_equal_to_the_student_teaches_nothing(name):
    @given(SEEDS)
    def check(seed):
        _, frozen, _, labels = draw(seed)
        targets, taught = registry()[name]().targets(frozen.clone(), frozen, labels)
        assert not taught.any()
        assert torch.equal(targets, frozen)

    check()


@given(SEEDS)
def test_partitioned_methods_use_the_masks_of_the_paper(seed):
    teacher, frozen, _, labels = draw(seed)
    assert torch.equal(KLDP().targets(teacher, frozen, labels)[1], partition.by_label(teacher, frozen, labels))
    assert torch.equal(KLDPUnsupervised().targets(teacher, frozen, labels)[1], partition.by_confidence(teacher, frozen))


@given(SEEDS)
def test_the_target_of_kl_dp_never_gives_the_label_less_than_the_frozen_student(seed):
    teacher, frozen, _, labels = draw(seed)
    targets, _ = KLDP().targets(teacher, frozen, labels)
    best = torch.minimum(losses.cross_entropy(teacher, labels), losses.cross_entropy(frozen, labels))
    torch.testing.assert_close(losses.cross_entropy(targets, labels), best)


@given(SEEDS)
def test_unlabelled_methods_do_not_look_at_the_labels(seed):
    teacher, frozen, logits, labels = draw(seed)
    other = (labels + 1) % 4
    for name in ("kl", "kl_dp_unsup", "self"):
        method = registry()[name]()
        targets, taught = method.targets(teacher, frozen, labels)
        other_targets, other_taught = method.targets(teacher, frozen, other)
        assert torch.equal(targets, other_targets)
        assert torch.equal(taught, other_taught)
        assert torch.equal(method.loss(logits, targets, labels), method.loss(logits, targets, other))


@given(SEEDS)
def test_controls_do_not_look_at_the_teacher(seed):
    teacher, frozen, _, labels = draw(seed)
    for method in (cls() for cls in registry().values() if cls.control):
        assert torch.equal(method.targets(teacher, frozen, labels)[0], method.targets(frozen, frozen, labels)[0])


@given(SEEDS, st.sampled_from([1.0, 3.0]))
def test_xekl_is_kl_at_alpha_one_and_cross_entropy_at_alpha_zero(seed, temperature):
    teacher, frozen, logits, labels = draw(seed)
    targets, taught = XEKL().targets(teacher, frozen, labels)
    assert torch.equal(targets, teacher)
    assert taught.all()
    kl = KL(temperature=temperature).loss(logits, targets, labels)
    entropy = losses.cross_entropy(logits, labels)
    assert torch.equal(XEKL(alpha=1.0, temperature=temperature).loss(logits, targets, labels), kl)
    assert torch.equal(XEKL(alpha=0.0, temperature=temperature).loss(logits, targets, labels), entropy)
    mixed = XEKL(alpha=0.25, temperature=temperature).loss(logits, targets, labels)
    torch.testing.assert_close(mixed, 0.25 * kl + 0.75 * entropy)


def test_finetune_is_cross_entropy_whatever_the_targets_are():
    teacher, _, logits, labels = draw(5)
    assert torch.equal(registry()["finetune"]().loss(logits, teacher, labels), losses.cross_entropy(logits, labels))


def test_the_temperature_reaches_the_loss():
    teacher, _, logits, labels = draw(6)
    for name in DISTILLING:
        method = registry()[name](temperature=2.0)
        assert torch.equal(method.loss(logits, teacher, labels), losses.distillation(teacher, logits, 2.0))


def test_parameters_are_checked_and_frozen():
    with pytest.raises(ValidationError):
        XEKL(alpha=-0.1)
    with pytest.raises(ValidationError):
        KL(temperature=0.0)
    with pytest.raises(ValidationError):
        KL(temperature="1")
    with pytest.raises(ValidationError, match="frozen"):
        KL().temperature = 2.0


def test_methods_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Method()


def test_the_configuration_knows_every_method_and_keeps_the_chosen_ones():
    assert set(Methods.model_fields) == set(registry())
    chosen = Methods.model_validate({"xekl": {"alpha": 0.3}, "kl": None}).chosen()
    assert list(chosen) == ["kl", "xekl"]
    assert chosen["kl"] == KL()
    assert chosen["xekl"].plain() == {"temperature": 1.0, "alpha": 0.3}
