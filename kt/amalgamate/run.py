"""The trials of an amalgamation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kt.amalgamate.common import Learner, Output
from kt.amalgamate.losses import concatenate, soft_cross_entropy
from kt.amalgamate.setup import Images, learner_of, needs
from kt.amalgamate.spec import CFL, KD, Amalgamation, EnsembleLogits, EnsembleSoftmax, Supervised, Taught, Teachers
from kt.experiments.bench import Bench
from kt.experiments.kind import Kind
from kt.experiments.trial import Trial
from kt.tasks import losses
from kt.transfer import engine
from kt.transfer.ledger import Record
from kt.transfer.optimise import Rates
from kt.transfer.pieces import forward
from kt.transfer.samples import Samples
from kt.zoo.features import classifier, classifiers


def scores(bench: Bench, teachers: Sequence[str], split: str, softmax: bool = False) -> Tensor:
    """The teachers' concatenated logits, or probabilities, on the chosen images of a split, float32 [n, K]."""
    parts = [bench.cached(name, split) for name in teachers]
    where = [torch.from_numpy(bench.positions(name)).to(bench.device) for name in teachers]
    return concatenate([p.softmax(-1) for p in parts] if softmax else parts, where, len(bench.classes), float("-inf"))


def samples(bench: Bench, trial: Trial) -> Samples:
    """What is known of the chosen transfer images: the teachers' concatenated logits, and labels for the control."""
    labels = torch.from_numpy(bench.labels("transfer")).to(bench.device)
    targets = scores(bench, trial.teachers, "transfer")
    return Samples(targets, labels, torch.ones_like(labels).bool(), torch.arange(len(labels), device=bench.device))


def rates(method: Taught, student: nn.Module) -> Rates:
    """The learning rate of the student's classifier, or of its last linear layer where timm knows none with weights."""
    heads = [head for head in classifiers(student) if any(True for _ in head.parameters())]
    return [(head, method.classifier_lr) for head in heads or [classifier(student)]]


def _plain(bench: Bench, experiment: Amalgamation, trial: Trial, key: str) -> Record:
    """The student alone, with soft targets or labels."""
    method, student = trial.approach, bench.student(trial.seed)
    assert isinstance(method, Taught)

    def loss(output: Tensor, batch: Samples) -> Tensor:
        if method.uses_labels:
            return losses.cross_entropy(output, batch.truth)
        return soft_cross_entropy(batch.targets, output)

    history = engine.train(
        student, bench.view("transfer"), samples(bench, trial), loss, bench.validation_accuracy,
        method.trained(experiment.plan), trial.seed, bench.checkpoint(key), pieces=bench.pieces,
        views=bench.views("transfer"), rates=rates(method, student),
    )  # fmt: skip
    return bench.outcome(student, student, history)


def _common(bench: Bench, experiment: Amalgamation, trial: Trial, key: str) -> Record:
    """The student with soft targets and common features."""
    method = trial.approach
    assert isinstance(method, CFL)
    teachers = {name: bench.teacher(name) for name in trial.teachers}
    student, training = bench.student(trial.seed), method.trained(experiment.plan)
    learner = learner_of(bench, method, student, teachers, trial.seed)
    images, known = Images.of(bench, method, learner, teachers), samples(bench, trial)
    del teachers

    def loss(output: Output, batch: Samples) -> Tensor:
        common = method.mmd_weight * output.mmd(method.sigmas) + method.reconstruction_weight * output.reconstruction
        return soft_cross_entropy(batch.targets, output.logits) + common

    history = engine.train(
        learner, images, known, loss, lambda _: bench.validation_accuracy(student), training, trial.seed,
        bench.checkpoint(key), pieces=bench.pieces, views=bench.views("transfer"), whole=True,
        rates=[*rates(method, student), (learner.spaces, method.block_lr)],
    )  # fmt: skip
    losses_at_end = at_end(learner, images, known, training.batch_size, history.pieces, method.sigmas)
    return bench.outcome(learner, student, history) | {"losses": losses_at_end}


@torch.no_grad()
def at_end(
    learner: Learner, images: Images, known: Samples, batch: int, pieces: int, sigmas: Sequence[float]
) -> dict[str, float]:
    """Mean losses over the transfer images after training, in eval mode, batch by batch as in training."""
    learner.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    steps = len(images) // batch
    for positions in torch.arange(steps * batch).reshape(steps, batch):
        output: Output = forward(learner, [images[part.numpy()] for part in positions.tensor_split(pieces)])
        soft = soft_cross_entropy(known.targets[positions.to(images.device)], output.logits).mean()
        sums += torch.stack([soft, output.mmd(sigmas), output.reconstruction]).cpu()
    return dict(zip(("loss_soft", "loss_mmd", "loss_reconstruction"), (sums / steps).tolist(), strict=True))


def _answer(bench: Bench, experiment: Amalgamation, trial: Trial, key: str) -> Record:
    """The teachers themselves: one alone as it said, several by their cached logits."""
    if trial.approach.name == Teachers.name:
        (name,) = trial.teachers
        return bench.untrained(bench.predicted(name, "test"))
    found = scores(bench, trial.teachers, "test", trial.approach.name == EnsembleSoftmax.name)
    return bench.untrained(found.argmax(-1).cpu().numpy())


AMALGAMATE = Kind(
    run={
        CFL.name: _common,
        KD.name: _plain,
        Supervised.name: _plain,
        Teachers.name: _answer,
        EnsembleLogits.name: _answer,
        EnsembleSoftmax.name: _answer,
    },
    needs=needs,
)
