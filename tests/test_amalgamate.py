"""Amalgamation: losses against hand-computed numbers and slow references, gradients, features of any model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import kt.zoo.digits  # noqa: F401 (registers the small architectures)
from kt.errors import KtError
from kt.transfer.common_space import Learner, Output, Space, concatenate, mmd, soft_cross_entropy
from kt.transfer.engine import learning_rate
from kt.transfer.methods.amalgamation import CFL, KD, Amalgamation, Supervised
from kt.zoo.stages import common_grids, features_of, meet, with_features

SIGMAS = CFL().sigmas


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# losses


def test_the_defaults_are_the_published_ones():
    assert SIGMAS == (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)
    method, training = CFL(), Amalgamation.training_of
    assert (method.stages, method.mmd_weight, method.reconstruction_weight) == ((-1,), 10.0, 10.0)
    assert (method.width, method.blocks) == (128, 3)
    assert (training.optimiser, training.weight_decay, training.epochs, training.batch_size) == ("adam", 1e-4, 30, 64)
    assert training.lr == 1e-4
    assert training.lr * method.block_lr == pytest.approx(5e-4)
    assert training.lr * method.classifier_lr == pytest.approx(1e-3)
    assert KD().classifier_lr == Supervised().classifier_lr == method.classifier_lr
    rates = [learning_rate(epoch, 30, training) for epoch in range(30)]
    assert rates == pytest.approx([1e-4] * 15 + [1e-5] * 15)


def test_the_discrepancy_of_one_image_each_is_that_on_paper():
    # unit vectors at a right angle: d² = 2, one kernel of width 1: 1 + 1 − 2 exp(−1)
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert mmd(x, y, [1.0]).item() == pytest.approx(2 - 2 * math.exp(-1), abs=1e-6)
    # two kernels add up; in that of width 0.001 nothing is left of a distance of √2
    assert mmd(x, y, [1.0, 0.001]).item() == pytest.approx(4 - 2 * math.exp(-1), abs=1e-6)


def slow_mmd(x: np.ndarray, y: np.ndarray, sigmas: tuple[float, ...]) -> float:
    """The same with loops over images and kernels, in double precision."""

    def unit(v: np.ndarray) -> np.ndarray:
        return v.ravel() / np.linalg.norm(v)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for v in a:
            for w in b:
                square = float(((unit(v) - unit(w)) ** 2).sum())
                total += sum(math.exp(-square / (2 * s**2)) for s in sigmas)
        return total / (len(a) * len(b))

    return max(0.0, mean(x, x) + mean(y, y) - 2 * mean(x, y))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_the_discrepancy_is_that_of_a_plain_loop(b, other, seed):
    x, y = random(b, 3, 2, 2, seed=seed), random(other, 3, 2, 2, seed=seed + 100) + 0.5
    assert mmd(x, y, SIGMAS).item() == pytest.approx(slow_mmd(x.numpy(), y.numpy(), SIGMAS), rel=1e-3, abs=1e-4)


@given(st.integers(1, 8), st.integers(0, 99))
def test_equal_features_have_no_discrepancy_and_neither_order_nor_scale_counts(b, seed):
    x, y = random(b, 5, seed=seed), random(b, 5, seed=seed + 100)
    assert mmd(x, x.clone(), SIGMAS).item() == 0
    found = mmd(x, y, SIGMAS).item()
    assert mmd(x.flip(0) * 7, y, SIGMAS).item() == pytest.approx(found, rel=1e-4, abs=1e-5)
    assert mmd(y, x, SIGMAS).item() == pytest.approx(found, rel=1e-4, abs=1e-5)


def test_the_discrepancy_has_a_finite_gradient_where_features_are_equal_or_vanish():
    x = torch.cat([random(2, 4), torch.zeros(1, 4)]).requires_grad_()
    y = torch.cat([x.detach()[:1], random(2, 4, seed=1)])
    mmd(x, y, SIGMAS).backward()
    assert torch.isfinite(x.grad).all()


def test_the_discrepancy_goes_down_its_gradient():
    x, y = random(8, 6).requires_grad_(), random(8, 6, seed=1)
    before = mmd(x, y, [1.0])
    before.backward()
    assert mmd(x.detach() - 0.1 * x.grad, y, [1.0]) < before


def test_soft_targets_against_hand_computed_numbers():
    target, logits = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    assert soft_cross_entropy(target, logits).item() == pytest.approx(math.log(2))
    logits = torch.tensor([[math.log(4.0), 0.0]])
    expected = -(0.75 * math.log(0.8) + 0.25 * math.log(0.2))
    assert soft_cross_entropy(target, logits).item() == pytest.approx(expected, abs=1e-6)


def test_soft_targets_are_those_of_torch():
    target, logits = random(5, 4), random(5, 4, seed=1)
    reference = F.cross_entropy(logits, target.softmax(-1), reduction="none")
    assert torch.allclose(soft_cross_entropy(target, logits), reference, atol=1e-6)


def test_scores_of_several_teachers_stand_at_their_classes_and_shared_ones_are_averaged():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 4.0]])
    assert concatenate([a, b], [torch.tensor([0, 2]), torch.tensor([3, 1])], 4, -9.0).tolist() == [[1, 4, 2, 10]]
    assert concatenate([a, b], [torch.tensor([0, 1]), torch.tensor([1, 2])], 4, -9.0).tolist() == [[1, 6, 4, -9]]


# the common space


def slow_space(space: Space, student: Tensor, teachers: list[Tensor]) -> tuple[float, float]:
    """L_M and L_R, one teacher and one image after another where nothing ties the images of a batch."""
    h_student = space.extractor(space.align_student(student))
    discrepancy = error = 0.0
    for align, decode, features in zip(space.align_teachers, space.decoders, teachers, strict=True):
        h = space.extractor(align(features))
        discrepancy += slow_mmd(h_student.detach().numpy(), h.detach().numpy(), SIGMAS)
        squares = [(decode(h[i : i + 1]) - features[i : i + 1]).square().mean().item() for i in range(len(features))]
        error += sum(squares) / len(squares)
    return discrepancy, error


@pytest.mark.parametrize("maps", [True, False])
def test_discrepancy_and_reconstruction_are_sums_over_teachers(maps):
    torch.manual_seed(0)
    tail = (3, 3) if maps else ()
    space = Space(4, [5, 6], width=8, blocks=2, maps=maps).eval()
    student, teachers = random(7, 4, *tail), [random(7, 5, *tail, seed=1), random(7, 6, *tail, seed=2)]
    own, others, error = space(student, teachers)
    output = Output(student, [(own, others)], error)
    found = [output.mmd(SIGMAS).item(), output.reconstruction.item()]
    assert found == pytest.approx(slow_space(space, student, teachers), rel=1e-3)


def test_the_published_space_has_these_layers_and_no_others():
    space = Space(512, [512, 256], width=128, blocks=3, maps=True)
    expected = {
        "align_student.0": (256, 512, 1, 1), "align_teachers.0.0": (256, 512, 1, 1),
        "align_teachers.1.0": (256, 256, 1, 1),
        "extractor.0.body.0": (128, 256, 3, 3), "extractor.0.body.2": (128, 128, 3, 3),
        "extractor.0.shortcut": (128, 256, 1, 1),
        "extractor.1.body.0": (128, 128, 3, 3), "extractor.1.body.2": (128, 128, 3, 3),
        "extractor.2.body.0": (128, 128, 3, 3), "extractor.2.body.2": (128, 128, 3, 3),
        "decoders.0.0": (512, 128, 3, 3), "decoders.0.2": (512, 512, 1, 1),
        "decoders.1.0": (256, 128, 3, 3), "decoders.1.2": (256, 256, 1, 1),
    }  # fmt: skip
    assert {name: tuple(t.shape) for name, t in space.state_dict().items()} == {
        f"{name}.weight": shape for name, shape in expected.items()
    }


def test_for_vectors_every_layer_is_linear():
    space = Space(4, [5, 6], width=8, blocks=3, maps=False)
    assert [type(m) for m in space.extractor] == [nn.Linear, nn.ReLU, nn.Linear]
    assert {name: tuple(t.shape) for name, t in space.state_dict().items()} == {
        "align_student.0.weight": (16, 4), "align_teachers.0.0.weight": (16, 5), "align_teachers.1.0.weight": (16, 6),
        "extractor.0.weight": (8, 16), "extractor.2.weight": (8, 8),
        "decoders.0.0.weight": (5, 8), "decoders.0.2.weight": (5, 5),
        "decoders.1.0.weight": (6, 8), "decoders.1.2.weight": (6, 6),
    }  # fmt: skip


def test_a_shift_of_a_networks_features_is_seen():
    """BatchNorm would normalise both networks' features by themselves, and hide it."""
    torch.manual_seed(0)
    space = Space(4, [4], width=8, blocks=3, maps=True).train()
    space.align_teachers[0].load_state_dict(space.align_student.state_dict())
    features = random(16, 4, 2, 2)
    for shift in (0.0, 1.0):
        own, (other,), _ = space(features, [features + shift])
        assert (mmd(own, other, SIGMAS).item() > 0.1) == (shift > 0)


