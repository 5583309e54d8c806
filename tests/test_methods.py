"""The registry of transfer methods, and what every method must do."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from batches import Given
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kt.errors import KtError
from kt.tasks import losses, partition
from kt.tasks.classification import Classification
from kt.tasks.task import Array, Metric, Task
from kt.transfer.groups import GroupMethods
from kt.transfer.method import Method, registry
from kt.transfer.methods.flip import FlipMean, FlipStudent, FlipTeacher
from kt.transfer.methods.kl import KL
from kt.transfer.methods.kl_dp import KLDP, KLDPUnsupervised
from kt.transfer.methods.xekl import XEKL, XEKLMCL
from kt.transfer.spec import Methods
from kt.transfer.training import SlowWeights, Training

UNUSED = torch.empty(0)
TASK = Classification()
SEEDS = st.integers(0, 2**32)
SUIT_ANY = {"kl", "xekl", "kl_dp", "self", "finetune", "bikd", "sequential", "soup", "parallel"}
DISTILLING = ["kl", "kl_dp", "kl_dp_unsup", "self", "flip_teacher", "flip_student", "flip_mean"]
PAPERS = {
    "kl",
    "xekl",
    "xekl_mcl",
    "kl_dp",
    "kl_dp_unsup",
    "flip_teacher",
    "flip_student",
    "flip_mean",
    "self",
    "finetune",
    "cd",
    "crd",
    "infonce",
    "bikd",
    "ensemble_max",
    "ensemble_mean",
    "sequential",
    "parallel",
    "parallel_unsup",
    "soup",
}
PLAIN = [
    pytest.param(method(), id=name)
    for name, method in registry().items()
    if method.takes == "pair" and method.trains and not method.uses_features
]


def draw(seed: int, n: int = 10, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of a teacher, of the frozen student and of the student in training [n, classes], and labels."""
    generator = torch.Generator().manual_seed(seed)
    teacher, frozen, logits = (2 * torch.randn(n, classes, generator=generator) for _ in range(3))
    return teacher, frozen, logits, torch.randint(0, classes, (n,), generator=generator)


def lesson(method: Method, teacher: Tensor, frozen: Tensor, labels: Tensor) -> Given:
    targets, taught = method.targets(TASK, teacher, frozen, labels)
    return Given(targets, labels, taught, torch.arange(len(labels)))


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(v) for v in z]
    return [p / sum(powers) for p in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# the registry


def test_the_registry_finds_every_method_under_its_own_name_in_alphabetical_order():
    assert set(registry()) >= PAPERS
    assert all(method.name == name for name, method in registry().items())
    assert list(registry()) == sorted(registry())
    assert {name for name in PAPERS if registry()[name].control} == {"self", "finetune"}
    assert {name for name in PAPERS if not registry()[name].trains} == {"ensemble_max", "ensemble_mean"}


def test_the_registry_imports_no_torch(python):
    ended = python(
        "import sys; from kt.transfer.method import registry; import kt.transfer.groups; registry();"
        "print('torch' in sys.modules)"
    )
    assert ended.stdout == "False\n", ended.stderr


def test_the_configuration_knows_every_method_and_keeps_the_chosen_ones():
    assert set(Methods.model_fields) | set(GroupMethods.model_fields) == set(registry())
    assert set(Methods.model_fields) & set(GroupMethods.model_fields) == {"bikd"}
    chosen = Methods.model_validate({"xekl": {"alpha": 0.3}, "kl": None}).chosen()
    assert list(chosen) == ["kl", "xekl"]
    assert chosen["kl"] == KL()
    assert chosen["xekl"].parameters() == {"label_smoothing": 0.0, "temperature": 1.0, "alpha": 0.3}


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("xekl", {"alpha": -0.1}),
        ("xekl", {"alpha": 1.1}),
        ("kl", {"temperature": 0.0}),
        ("kl", {"temperature": "1"}),
        ("kl", {"temperature": float("nan")}),
        ("xekl_mcl", {"tau": 1.5}),
        ("xekl_mcl", {"every": 0}),
        ("xekl_mcl", {"top": 0}),
        ("xekl_mcl", {"flips": "student"}),
        ("flip_mean", {"student": "fast"}),
        ("cd", {"label_weight": -0.1}),
        ("cd", {"nce_t": 0.07}),
        ("finetune", {"label_smoothing": 1.0}),
        ("crd", {"negatives": 0}),
        ("crd", {"nce_t": 0.0}),
        ("bikd", {"weight": -1.0}),
        ("sequential", {"order": "upwards"}),
        ("soup", {"base": "soup"}),
        ("kl", {"training": {"lr": 0.0}}),
        ("kl", {"training": {"rate": 1.0}}),
    ],
)
def test_parameters_out_of_range_are_refused(method, parameters):
    with pytest.raises(ValidationError):
        registry()[method].model_validate(parameters)


