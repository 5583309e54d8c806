"""Units of amalgamation: soft targets of several teachers' classes, and features that meet in a common space.

Source: CFL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.costs import Needs
from kt.data.inputs import IN_MEMORY, Inputs
from kt.errors import KtError
from kt.tasks import losses
from kt.transfer import memory
from kt.transfer.batch import Batch, Examples, forward
from kt.transfer.bench import Bench
from kt.transfer.common_space import Learner, Output, Space, concatenate, soft_cross_entropy
from kt.transfer.engine import Rates
from kt.transfer.ledger import Record
from kt.transfer.session import Session
from kt.zoo.features import classifier, classifiers
from kt.zoo.inference import autocast
from kt.zoo.models import macs
from kt.zoo.stages import common_grids, features_of, meet, with_features

CFL: TypeAlias = Any
Taught: TypeAlias = Any
"""Methods of ``kt.transfer.methods.amalgamation``, which import this module when they run."""


def examples(bench: Bench, teachers: Sequence[str], split: str, softmax: bool = False) -> Examples:
    """The chosen images of a split; targets are the teachers' concatenated logits, or probabilities, [n, K]."""
    where = [torch.from_numpy(bench.positions(name)).to(bench.device) for name in teachers]

    def merge(batch: Batch) -> tuple[Tensor, Tensor]:
        parts = [answers.softmax(-1) for answers in batch.teachers] if softmax else batch.teachers
        targets = concatenate(parts, where, bench.outputs, float("-inf"))
        return targets, torch.ones(len(batch), dtype=torch.bool, device=bench.device)

    answers = [bench.cached(name, split) for name in teachers]
    return Examples(bench.device, bench.truth(split), answers, merge=merge)


def ensemble(bench: Bench, teachers: Sequence[str], split: str, softmax: bool) -> NDArray[np.int64]:
    """Classes with the teachers' largest concatenated logits, or probabilities, of a split's chosen images, [n]."""
    batches = examples(bench, teachers, split, softmax).blocks()
    return np.concatenate([batch.targets.argmax(-1).cpu().numpy() for batch in batches])


def rates(method: Taught, student: nn.Module) -> Rates:
    """The learning rate of the student's classifier, or of its last linear layer where timm knows none with weights."""
    heads = [head for head in classifiers(student) if any(True for _ in head.parameters())]
    return [(head, method.classifier_lr) for head in heads or [classifier(student)]]


def alone(session: Session, method: Taught, teachers: Sequence[str], seed: int) -> Record:
    """The student alone, with soft targets or labels."""
    bench, student = session.bench, session.bench.student(seed)

    def loss(output: Tensor, batch: Batch) -> Tensor:
        if method.uses_labels:
            return losses.cross_entropy(output, batch.truth)
        return soft_cross_entropy(batch.targets, output)

    known = examples(bench, teachers, "transfer")
    trained = session.fit(student, student, bench.view("transfer"), known, loss, rates=rates(method, student))
    return session.outcome(trained)


def with_common_features(session: Session, method: CFL, teachers: Sequence[str], seed: int) -> Record:
    """The student with soft targets and common features."""
    bench = session.bench
    models = {name: bench.teacher(name) for name in teachers}
    student = bench.student(seed)
    learner = learner_of(bench, method, student, models, seed)
    images = Images.of(bench, method, learner, models, bench.at_once(session.pieces))
    known = examples(bench, teachers, "transfer")
    del models

    def loss(output: Output, batch: Batch) -> Tensor:
        common = method.mmd_weight * output.mmd(method.sigmas) + method.reconstruction_weight * output.reconstruction
        total: Tensor = soft_cross_entropy(batch.targets, output.logits) + common
        return total

    moving = [*rates(method, student), (learner.spaces, method.block_lr)]
    trained = session.fit(learner, student, images, known, loss, rates=moving, whole=True)
    batch = method.trained(bench.settings.training).batch_size
    losses_at_end = at_end(learner, images, known, batch, trained.pieces, method.sigmas)
    return session.outcome(trained) | {"losses": losses_at_end}


@torch.no_grad()
def at_end(
    learner: Learner, images: Images, known: Examples, batch: int, pieces: int, sigmas: Sequence[float]
) -> dict[str, float]:
    """Mean losses over the transfer images after training, in eval mode, batch by batch as in training."""
    learner.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    steps = len(images) // batch
    for positions in torch.arange(steps * batch).reshape(steps, batch):
        output: Output = forward(learner, [images[part.numpy()] for part in positions.tensor_split(pieces)])
        soft = soft_cross_entropy(known.at(positions).targets, output.logits).mean()
        sums += torch.stack([soft, output.mmd(sigmas), output.reconstruction]).cpu()
    return dict(zip(("loss_soft", "loss_mmd", "loss_reconstruction"), (sums / steps).tolist(), strict=True))


def learner_of(bench: Bench, method: CFL, student: nn.Module, teachers: Mapping[str, nn.Module], seed: int) -> Learner:
    """The student with its common spaces, whose weights are those of a seed.

    Raises:
        KtError: a network has no such stages.
    """
    found = {name: _featured(bench, method, name, model) for name, model in teachers.items()}
    own = _featured(bench, method, None, student)
    shapes = [features_of(own, bench.shape()), *(features_of(found[t], bench.shape(t)) for t in teachers)]
    torch.manual_seed(seed)
    spaces = [
        Space(of_student[0], [f[0] for f in of_teachers], method.width, method.blocks, maps=method.variant == "map")
        for of_student, *of_teachers in zip(*shapes, strict=True)
    ]
    learner = Learner(own, spaces, common_grids(shapes))
    return learner.to(bench.device)


