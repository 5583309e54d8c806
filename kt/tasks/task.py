"""A task: what is learnt, by what metric it is judged, and in which words results are told.

Everything else (engine, ledger, pairs, status, SLURM, tables, analysis, figures, report) reads its task here and
knows nothing of classes or accuracy. A new task is a subclass with a ``name``; importing the module that defines it
registers it. Functions on tensors use tensor methods only, so that importing a task does not import torch.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kt.errors import KtError, quoted, unknown

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """The number that a task reports of a model.

    Attributes:
        key: in names of columns, as ``acc`` in ``acc_before``.
        name: in sentences, as ``accuracy``.
        unit: of a value, as ``%``.
        difference: unit of a difference of two values, as ``percentage points``.
        short: the same for axis labels, as ``pp``.
        scale: a reported value is so many times the mean score of the examples, as 100.
        binary: whether the score of an example is 0 or 1.
    """

    key: str
    name: str
    unit: str
    difference: str
    short: str
    scale: float = 1.0
    binary: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.key):
            raise KtError(f"metric: the key {quoted(self.key)} is no name of a column; allowed: a-z, 0-9 and _")
        if not 0 < self.scale < math.inf:
            raise KtError(f"metric: the scale of {self.key!r} must be above 0, not {self.scale}")

    def shown(self, value: float, places: int = 3) -> str:
        """A value as text, with so many decimal places of a mean score."""
        return f"{value:.{max(0, places - round(math.log10(self.scale)))}f}"


@dataclass(frozen=True)
class Words:
    """A task as tables carry it in their metadata: figures and reports tell of it without its code.

    Attributes:
        name, metric, example, has_classes, dense, cluster: as of ``Task``.
        maps: whether truths and answers are maps without classes.
        plays: whether models are policies, and examples the episodes of a game that they play.
    """

    name: str
    metric: Metric
    example: str
    has_classes: bool
    dense: bool = False
    cluster: str = ""
    maps: bool = False
    plays: bool = False

    def to_json(self) -> str:
        """As text for a file's metadata."""
        later = {"dense": False, "cluster": "", "maps": False, "plays": False}  # left out where they say nothing
        facts = {name: value for name, value in asdict(self).items() if later.get(name) != value}
        return json.dumps(facts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Words:
        """From such a text."""
        facts = json.loads(text)
        return cls(**{**facts, "metric": Metric(**facts["metric"])})


class Scored(ABC):
    """What is learnt as far as results tell it: a metric, its words, and how scores of examples become its value.

    Attributes:
        name: in ``data.task`` of the configuration.
        version: raise it when results change: predictions and finished units of older versions are not reused.
        metric: what is reported; higher is better.
        example: what is counted, in the singular, as ``image``; the plural has an s.
        has_classes: whether an answer is a logit per class of the data set. Methods, measures, figures and experiments
            that are about classes are refused or left out elsewhere.
        cluster: what ``clusters`` are, in the singular, as ``video``; empty where examples are independent.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    metric: ClassVar[Metric]
    example: ClassVar[str] = "image"
    has_classes: ClassVar[bool] = False
    cluster: ClassVar[str] = ""

    @property
    def words(self) -> Words:
        """The words that tables carry of it."""
        return Words(self.name, self.metric, self.example, self.has_classes, cluster=self.cluster)

    @property
    def classifies(self) -> bool:
        """Whether the truth of an example is one class of the data set."""
        return False

    # scores: numpy arrays, one row per example

    @abstractmethod
    def scores(self, kept: Array, truth: Array) -> Array:
        """Score of each example, bool or float64 [n], from what was kept of the answers."""

    def value(self, scores: Array) -> float:
        """The reported number of some examples, from their scores [n]."""
        return self.metric.scale * float(scores.mean())

    def clusters(self, truth: Any) -> NDArray[np.int64] | None:
        """Number of the cluster that each example belongs to, int64 [n], from their truths as they are read.

        Examples of one cluster, as frames of one video, are no independent sample: errors are then over clusters. None
        where examples are independent.
        """
        return None

    def error(self, scores: Array, clusters: NDArray[np.int64] | None = None) -> float:
        """Standard error of that number over examples, or clusters of them; of scores of 0 and 1 the binomial one.

        Unknown, NaN, of one example.
        """
        mean, n = float(scores.mean()), len(scores)
        if self.metric.binary and clusters is None and n > 1:
            return self.metric.scale * math.sqrt(mean * (1 - mean) / n)
        return self.metric.scale * float(standard_error(scores, clusters))

    def agrees(self, scores: Array, published: float, clusters: NDArray[np.int64] | None = None) -> bool:
        """Whether the reported number is within three standard errors of a published one; if binary, of the latter.

        Where the error is unknown, nothing speaks against it.
        """
        error = self.error(scores, clusters)
        if self.metric.binary and clusters is None:
            share = published / self.metric.scale
            error = self.metric.scale * math.sqrt(share * (1 - share) / len(scores))
        return not abs(self.value(scores) - published) > 3 * error


class Task(Scored):
    """A task on images or videos. Higher scores are better.

    Attributes:
        dense: whether an example has many elements with a truth each, as an image has pixels. Answers are then
            [b, C, h, w] and truths [b, H, W]; losses, fits and confidences are those of every element, [b, H, W], and
            ``mean`` makes one number per example of them. Elsewhere the example itself is the one element.
        spatial: whether the truth is a map as high and wide as the image, as of every dense task. It is kept as one
            more channel of the image and read on demand; answers are maps [b, …, h, w] that ``aligned`` resizes.
        clips: whether an example is a frame of a video, and models take the clip around it, [b, C, T, H, W].
        least: the smallest value that an answer may have.
        tempered: whether ``imitate`` knows a temperature, as it does where answers are logits.
    """

    dense: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    least: ClassVar[float] = -math.inf
    tempered: ClassVar[bool] = True

    @property
    def words(self) -> Words:
        """The words that tables carry of it."""
        maps = self.spatial and not self.has_classes
        return Words(self.name, self.metric, self.example, self.has_classes, self.dense, self.cluster, maps)

    @property
    def classifies(self) -> bool:
        """Whether the truth of an example is one class of the data set."""
        return self.has_classes and not self.dense

    # the data

    @abstractmethod
    def check_truth(self, at: str, truth: Array) -> Array:
        """The truth of all examples as it is stored, [N, …].

        Args:
            at: its place in the configuration, for errors.
            truth: as it was read.

        Raises:
            KtError: it is none of this task.
        """

    @abstractmethod
    def outputs(self, truth: Array, class_names: list[str]) -> int:
        """Outputs of a model for this data set: ``num_classes`` of a timm model."""

    def labelled(self, truth: Array) -> NDArray[np.bool_]:
        """Mask of the examples that have a truth, bool [N]; the others may be learnt from without it."""
        return np.ones(len(truth), bool)

    # answers: float tensors [b, …], what a model gives for a batch

    @abstractmethod
    def answer_shape(self, outputs: int) -> tuple[int | None, ...]:
        """Shape of the answer to one example, of a model with so many outputs; None for sides that may be any."""

    @abstractmethod
    def supervised(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Loss of each element against its truth, float32 [b, …]."""

    def smoothed(self, answer: Tensor, truth: Tensor, smoothing: float) -> Tensor:
        """The same with a share of the target spread over all classes; of tasks that have classes."""
        raise KtError(f"the task {self.name!r} has no classes, over which a target could be spread")

    @abstractmethod
    def imitate(self, target: Tensor, answer: Tensor, temperature: float) -> Tensor:
        """Loss of each element against another model's answer, float32 [b, …]; zero where they are equal."""

    @abstractmethod
    def fit(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Fit of each element to its truth, float32 [b, …]; higher is better. It decides which model teaches."""

    def confidence(self, answer: Tensor) -> Tensor:
        """Confidence of each element, float32 [b, …]; it decides the same without a truth.

        Raises:
            KtError: answers of this task carry no confidence.
        """
        raise KtError(f"the task {self.name!r} has answers without a confidence, which this method needs")

    def averaged(self, first: Tensor, second: Tensor) -> Tensor:
        """The common answer of two models, float32 [b, …], from theirs.

        Raises:
            KtError: answers of this task have no mean.
        """
        raise KtError(f"the task {self.name!r} has answers without a mean, which this method needs")

    def mean(self, values: Tensor, truth: Tensor) -> Tensor:
        """Mean of values [b, …] over the elements of each example that have a truth, float32 [b]."""
        return values

    def aligned(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Answers with the elements of their truths: models may give theirs at another size."""
        return answer

    def judged(self, answer: Tensor) -> Tensor:
        """Aligned answers as the metric sees them, [b, …]: after a filter, where the metric has one."""
        return answer

    def shown(self, answer: Tensor) -> Tensor | None:
        """Pictures of aligned answers, uint8 [b, H, W], of tasks whose truths are maps; None where there are none."""
        return None

    def loss(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Loss of each example against its truth, float32 [b], from answers of any size."""
        return self.mean(self.supervised(self.aligned(answer, truth), truth), truth)

    @abstractmethod
    def kept(self, answer: Tensor, truth: Tensor) -> Tensor:
        """The part of each answer that the ledger keeps to score it, [b, …]: a predicted class, or sums of a score."""

    def cached(self, answer: Tensor) -> Tensor:
        """Answers as predictions on disk and in memory hold them, float16 [b, …]."""
        return answer.half()

    def likeliest(self, answer: Tensor) -> Tensor | None:
        """Likeliest classes of each answer, likeliest first, int64 [b, k]; None where answers are no logits.

        Of a dense task the predicted class of each element, [b, H, W].
        """
        return None

    def describe(self, answers: Array | None, kept: Array, scores: Array) -> dict[str, Any]:
        """Further columns of the table ``zoo`` on a model, from the test examples.

        Args:
            answers: [n, …]; None of a dense task.
            kept: what was kept of them.
            scores: of the examples, [n].
        """
        return {}


def standard_error(values: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """Standard error of the mean of values along their last axis, float64 [...] from [..., n].

    Of independent values their standard deviation over √n; unknown, NaN, of one. Of values in G clusters

        SE² = G / (G − 1) · Σ_g (Σ_{i ∈ g} (x_i − x̄))² / n²,

    which knows nothing, NaN, of one cluster.

    Args:
        values: numbers or truth values.
        clusters: number of each value's cluster, int64 [n]; None where values are independent.

    Source: the linearised variance of a ratio of sums over clusters; Cochran 1977, Sampling Techniques, chapter 9.
    """
    if clusters is None:
        n = values.shape[-1]
        return np.asarray(np.std(values, -1) / (math.sqrt(n) if n > 1 else math.nan))
    first = np.flatnonzero(np.diff(np.sort(clusters, kind="stable"), prepend=-1))
    apart = (values - values.mean(-1, keepdims=True))[..., np.argsort(clusters, kind="stable")]
    sums, count = np.add.reduceat(apart, first, -1), len(first)
    factor = count / (count - 1) if count > 1 else math.nan
    return np.asarray(np.sqrt(factor * np.square(sums).sum(-1)) / values.shape[-1])


def registry() -> dict[str, type[Task]]:
    """All tasks that are defined, by name; the project's own are by the import of this package.

    Raises:
        KtError: a module of the user's defines a task under a name of the project's own.
    """
    found: dict[str, list[type[Task]]] = {}
    pending = list(Task.__subclasses__())
    while pending:
        task = pending.pop()
        pending += task.__subclasses__()
        if "name" in task.__dict__:
            found.setdefault(task.name, []).append(task)
    for name, tasks in found.items():
        if len(tasks) > 1 and any(task.__module__.startswith("kt.") for task in tasks):
            raise KtError(f"zoo.modules: a module defines the task {name!r}, which kt has already; choose another name")
    return {name: tasks[0] for name, tasks in sorted(found.items())}


def named(name: str, at: str = "data.task") -> Task:
    """A task by its name.

    Raises:
        KtError: there is none, or it lacks methods; ``at`` is the key that names it.
    """
    known = registry()
    if name not in known:
        raise KtError(f"{at}: {unknown('task', name, known)}")
    if lacking := known[name].__abstractmethods__:
        raise KtError(f"{at}: the task {name!r} does not define {', '.join(sorted(lacking))}")
    return known[name]()
