"""Methods of one teacher beside plain references of the published code: final weights of the student, to 1e-6."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published import SEED, Batch, Bench, difference, each, kl
from studies import stored_digits
from torch import Tensor, nn

from kt.transfer.learners import MemoryBank
from kt.transfer.method import registry

CLOSE = 1e-6
LR = 2e-3  # where losses are large or their temperature low, so that float32 does not drift away from float64
SLOWLY = {"training": {"lr": LR}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("published")
    return Bench(stored_digits(folder, transfer=60), folder / "checkpoints")


# who is the target of image i of a batch, for the methods whose whole loss is distillation


def most_on_label(batch: Batch, own: Tensor, i: int) -> Tensor:
    teacher, frozen, y = batch.teachers[0][i], batch.frozen[i], batch.labels[i]
    return teacher if teacher.softmax(0)[y] > frozen.softmax(0)[y] else frozen


def most_confident(batch: Batch, own: Tensor, i: int) -> Tensor:
    teacher, frozen = batch.teachers[0][i], batch.frozen[i]
    return teacher if teacher.softmax(0).max() > frozen.softmax(0).max() else frozen


def by_flips(neutral: str, judge: str):
    """The published rule: `running` logits judge, the frozen student's teach; the mean is of teacher and judge."""

    def target(batch: Batch, own: Tensor, i: int) -> Tensor:
        teacher, frozen, y = batch.teachers[0][i], batch.frozen[i], batch.labels[i]
        student = own[i] if judge == "running" else frozen
        teacher_right, student_right = teacher.argmax() == y, student.argmax() == y
        if teacher_right != student_right:
            return teacher if teacher_right else frozen
        return {"teacher": teacher, "student": frozen, "mean": torch.stack([teacher, student]).mean(0)}[neutral]

    return target


RULES = [
    pytest.param("kl", {}, lambda batch, own, i: batch.teachers[0][i], id="kl"),
    pytest.param("self", {}, lambda batch, own, i: batch.frozen[i], id="self"),
    pytest.param("kl_dp", {}, most_on_label, id="kl_dp"),
    pytest.param("kl_dp_unsup", {}, most_confident, id="kl_dp_unsup"),
    *(
        pytest.param(f"flip_{neutral}", {"student": judge}, by_flips(neutral, judge), id=f"flip_{neutral}, {judge}")
        for neutral in ("teacher", "student", "mean")
        for judge in ("frozen", "running")
    ),
]


@pytest.mark.parametrize(("name", "parameters", "rule"), RULES)
def test_distillation_towards_targets(bench, name, parameters, rule):
    student = bench.double()

    def loss(batch: Batch) -> Tensor:
        own = student(batch.images)
        return each([rule(batch, own, i) for i in range(len(own))], own)

    method = registry()[name].model_validate(parameters)
    ours = bench.trained(method, () if method.control else ("t",))
    assert difference(ours.last, bench.plainly([student], loss)[0]) < CLOSE
    assert difference(ours.last, bench.weights) > 1e-3  # it has moved


def test_the_flips_of_the_running_student_are_others_than_those_of_the_frozen_one(bench):
    for name in ("flip_teacher", "flip_student", "flip_mean"):
        frozen, running = (
            bench.trained(registry()[name].model_validate({"student": judge})) for judge in ("frozen", "running")
        )
        assert difference(frozen.last, running.last) > 1e-4
        assert frozen.shares == running.shares  # that at the start


def test_finetune(bench):
    student = bench.double()

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(student(batch.images), batch.labels)

    ours = bench.trained(registry()["finetune"](), ())
    assert difference(ours.last, bench.plainly([student], loss)[0]) < CLOSE


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_xekl(bench, temperature):
    student = bench.double()

    def loss(batch: Batch) -> Tensor:
        own = student(batch.images)
        targets = [z / temperature for z in batch.teachers[0]]
        distilled = temperature**2 * each(targets, own / temperature)
        return 0.5 * distilled + 0.5 * F.cross_entropy(own, batch.labels)

    ours = bench.trained(registry()["xekl"].model_validate({"temperature": temperature}))
    assert difference(ours.last, bench.plainly([student], loss)[0]) < CLOSE


