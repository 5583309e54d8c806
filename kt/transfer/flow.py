"""Units of experiments with knowledge flow: the student with its teachers attached, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.costs import Needs
from kt.data.inputs import Inputs
from kt.tasks import losses
from kt.transfer import memory
from kt.transfer.batch import Batch, Chosen, Examples
from kt.transfer.bench import Bench
from kt.transfer.knowledge_flow import Flow, inlets
from kt.transfer.learners import Views
from kt.transfer.ledger import Record
from kt.transfer.session import Session
from kt.transfer.training import Training
from kt.zoo import weights
from kt.zoo.inference import autocast, channels_last
from kt.zoo.models import macs
from kt.zoo.stages import find

Distilled: TypeAlias = Any
FineTuned: TypeAlias = Any
KnowledgeFlow: TypeAlias = Any
Scratch: TypeAlias = Any
"""Methods of ``kt.transfer.methods.flow``, which import this module when they run."""

Loss = Callable[[Tensor, Batch], Tensor]
Shape = tuple[int, ...]


def draw(labels: NDArray[np.int64], images: int | None, seed: int) -> NDArray[np.int64]:
    """Positions of images of which all classes have equally many, as far as there are so many, int64 [n], increasing.

    Those of a smaller number are among those of a larger one.

    Args:
        labels: int64 [N].
        images: n, at most N; all when None.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of an image among those of its class, in the order of the draw
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        rank[of_class] = np.arange(len(of_class))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:images])


class Drawn:
    """The transfer images of a unit.

    Attributes:
        positions: among the chosen transfer images, view after view, int64 [n].
        labels: position of their classes among the student's, int64 [n].
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench, labels = bench, bench.truth("transfer")
        views = np.arange(bench.views("transfer"))
        drawn = draw(labels[: bench.learnt_from], bench.settings.images, seed)
        self.positions = (drawn + bench.learnt_from * views[:, None]).ravel()
        self.labels = labels[self.positions]

    def view(self, teacher: str | None = None) -> Inputs:
        """The images as the student, or a teacher, sees them."""
        bench = self._bench
        spec = bench.zoo.input_of(teacher) if teacher else bench.spec
        return bench.images("transfer", bench.chosen["transfer"][self.positions], spec)

    def examples(self, teachers: Sequence[str] = ()) -> Examples:
        """Labels of these images, and answers of some teachers, each of its own classes."""
        answers = [Chosen(self._bench.cached(name, "transfer"), self.positions) for name in teachers]
        return Examples(self._bench.device, self.labels, answers)


def attached(session: Session, method: KnowledgeFlow, teachers: Sequence[str], seed: int) -> Record:
    """Knowledge flow, from the teachers or from others of their architectures with random weights."""
    bench, drawn = session.bench, Drawn(session.bench, seed)
    torch.manual_seed(seed)
    make = bench.untaught if method.untrained else bench.teacher
    network = _attach(bench, method, teachers, [make(name) for name in teachers], seed)
    views = [drawn.view(), *(drawn.view(name) for name in teachers)]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return network.loss(logits, batch.truth, batch.positions, method.dependency, method.stability)

    def validate() -> float:
        alone = bench.value(network.student, "validation")
        network.record(_value_attached(session, network, teachers) if network.open else alone)
        return alone

    trained = session.fit(network, network.student, Views(views), drawn.examples(), loss, validate)
    return session.outcome(trained) | {
        "weights": network.trace.tolist(),
        "attached": network.attached.tolist(),
        "inlets": [(i.stage.module, [(c.teacher, c.stage.module) for c in i.candidates]) for i in network.inlets],
    }


def _attach(
    bench: Bench, method: KnowledgeFlow, names: Sequence[str], teachers: Sequence[nn.Module], seed: int
) -> Flow:
    """The student of a seed with its teachers attached, before training.

    Raises:
        KtError: a stage is not there, or cannot be matched.
    """
    at, student = f"{bench.at}.methods.{method.name}", bench.student(seed)
    takes = find(student, torch.zeros(1, *bench.shape(), device=bench.device), method.stages, f"{at}.stages")
    gives = [
        find(
            teacher,
            torch.zeros(1, *bench.shape(name), device=bench.device),
            method.teacher_stages.get(name, ()),
            f"{at}.teacher_stages.{name}",
        )
        for name, teacher in zip(names, teachers, strict=True)
    ]
    torch.manual_seed(seed)
    training = method.trained(bench.settings.training)
    images = min(bench.learnt_from, bench.settings.images or bench.learnt_from)
    return Flow(
        student,
        teachers,
        inlets(takes, gives, method.candidates == "all"),
        images * bench.views("transfer"),
        bench.outputs,
        training.epochs,
        images // training.batch_size,
        training.batch_size,
        1 - method.alone,
        method.rate,
    )


def _value_attached(session: Session, network: Flow, teachers: Sequence[str]) -> float:
    """Validation accuracy of a student with its teachers attached, percent; its mode is left as it was."""
    bench = session.bench
    views = [bench.view("validation"), *(bench.view("validation", bench.zoo.input_of(name)) for name in teachers)]
    labels, training, right, at_once = bench.truth("validation"), network.training, 0, bench.at_once(session.pieces)
    network.eval()
    with torch.inference_mode(), autocast(bench.device):
        for i in range(0, len(labels), at_once):
            part = slice(i, i + at_once)
            predicted = network([view[part] for view in views]).float().argmax(1)
            right += int((predicted.cpu().numpy() == labels[part]).sum())
    network.train(training)
    return 100 * right / len(labels)


def _alone(session: Session, model: nn.Module, loss: Loss, drawn: Drawn, teachers: Sequence[str] = ()) -> Record:
    """A model that learns by itself from the drawn images, and cached answers of teachers."""
    return session.outcome(session.fit(model, model, drawn.view(), drawn.examples(teachers), loss))


def _labels(logits: Tensor, batch: Batch) -> Tensor:
    return losses.cross_entropy(logits, batch.truth)


def scratch(session: Session, method: Scratch, seed: int) -> Record:
    """The student alone, from labels."""
    return _alone(session, session.bench.student(seed), _labels, Drawn(session.bench, seed))


def finetune(session: Session, method: FineTuned, teacher: str, seed: int) -> Record:
    """A teacher with a new classifier in the student's place."""
    place, model = session.bench.instead(teacher), session.bench.zoo.load(teacher)
    torch.manual_seed(seed)
    model = channels_last(weights.with_new_head(model, place.outputs).to(place.device))
    inside = Session(place, session.unit, session.key, session.pieces)
    record = _alone(inside, model, _labels, Drawn(place, seed))
    session.left = inside.left
    return record


