"""What a training with common features is made of: the learner, its images, and what both will take of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.amalgamate.common import Learner, Output, Space
from kt.amalgamate.features import common_grids, features_of, meet, with_features
from kt.amalgamate.spec import CFL, Amalgamation
from kt.data.inputs import IN_MEMORY, Inputs
from kt.errors import KtError
from kt.experiments import memory
from kt.experiments.bench import Bench
from kt.experiments.needs import Needs
from kt.transfer.approach import Approach
from kt.transfer.memory import size
from kt.transfer.training import Training
from kt.zoo.inference import autocast
from kt.zoo.models import macs


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
            self._kept = [[torch.cat(stage) for stage in zip(*pieces, strict=True)] for pieces in by_teacher]
            self._teachers = []

    @classmethod
    def of(cls, bench: Bench, method: CFL, learner: Learner, teachers: Mapping[str, nn.Module]) -> Images:
        """Those of an experiment; features are computed once where they fit in ``IN_MEMORY`` bytes."""
        featured = {name: _featured(bench, method, name, model).eval() for name, model in teachers.items()}
        views = [bench.view("transfer"), *(bench.view("transfer", bench.teachers.input_of(name)) for name in teachers)]
        keep = feature_bytes(bench, learner, featured) * len(views[0]) <= IN_MEMORY
        return cls(views, list(featured.values()), learner.grids, bench.at_once if keep else 0)

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


def needs(bench: Bench, experiment: Amalgamation, method: Approach) -> Needs | None:
    """What a training with common features takes; everything is built once. None: a plain student.

    Raises:
        KtError: a network cannot be built or has no such stages.
    """
    if not isinstance(method, CFL):
        return None
    training: Training = method.trained(experiment.plan)
    teachers = {name: bench.teacher(name) for name in experiment.teachers}
    learner = learner_of(bench, method, bench.student(0), teachers, 0)
    featured = {name: _featured(bench, method, name, model) for name, model in teachers.items()}
    shapes = [features_of(model, bench.shape(name)) for name, model in featured.items()]
    features = feature_bytes(bench, learner, featured) * len(bench.view("transfer"))
    more = {
        "teachers": sum(map(size, teachers.values())),
        "their features": min(IN_MEMORY, features),
        "images": bench.prepared(experiment.teachers),
    }
    passes = 1 / training.epochs if features <= IN_MEMORY else 1.0
    forward = sum(macs(model, bench.shape(name)) for name, model in teachers.items())
    return memory.needs(_Probe(learner, shapes, method.sigmas), bench.shape(), training, more, passes * forward / 3)
