"""Methods of several models beside plain references of the published code: final weights, to 1e-6."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from published import TRAINING, Batch, Bench, difference, kl
from studies import stored_digits
from torch import Tensor, nn

from kt.tasks.classification import Classification
from kt.transfer.engine import State
from kt.transfer.method import Method, registry
from kt.transfer.session import average, follow

TASK = Classification()


CLOSE = 1e-6
LR = 1e-6  # of Adam, as published; it scales up what float32 makes of gradients that are zero, as of constant pixels
ADAM = {"training": {"optimiser": "adam", "lr": LR}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("published")
    return Bench(stored_digits(folder, transfer=60), folder / "checkpoints")


def share(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(0)[y]


# bikd


def both(first: nn.Module, second: nn.Module, weight: float, stop: bool):
    """Two models: m1 says where the first gives the label more, the second teaches everywhere else."""

    def loss(batch: Batch) -> Tensor:
        one, two = first(batch.images), second(batch.images)
        total = F.cross_entropy(one, batch.labels) + F.cross_entropy(two, batch.labels)
        for z1, z2, y in zip(one, two, batch.labels, strict=True):
            m1 = float(share(z1, y) > share(z2, y))
            teach1, teach2 = (z.detach() if stop else z for z in (z1, z2))
            total = total + weight * (m1 * kl(teach1, z2) + (1 - m1) * kl(teach2, z1)) / len(one)
        return total

    return loss


def among(models: list[nn.Module], stop: bool):
    """Three models or more: the only one that gives the label most teaches all others."""

    def loss(batch: Batch) -> Tensor:
        logits = [model(batch.images) for model in models]
        total = sum((F.cross_entropy(z, batch.labels) for z in logits), torch.zeros(()))
        for i, y in enumerate(batch.labels):
            p = torch.stack([share(z[i], y) for z in logits])
            best = int(p.argmax())
            if (p == p[best]).sum() == 1:
                teacher = logits[best][i].detach() if stop else logits[best][i]
                taught = [kl(teacher, z[i]) for j, z in enumerate(logits) if j != best]
                total = total + torch.stack(taught).sum() / len(batch.labels)
        return total

    return loss


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("adam", [False, True])
def test_bikd_of_two_models(bench, stop, weight, adam):
    models = [bench.double("s"), bench.double("t")]
    changes = ADAM if adam else {}
    plain = bench.plainly(models, both(*models, weight, stop), adam=adam, lr=LR if adam else TRAINING.lr)
    method = registry()["bikd"].model_validate({"weight": weight, "stop_gradient": stop, **changes})
    ours = bench.trained(method)
    for i, (name, weights) in enumerate(zip("st", plain, strict=True)):
        assert difference(ours.last, weights, f"models.{i}.") < CLOSE
        assert difference(ours.last, bench.zoo.models[name].state_dict(), f"models.{i}.") > 1e-5  # it has moved


@pytest.mark.parametrize("stop", [False, True])
def test_bikd_of_three_models(bench, stop):
    models = [bench.double(name) for name in "stu"]
    plain = bench.plainly(models, among(models, stop))
    ours = bench.trained(registry()["bikd"].model_validate({"stop_gradient": stop}), ("t", "u"))
    for i, weights in enumerate(plain):
        assert difference(ours.last, weights, f"models.{i}.") < CLOSE


# several teachers


def best_of_all(student: nn.Module, unsupervised: bool):
    """Each image is taught by whoever gives the label, or any class, most: the frozen student first, then in order."""

    def loss(batch: Batch) -> Tensor:
        own, total = student(batch.images), torch.zeros(())
        for i, y in enumerate(batch.labels):
            candidates = [batch.frozen[i], *(z[i] for z in batch.teachers)]
            scores = [float(z.softmax(0).max() if unsupervised else share(z, y)) for z in candidates]
            total = total + kl(candidates[scores.index(max(scores))], own[i]) / len(own)
        return total

    return loss


@pytest.mark.parametrize("name", ["parallel", "parallel_unsup"])
def test_parallel(bench, name):
    student = bench.double()
    plain = bench.plainly([student], best_of_all(student, name == "parallel_unsup"), teachers=("t", "u"))[0]
    assert difference(bench.trained(registry()[name](), ("t", "u")).last, plain) < CLOSE


def one_teacher(bench: Bench, teacher: str, start: State | None = None, frozen: Tensor | None = None) -> State:
    """One supervised transfer with data partitioning, by the plain loop, from some weights."""
    student = bench.double()
    if start:
        student.load_state_dict(start)
    return bench.plainly([student], best_of_all(student, False), teachers=(teacher,), frozen=frozen)[0]


class Watched:
    """A session that keeps what its trainings leave."""

    def __init__(self, bench: Bench, method: Method, teachers: Sequence[str]) -> None:
        self.bench, self.of = bench, bench.session(method, teachers)

    def ordered(self, teachers, order, seed):
        return self.of.ordered(teachers, order, seed)

    def train(self, method, teachers, seed, start=None, stage=None):
        return self.of.train(method, teachers, seed, start)

    def outcome(self, trained):
        return trained


def test_sequential(bench):
    """At each new teacher the frozen student is the current one and the optimiser is fresh."""
    middle = one_teacher(bench, "t")
    last = one_teacher(bench, "u", middle, bench.logits_of(middle))
    method = registry()["sequential"].model_validate({"order": "given"})
    ours = method.run(Watched(bench, method, "tu"), ["t", "u"], 3)
    assert difference(ours.last, last) < CLOSE


def test_soup(bench):
    students = [one_teacher(bench, teacher) for teacher in "tu"]
    mean = {name: sum(s[name] for s in students) / 2 for name in students[0]}
    method = registry()["soup"]()
    ours = method.run(Watched(bench, method, "tu"), ["t", "u"], 3)
    assert difference(ours.last, mean) < CLOSE


def test_trainings_in_a_row_are_one_and_a_soup_of_one_is_that_one(bench):
    alone = bench.trained(registry()["kl_dp"]())
    assert difference(follow([alone]).last, alone.last) == 0
    assert average([alone]) is alone


# ensembles


def test_ensembles(bench):
    teacher, student = (torch.from_numpy(bench.zoo.logits(name, "test")) for name in "ts")
    surest, mean = [], []
    for t, s in zip(teacher.double().softmax(1), student.double().softmax(1), strict=True):
        surest.append(int((t if t.max() >= s.max() else s).argmax()))
        mean.append(int((t + s).argmax()))
    assert registry()["ensemble_max"]().combine(TASK, teacher, student).argmax(1).tolist() == surest
    assert registry()["ensemble_mean"]().combine(TASK, teacher, student).argmax(1).tolist() == mean
    assert len({*map(tuple, (surest, mean, teacher.argmax(1).tolist(), student.argmax(1).tolist()))}) == 4


def test_equally_confident_models_answer_as_the_teacher_does():
    teacher, student = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    assert registry()["ensemble_max"]().combine(TASK, teacher, student).argmax(1).tolist() == [1]
