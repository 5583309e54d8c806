"""The bench of a job: one student, the models that it reads, and images and truths, on one device."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.costs import EVALUATED, Needs
from kt.data.clips import Targets, in_turn
from kt.data.datasets import Dataset
from kt.data.inputs import IN_MEMORY, Inputs, truths
from kt.data.seen import InputSpec, ViewsSpec
from kt.data.views import draw_views
from kt.errors import KtError
from kt.predictions import Answers
from kt.tasks.classification import positions
from kt.tasks.task import Array, Task
from kt.transfer import memory
from kt.transfer.batch import Chosen, Rows
from kt.transfer.engine import Shown, State, weights_of
from kt.transfer.experiments import Experiment, Problem
from kt.transfer.training import Training
from kt.zoo.inference import Recomputed, channels_last, kept
from kt.zoo.models import build

log = logging.getLogger(__name__)

SHOWN = 4
"""Test images of which a task of maps keeps pictures after a training."""

Architecture = tuple[str, dict[str, Any]]
"""``arch`` and ``args`` of a member or a student."""


class Zoo(Protocol):
    """The zoo as a job reads it, by names of members."""

    def fingerprint(self, name: str) -> str:
        """Hash of architecture, input and weights."""

    def architecture(self, name: str) -> Architecture:
        """Its ``arch`` and ``args``."""

    def input_of(self, name: str) -> InputSpec:
        """Its input: size, crop, normalisation."""

    def load(self, name: str) -> nn.Module:
        """The model with its weights."""

    def fresh(self, name: str) -> nn.Module:
        """Its architecture with fresh weights, from torch's global generator."""

    def logits(self, name: str, split: str) -> Answers | None:
        """Cached answers to all images of a split, floats [N, …], memory-mapped; None where they are not kept."""

    def predicted(self, name: str, split: str) -> Array:
        """Its predicted classes on all images of a split, int64 [N]."""

    def likeliest(self, name: str, split: str) -> NDArray[np.uint8]:
        """Of a dense task: its class of each element of all images of a split, uint8 [N, H, W], memory-mapped."""

    def features(self, name: str, split: str) -> NDArray[np.float16]:
        """Cached penultimate features, float16 [N, D]."""


class Begun(NamedTuple):
    """The student of a bench before training.

    Attributes:
        at: its place: in the configuration ``section.name`` of an experiment, else the name of a member.
        architecture: ``arch`` and ``args``.
        spec: its input.
        channels: colour channels that it sees.
        member: whether it is the member of the zoo called ``at``, whose weights it begins with.
        given: makes the student of an experiment with given weights and so many outputs; None where they are fresh.
    """

    at: str
    architecture: Architecture
    spec: InputSpec
    channels: int
    member: bool = False
    given: Callable[[int], nn.Module] | None = None


class Settings(NamedTuple):
    """Where and how trainings run.

    Attributes:
        training: epochs, batch size, optimiser, schedule.
        checkpoints: folder of the checkpoints.
        every: seconds between two checkpoints.
        device: where students train.
        stop: set to end the running training after its next step, with a checkpoint.
        crops: fixed views of the transfer images, if any.
        images: transfer images that a training draws by its seed; all when None.
        top: logits that are kept of each transfer image; all when None.
    """

    training: Training
    checkpoints: Path
    every: float
    device: torch.device
    stop: Event
    crops: ViewsSpec | None = None
    images: int | None = None
    top: int | None = None


