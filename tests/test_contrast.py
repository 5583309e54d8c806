"""Contrastive distillation: features, negatives, the memory, and the loss by hand and by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batches import CPU
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kt.errors import KtError
from kt.tasks import losses
from kt.tasks.classification import Classification
from kt.transfer.batch import Batch, Examples
from kt.transfer.learners import Contrast, InBatch, MemoryBank
from kt.transfer.methods.cd import CD
from kt.transfer.methods.contrastive import CRD, InfoNCE
from kt.zoo.features import Featured, classifier

TASK = Classification()
SEEDS = st.integers(0, 2**32)


def features(seed: int, n: int, width: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def batch_of(labels: Tensor, of_teacher: Tensor, positions: Tensor | None = None) -> Batch:
    """Images with features of a teacher; at some positions among many, if they are given."""
    where = torch.arange(len(labels)) if positions is None else positions
    n = int(where.max()) + 1
    truth, rows = np.zeros(n, np.int64), np.zeros((n, of_teacher.shape[1]), np.float32)
    truth[where], rows[where] = labels.numpy(), of_teacher.numpy()
    return Examples(CPU, truth, features=rows).at(where)


def unit_length(rows: Tensor) -> list[list[float]]:
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows.double().tolist()]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_contrast_in_a_batch_by_hand():
    heads = InBatch(2, 2, 2, temperature=0.5)
    for head in (heads.student, heads.teacher):
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    axes = torch.eye(2)
    loss = heads(axes, batch_of(torch.tensor([0, 1]), 3 * axes))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-2))] * 2, abs=1e-6)  # similarities 2 and 0
    crossed = heads(axes, batch_of(torch.tensor([0, 1]), axes.flip(0)))
    assert crossed.tolist() == pytest.approx([math.log(1 + math.exp(2))] * 2, abs=1e-6)


def test_contrast_in_a_batch_agrees_with_a_loop():
    torch.manual_seed(0)
    heads, student, teacher = InBatch(5, 3, 4, temperature=0.07), features(0, 6, 5), features(1, 6, 3)
    s, t = unit_length(heads.student(student)), unit_length(heads.teacher(teacher))
    for i, found in enumerate(heads(student, batch_of(torch.arange(6), teacher)).tolist()):
        there = [math.exp(dot(s[i], t[j]) / 0.07) for j in range(6)]
        back = [math.exp(dot(s[j], t[i]) / 0.07) for j in range(6)]
        expected = -(math.log(there[i] / sum(there)) + math.log(back[i] / sum(back))) / 2
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def cd_loss(of_student: Tensor, of_teacher: Tensor, method: CD | None = None) -> float:
    """The method's loss where cross-entropy plays no part."""
    labels = torch.zeros(len(of_student), dtype=torch.int64)
    output = torch.zeros(len(of_student), 3), of_student
    return (method or CD(label_weight=0.0)).loss(TASK, output, batch_of(labels, of_teacher)).mean().item()


def test_cd_by_hand():
    # cosines of the teacher (1, 0; 0, 1), of the student all 1: rows of softmax (e, 1) / (e + 1) and (1/2, 1/2)
    p = math.e / (math.e + 1)
    each = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.ones(2, 3)
    assert cd_loss(student, teacher) == pytest.approx(10 * 2 * each, abs=1e-6)
    entropy = math.log(3)  # of equal logits
    both = cd_loss(student, teacher, CD(weight=2.0, label_weight=0.5))
    assert both == pytest.approx(0.5 * entropy + 2 * 2 * each, abs=1e-6)


@given(SEEDS)
def test_cd_is_zero_for_the_same_features_at_any_length_turned_or_not(seed):
    of_teacher = features(seed, 6, 5)
    turn = torch.linalg.qr(features(seed + 1, 5, 5))[0]
    for of_student in (of_teacher, 3 * of_teacher, of_teacher @ turn, torch.cat([of_teacher, of_teacher], 1)):
        assert cd_loss(of_student, of_teacher) == pytest.approx(0, abs=1e-4)
    assert cd_loss(features(seed + 2, 6, 9), of_teacher) > 1e-3


def test_cd_does_not_depend_on_the_order_of_the_batch_and_a_row_of_zeros_breaks_nothing():
    of_student, of_teacher, order = features(0, 6, 7), features(1, 6, 5), torch.tensor([3, 1, 5, 0, 4, 2])
    assert cd_loss(of_student[order], of_teacher[order]) == pytest.approx(cd_loss(of_student, of_teacher), rel=1e-5)
    of_student[0] = 0
    of_student.requires_grad_(True)
    loss = CD().loss(TASK, (torch.zeros(6, 3), of_student), batch_of(torch.zeros(6, dtype=torch.int64), of_teacher))
    loss.mean().backward()
    assert of_student.grad is not None
    assert of_student.grad.isfinite().all()


