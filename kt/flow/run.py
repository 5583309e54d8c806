"""The trials of an experiment with knowledge flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.data.inputs import Inputs
from kt.errors import KtError
from kt.experiments import memory as room
from kt.experiments.bench import Bench
from kt.experiments.kind import Kind
from kt.experiments.needs import Needs
from kt.experiments.trial import Trial
from kt.flow import memory
from kt.flow.network import Flow
from kt.flow.spec import Distilled, FineTuned, FlowExperiment, KnowledgeFlow, Scratch, UntrainedFlow
from kt.flow.stages import find
from kt.flow.train import attach, train
from kt.tasks import losses
from kt.transfer import engine
from kt.transfer.approach import Approach
from kt.transfer.ledger import Record
from kt.transfer.samples import Samples
from kt.zoo import weights
from kt.zoo.inference import autocast

Loss = Callable[[Tensor, Samples], Tensor]


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
    """The transfer images of a trial.

    Attributes:
        positions: among the chosen transfer images, view after view, int64 [n].
        labels: where their classes stand among the student's, int64 [n].
    """

    def __init__(self, bench: Bench, experiment: FlowExperiment, seed: int) -> None:
        self._bench, labels = bench, bench.labels("transfer")
        drawn, views = draw(labels[: bench.learnt_from], experiment.images, seed), np.arange(bench.views("transfer"))
        self.positions = (drawn + bench.learnt_from * views[:, None]).ravel()
        self.labels = labels[self.positions]

    def view(self, teacher: str | None = None) -> Inputs:
        """The images as the student, or a teacher, sees them."""
        bench = self._bench
        spec = bench.teachers.input_of(teacher) if teacher else bench.spec
        return bench.images("transfer", bench.chosen["transfer"][self.positions], spec)

    def samples(self) -> Samples:
        """Labels and positions, among these images; there are no targets."""
        labels = torch.from_numpy(self.labels).to(self._bench.device)
        where = torch.arange(len(labels), device=labels.device)
        return Samples(labels.new_empty(len(labels), 0).float(), labels, labels >= 0, where)


def _attached(
    bench: Bench, experiment: FlowExperiment, method: KnowledgeFlow, teachers: list[nn.Module], seed: int
) -> Flow:
    """The student of a seed with its teachers attached.

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
        for name, teacher in zip(experiment.teachers, teachers, strict=True)
    ]
    torch.manual_seed(seed)
    images, views = experiment.learnt_from(bench.learnt_from), bench.views("transfer")
    return attach(
        student, teachers, takes, gives, len(bench.classes), images, method.trained(experiment.plan),
        method.candidates == "all", method.alone, method.rate, views,
    )  # fmt: skip


def _flow(bench: Bench, experiment: FlowExperiment, trial: Trial, key: str) -> Record:
    """Knowledge flow, from the teachers or from others of their architectures with random weights."""
    method, drawn = trial.approach, Drawn(bench, experiment, trial.seed)
    assert isinstance(method, KnowledgeFlow)
    torch.manual_seed(trial.seed)
    make = bench.untaught if isinstance(method, UntrainedFlow) else bench.teacher
    network = _attached(bench, experiment, method, [make(name) for name in trial.teachers], trial.seed)
    views = [drawn.view(), *(drawn.view(name) for name in trial.teachers)]
    history = train(
        network, views, drawn.labels, bench.validation_accuracy,
        lambda: _attached_accuracy(bench, network, trial.teachers), method.trained(experiment.plan), trial.seed,
        bench.checkpoint(key), method.dependency, method.stability, bench.views("transfer"),
        bench.pieces,
    )  # fmt: skip
    return bench.outcome(network, network.student, history) | {
        "weights": network.trace.tolist(),
        "attached": network.attached.tolist(),
        "inlets": [(i.stage.module, [(c.teacher, c.stage.module) for c in i.candidates]) for i in network.inlets],
    }


def _attached_accuracy(bench: Bench, network: Flow, teachers: Sequence[str]) -> float:
    """Validation accuracy of a student with its teachers attached, percent; its mode is left as it was."""
    views = [bench.view("validation"), *(bench.view("validation", bench.teachers.input_of(name)) for name in teachers)]
    labels, training, right = bench.labels("validation"), network.training, 0
    network.eval()
    with torch.inference_mode(), autocast(bench.device):
        for i in range(0, len(labels), bench.at_once):
            part = slice(i, i + bench.at_once)
            said = network([view[part] for view in views]).float().argmax(1)
            right += int((said.cpu().numpy() == labels[part]).sum())
    network.train(training)
    return 100 * right / len(labels)