class Bench:
    """One student, its teachers and images. The images of an experiment are those of its student's classes.

    Args:
        begun: the student before training.
        zoo: its teachers.
        task: what is learnt.
        data: the data set.
        settings: where and how trainings run.
        problem: the classes of an experiment; None where student and teachers know all classes of the data.
    """

    def __init__(
        self, begun: Begun, zoo: Zoo, task: Task, data: Dataset, settings: Settings, problem: Problem | None = None
    ) -> None:
        self.begun, self.zoo, self.task, self.data, self.settings, self.problem = (
            begun,
            zoo,
            task,
            data,
            settings,
            problem,
        )
        self.at, self.spec, self.device = begun.at, begun.spec, settings.device
        self._views: dict[tuple[str, InputSpec], Inputs] = {}
        self._telling: dict[tuple[str, tuple[str, ...]], NDArray[np.int64]] = {}

    # images

    @cached_property
    def chosen(self) -> dict[str, NDArray[np.int64]]:
        """Images of each split that are used: positions in the split, int64 [n], in its order.

        Position i + k · N is the k-th view of the i-th of N images. Of the student's classes, or without a truth.
        """
        splits = ("transfer", "validation", "test")
        if self.problem is None:
            return {split: np.arange(len(self.data.rows(split)) * self.views(split)) for split in splits}
        found = {split: np.flatnonzero((self._where(split) >= 0) | (self._labels(split) < 0)) for split in splits}
        for split, images in found.items():
            if not len(images):
                raise KtError(f"{self.at}: no image of the student's classes is in the split {split!r}")
        return found

    @property
    def learnt_from(self) -> int:
        """Number of images that an epoch shows: each once, in one of its views; of videos one frame of each."""
        return self.shown.n

    @cached_property
    def shown(self) -> Shown:
        """Which of the chosen transfer images an epoch shows."""
        if self.data.videos is None:
            return Shown.views(len(self.chosen["transfer"]), self.views("transfer"))
        targets = Targets.of(self.data.videos, self.data.rows("transfer"))
        return Shown(len(targets.names), targets.drawn)

    def truth(self, split: str) -> Any:
        """Truth of a split's chosen images, [n, …]; of an experiment's as the position among the student's classes.

        One that is a map is read on demand.
        """
        if self.task.spatial:
            return truths(self.data, split, self.settings.crops)
        return self._where(split)[self.chosen[split]]

    def _where(self, split: str) -> Array:
        labels = self._labels(split)
        return labels if self.problem is None else positions(labels, self.problem.classes)

    def _labels(self, split: str) -> Array:
        return np.concatenate([self.data.truth[self.data.rows(split)]] * self.views(split))

    def views(self, split: str) -> int:
        """Number of views of every image of a split."""
        crops = self.settings.crops
        return crops.n if crops and split == "transfer" else 1

    def images(self, split: str, some: NDArray[np.int64], spec: InputSpec) -> Inputs:
        """Images of a split, by their positions there, as a model with some input sees them."""
        rows, drawn = self.data.rows(split), None
        if self.settings.crops and split == "transfer":
            drawn = draw_views(self.settings.crops, rows, *self.data.images.shape[1:3]).at(some)
        return Inputs(self.data.images, rows[some % len(rows)], spec, self.device, drawn=drawn, videos=self.data.videos)

    def view(self, split: str, spec: InputSpec | None = None) -> Inputs:
        """The chosen images of a split as a model with some input sees them; the student where None."""
        place = (split, spec or self.spec)
        if place not in self._views:
            self._views[place] = self.images(split, self.chosen[split], place[1])
        return self._views[place]

    def shape(self, teacher: str | None = None) -> tuple[int, ...]:
        """Channels, height and width of the input of the student, or of a teacher; of clips [C, T, H, W]."""
        if teacher is None:
            return self.begun.channels, *self.spec.shape(0)[1:]
        return self.zoo.input_of(teacher).shape(self.data.channels)

    def prepared(self, teachers: Sequence[str] = ()) -> int:
        """Bytes of the images as the student sees them, and of those of transfer and validation as teachers do."""
        seen = {(split, self.spec) for split in self.chosen}
        seen |= {(split, self.zoo.input_of(name)) for name in teachers for split in ("transfer", "validation")}
        return sum(
            min(IN_MEMORY, 4 * len(self.chosen[split]) * math.prod(spec.shape(self.data.channels)))
            for split, spec in seen
            if not spec.clip
        )

    # teachers

    @property
    def outputs(self) -> int:
        """Number of the student's outputs."""
        if self.problem is None:
            return self.task.outputs(self.data.truth, list(self.data.class_names))
        return len(self.problem.classes)

    def positions(self, teacher: str) -> NDArray[np.int64]:
        """Position of a teacher's classes among those of an experiment's student, int64 [K']; −1 where not there."""
        assert self.problem is not None
        return self.problem.own[teacher]

    def cached(self, teacher: str, split: str) -> Rows:
        """A model's answers to the chosen images of a split, [n, …], read or computed when they are used."""
        answers = self.zoo.logits(teacher, split)
        if answers is None:
            top = self.settings.top if split == "transfer" else None
            return self.recomputed(self.teacher(teacher), split, self.zoo.input_of(teacher), top)
        return answers if self.problem is None else Chosen(answers, self.chosen[split])

    def recomputed(self, model: nn.Module, split: str, spec: InputSpec, top: int | None = None) -> Recomputed:
        """Answers of a model that are not kept; with the ``top`` largest logits alone, if not None."""
        if self.device.type == "cuda":  # as where predictions are made
            channels_last(model)
        return Recomputed(model.eval(), self.view(split, spec), self.task, top)

    def telling(self, name: str, others: tuple[str, ...]) -> NDArray[np.int64]:
        """Test images that the others do best beside a model, ``SHOWN`` of them, the most telling first.

        Of a dense task those with most elements that one of the others alone gets right, else those where the score of
        the best of the others leads most; clusters take turns, as frames of one video look alike.
        """
        if (name, others) not in self._telling:
            first = np.argsort(-self._leads(name, others), kind="stable")
            clusters = self.task.clusters(self.truth("test"))
            self._telling[name, others] = (first if clusters is None else in_turn(first, clusters))[:SHOWN]
        return self._telling[name, others]

    def _leads(self, name: str, others: tuple[str, ...]) -> Array:
        """Elements of each test image that one of the others alone gets right, or the lead of their best score, [n]."""
        truth = self.truth("test")
        if not self.task.dense:
            scores = {one: self.task.scores(self.zoo.predicted(one, "test"), truth) for one in (name, *others)}
            lead: Array = np.max([scores[other] for other in others], axis=0) - scores[name]
            return lead
        own = self.zoo.likeliest(name, "test")
        maps = [self.zoo.likeliest(other, "test") for other in others]
        flips = np.empty(len(own), np.int64)
        for i in range(len(own)):
            right = truth[np.array([i])][0]
            flips[i] = (np.any([each[i] == right for each in maps], axis=0) & (own[i] != right)).sum()
        return flips

    def predicted(self, teacher: str, split: str) -> NDArray[np.int64]:
        """A teacher's predictions on the chosen images as positions among the student's classes, int64 [n]."""
        found = self.zoo.predicted(teacher, split)[self.chosen[split]]
        return found if self.problem is None else self.positions(teacher)[found]

    def teacher(self, name: str) -> nn.Module:
        """A teacher on the device, in eval mode, without gradients."""
        return self.zoo.load(name).to(self.device).eval().requires_grad_(False)

    def untaught(self, name: str) -> nn.Module:
        """The same with fresh weights, from torch's global generator."""
        return self.zoo.fresh(name).to(self.device).eval().requires_grad_(False)

    # students

    @cached_property
    def _member(self) -> tuple[nn.Module, State]:
        student = channels_last(self.zoo.load(self.at).to(self.device))
        return student, weights_of(student)

    def model(self, name: str, weights: State | None = None) -> nn.Module:
        """A member of the zoo to train: the student with given weights, or else its original ones; or another model."""
        if name == self.at:
            student, original = self._member
            student.load_state_dict(weights or original)
            return student
        return channels_last(self.zoo.load(name).to(self.device))

    def student(self, seed: int) -> nn.Module:
        """The student with its first weights, on the device: fresh ones, or a fresh head, are those of the seed.

        Raises:
            KtError: it cannot be built, its weights cannot be had or are another architecture's, or it has another
                number of outputs than classes.
        """
        if self.begun.member:
            return self.model(self.at)
        torch.manual_seed(seed)
        (arch, args), shape, outputs = self.begun.architecture, self.shape(), self.outputs
        try:
            given = self.begun.given
            model = given(outputs) if given else build(arch, args, outputs, self.begun.channels)
        except KtError as error:
            raise KtError(f"{self.at}.student: {str(error).removeprefix('zoo: ')}") from error
        try:
            with torch.no_grad():
                found = copy.deepcopy(model).eval()(torch.zeros(1, *shape)).shape[-1]
        except Exception as error:  # an architecture may raise anything
            text = (str(error).splitlines() or [type(error).__name__])[0]
            raise KtError(f"{self.at}.student: {arch} does not take an image of {list(shape)}: {text}") from error
        if found != outputs:
            raise KtError(f"{self.at}.student: {arch} has {found} outputs, but there are {outputs} classes")
        return channels_last(model.to(self.device))

    def instead(self, name: str) -> Bench:
        """The same bench, with a teacher's architecture in the student's place."""
        begun = self.begun._replace(
            architecture=self.zoo.architecture(name),
            spec=self.zoo.input_of(name),
            channels=self.shape(name)[0],
            given=None,
        )
        return Bench(begun, self.zoo, self.task, self.data, self.settings, self.problem)

    # answers

    def kept(self, model: nn.Module, split: str, spec: InputSpec | None = None) -> Array:
        """The kept part of a model's answers to a split's images, [n, …]; the input is the student's where None."""
        return kept(model, self.view(split, spec), self.truth(split), self.task)

    def value(self, model: nn.Module, split: str, spec: InputSpec | None = None) -> float:
        """The task's metric of a model on the chosen images of a split."""
        return self.task.value(self.task.scores(self.kept(model, split, spec), self.truth(split)))

    # the job

    def needed(self) -> int:
        """Estimate of the bytes that a plain training takes."""
        return memory.estimate(self.student(0), self.view("transfer")[slice(0, 1)], self.settings.training)

    def memory(self) -> int:
        """Estimate, and log, the bytes that a plain training takes; on a GPU beside what is free."""
        needed = self.needed()
        free = ""
        if self.device.type == "cuda":
            free = f" of {torch.cuda.mem_get_info(self.device)[0] / 1e9:.2f} GB free"
        log.info("a training of %s takes about %.2f GB of memory%s", self.at, needed / 1e9, free)
        return needed

    def share(self, processes: int) -> None:
        """Keep to an equal share of the device's memory, beside other processes with such a bench.

        Raises:
            KtError: so many trainings at once do not fit.
        """
        needed, there = self.needed(), memory.available(self.device)
        if self.device.type == "cuda":
            there = torch.cuda.mem_get_info(self.device)[1]
            torch.cuda.set_per_process_memory_fraction(1 / processes, self.device)
        if needed * processes > there:
            sizes = f"{needed * processes / 1e9:.2f} GB of memory, but {there / 1e9:.2f} GB are there"
            fit = f"allowed here: at most {max(1, there // needed)}"
            raise KtError(f"transfer.processes: {processes} trainings of {self.at} at once need about {sizes}; {fit}")

    def at_once(self, pieces: int) -> int:
        """Images in one forward pass of teachers, without gradients: fewer where batches are cut into parts."""
        return max(1, EVALUATED // pieces)

    def forget(self, key: str) -> None:
        """Delete the checkpoints of a unit that needs them no more."""
        for path in self.settings.checkpoints.glob(f"{key}*"):
            path.unlink(missing_ok=True)


def inspect(bench: Bench, experiment: Experiment) -> dict[str, Needs]:
    """Fail where an experiment cannot be: called before anything is trained, with teachers of fresh weights.

    Returns:
        Needs of a training by each of its methods, by the name of the method.

    Raises:
        KtError: the student cannot be built, its outputs are not its classes, a batch has too many images, or memory
            does not suffice.
    """
    experiment.fits(bench)
    student, images, methods = bench.student(experiment.seeds[0]), bench.learnt_from, experiment.chosen()
    trainings = {"training": experiment.plan}
    trainings |= {f"methods.{name}.training": method.trained(experiment.plan) for name, method in methods.items()}
    for key, training in trainings.items():
        if training.batch_size > images:
            what = f"{images} transfer images of the student's classes"
            raise KtError(f"{bench.at}.{key}.batch_size: {training.batch_size}, but there are {what}")
    found = {
        name: method.needs(bench, experiment.teachers)
        or memory.needs(student, bench.shape(), method.trained(experiment.plan), {"images": bench.prepared()})
        for name, method in methods.items()
        if method.trains
    }
    if found:
        name, most = max(found.items(), key=lambda one: one[1].total(one[1].batch))
        memory.check(f"{bench.at}.methods.{name}", most, bench.device)
    return found