def test_parameters_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        KL().temperature = 2.0


def test_a_method_changes_only_what_it_says_of_the_training():
    training = Training(epochs=3, batch_size=8, lr=0.1, weight_decay=0.5)
    changed = KL.model_validate({"training": {"lr": 0.01, "optimiser": "sgd"}}).trained(training)
    assert changed == training.model_copy(update={"lr": 0.01, "optimiser": "sgd"})
    assert KL().trained(training) == training


# every method that trains one student on targets


@pytest.mark.parametrize("method", PLAIN)
def test_targets_and_losses_have_one_row_a_sample(method):
    teacher, frozen, logits, labels = draw(0)
    samples = lesson(method, teacher, frozen, labels)
    assert samples.targets.shape == frozen.shape
    assert (samples.taught.shape, samples.taught.dtype) == (labels.shape, torch.bool)
    loss = method.loss(TASK, logits, samples)
    assert (loss.shape, loss.dtype) == (labels.shape, torch.float32)


@pytest.mark.parametrize("method", PLAIN)
def test_the_target_is_the_teachers_exactly_where_the_method_says_so(method):
    @given(SEEDS)
    def check(seed):
        teacher, frozen, _, labels = draw(seed)
        targets, taught = method.targets(TASK, teacher, frozen, labels)
        assert torch.equal(targets[~taught], frozen[~taught])
        if method.control:
            assert not taught.any()
        elif method.name != "flip_mean":  # where both teach, the target is neither's
            assert torch.equal(targets[taught], teacher[taught])

    check()