def test_what_an_image_is_in_the_space_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    space = Space(4, [5], width=8, blocks=2, maps=True).train()
    student, teacher = random(6, 4, 3, 3), random(6, 5, 3, 3, seed=1)
    own, (other,), _ = space(student, [teacher])
    alone, (other_alone,), _ = space(student[2:3], [teacher[2:3]])
    assert torch.allclose(own[2:3], alone, atol=1e-6)
    assert torch.allclose(other[2:3], other_alone, atol=1e-6)


def small(arch: str = "test_byobnet", **args: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=4, in_chans=1, **args)


GROUPS = ("student", "align_student", "align_teachers", "extractor", "decoders")


def group_of(name: str) -> str:
    return next((group for group in GROUPS[1:] if f".{group}" in name), "student")


@pytest.mark.parametrize(
    ("loss", "learning"),
    [
        ("soft", {"student"}),
        ("mmd", {"student", "align_student", "align_teachers", "extractor"}),
        ("reconstruction", {"align_teachers", "extractor", "decoders"}),
    ],
)
def test_each_loss_has_a_gradient_exactly_where_the_paper_has_it(loss, learning):
    shape = (1, 16, 16)
    student = with_features(small(), "map", (2,), shape)
    teacher = with_features(small("test_efficientnet"), "map", (2,), shape).eval().requires_grad_(False)
    shapes = [features_of(student, shape), features_of(teacher, shape)]
    space = Space(shapes[0][0][0], [shapes[1][0][0]], width=8, blocks=1, maps=True)
    learner = Learner(student, [space], common_grids(shapes)).train()
    images = random(6, *shape)
    features = teacher(images)[1]
    assert not features[0].requires_grad
    output = learner((images, [features]))
    parts = {
        "soft": soft_cross_entropy(random(6, 4, seed=3), output.logits).mean(),
        "mmd": output.mmd(SIGMAS),
        "reconstruction": output.reconstruction,
    }
    parts[loss].backward()
    touched = {group_of(n) for n, p in learner.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == learning
    assert all(p.grad is None for p in teacher.parameters())
    body = [n for n, p in learner.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("head" in name for name in body) == (loss == "soft"), "features lie before the classifier"


# features of any model

ARCHITECTURES = [
    ("test_byobnet", {}), ("test_efficientnet", {}), ("test_mambaout", {}), ("tiny_poolformer", {}), ("tiny_mixer", {}),
    ("test_vit", {"img_size": 16, "patch_size": 4}), ("resnet10t", {"channels": [8, 16, 16, 32], "stem_width": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "args"), ARCHITECTURES, ids=[arch for arch, _ in ARCHITECTURES])
@pytest.mark.parametrize("variant", ["map", "vector"])
def test_any_backbone_gives_its_features_beside_the_same_logits(arch, args, variant):
    model, shape = small(arch, **args).eval(), (1, 16, 16)
    images = random(2, *shape)
    featured = with_features(model, variant, (-1,), shape)
    logits, (features,) = featured(images)
    assert torch.allclose(logits, model(images), atol=1e-5)
    assert features.ndim == (4 if variant == "map" else 2)
    assert features_of(featured, shape) == [tuple(features.shape[1:])]


def test_stages_are_those_of_timm_and_their_order_does_not_matter():
    model, shape = small(), (1, 16, 16)
    forwards = with_features(model, "map", (1, -1), shape).eval()
    assert forwards.stages == [1, 4]
    assert with_features(model, "map", (-1, 1), shape).stages == [1, 4]
    images = random(2, *shape)
    expected = model.eval().forward_intermediates(images, indices=[1, 4], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(forwards(images)[1], expected, strict=True))


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ((5,), r"ByobNet has no feature stage 5; allowed: 0 to 4, or −5 to −1"),
        ((0, -6), r"ByobNet has no feature stage -6; allowed"),
        ((4, -1), r"ByobNet has 5 feature stages; \[4, -1\] names one of them twice"),
    ],
)
def test_a_stage_that_a_backbone_has_not_is_named(stages, line):
    with pytest.raises(KtError, match=line):
        with_features(small(), "map", stages, (1, 16, 16))


def test_a_model_of_no_stages_is_told_of_the_other_variant():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    with pytest.raises(KtError, match=r"Sequential has no feature stages .*`variant: vector` needs none"):
        with_features(plain, "map", (-1,), (1, 16, 16))
    assert features_of(with_features(plain, "vector", (-1,), (1, 16, 16)), (1, 16, 16)) == [(256,)]


def test_maps_meet_on_the_smallest_grid():
    assert common_grids([[(8, 4, 4), (8, 2, 2)], [(16, 7, 3), (16, 1, 5)]]) == [(4, 3), (1, 2)]
    assert common_grids([[(8,)], [(3,)]]) == [(1, 1)]
    x = random(2, 3, 4, 4)
    assert torch.allclose(meet(x, (1, 1))[..., 0, 0], x.mean((2, 3)))
    assert meet(x, (4, 4)) is x
    assert meet(x[:, :, 0, 0], (1, 1)).shape == (2, 3)
