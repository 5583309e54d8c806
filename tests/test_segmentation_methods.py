"""Every method on dense answers: slow loops, pixels without a truth, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pixels
import pytest
import torch
from batches import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import CLASSES, TASK, answers, draw, everything, learnt, lesson
from torch import Tensor

from kt.errors import KtError
from kt.tasks.classification import Classification
from kt.tasks.segmentation import IGNORED
from kt.transfer.batch import Examples
from kt.transfer.method import registry

SEEDS = st.integers(0, 2**32)
VARIANTS = pixels.variants()
EVERY = pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in VARIANTS.items()])
SINGLE = pytest.mark.parametrize(
    "method", [pytest.param(method, id=name) for name, method in VARIANTS.items() if not method.joint]
)
PARTITIONED = [name for name, method in registry().items() if "level" in method.model_fields]


# slow loops


@SINGLE
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_losses_targets_and_gradients_are_those_of_a_loop_over_pixels(method, seed):
    models, masks = draw(seed)
    examples, output = lesson(method, models, masks), answers(method, seed)
    teachers = models[1:] if method.takes == "group" else models[1:2]
    slow = pixels.loss(method, teachers, models[0], output, masks)
    (expected,) = torch.autograd.grad(slow.mean(), output)
    loss, gradient = learnt(method, output, examples)
    torch.testing.assert_close(loss.double(), slow.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    if "level" not in type(method).model_fields:
        return
    taught, targets = everything(examples).taught, everything(examples).targets
    assert taught.shape == (masks.shape if method.level == "pixel" else masks.shape[:1])
    shares = []
    for i, mask in enumerate(masks):
        which = pixels.teaching(method, torch.stack([models[0][i], *teachers[:, i]]), mask)
        for at, model in which.items():
            assert bool(taught[i] if taught.ndim == 1 else taught[i][at]) == (model > 0)
            assert torch.equal(targets[i][:, *at], [models[0], *teachers][model][i][:, *at])
        shares.append(sum(model > 0 for model in which.values()) / len(which))
    assert examples.share() == pytest.approx(100 * float(np.mean(shares)), rel=1e-5)


@pytest.mark.parametrize("level", ["image", "pixel"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("stop_gradient", [False, True])
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_models_that_teach_each_other_are_those_of_a_loop_over_pixels(level, count, stop_gradient, seed):
    options = {"level": level, "stop_gradient": stop_gradient, "temperature": 1.5, "weight": 0.7}
    method = registry()["bikd"].model_validate(options)
    models, masks = draw(seed, n=2, models=count)
    output = models.clone().requires_grad_(True)
    slow = pixels.joint(method, output, masks)
    (expected,) = torch.autograd.grad(slow.mean(), output)
    loss, gradient = learnt(method, output, lesson(method, models, masks))
    torch.testing.assert_close(loss.double(), slow.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_the_teaching_model_carries_gradient_unless_it_is_stopped(level):
    models, masks = draw(3, n=4, models=2)
    models[0] += 12 * (torch.arange(CLASSES).view(1, -1, 1, 1) == masks.clamp(max=CLASSES - 1)[:, None])
    output = models.clone().requires_grad_(True)  # the first fits better everywhere, so that it alone teaches
    moved = {}
    for stop in (False, True):
        method = registry()["bikd"].model_validate({"level": level, "stop_gradient": stop})
        _, moved[stop] = learnt(method, output, lesson(method, models, masks))
    own, _ = torch.autograd.grad(TASK.loss(output[0], masks).mean(), output)[0]
    torch.testing.assert_close(moved[True][0], own)
    assert not torch.allclose(moved[False][0], own)
    assert torch.equal(moved[False][1], moved[True][1])


def test_the_published_detached_loss_is_finetune_of_both_models():
    models, masks = draw(4, models=2)
    output = models.clone().requires_grad_(True)
    bikd, alone = (registry()["bikd"].model_validate({"level": "pixel", "weight": weight}) for weight in (1.0, 0.0))
    examples = lesson(bikd, models, masks)
    entropies = alone.loss(TASK, output, everything(examples))
    published = entropies + (bikd.loss(TASK, output, everything(examples)) - entropies).detach()
    (gradient,) = torch.autograd.grad(published.mean(), output)
    finetune = registry()["finetune"]()
    for own, moved in zip(models, gradient, strict=True):
        student = own.clone().requires_grad_(True)
        assert torch.equal(learnt(finetune, student, examples)[1], moved)
    assert not torch.equal(learnt(bikd, output, examples)[1], gradient)


# what must not matter


@EVERY
@pytest.mark.parametrize("extreme", [0.0, 1e4])
def test_pixels_without_a_truth_change_neither_loss_nor_gradient_nor_share(method, extreme):
    models, masks = draw(6, n=5, side=4)
    output, away = answers(method, 6, n=5, side=4), masks == IGNORED
    others = [values.detach().clone() for values in (models, output)]
    for values in others:
        values.movedim(-3, -1)[..., away, :] = torch.tensor([extreme, -1.0, 0.0, 1.0])
    first, second = (lesson(method, one, masks) for one in (models, others[0]))
    loss, gradient = learnt(method, output, first)
    assert torch.equal(learnt(method, others[1].requires_grad_(True), second)[0], loss)
    changed = learnt(method, others[1], second)[1]
    assert torch.equal(changed, gradient)
    assert not changed.movedim(-3, -1)[..., away, :].any()
    assert first.share() == second.share()
    taught = [everything(examples).taught for examples in (first, second)]
    keep = ~away if taught[0].ndim > 1 else ...
    assert torch.equal(taught[0][keep], taught[1][keep])


@EVERY
def test_tiling_images_twice_each_way_leaves_losses_and_shares_as_they_are(method):
    models, masks = draw(7)
    output = answers(method, 7)
    wide = lesson(method, models.repeat(1, 1, 1, 2, 2), masks.repeat(1, 2, 2))
    narrow = lesson(method, models, masks)
    tiled = output.repeat(*[1] * (output.ndim - 2), 2, 2)
    loss = method.loss(TASK, output, everything(narrow))
    torch.testing.assert_close(method.loss(TASK, tiled, everything(wide)), loss)
    assert wide.share() == pytest.approx(narrow.share(), rel=1e-6)


@pytest.mark.parametrize("name", ["kl", "self", "kl_dp", "kl_dp pixel", "kl_dp_unsup pixel", "flip_mean", "parallel"])
def test_a_model_learns_nothing_from_itself(name):
    method, (models, masks) = VARIANTS[name], draw(8)
    same = models[:1].expand(3, *models[0].shape).clone()
    loss, gradient = learnt(method, same[0].clone().requires_grad_(True), lesson(method, same, masks))
    assert loss.tolist() == [0.0] * len(masks)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


@EVERY
def test_answers_at_a_stride_are_those_of_the_resized_ones(method):
    models, masks = draw(9, side=3)[0], draw(9, side=12)[1]
    coarse = lesson(method, models, masks)
    fine = lesson(method, torch.stack([TASK.aligned(one, masks) for one in models]), masks)
    output = torch.stack([TASK.aligned(one, masks) for one in draw(10)[0]])
    if not method.joint:
        output = output[0]
    first, second = (learnt(method, output.requires_grad_(True), examples) for examples in (coarse, fine))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert coarse.share() == fine.share()


class Answered:
    """The session of a unit of two models, whose cached answers are given; its record is what was kept."""

    task, student, split = TASK, "s", "test"

    def __init__(self, teacher: Tensor, student: Tensor, masks: Tensor) -> None:
        self.cached = {"t": TASK.cached(teacher).numpy(), "s": TASK.cached(student).numpy()}
        self.masks = masks.numpy()

    def answered(self, names: Sequence[str]) -> Examples:
        return Examples(CPU, self.masks, [self.cached[name] for name in names], task=TASK)

    def untrained(self, kept: Tensor) -> dict[str, Any]:
        return {"kept": kept}


@pytest.mark.parametrize("name", ["ensemble_max", "ensemble_mean"])
def test_ensembles_answer_pixel_by_pixel(name):
    (teacher, student, _), masks = draw(11, n=20)
    teacher, student = TASK.cached(teacher), TASK.cached(student)
    p, q = teacher.double().softmax(1), student.double().softmax(1)
    surer = torch.where((q.amax(1) > p.amax(1))[:, None], q, p)
    expected = {"ensemble_max": surer, "ensemble_mean": (p + q) / 2}[name]
    found = registry()[name]().run(Answered(teacher, student, masks), ["t"], 0)
    assert torch.equal(found["kept"], TASK.kept(expected, masks))


@pytest.mark.parametrize("name", ["ensemble_max", "ensemble_mean"])
def test_an_ensemble_of_a_model_with_itself_is_that_model(name):
    logits, masks = draw(12, n=20)[0][0], draw(12, n=20)[1]
    logits[:10] = 2**-24 * torch.randint(0, 3, logits[:10].shape)  # so close that their log-probabilities are equal
    found = registry()[name]().run(Answered(logits, logits, masks), ["t"], 0)
    assert torch.equal(found["kept"], TASK.kept(logits, masks))


# what is refused


@pytest.mark.parametrize("name", ["cd", "crd", "infonce"])
def test_methods_that_compare_features_of_images_are_refused_in_one_line(name):
    with pytest.raises(KtError) as refused:
        registry()[name]().check(TASK, f"transfer.methods.{name}")
    text = str(refused.value)
    needed = "needs one vector of features per image, which the task 'segmentation' does not have; allowed: bikd, "
    assert text.startswith(f"transfer.methods.{name}: {name!r} {needed}")
    assert "\n" not in text
    assert not {"cd", "crd", "infonce"} & set(text.split("allowed: ")[1].split(", "))


@pytest.mark.parametrize("name", sorted(set(registry()) - {"cd", "crd", "infonce"}))
def test_all_other_methods_suit_the_task(name):
    registry()[name]().check(TASK, f"transfer.methods.{name}")


@pytest.mark.parametrize("name", PARTITIONED)
def test_pixels_are_refused_where_an_image_has_one_truth(name):
    method = registry()[name].model_validate({"level": "pixel"})
    method.check(TASK, f"transfer.methods.{name}")
    with pytest.raises(KtError) as refused:
        method.check(Classification(), f"transfer.methods.{name}")
    expected = (
        f"transfer.methods.{name}.level: 'pixel', but the task 'classification' has one truth per image; allowed: image"
    )
    assert str(refused.value) == expected


def test_methods_that_divide_images_are_those_of_the_paper():
    found = {"bikd", "kl_dp", "kl_dp_unsup", "parallel", "parallel_unsup", "sequential", "soup"}
    assert set(PARTITIONED) == found
    for name in PARTITIONED:
        method = registry()[name]
        assert method().parameters() == method.model_validate({"level": "image"}).parameters()
        assert "level" not in method().parameters()  # keys in the ledger stay
        assert method.model_validate({"level": "pixel"}).parameters()["level"] == "pixel"


@pytest.mark.parametrize("name", ["sequential", "soup"])
@pytest.mark.parametrize("base", ["kl", "kl_dp", "kl_dp_unsup"])
def test_the_level_reaches_the_repeated_method(name, base):
    single = registry()[name].model_validate({"base": base, "level": "pixel", "temperature": 2.0}).single()
    assert (single.name, single.parameters()["temperature"]) == (base, 2.0)
    assert getattr(single, "level", None) == (None if base == "kl" else "pixel")


def test_a_mean_over_taught_images_is_refused():
    method = registry()["xekl_mcl"].model_validate({"mean": "taught"})
    with pytest.raises(KtError, match=r"^transfer.methods.xekl_mcl.mean: 'taught' .*'segmentation'.*; allowed: batch$"):
        method.check(TASK, "transfer.methods.xekl_mcl")


@pytest.mark.parametrize("name", ["sequential", "soup"])
def test_a_level_that_divides_nothing_is_refused(name):
    registry()[name].model_validate({"base": "kl"}).check(TASK, f"groups.methods.{name}")
    method = registry()[name].model_validate({"base": "kl", "level": "pixel"})
    with pytest.raises(KtError, match=rf"groups\.methods\.{name}\.level: 'pixel', but `base: kl` divides nothing"):
        method.check(TASK, f"groups.methods.{name}")