@pytest.mark.parametrize("method", PLAIN)
def test_the_order_of_images_does_not_matter(method):
    teacher, frozen, logits, labels = draw(3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    samples = lesson(method, teacher, frozen, labels)
    turned = lesson(method, teacher[order], frozen[order], labels[order])
    assert torch.equal(turned.targets, samples.targets[order])
    assert torch.equal(turned.taught, samples.taught[order])
    loss = method.loss(TASK, logits, samples)
    torch.testing.assert_close(method.loss(TASK, logits[order], turned), loss[order])
    torch.testing.assert_close(method.loss(TASK, logits[order], samples.at(order)), loss[order])


@pytest.mark.parametrize("method", PLAIN)
def test_the_loss_carries_gradient_to_the_student_in_training(method):
    teacher, frozen, logits, labels = draw(1)
    logits.requires_grad_(True)
    method.loss(TASK, logits, lesson(method, teacher, frozen, labels)).mean().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", DISTILLING)
def test_an_identical_teacher_gives_a_student_at_its_start_zero_loss(name):
    _, frozen, _, labels = draw(2)
    method = registry()[name]()
    loss = method.loss(TASK, frozen, lesson(method, frozen.clone(), frozen, labels))
    torch.testing.assert_close(loss, torch.zeros(len(labels)), atol=1e-6, rtol=0)
    assert loss.tolist() == [0.0] * len(labels)


@pytest.mark.parametrize("name", ["kl_dp", "kl_dp_unsup", "flip_student"])
def test_a_teacher_equal_to_the_student_teaches_nothing(name):
    @given(SEEDS)
    def check(seed):
        _, frozen, _, labels = draw(seed)
        targets, taught = registry()[name]().targets(TASK, frozen.clone(), frozen, labels)
        assert not taught.any()
        assert torch.equal(targets, frozen)

    check()


@given(SEEDS)
def test_partitioned_methods_use_the_masks_of_the_paper(seed):
    teacher, frozen, _, labels = draw(seed)
    _, taught = KLDP().targets(TASK, teacher, frozen, labels)
    assert torch.equal(taught, partition.by_fit(TASK, teacher, frozen, labels))
    _, taught = KLDPUnsupervised().targets(TASK, teacher, frozen, labels)
    assert torch.equal(taught, partition.by_confidence(TASK, teacher, frozen, UNUSED))


@given(SEEDS)
def test_the_target_of_kl_dp_never_gives_the_label_less_than_the_frozen_student(seed):
    teacher, frozen, _, labels = draw(seed)
    targets, _ = KLDP().targets(TASK, teacher, frozen, labels)
    best = torch.minimum(losses.cross_entropy(teacher, labels), losses.cross_entropy(frozen, labels))
    torch.testing.assert_close(losses.cross_entropy(targets, labels), best)


@given(SEEDS)
def test_unlabelled_methods_do_not_look_at_the_labels(seed):
    teacher, frozen, logits, labels = draw(seed)
    other = (labels + 1) % 4
    names = [m.values[0].name for m in PLAIN if not m.values[0].uses_labels]
    assert set(names) >= {"kl", "kl_dp_unsup", "self"}
    for name in names:
        method = registry()[name]()
        samples, others = lesson(method, teacher, frozen, labels), lesson(method, teacher, frozen, other)
        assert torch.equal(samples.targets, others.targets)
        assert torch.equal(samples.taught, others.taught)
        assert torch.equal(method.loss(TASK, logits, samples), method.loss(TASK, logits, others))


@given(SEEDS)
def test_controls_do_not_look_at_the_teacher(seed):
    teacher, frozen, _, labels = draw(seed)
    for method in (cls() for cls in registry().values() if cls.control):
        with_teacher, without = (method.targets(TASK, source, frozen, labels)[0] for source in (teacher, frozen))
        assert torch.equal(with_teacher, without)


@given(SEEDS, st.sampled_from([1.0, 3.0]))
def test_xekl_is_kl_at_alpha_one_and_cross_entropy_at_alpha_zero(seed, temperature):
    teacher, frozen, logits, labels = draw(seed)
    samples = lesson(XEKL(), teacher, frozen, labels)
    assert torch.equal(samples.targets, teacher)
    assert samples.taught.all()
    kl = KL(temperature=temperature).loss(TASK, logits, samples)
    entropy = losses.cross_entropy(logits, labels)
    assert torch.equal(XEKL(alpha=1.0, temperature=temperature).loss(TASK, logits, samples), kl)
    assert torch.equal(XEKL(alpha=0.0, temperature=temperature).loss(TASK, logits, samples), entropy)
    mixed = XEKL(alpha=0.25, temperature=temperature).loss(TASK, logits, samples)
    torch.testing.assert_close(mixed, 0.25 * kl + 0.75 * entropy)


def test_finetune_is_cross_entropy_whatever_the_targets_are():
    teacher, frozen, logits, labels = draw(5)
    method = registry()["finetune"]()
    assert torch.equal(
        method.loss(TASK, logits, lesson(method, teacher, frozen, labels)), losses.cross_entropy(logits, labels)
    )


def test_the_temperature_reaches_the_loss():
    teacher, frozen, logits, labels = draw(6)
    for name in DISTILLING:
        method = registry()[name](temperature=2.0)
        samples = lesson(method, teacher, frozen, labels)
        assert torch.equal(method.loss(TASK, logits, samples), losses.distillation(samples.targets, logits, 2.0))


def test_label_smoothing_reaches_every_cross_entropy():
    teacher, frozen, logits, labels = draw(6)
    for name in ("finetune", "xekl"):
        method = registry()[name].model_validate({"label_smoothing": 0.3})
        plain = registry()[name]()
        samples = lesson(method, teacher, frozen, labels)
        difference = losses.cross_entropy(logits, labels, 0.3) - losses.cross_entropy(logits, labels)
        torch.testing.assert_close(
            method.loss(TASK, logits, samples) - plain.loss(TASK, logits, samples),
            difference * (0.5 if name == "xekl" else 1.0),
            atol=1e-5,
            rtol=1e-4,
        )


# partition by flips

# image 0: positive flip, 1: negative flip, 2: both right, 3: both wrong; the label is 0 everywhere
TEACHER = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
FROZEN = torch.tensor([[0.0, 1.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
ZEROS = torch.zeros(4, dtype=torch.int64)


def test_partition_by_flips_by_hand():
    positive, negative = partition.flips(TEACHER, FROZEN, ZEROS)
    assert positive.tolist() == [True, False, False, False]
    assert negative.tolist() == [False, True, False, False]
    targets, taught = FlipTeacher().targets(TASK, TEACHER, FROZEN, ZEROS)
    assert targets.tolist() == [[2, 0], [3, 0], [1, 0], [0, 3]]
    assert taught.tolist() == [True, False, True, True]
    targets, taught = FlipStudent().targets(TASK, TEACHER, FROZEN, ZEROS)
    assert targets.tolist() == [[2, 0], [3, 0], [2, 0], [0, 1]]
    assert taught.tolist() == [True, False, False, False]
    targets, taught = FlipMean().targets(TASK, TEACHER, FROZEN, ZEROS)
    assert targets[:2].tolist() == [[2, 0], [3, 0]]
    assert taught.tolist() == [True, False, True, True]
    for row, (a, b) in enumerate((([1.0, 0.0], [2.0, 0.0]), ([0.0, 3.0], [0.0, 1.0])), start=2):
        assert targets[row].tolist() == [(p + q) / 2 for p, q in zip(a, b, strict=True)]


@given(SEEDS)
def test_flips_partition_every_batch_and_agree_with_a_loop(seed):
    teacher, frozen, _, labels = draw(seed, n=30)
    positive, negative = partition.flips(teacher, frozen, labels)
    for i, y in enumerate(labels.tolist()):
        of_teacher = max(range(4), key=teacher[i].tolist().__getitem__) == y
        of_student = max(range(4), key=frozen[i].tolist().__getitem__) == y
        assert positive[i] == (of_teacher and not of_student)
        assert negative[i] == (of_student and not of_teacher)
    neutral = (teacher.argmax(1) == labels) == (frozen.argmax(1) == labels)
    assert torch.equal(positive.int() + negative.int() + neutral.int(), torch.ones(30, dtype=torch.int32))


def test_xekl_mcl_by_hand():
    method, logits = XEKLMCL(), torch.zeros(4, 2)
    loss = method.loss(TASK, logits, lesson(method, TEACHER, FROZEN, ZEROS)).tolist()
    for i, of_teacher in enumerate(([2.0, 0.0], None, [1.0, 0.0], [0.0, 3.0])):
        distilled = divergence(softmax(of_teacher), [0.5, 0.5]) if of_teacher else 0.0
        assert loss[i] == pytest.approx(0.68 * distilled + 0.32 * math.log(2), abs=1e-6)
    assert method.slow_weights() == SlowWeights(0.9999, 2, each_epoch=False, shared=False, overwrites=False)
    assert KL().slow_weights() is None


@given(SEEDS)
def test_xekl_mcl_is_xekl_without_distillation_on_negative_flips(seed):
    teacher, frozen, logits, labels = draw(seed)
    method = XEKLMCL(alpha=0.4)
    found = method.loss(TASK, logits, lesson(method, teacher, frozen, labels))
    plain = XEKL(alpha=0.4).loss(TASK, logits, lesson(XEKL(), teacher, frozen, labels))
    entropy = 0.6 * losses.cross_entropy(logits, labels)
    _, negative = partition.flips(teacher, frozen, labels)
    torch.testing.assert_close(found, torch.where(negative, entropy, plain))


def test_budgets_count_trainings_of_one_model():
    counts = {name: method().budget(3) for name, method in registry().items()}
    assert {name: n for name, n in counts.items() if n != 1} == {
        "sequential": 3,
        "soup": 3,
        "bikd": 4,
        "ensemble_max": 0,
        "ensemble_mean": 0,
    }


@pytest.mark.parametrize("name", ["sequential", "soup"])
def test_repeated_methods_use_labels_where_the_repeated_one_does(name):
    for base in ("kl", "kl_dp", "kl_dp_unsup"):
        method = registry()[name].model_validate({"base": base, "temperature": 2.0})
        assert method.labelled == (base == "kl_dp")
        assert method.single() == registry()[base].model_validate({"temperature": 2.0})


# tasks without classes


class Points(Task):
    """Three real numbers per example; a toy."""

    name: ClassVar[str] = "points"
    metric: ClassVar[Metric] = Metric("err", "error", "mm", "millimetres", "mm")

    def check_truth(self, at: str, truth: Array) -> Array:
        return truth

    def outputs(self, truth: Array, class_names: list[str]) -> int:
        return 3

    def answer_shape(self, outputs: int) -> tuple[int, ...]:
        return (outputs, 1)

    def supervised(self, answer: Tensor, truth: Tensor) -> Tensor:
        return (answer[..., 0] - truth).abs().sum(1)

    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        return (target - answer).abs().flatten(1).sum(1)

    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        return -self.supervised(answer, truth)

    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        return self.supervised(answer, truth)

    def scores(self, kept: Array, truth: Array) -> Array:
        return -kept


def example(method: Method) -> tuple[Tensor, Tensor]:
    """Targets and loss of a method for two examples of which the teacher is better on the first."""
    truth = torch.zeros(2, 3)
    teacher, frozen = torch.tensor([[1.0], [4.0]]).expand(2, 3)[..., None], torch.full((2, 3, 1), 2.0)
    if method.takes == "group":
        teacher = torch.stack([teacher, torch.full((2, 3, 1), 3.0)])
    targets, taught = method.targets(Points(), teacher, frozen, truth)
    output = torch.zeros(2, 3, 1)
    return targets, method.loss(Points(), output, Given(targets, truth, taught, torch.arange(2)))


def test_methods_of_any_task_by_hand_on_answers_of_another_shape():
    expected = {
        "kl": ([1.0, 4.0], [3.0, 12.0]),
        "kl_dp": ([1.0, 2.0], [3.0, 6.0]),
        "parallel": ([1.0, 2.0], [3.0, 6.0]),
        "self": ([2.0, 2.0], [6.0, 6.0]),
        "finetune": ([2.0, 2.0], [0.0, 0.0]),
        "xekl": ([1.0, 4.0], [1.5, 6.0]),
    }
    for name, (targets, loss) in expected.items():
        found = example(registry()[name]())
        assert torch.equal(found[0], torch.tensor(targets)[:, None, None].expand(2, 3, 1)), name
        assert found[1].tolist() == loss, name


def test_models_of_any_task_train_together():
    output = torch.tensor([[1.0, 4.0], [2.0, 2.0]])[..., None, None].expand(2, 2, 3, 1)
    truth = torch.zeros(2, 3)
    assert registry()["bikd"].masks(Points(), output, truth).tolist() == [[True, False], [False, True]]
    batch = Given(output[0], truth, truth[:, 0].bool(), torch.arange(2))
    assert registry()["bikd"]().loss(Points(), output, batch).tolist() == [3 + 6 + 3, 12 + 6 + 6]


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_method_is_refused_in_one_line_exactly_where_its_task_lacks_what_it_needs(name):
    method, at = registry()[name](), f"transfer.methods.{name}"
    method.check(TASK, at)
    if name in SUIT_ANY:
        method.check(Points(), at)
        return
    with pytest.raises(KtError) as refused:
        method.check(Points(), at)
    special = {
        "kl_dp_unsup": "confidence",
        "parallel_unsup": "confidence",
        "ensemble_max": "confidence",
        "ensemble_mean": "a mean of answers",
    }
    needed = special.get(name, "classes")
    text = str(refused.value)
    assert text.startswith(f"{at}: {name!r} needs {needed}, which the task 'points' does not have; allowed: ")
    assert "\n" not in text
    allowed = text.split("allowed: ")[1].split(", ")
    assert set(allowed) <= SUIT_ANY
    assert {registry()[other].takes for other in allowed} <= {method.takes, "both"}


@pytest.mark.parametrize("name", ["finetune", "xekl", "bikd"])
def test_labels_are_smoothed_over_classes_only(name):
    smoothed = registry()[name].model_validate({"label_smoothing": 0.1})
    smoothed.check(TASK, f"transfer.methods.{name}")
    with pytest.raises(KtError, match=rf"^transfer.methods.{name}.label_smoothing: 0.1 .*'points'.*; allowed: 0$"):
        smoothed.check(Points(), f"transfer.methods.{name}")


def test_the_repeated_method_is_checked_too():
    with pytest.raises(KtError, match=r"^transfer.groups.methods.soup.base: 'kl_dp_unsup' needs confidence, "):
        registry()["soup"].model_validate({"base": "kl_dp_unsup"}).check(Points(), "transfer.groups.methods.soup")