def _supervised(
    bench: Bench, experiment: FlowExperiment, trial: Trial, key: str, model: nn.Module, loss: Loss
) -> Record:
    """A model that learns by itself from the drawn images."""
    drawn = Drawn(bench, experiment, trial.seed)
    history = engine.train(
        model, drawn.view(), drawn.samples(), loss, bench.validation_accuracy, trial.approach.trained(experiment.plan),
        trial.seed, bench.checkpoint(key), pieces=bench.pieces, views=bench.views("transfer"),
    )  # fmt: skip
    return bench.outcome(model, model, history)


def _labels(logits: Tensor, batch: Samples) -> Tensor:
    return losses.cross_entropy(logits, batch.truth)


def _scratch(bench: Bench, experiment: FlowExperiment, trial: Trial, key: str) -> Record:
    return _supervised(bench, experiment, trial, key, bench.student(trial.seed), _labels)


def _finetune(bench: Bench, experiment: FlowExperiment, trial: Trial, key: str) -> Record:
    """The teacher with a new classifier in the student's place."""
    (name,) = trial.teachers
    place, model = bench.instead(name), bench.teachers.load(name)
    torch.manual_seed(trial.seed)
    model = weights.with_new_head(model, len(bench.classes)).to(bench.device).to(memory_format=torch.channels_last)
    record = _supervised(place, experiment, trial, key, model, _labels)
    bench.trained = place.trained
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


def _distil(bench: Bench, experiment: FlowExperiment, trial: Trial, key: str) -> Record:
    """Labels, and the teachers' answers on the images of classes that they know."""
    method, drawn = trial.approach, Drawn(bench, experiment, trial.seed)
    assert isinstance(method, Distilled)
    where = torch.from_numpy(drawn.positions).to(bench.device)
    cached = [bench.cached(name, "transfer")[where] for name in trial.teachers]
    columns = [torch.from_numpy(bench.positions(name)).to(bench.device) for name in trial.teachers]

    def loss(logits: Tensor, batch: Samples) -> Tensor:
        terms = [
            restricted(logits, batch.truth, teacher[batch.positions], known, method.temperature)
            for teacher, known in zip(cached, columns, strict=True)
        ]
        return _labels(logits, batch) + method.weight * torch.stack(terms).sum(0)

    return _supervised(bench, experiment, trial, key, bench.student(trial.seed), loss)


def check(bench: Bench, experiment: FlowExperiment) -> None:
    """Fail where images, batches or classes do not fit.

    Raises:
        KtError: more images are asked for than there are or fewer than a batch, or no teacher knows a class of the
            student.
    """
    there = bench.learnt_from
    if (experiment.images or 0) > there:
        raise KtError(f"{bench.at}.images: {experiment.images} asked for, but {there} transfer images have its classes")
    for method in experiment.approaches().values():
        training = method.trained(experiment.plan)
        if training.batch_size > experiment.learnt_from(there):
            size = f"{training.batch_size} is larger than images ({experiment.learnt_from(there)})"
            raise KtError(f"{bench.at}.training.batch_size: {size}")
        if isinstance(method, Distilled) and not any((bench.positions(t) >= 0).any() for t in experiment.teachers):
            raise KtError(f"{bench.at}.methods.distil: no teacher knows a class of the student's task")


def needs(bench: Bench, experiment: FlowExperiment, method: Approach) -> Needs | None:
    """What a training by a method takes, of fine-tuning the largest; everything is built once. None: a plain student.

    Raises:
        KtError: a stage is not there or cannot be matched, or a teacher cannot get another classifier.
    """
    training = method.trained(experiment.plan)
    if isinstance(method, FineTuned):
        tuned = [
            room.needs(
                weights.with_new_head(bench.untaught(name), len(bench.classes)).requires_grad_(True), bench.shape(name),
                training, {"images": bench.instead(name).prepared()},
            )
            for name in experiment.teachers
        ]  # fmt: skip
        return max(tuned, key=lambda found: found.total(found.batch))
    if isinstance(method, KnowledgeFlow):
        teachers = [bench.untaught(teacher) for teacher in experiment.teachers]
        network = _attached(bench, experiment, method, teachers, 0)
        shapes = [bench.shape(), *map(bench.shape, experiment.teachers)]
        return memory.needs(network, shapes, training, {"images": bench.prepared(experiment.teachers)})
    return None


FLOW = Kind(
    run={
        KnowledgeFlow.name: _flow,
        UntrainedFlow.name: _flow,
        Distilled.name: _distil,
        FineTuned.name: _finetune,
        Scratch.name: _scratch,
    },
    needs=needs,
    check=check,
)