def taught_by(batch: Batch, own: Tensor, i: int, judge: str) -> bool:
    """Whether the teacher teaches an image by `xekl_mcl`: it is no negative flip."""
    student = own[i] if judge == "running" else batch.frozen[i]
    return bool(batch.teachers[0][i].argmax() == batch.labels[i]) or bool(student.argmax() != batch.labels[i])


def mcl_loss(student: nn.Module, judge: str = "frozen", mean: str = "batch", top: int = 10):
    def loss(batch: Batch) -> Tensor:
        own = student(batch.images)
        parts = []
        for i, z in enumerate(batch.teachers[0]):
            if taught_by(batch, own, i, judge):
                likely = z.sort(descending=True).indices[:top]
                parts.append(kl(z[likely], own[i][likely]))
        count = len(own) if mean == "batch" else len(parts)
        distilled = torch.stack(parts).sum() / count if parts else own.new_zeros(())
        return 0.68 * distilled + 0.32 * F.cross_entropy(own, batch.labels)

    return loss


class Momentum:
    """Slow weights as the paper has them: a copy that follows after every second step of all."""

    def __init__(self, student: nn.Module, tau: float) -> None:
        self.student, self.tau, self.steps = student, tau, 0
        self.slow = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def stepped(self, step: int) -> None:
        self.steps += 1
        if self.steps % 2 == 0:
            self.follow()

    def follow(self) -> None:
        for name, fast in self.student.state_dict().items():
            self.slow[name] = self.tau * self.slow[name] + (1 - self.tau) * fast

    def evaluated(self) -> None:
        pass


class PublishedMomentum(Momentum):
    """As published: a state dict that refers to the weights themselves, in training and in evaluation."""

    def __init__(self, student: nn.Module, tau: float) -> None:
        super().__init__(student, tau)
        self.slow = dict(student.state_dict())

    def stepped(self, step: int) -> None:
        if step % 2 == 0:
            self.follow()

    def evaluated(self) -> None:
        kept = self.student.state_dict()  # the very tensors that the next line writes to
        self.student.load_state_dict(self.slow)
        self.student.load_state_dict(kept)


HABITS = {"updates": "each_epoch", "start": "shared", "evaluation": "overwrites"}


@pytest.mark.parametrize("flips", ["frozen", "running"])
@pytest.mark.parametrize("mean", ["batch", "taught"])
@pytest.mark.parametrize("top", [None, 3])
@pytest.mark.parametrize("published", [False, True])
def test_xekl_mcl(bench, flips, mean, top, published):
    student = bench.double()
    slow = (PublishedMomentum if published else Momentum)(student, 0.8)
    loss = mcl_loss(student, flips, mean, top or 10)
    bench.plainly([student], loss, stepped=slow.stepped, evaluated=slow.evaluated)
    options = {"flips": flips, "mean": mean, "top": top, **(HABITS if published else {})}
    ours = bench.trained(registry()["xekl_mcl"].model_validate({"tau": 0.8, **options}))
    assert difference(ours.last, slow.slow) < CLOSE


@pytest.mark.parametrize("left_out", HABITS)
def test_each_published_habit_of_the_slow_weights_makes_a_difference(bench, left_out):
    student = bench.double()
    slow = PublishedMomentum(student, 0.8)
    bench.plainly([student], mcl_loss(student), stepped=slow.stepped, evaluated=slow.evaluated)
    some = {name: value for name, value in HABITS.items() if name != left_out}
    ours = bench.trained(registry()["xekl_mcl"].model_validate({"tau": 0.8, **some}))
    assert difference(ours.last, slow.slow) > 1e-4


def cosines(features: Tensor) -> Tensor:
    return torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in features]) for a in features])