def _featured(bench: Bench, method: CFL, teacher: str | None, model: nn.Module) -> nn.Module:
    try:
        return with_features(model, method.variant, method.stages, bench.shape(teacher))
    except KtError as error:
        whose = f"teacher {teacher!r}" if teacher else "the student"
        raise KtError(f"{bench.at}.methods.cfl.stages: {whose}: {error}") from error


class Images:
    """The chosen transfer images as the student sees them, and the teachers' features of them, by position.

    Args:
        views: the images as the student and each teacher see them.
        teachers: give logits and features.
        grids: on which the networks meet, one a stage.
        keep: so many images at once give all features, float32 [n, C, h, w] or [n, C], which are then kept; where 0,
            features are computed batch by batch.
    """

    def __init__(
        self, views: Sequence[Inputs], teachers: Sequence[nn.Module], grids: Sequence[tuple[int, int]], keep: int
    ) -> None:
        self.device, self._views, self._teachers, self._grids = views[0].device, views, teachers, grids
        self._kept: list[list[Tensor]] | None = None
        if keep:
            parts = [self._features(np.arange(i, min(i + keep, len(self)))) for i in range(0, len(self), keep)]
            by_teacher = zip(*parts, strict=True)
            self._kept = [[torch.cat(stage) for stage in zip(*parts, strict=True)] for parts in by_teacher]
            self._teachers = []

    @classmethod
    def of(cls, bench: Bench, method: CFL, learner: Learner, teachers: Mapping[str, nn.Module], at_once: int) -> Images:
        """Those of an experiment; features are computed once, ``at_once``, where they fit in ``IN_MEMORY`` bytes."""
        featured = {name: _featured(bench, method, name, model).eval() for name, model in teachers.items()}
        views = [bench.view("transfer"), *(bench.view("transfer", bench.zoo.input_of(name)) for name in teachers)]
        keep = feature_bytes(bench, learner, featured) * len(views[0]) <= IN_MEMORY
        return cls(views, list(featured.values()), learner.grids, at_once if keep else 0)

    def __len__(self) -> int:
        return len(self._views[0])

    def __getitem__(self, positions: NDArray[np.int64]) -> tuple[Tensor, list[list[Tensor]]]:
        """The student's images [b, C, S, S], and the features by teacher and stage."""
        images = self._views[0][positions]
        if self._kept is None:
            return images, self._features(positions)
        where = torch.from_numpy(positions).to(self.device)
        return images, [[stage[where] for stage in of_teacher] for of_teacher in self._kept]

    @torch.no_grad()
    def _features(self, positions: NDArray[np.int64]) -> list[list[Tensor]]:
        with autocast(self.device):
            found = [teacher(view[positions])[1] for teacher, view in zip(self._teachers, self._views[1:], strict=True)]
        return [
            [meet(f.float(), grid) for f, grid in zip(of_teacher, self._grids, strict=True)] for of_teacher in found
        ]


def feature_bytes(bench: Bench, learner: Learner, teachers: Mapping[str, nn.Module]) -> int:
    """Bytes of all teachers' features of one image on the common grids."""
    shapes = {name: features_of(model, bench.shape(name)) for name, model in teachers.items()}
    return 4 * sum(
        shape[0] * grid[0] * grid[1]
        for of_teacher in shapes.values()
        for shape, grid in zip(of_teacher, learner.grids, strict=True)
    )


class _Probe(nn.Module):
    """A learner as a function of one image alone, to measure what its forward pass keeps."""

    def __init__(self, learner: Learner, shapes: Sequence[Sequence[tuple[int, ...]]], sigmas: Sequence[float]) -> None:
        super().__init__()
        self.learner, self.shapes, self.sigmas = learner, shapes, sigmas

    def forward(self, x: Tensor) -> Tensor:
        teachers = [
            [
                meet(x.new_zeros(len(x), *shape), grid)
                for shape, grid in zip(of_teacher, self.learner.grids, strict=True)
            ]
            for of_teacher in self.shapes
        ]
        output: Output = self.learner((x, teachers))
        return output.logits.sum() + output.mmd(self.sigmas) + output.reconstruction


def needs(bench: Bench, method: CFL, teachers: Sequence[str]) -> Needs:
    """Of a training with common features; everything is built once.

    Raises:
        KtError: a network cannot be built or has no such stages.
    """
    training = method.trained(bench.settings.training)
    models = {name: bench.teacher(name) for name in teachers}
    learner = learner_of(bench, method, bench.student(0), models, 0)
    featured = {name: _featured(bench, method, name, model) for name, model in models.items()}
    shapes = [features_of(model, bench.shape(name)) for name, model in featured.items()]
    features = feature_bytes(bench, learner, featured) * len(bench.view("transfer"))
    more = {
        "teachers": sum(map(memory.size, models.values())),
        "their features": min(IN_MEMORY, features),
        "images": bench.prepared(teachers),
    }
    passes = 1 / training.epochs if features <= IN_MEMORY else 1.0
    forward = sum(macs(model, bench.shape(name)) for name, model in models.items())
    return memory.needs(_Probe(learner, shapes, method.sigmas), bench.shape(), training, more, passes * forward / 3)