def restricted(logits: Tensor, labels: Tensor, teacher: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """[teacher knows the label] · T² · KL(p_teacher ‖ p), both over the classes that both know, float32 [B].

    Args:
        logits: the student's, [B, K].
        labels: int64 [B].
        teacher: its logits, [B, K'].
        columns: where its classes stand among the student's, int64 [K']; −1 where they do not.
        temperature: T.
    """
    common = columns >= 0
    term = losses.distillation(teacher[:, common], logits[:, columns[common]], temperature)
    return torch.isin(labels, columns[common]) * term


def distil(session: Session, method: Distilled, teachers: Sequence[str], seed: int) -> Record:
    """Labels, and the teachers' answers on the images of classes that they know."""
    bench, drawn = session.bench, Drawn(session.bench, seed)
    columns = [torch.from_numpy(bench.positions(name)).to(bench.device) for name in teachers]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        terms = [
            restricted(logits, batch.truth, teacher, known, method.temperature)
            for teacher, known in zip(batch.teachers, columns, strict=True)
        ]
        total: Tensor = _labels(logits, batch) + method.weight * torch.stack(terms).sum(0)
        return total

    return _alone(session, bench.student(seed), loss, drawn, teachers)


class _Attached(nn.Module):
    """The network on given images, whatever it is called with: what measures a model passes the student's alone."""

    def __init__(self, network: Flow, images: Sequence[Tensor]) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network([image.expand(len(x), *image.shape[1:]) for image in self.images])
        return logits


def needs(bench: Bench, method: KnowledgeFlow, teachers: Sequence[str]) -> Needs:
    """Of a training with teachers attached: student, Q and scalars, the teachers, and the forward passes of all.

    Raises:
        KtError: a stage is not there or cannot be matched.
    """
    network = _attach(bench, method, teachers, [bench.untaught(name) for name in teachers], 0)
    more = {"images": bench.prepared(teachers)}
    shapes = [bench.shape(), *map(bench.shape, teachers)]
    return needs_attached(network, shapes, method.trained(bench.settings.training), more)


def needs_attached(network: Flow, shapes: Sequence[Shape], training: Training, more: Mapping[str, int]) -> Needs:
    """Memory and operations of a training of ``network``.

    Args:
        network: before training; it is left as it is.
        shapes: channels, height and width of what each network sees, the student first.
        training: batch size and optimiser.
        more: bytes that are held beside it, by what they are.
    """
    images = [torch.zeros(1, *shape, device=network.scalars.device) for shape in shapes]
    held = {"teachers": sum(map(memory.size, network.teachers)), **more}
    forward = sum(macs(teacher, shape) for teacher, shape in zip(network.teachers, shapes[1:], strict=True))
    return memory.needs(_Attached(network, images), shapes[0], training, held, -forward * 2 / 3)


def needs_of_finetuning(bench: Bench, method: FineTuned, teachers: Sequence[str]) -> Needs:
    """Of fine-tuning the largest teacher.

    Raises:
        KtError: a teacher cannot get another classifier.
    """
    found = []
    for name in teachers:
        model = weights.with_new_head(bench.untaught(name), bench.outputs).requires_grad_(True)
        more = {"images": bench.instead(name).prepared()}
        found.append(memory.needs(model, bench.shape(name), method.trained(bench.settings.training), more))
    return max(found, key=lambda of_teacher: of_teacher.total(of_teacher.batch))