def test_cd(bench):
    student = bench.double()

    def loss(batch: Batch) -> Tensor:
        features = student.body(batch.images)
        of_student, of_teacher = cosines(features), cosines(batch.features)
        similar = sum(kl(t, s) for t, s in zip(of_teacher, of_student, strict=True))
        return 0.1 * F.cross_entropy(student.head(features), batch.labels) + 10 * similar

    ours = bench.trained(registry()["cd"].model_validate(SLOWLY))
    assert difference(ours.last, bench.plainly([student], loss, lr=LR)[0], "model.") < CLOSE


def heads(bench: Bench, name: str) -> nn.Module:
    """The trained heads of a contrastive method as they are at its start, in float64."""
    method = registry()[name].model_validate({"dim": 6})
    examples = bench.session(method)._examples(method, "s", ["t"], bench.zoo.logits("s", "transfer"))
    torch.manual_seed(SEED)
    return method.learner([bench.zoo.load("s")], examples).heads.double()


def test_infonce(bench):
    student, embed = bench.double(), heads(bench, "infonce")
    whole = nn.ModuleDict({"model": student, "heads": embed})

    def loss(batch: Batch) -> Tensor:
        features = student.body(batch.images)
        s, t = F.normalize(embed.student(features)), F.normalize(embed.teacher(batch.features))
        similar = s @ t.T / 0.07
        order = torch.arange(len(s))
        contrast = (F.cross_entropy(similar, order) + F.cross_entropy(similar.T, order)) / 2
        return F.cross_entropy(student.head(features), batch.labels) + 0.8 * contrast

    ours = bench.trained(registry()["infonce"].model_validate({"dim": 6, **SLOWLY}))
    assert difference(ours.last, bench.plainly([whole], loss, lr=LR)[0]) < CLOSE


def test_crd(bench, monkeypatch):
    """Both directions by noise-contrastive estimation, each embedding beside the other network's remembered ones."""
    count = 8
    negatives = {int(y): torch.nonzero(bench.labels != y)[:count, 0] for y in bench.labels.unique()}
    monkeypatch.setattr(MemoryBank, "draw", lambda self, labels: torch.stack([negatives[int(y)] for y in labels]))
    student, embed = bench.double(), heads(bench, "crd")
    embed.negatives = count
    whole = nn.ModuleDict({"model": student, "heads": embed})
    n, normalisers = len(bench.labels), {}

    def direction(embedded: Tensor, batch: Batch, memory: str) -> Tensor:
        which = [[int(p), *negatives[int(y)].tolist()] for p, y in zip(batch.positions, batch.labels, strict=True)]
        rows = getattr(embed, memory)[torch.tensor(which)]
        x = torch.stack([(r @ e / 0.07).exp() for r, e in zip(rows, embedded, strict=True)])
        x = x / normalisers.setdefault(memory, x.detach().mean() * n)
        noise = count / n
        positive, others = x[:, :1], x[:, 1:]
        return -((positive / (positive + noise)).log().sum() + (noise / (others + noise)).log().sum()) / len(x)

    def loss(batch: Batch) -> Tensor:
        features = student.body(batch.images)
        s, t = F.normalize(embed.student(features)), F.normalize(embed.teacher(batch.features))
        contrast = direction(s, batch, "teacher_memory") + direction(t, batch, "student_memory")
        with torch.no_grad():
            for memory, embedded in (("student_memory", s), ("teacher_memory", t)):
                remembered = getattr(embed, memory).clone()
                remembered[batch.positions] = F.normalize(0.5 * remembered[batch.positions] + 0.5 * embedded)
                setattr(embed, memory, remembered)
        return F.cross_entropy(student.head(features), batch.labels) + 0.8 * contrast

    plain = bench.plainly([whole], loss, lr=LR)[0]
    ours = bench.trained(registry()["crd"].model_validate({"dim": 6, "negatives": count, **SLOWLY}))
    compared = {name: tensor for name, tensor in plain.items() if "normaliser" not in name}
    assert difference(ours.last, compared) < CLOSE
    for memory, value in normalisers.items():
        assert abs(float(ours.last[f"heads.{memory}_normaliser"]) / float(value) - 1) < 1e-5  # a sum of many powers
