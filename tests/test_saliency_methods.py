"""Every method on saliency maps: slow loops, ensembles, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from batches import CPU, taught_by
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kt.errors import KtError
from kt.tasks import maps
from kt.tasks.saliency import METRICS, Saliency
from kt.transfer.batch import Examples
from kt.transfer.method import Method, registry

TASK = Saliency()
SEEDS = st.integers(0, 2**32)
EPS = 2.2204e-16
FLIPS = {"flip_teacher", "flip_student", "flip_mean", "xekl_mcl"}
REFUSED = {"cd", "crd", "infonce", *FLIPS}


def draw(seed: int, models: int = 3, n: int = 4, side: int = 4) -> tuple[Tensor, Tensor]:
    """Maps of some models [models, n, side, side] and truths [n, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.rand(models, n, side, side, generator=generator).square() + 0.01
    density = torch.rand(n, 1, side, side, generator=generator).square()
    counts = torch.randint(0, 3, (n, 2, side, side), generator=generator).float()
    return answers, torch.cat([density, counts], 1)


def divergence(target: Tensor, own: Tensor) -> Tensor:
    g, s = target.double() / target.double().sum(), own.double() / own.double().sum()
    return (g * (EPS + g / (s + EPS)).log()).sum()


def task_loss(own: Tensor, truth: Tensor) -> Tensor:
    pair = torch.stack([own.double().flatten(), truth[0].double().flatten()])
    return divergence(truth[0], own) - torch.corrcoef(pair)[0, 1]


def entropy(own: Tensor) -> Tensor:
    p = own.double().flatten() / own.double().sum()
    return -(p * p.log()).sum()


def teaching(method: Method, models: Tensor, truth: Tensor) -> int:
    """The model that teaches a frame, 0 for the frozen student; maps [1 + K, H, W]."""
    unsure = [float(entropy(own) if method.by_confidence else task_loss(own, truth)) for own in models]
    return min(range(len(unsure)), key=unsure.__getitem__)


def slow(method: Method, models: Tensor, output: Tensor, truth: Tensor) -> Tensor:
    """Loss of a frame, float64, from maps [1 + K, H, W] with the frozen student first."""
    if method.name == "finetune":
        return task_loss(output, truth)
    if method.name == "self":
        return divergence(models[0], output)
    if method.name in ("kl", "xekl"):
        far = divergence(models[1], output)
        alpha = getattr(method, "alpha", 1.0)
        return alpha * far + (1 - alpha) * task_loss(output, truth)
    return divergence(models[teaching(method, models, truth)], output)


SINGLE = [
    name for name, method in registry().items() if method.run is Method.run and not method.joint and name not in REFUSED
]


def test_methods_of_one_training_are_all_there():
    expected = {"finetune", "kl", "kl_dp", "kl_dp_unsup", "parallel", "parallel_unsup", "self", "xekl"}
    assert set(SINGLE) == expected


@pytest.mark.parametrize("name", SINGLE)
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_losses_and_gradients_are_those_of_a_loop_over_frames(name, seed):
    method = registry()[name]()
    models, truth = draw(seed)
    output = draw(seed + 1)[0][0].requires_grad_(True)
    teachers = models[1:] if method.takes == "group" else models[1]
    examples = taught_by(method, teachers, models[0], truth, task=TASK)
    known = models if method.takes == "group" else models[:2]
    expected = torch.stack([slow(method, known[:, i], output[i], truth[i]) for i in range(len(truth))])
    batch = examples.at(torch.arange(len(truth)))
    loss = method.loss(TASK, output, batch)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    for found, own in zip(*(torch.autograd.grad(each.mean(), output) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(found, own.float(), rtol=1e-3, atol=1e-4)
    if "level" in type(method).model_fields:
        taught = [teaching(method, known[:, i], truth[i]) > 0 for i in range(len(truth))]
        assert batch.taught.tolist() == taught
        assert examples.share() == pytest.approx(25 * sum(taught))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("stop_gradient", [False, True])
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_models_that_teach_each_other_are_those_of_a_loop_over_frames(count, stop_gradient, seed):
    method = registry()["bikd"].model_validate({"stop_gradient": stop_gradient, "weight": 0.7})
    models, truth = draw(seed, models=count)
    output = models.clone().requires_grad_(True)
    examples = taught_by(method, models[1:], models[0], truth, task=TASK)
    loss = method.loss(TASK, list(output), examples.at(torch.arange(len(truth))))
    expected = []
    for i, known in enumerate(truth):
        losses = [task_loss(own, known) for own in output[:, i]]
        best = min(range(count), key=lambda m, losses=losses: float(losses[m].detach()))
        source = output[best, i].detach() if stop_gradient else output[best, i]
        total = torch.stack(losses).sum()
        for m in range(count):
            if m != best:
                total = total + 0.7 * divergence(source, output[m, i])
        expected.append(total)
    slow_loss = torch.stack(expected)
    torch.testing.assert_close(loss.double(), slow_loss, rtol=1e-4, atol=1e-5)
    found, own = (torch.autograd.grad(each.mean(), output)[0] for each in (loss, slow_loss))
    torch.testing.assert_close(found, own.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["kl", "kl_dp", "kl_dp_unsup", "self"])
def test_answers_of_another_size_and_scale_teach_as_the_resized_ones(name):
    method = registry()[name]()
    models, truth = draw(9, side=3)[0], draw(9, side=12)[1]
    output = draw(10, side=12)[0][0]
    fine = torch.stack([TASK.aligned(own, truth) for own in models])
    coarse = taught_by(method, 50 * models[1], models[0] / 7, truth, task=TASK)
    resized = taught_by(method, fine[1], fine[0], truth, task=TASK)
    first, second = (method.loss(TASK, output, each.at(torch.arange(4))) for each in (coarse, resized))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert coarse.share() == resized.share()


class Answered:
    """The session of a unit of two models, whose cached answers are given; its record is what was kept."""

    task, student, split = TASK, "s", "test"

    def __init__(self, teacher: Tensor, student: Tensor, truth: Tensor) -> None:
        self.cached = {"t": TASK.cached(teacher).numpy(), "s": TASK.cached(student).numpy()}
        self.truth = truth.numpy()

    def answered(self, names: Sequence[str]) -> Examples:
        return Examples(CPU, self.truth, [self.cached[name] for name in names], task=TASK)

    def untrained(self, kept: Tensor) -> dict[str, Any]:
        return {"kept": kept}


@pytest.mark.parametrize("name", ["ensemble_max", "ensemble_mean"])
def test_ensembles_answer_frame_by_frame(name):
    (teacher, student, _), truth = draw(11, n=6)
    teacher[3] *= 100  # no model has more weight because its values are larger
    found = registry()[name]().run(Answered(teacher, student, truth), ["t"], 0)["kept"]
    expected = []
    for t, s in zip(TASK.cached(teacher).double(), TASK.cached(student).double(), strict=True):
        mean = t / t.sum() + s / s.sum()
        expected.append({"ensemble_mean": mean, "ensemble_max": s if entropy(s) < entropy(t) else t}[name])
    torch.testing.assert_close(found, TASK.kept(torch.stack(expected), truth), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ensemble_max", "ensemble_mean"])
def test_an_ensemble_of_a_model_with_itself_is_that_model(name):
    own, truth = draw(12)[0][0], draw(12)[1]
    found = registry()[name]().run(Answered(own, own, truth), ["t"], 0)["kept"]
    torch.testing.assert_close(found, TASK.kept(TASK.cached(own), truth), rtol=1e-5, atol=1e-5)


# what is refused


@pytest.mark.parametrize("name", sorted(registry()))
def test_a_method_is_refused_in_one_line_exactly_where_it_makes_no_sense(name):
    method, at = registry()[name](), f"transfer.methods.{name}"
    if name not in REFUSED:
        method.check(TASK, at)
        return
    with pytest.raises(KtError) as refused:
        method.check(TASK, at)
    needed = f"{at}: {name!r} needs classes, which the task 'saliency' does not have; allowed: bikd, "
    assert str(refused.value).startswith(needed)
    assert "\n" not in str(refused.value)
    assert not REFUSED & set(str(refused.value).split("allowed: ")[1].split(", "))


@pytest.mark.parametrize("name", sorted(n for n, method in registry().items() if "temperature" in method.model_fields))
def test_temperatures_are_refused_where_no_answer_is_a_logit(name):
    if name in REFUSED:
        return
    method = registry()[name].model_validate({"temperature": 2.0})
    with pytest.raises(KtError) as refused:
        method.check(TASK, f"transfer.methods.{name}")
    why = "2 softens logits, which answers of the task 'saliency' are not; allowed: 1"
    assert str(refused.value) == f"transfer.methods.{name}.temperature: {why}"


@pytest.mark.parametrize("name", sorted(n for n, method in registry().items() if "level" in method.model_fields))
def test_a_frame_is_not_divided_into_pixels(name):
    method = registry()[name].model_validate({"level": "pixel"})
    with pytest.raises(KtError, match=rf"^transfer.methods.{name}.level: 'pixel', .* one truth per frame; allowed: im"):
        method.check(TASK, f"transfer.methods.{name}")


@pytest.mark.parametrize("name", ["bikd", "finetune", "xekl"])
def test_targets_are_not_smoothed_over_classes(name):
    method = registry()[name].model_validate({"label_smoothing": 0.1})
    with pytest.raises(KtError, match=rf"^transfer.methods.{name}.label_smoothing: 0.1 spreads .* allowed: 0$"):
        method.check(TASK, f"transfer.methods.{name}")


def test_the_kept_metrics_of_an_answer_are_those_of_its_filtered_map():
    models, truth = draw(13, n=5, side=16)
    kept = TASK.kept(models[0], truth)
    shown = maps.blur(models[0])
    columns = dict(zip(METRICS, kept.unbind(1), strict=True))
    torch.testing.assert_close(columns["cc"], maps.cc(shown, truth[:, 0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        columns["s_auc"], maps.s_auc(shown, truth[:, 1], truth[:, 2]).float(), rtol=1e-4, atol=1e-5
    )