def test_cd_needs_no_heads_and_hands_out_the_students_features():
    model, x = Net(), torch.randn(2, 4)
    logits, found = CD().learner([model], batch_of(torch.tensor([0, 1]), features(0, 2, 5)))(x)
    assert torch.equal(logits, model(x))
    assert torch.equal(found, model.body(x).relu())


def bank(labels: Tensor, negatives: int = 4) -> MemoryBank:
    torch.manual_seed(0)
    return MemoryBank(5, 3, 4, 0.5, labels, negatives)


@given(SEEDS)
def test_negatives_are_of_other_classes_and_all_of_them_can_be_drawn(seed):
    labels = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(seed))
    if labels.unique().numel() == 1:
        return
    memory = bank(labels, 3)
    torch.manual_seed(seed)
    seen: dict[int, set[int]] = {y: set() for y in range(3)}
    for _ in range(60):
        drawn = memory.draw(labels)
        assert drawn.shape == (12, memory.negatives)
        assert (labels[drawn] != labels[:, None]).all()
        for y, row in zip(labels.tolist(), drawn.tolist(), strict=True):
            seen[y] |= set(row)
    for y in set(labels.tolist()):
        assert seen[y] == {i for i, other in enumerate(labels.tolist()) if other != y}


def test_negatives_are_clipped_to_what_the_largest_class_leaves():
    assert bank(torch.tensor([0, 0, 0, 1, 2]), 4096).negatives == 2
    assert bank(torch.tensor([0, 1, 2]), 1).negatives == 1
    with pytest.raises(KtError, match="all transfer images are of one class"):
        bank(torch.tensor([1, 1, 1]))


def test_contrast_with_a_memory_agrees_with_a_loop(monkeypatch):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    memory, of_student, of_teacher = bank(labels), features(0, 3, 5), features(1, 3, 3)
    positions = torch.tensor([6, 1, 3])
    drawn = torch.tensor([[0, 2, 3, 1], [2, 3, 4, 5], [7, 0, 6, 4]])
    monkeypatch.setattr(MemoryBank, "draw", lambda self, labels: drawn)
    for _ in range(2):  # the normalisers stay those of the first batch
        before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
        s, t = unit_length(memory.student(of_student)), unit_length(memory.teacher(of_teacher))
        expected = [0.0, 0.0, 0.0]
        for embedded, name in ((s, "teacher_memory"), (t, "student_memory")):
            rows = before[name].tolist()
            which = [[int(positions[i]), *drawn[i].tolist()] for i in range(3)]
            x = [[math.exp(dot(embedded[i], rows[j]) / 0.5) for j in which[i]] for i in range(3)]
            normaliser = float(before[f"{name}_normaliser"]) or 8 * sum(map(sum, x)) / 15
            noise = 4 / 8
            for i in range(3):
                h = [v / normaliser / (v / normaliser + noise) for v in x[i]]
                expected[i] -= math.log(h[0]) + sum(math.log(1 - v) for v in h[1:])
        found = memory(of_student, batch_of(labels[positions], of_teacher, positions))
        assert found.tolist() == pytest.approx(expected, rel=1e-4)
        found.sum().backward()
        for embedded, name in ((s, "student_memory"), (t, "teacher_memory")):
            after = memory.state_dict()[name]
            for i, position in enumerate(positions.tolist()):
                moved = [0.5 * a + 0.5 * b for a, b in zip(before[name][position].tolist(), embedded[i], strict=True)]
                assert after[position].tolist() == pytest.approx(unit_length(torch.tensor([moved]))[0], abs=1e-5)
            others = [i for i in range(8) if i not in positions.tolist()]
            assert torch.equal(after[others], before[name][others])


class Net(nn.Module):
    """A classifier as timm's are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(1, 1)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def test_penultimate_features_are_the_input_of_the_classifier():
    model, x = Net(), torch.randn(2, 4)
    logits, found = Featured(model)(x)
    assert torch.equal(logits, model(x))
    assert torch.equal(found, model.body(x).relu())
    assert Featured(model).width == 6
    assert not model.head._forward_pre_hooks
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert classifier(plain) is plain[2]
    with pytest.raises(KtError, match="no linear classifier"):
        classifier(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("method", [InfoNCE(dim=8), CRD(dim=8, weight=0.5)])
def test_contrastive_methods_add_their_contrast_to_the_cross_entropy(method):
    model, x, labels = Net(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    examples = Examples(CPU, labels.numpy(), features=features(1, 6, 5).numpy())
    learner = method.learner([model], examples)
    assert isinstance(learner, Contrast)
    loss = method.loss(TASK, learner(x), examples.at(torch.arange(6)))
    entropy = losses.cross_entropy(model(x), labels)
    assert (loss > entropy).all()
    loss.sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("model.other"), name


def test_crd_asks_for_the_papers_memory():
    labels = torch.arange(9000) % 3
    heads = CRD().heads(5, 7, labels)
    assert isinstance(heads, MemoryBank)
    assert heads.negatives == 4096
    assert heads.teacher_memory.shape == (9000, 128)
    assert heads.temperature == 0.07
