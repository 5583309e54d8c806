"""Helpers of several stages: the device, the zoo as jobs read it, and the facts in every table."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kt import predictions, status, store
from kt.control.study import ControlStudy
from kt.data.datasets import Dataset
from kt.data.seen import InputSpec
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.study import recipes
from kt.study.recipes import RECIPE
from kt.study.study import Study
from kt.tables import gather, schema
from kt.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

MADE_FROM = "made_from"
"""Fact of a member: hash of all that its weights were made from; no property of the model."""


def metadata(study: Study | ControlStudy) -> dict[str, str]:
    """The configuration's hash, the task, the data set's name and the libraries' versions, for a table's file."""
    versions = {f"version_{name}": v for name, v in gather.versions().items()}
    data = "games" if isinstance(study, ControlStudy) else PurePath(study.data.source).name
    facts = {schema.TASK: study.task.words.to_json(), "data": data}
    return {"config_hash": study.hash, **facts, **versions}


def note_recipe(study: Study | ControlStudy, layout: Layout, name: str) -> None:
    """Note in a member's facts which recipe its weights and predictions are of; the last step of making them."""
    facts = store.read_json(layout.member(name))
    store.write_json(layout.member(name), facts | {RECIPE: recipes.of_member(study, name)})


def truth_of(dataset: Dataset, split: str, task: Task) -> Any:
    """The truth of a split's images, [n, …]; where it is a map, read on demand."""
    return dataset.truths(split) if task.spatial else dataset.truth[dataset.rows(split)]


def check_predictions(study: Study, layout: Layout, dataset: Dataset, names: Iterable[str]) -> None:
    """Fail where predictions of a task whose truths are maps, which they are scored by, are about other ones.

    Raises:
        KtError: naming the file.
    """
    for name in names if study.task.spatial else ():
        path = layout.predictions(name)
        if predictions.File.open(path).fact("data") != study.shown(dataset.hash):
            raise KtError(f"{path}: of other images, truths or views than the study has now; delete it and run again")


def known_model(study: Study, name: str) -> str:
    """``name``, where it is a member of the zoo; raises ``KtError`` where it is not."""
    if name not in study.zoo.models:
        raise KtError(unknown("model", name, study.members))
    return name


def pick_device(name: str, threads: int) -> torch.device:
    """The device that the configuration names; ``auto`` takes a GPU where there is one."""
    import torch

    torch.set_num_threads(threads)
    keep_freed()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KtError(f"device: {name!r}, but torch finds no GPU here; allowed: auto, cpu")
    return torch.device(name)


def channels(study: Study, name: str, data: Dataset) -> int:
    """Colour channels that a member sees: grey images go to a model for colour images as three equal channels."""
    return channels_of(f"zoo.models.{name}", study.zoo.input_of(name), data)


def channels_of(at: str, spec: InputSpec, data: Dataset) -> int:
    """Colour channels that a model with some input sees; ``at`` is its place in the configuration."""
    mean = len(spec.mean)
    if mean not in (1, data.channels) and data.channels != 1:
        raise KtError(f"{at}: input has {mean} channels, the images have {data.channels}")
    return max(mean, data.channels)


def outputs(study: Study, name: str, data: Dataset) -> int:
    """Outputs of a member: those that the task needs, of a specialist one per class that it knows."""
    if classes := study.zoo.models[name].classes:
        return len(classes)
    return study.task.outputs(data.truth, list(data.class_names))


def build(study: Study, name: str, data: Dataset) -> nn.Module:
    """A member's architecture with fresh weights and the outputs that the task needs."""
    from kt.zoo import models

    models.import_modules(study.zoo.modules)
    member = study.zoo.models[name]
    try:
        return models.build(member.arch, member.args, outputs(study, name, data), channels(study, name, data))
    except KtError as error:
        raise KtError(f"zoo.models.{name}: {str(error).removeprefix('zoo: ')}") from error


@dataclass(frozen=True)
class ZooFiles:
    """The zoo as a job reads it: predictions and weights."""

    study: Study
    layout: Layout
    dataset: Dataset

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return status.fingerprints(self.layout, self.study.members)

    def fingerprint(self, name: str) -> str:
        """Hash of architecture, input and weights."""
        return self._fingerprints[name]

    def logits(self, name: str, split: str) -> predictions.Answers | None:
        """Cached answers, floats [N, …], memory-mapped; None where they are not kept."""
        return predictions.read(self.layout.predictions(name), split).answers

    def predicted(self, name: str, split: str) -> NDArray[np.int64]:
        """Predicted classes, int64 [N]."""
        return predictions.read(self.layout.predictions(name), split).kept

    def likeliest(self, name: str, split: str) -> NDArray[np.uint8]:
        """Its class of each element, of a dense task, uint8 [N, H, W], memory-mapped."""
        return predictions.File.open(self.layout.predictions(name), split).map(f"{split}.top")

    def features(self, name: str, split: str) -> NDArray[np.float16]:
        """Cached penultimate features, float16 [N, D]; raises ``KtError`` where there are none."""
        path = self.layout.predictions(name)
        found = predictions.read(path, split).features
        if found is None:
            raise KtError(f"{path}: holds no features; `kt predictions --model {name}` makes it again with them")
        return found

    def load(self, name: str) -> nn.Module:
        """The model with its weights."""
        from kt.zoo import weights

        return weights.load(build(self.study, name, self.dataset), self.layout.weights(name))

    def fresh(self, name: str) -> nn.Module:
        """The architecture with fresh weights, from torch's global generator."""
        return build(self.study, name, self.dataset)

    def architecture(self, name: str) -> tuple[str, dict[str, Any]]:
        """Its ``arch`` and ``args``."""
        member = self.study.zoo.models[name]
        return member.arch, member.args

    def input_of(self, name: str) -> InputSpec:
        """Its input."""
        return self.study.zoo.input_of(name)


class FreshZoo(ZooFiles):
    """The same before any weights are there."""

    def load(self, name: str) -> nn.Module:
        """The architecture with fresh weights."""
        return self.fresh(name)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of glibc's malloc.h
TRIM_FROM = 1 << 30
"""Free memory at the end of the heap from which on it is given back, in bytes."""


def keep_freed() -> bool:
    """Let this process keep freed blocks, instead of returning their pages and faulting them in again at every step.

    Without it a training step on the CPU spends 7 to 12 % of its time in page faults (docs/performance.md). No block
    gets a mapping of its own, however large: the answers to a batch of 8 images of 256 pixels with 21 classes have 44
    MB. The tensors of a step are those of the step before, so the process does not grow.

    Returns:
        Whether the allocator is glibc's and took both numbers; others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, TRIM_FROM))
