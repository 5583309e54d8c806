"""Methods that look at several models at once: parallel teachers, models that train together, ensembles."""

from __future__ import annotations

import math

import pytest
import torch
from batches import all_taught
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kt.tasks.classification import Classification
from kt.transfer.learners import Together
from kt.transfer.methods.bikd import BiKD
from kt.transfer.methods.ensemble import EnsembleMax, EnsembleMean
from kt.transfer.methods.kl_dp import KLDP, KLDPUnsupervised
from kt.transfer.methods.parallel import Parallel, ParallelUnsupervised

TASK = Classification()
SEEDS = st.integers(0, 2**32)


def draw(seed: int, n: int = 10, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of a teacher, of the frozen student and of the student in training [n, classes], and labels."""
    generator = torch.Generator().manual_seed(seed)
    teacher, frozen, logits = (2 * torch.randn(n, classes, generator=generator) for _ in range(3))
    return teacher, frozen, logits, torch.randint(0, classes, (n,), generator=generator)


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(v) for v in z]
    return [p / sum(powers) for p in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@given(SEEDS)
def test_parallel_with_one_teacher_is_kl_dp_exactly(seed):
    teacher, frozen, _, labels = draw(seed)
    for several, one in ((Parallel(), KLDP()), (ParallelUnsupervised(), KLDPUnsupervised())):
        for found, expected in zip(
            several.targets(TASK, teacher[None], frozen, labels),
            one.targets(TASK, teacher, frozen, labels),
            strict=True,
        ):
            assert torch.equal(found, expected)


@given(SEEDS, st.integers(2, 5))
def test_parallel_agrees_with_a_loop_over_samples(seed, k):
    generator = torch.Generator().manual_seed(seed)
    teachers, frozen = 2 * torch.randn(k, 9, 4, generator=generator), 2 * torch.randn(9, 4, generator=generator)
    labels = torch.randint(0, 4, (9,), generator=generator)
    for method, how in (
        (Parallel(), lambda p, y: p[y]),
        (ParallelUnsupervised(), lambda p, y: max(p)),
    ):
        targets, taught = method.targets(TASK, teachers, frozen, labels)
        for i, y in enumerate(labels.tolist()):
            rows = [frozen[i], *teachers[:, i]]
            scores = [how(softmax(row.double().tolist()), y) for row in rows]
            best = scores.index(max(scores))
            assert torch.equal(targets[i], rows[best])
            assert taught[i] == (best > 0)


def test_ties_in_parallel_go_to_the_frozen_student_then_to_the_first_teacher():
    frozen, labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
    first, second = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    targets, taught = Parallel().targets(TASK, torch.stack([first, second]), frozen, labels)
    assert taught.tolist() == [False, True]
    assert targets.tolist() == [[1, 0], [2, 0]]


# models that train together


def bikd_slowly(method: BiKD, logits: Tensor, labels: Tensor) -> list[float]:
    """Loss of every sample, one at a time."""
    found = []
    for i, y in enumerate(labels.tolist()):
        p = [softmax(row) for row in logits[:, i].double().tolist()]
        total = -sum(math.log(q[y]) for q in p)
        best = max(q[y] for q in p)
        if sum(q[y] == best for q in p) == 1:
            teacher = next(j for j, q in enumerate(p) if q[y] == best)
            total += method.weight * sum(divergence(p[teacher], q) for j, q in enumerate(p) if j != teacher)
        found.append(total)
    return found


def test_bikd_by_hand():
    # p_1 = (3/4, 1/4), p_2 = (1/2, 1/2): on label 0 the first teaches, on label 1 the second
    logits = torch.tensor([[[math.log(3.0), 0.0]] * 2, [[0.0, 0.0]] * 2])
    labels = torch.tensor([0, 1])
    assert BiKD.masks(TASK, logits, labels).tolist() == [[True, False], [False, True]]
    samples = all_taught(logits[0], labels)
    first = -math.log(0.75) - math.log(0.5) + divergence([0.75, 0.25], [0.5, 0.5])
    second = -math.log(0.25) - math.log(0.5) + divergence([0.5, 0.5], [0.75, 0.25])
    assert BiKD().loss(TASK, logits, samples).tolist() == pytest.approx([first, second], abs=1e-6)


@given(SEEDS, st.integers(2, 4), st.sampled_from([0.0, 1.0, 2.5]), st.booleans())
def test_bikd_agrees_with_a_loop_over_samples(seed, models, weight, stop):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 2 * torch.randn(models, 8, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator)
    method = BiKD(weight=weight, stop_gradient=stop)
    found = method.loss(TASK, logits, all_taught(logits[0], labels))
    assert found.tolist() == pytest.approx(bikd_slowly(method, logits, labels), rel=1e-4, abs=1e-5)
    turned = method.loss(TASK, logits.flip(0), all_taught(logits[0], labels))
    torch.testing.assert_close(turned, found)


@given(SEEDS, st.integers(2, 4))
def test_at_most_one_model_teaches_and_always_one_of_two(seed, models):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-1, 2, (models, 20, 3), generator=generator).float()  # with ties
    labels = torch.randint(0, 3, (20,), generator=generator)
    masks = BiKD.masks(TASK, logits, labels)
    teaching = masks.sum(0)
    assert (teaching <= 1).all()
    if models == 2:
        assert (teaching == 1).all()
    p = logits.softmax(-1)[:, torch.arange(20), labels]
    for i in range(20):
        if teaching[i]:
            assert p[masks[:, i], i] >= p[:, i].max() - 1e-6
    same = logits[:1].expand(models, -1, -1)
    assert BiKD.masks(TASK, same, labels).sum(0).tolist() == [int(models == 2)] * 20
    if models == 2:
        assert BiKD.masks(TASK, same, labels)[1].all()  # as published: m_1 = [p_1 > p_2], m_2 = 1 − m_1


def test_the_gradient_reaches_the_teaching_model_only_as_published():
    logits, labels = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0])
    samples = all_taught(logits[0], labels)

    def gradient(stop: bool, weight: float) -> Tensor:
        z = logits.clone().requires_grad_(True)
        BiKD(stop_gradient=stop, weight=weight).loss(TASK, z, samples).sum().backward()
        assert z.grad is not None
        return z.grad

    alone = gradient(stop=True, weight=0.0)
    stopped, published = gradient(stop=True, weight=1.0), gradient(stop=False, weight=1.0)
    assert torch.equal(stopped[0], alone[0])  # the first teaches: its own cross-entropy is all it feels
    assert not torch.allclose(published[0], alone[0])
    torch.testing.assert_close(stopped[1], published[1])
    expected = alone[1] + logits[1].softmax(-1) - logits[0].softmax(-1)
    torch.testing.assert_close(stopped[1], expected)


def test_models_together_each_see_their_own_view():
    first, second = nn.Linear(2, 3), nn.Linear(4, 3)
    together = Together([first, second])
    views = [torch.randn(5, 2), torch.randn(5, 4)]
    assert torch.equal(torch.stack(together(views)), torch.stack([first(views[0]), second(views[1])]))
    assert len(list(together.parameters())) == 4


# ensembles


def test_ensembles_by_hand():
    teacher, student = (
        torch.tensor([[0.0, 4.0, 0.0], [0.0, 1.0, 0.0]]),
        torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]]),
    )
    assert torch.equal(EnsembleMax().combine(TASK, teacher, student), torch.stack([teacher[0], student[1]]))
    mean = (teacher.softmax(1) + student.softmax(1)) / 2
    torch.testing.assert_close(EnsembleMean().combine(TASK, teacher, student).exp(), mean)


@given(SEEDS)
def test_ensembles_agree_with_a_loop_and_of_two_equal_models_are_that_model(seed):
    teacher, student, _, _ = draw(seed)
    for i in range(len(teacher)):
        p, q = softmax(teacher[i].double().tolist()), softmax(student[i].double().tolist())
        chosen = teacher[i] if max(p) > max(q) else student[i]
        assert torch.equal(EnsembleMax().combine(TASK, teacher, student)[i], chosen)
        mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        assert EnsembleMean().combine(TASK, teacher, student)[i].exp().tolist() == pytest.approx(
            mean, rel=1e-4, abs=1e-6
        )
    for method in (EnsembleMax(), EnsembleMean()):
        assert torch.equal(method.combine(TASK, student, student).argmax(1), student.argmax(1))
