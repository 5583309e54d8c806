"""Base class of all methods, and the registry that finds those in ``kt/transfer/methods``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from kt.errors import KtError, listed
from kt.spec import Spec
from kt.tasks.partition import Level
from kt.tasks.task import Task
from kt.transfer import methods
from kt.transfer.training import Changes, SlowWeights, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kt.costs import Needs
    from kt.transfer.batch import Batch, Examples
    from kt.transfer.ledger import Record


class Method(Spec):
    """A method: its fields are its parameters.

    Teachers and the frozen student do not change during training, so most methods are no more than two functions:
    ``targets``, the answers to imitate, and ``loss``, all that a step adds to the forward and backward pass of the
    student. Other methods also override

    - ``learner``, which may hold more than the student: heads or a memory, trained and kept in checkpoints with it;
    - ``slow_weights``, where weights follow the student's and are evaluated and kept in its place;
    - ``joint``, where the teachers train too: the learner runs all models, each on its own view of the images;
    - ``run``, which may train several times, or not at all.

    Attributes:
        name: the method's name in ``config.yaml``.
        version: raise it when its results change: finished units of older versions are not reused.
        takes: whether it runs on a pair, on a group of several teachers, on both, or in an experiment, whose student
            has a section of its own.
        control: true where the teacher plays no part; ``targets`` then gets the frozen student as its teacher.
        uses_labels: true where labels of the training images play a part; where parameters decide: ``labelled``. Its
            gain is compared with the control `finetune`, that of other methods with `self`.
        uses_features: true where the loss needs the teacher's penultimate features.
        joint: true where all models train; the unit of a set of models is then shared by all its students.
        trains: false where no student is trained.
        whole_batch: true where a loss compares the images of its batch; where parameters decide: ``together``.
        of_classes: true where answers must be logits of classes; such a method is refused for other tasks.
        by_confidence: true where targets depend on how confident models are, which answers of some tasks do not tell.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    takes: ClassVar[Literal["pair", "group", "both", "experiment"]] = "pair"
    control: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False
    uses_features: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False
    of_classes: ClassVar[bool] = False
    by_confidence: ClassVar[bool] = False

    training: Changes | None = Field(None, description="what this method trains with instead of the common `training`")

    @property
    def labelled(self) -> bool:
        """Whether labels of the training images play a part with these parameters."""
        return self.uses_labels

    def parameters(self) -> dict[str, Any]:
        """Its own parameters as plain JSON values, without what it changes of the training."""
        return {name: value for name, value in self.plain().items() if name != "training"}

    def settings(self) -> dict[str, Any]:
        """All that its results depend on, as plain JSON values: a table made with other settings is out of date."""
        return {"version": self.version, **self.plain()}

    def trained(self, training: Training) -> Training:
        """Its training, given the common section ``training``."""
        return self.training.of(training) if self.training else training

    @property
    def together(self) -> bool:
        """Whether the loss needs all parts of a batch at once with these parameters."""
        return self.whole_batch

    @classmethod
    def lacks(cls, task: Task) -> str | None:
        """Requirement of this method that the answers of a task do not meet; None where it suits the task."""
        if cls.of_classes and not task.has_classes:
            return "classes"
        if cls.uses_features and task.dense:
            return f"one vector of features per {task.example}"
        return "confidence" if cls.by_confidence and type(task).confidence is Task.confidence else None

    def check(self, task: Task, at: str) -> None:
        """Fail where this method, with its parameters, does not suit a task.

        Args:
            task: what is learnt.
            at: the method's key in the configuration, for the error.

        Raises:
            KtError: answers of the task have no classes, or no confidence, and the method needs them; or they are no
                logits, which a temperature softens.
        """
        if lacking := self.lacks(task):
            kinds = {self.takes, "both"}
            able = [name for name, method in registry().items() if method.takes in kinds and not method.lacks(task)]
            why = f"{self.name!r} needs {lacking}, which the task {task.name!r} does not have"
            raise KtError(f"{at}: {why}; allowed: {listed(able)}")
        if not task.tempered and (temperature := getattr(self, "temperature", 1.0)) != 1:
            why = f"{temperature:g} softens logits, which answers of the task {task.name!r} are not"
            raise KtError(f"{at}.temperature: {why}; allowed: 1")

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Answers to imitate, [N, …], and a mask of those that come from a teacher; here the frozen student's.

        The mask is bool [N]; [N, H, W] where each pixel has a teacher of its own.

        Args:
            task: what is learnt.
            teacher: the teacher's answers, float32 [N, …]; [K, N, …] where ``takes`` is not "pair".
            frozen: answers of the student before transfer, float32 [N, …].
            truth: [N, …].
        """
        return frozen, truth.new_zeros(len(truth)).bool()

    def merge(self, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
        """The targets of a batch, as ``targets`` gives them; the teacher of a control is the frozen student."""
        import torch

        teacher = torch.stack(batch.teachers) if self.takes != "pair" else (batch.teachers or [batch.frozen])[0]
        return self.targets(task, teacher, batch.frozen, batch.truth)

    def loss(self, task: Task, output: Any, batch: Batch) -> Tensor:
        """Loss per image, float32 [B].

        Args:
            task: what is learnt.
            output: of the learner: answers of the student in training, [B, …]; more where ``learner`` adds it. Of a
                dense task they have the elements of the truth.
            batch: the images of the batch.
        """
        raise NotImplementedError(f"{self.name} has no loss of its own")

    def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
        """The module to train: the student itself.

        Args:
            students: the student; for a joint method all models, in an order that all of them agree on.
            examples: all transfer images.
        """
        return students[0]

    def slow_weights(self) -> SlowWeights | None:
        """Settings of the slow weights, if this method has any."""
        return None

    def budget(self, teachers: int) -> int:
        """Cost of a unit, in trainings of one model."""
        return 1 if self.trains else 0

    def needs(self, bench: Any, teachers: Sequence[str]) -> Needs | None:
        """Memory and operations of a training in an experiment; None where the student alone is trained.

        Args:
            bench: a ``kt.transfer.bench.Bench``.
            teachers: names.

        Raises:
            KtError: a part of the learner cannot be built.
        """
        return None

    def run(self, session: Any, teachers: Sequence[str], seed: int) -> Record:
        """The outcome of a unit: that of one training.

        Args:
            session: the ``kt.transfer.session.Session`` of the unit.
            teachers: names; none for a control.
            seed: of the training.
        """
        outcome: Record = session.outcome(session.train(self, teachers, seed))
        return outcome


class Partitioned(Method):
    """Base class of methods whose examples, or their pixels, are divided among the models that teach them."""

    level: Level = Field(
        "image", description="who is taught by one model: a whole `image`, or each `pixel` of a dense task"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the default level, so that earlier keys stay."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("level", "image")}

    def check(self, task: Task, at: str) -> None:
        """Refuse pixels too where examples have none."""
        super().check(task, at)
        if self.level == "pixel" and not task.dense:
            raise KtError(
                f"{at}.level: 'pixel', but the task {task.name!r} has one truth per {task.example}; allowed: image"
            )


@cache
def registry() -> dict[str, type[Method]]:
    """The methods for pairs and groups by name; importing them does not import torch."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    found: dict[str, type[Method]] = {}
    pending = list(Method.__subclasses__())
    while pending:
        method = pending.pop()
        pending += method.__subclasses__()
        if "name" in method.__dict__ and method.takes != "experiment":
            found[method.name] = method
    return dict(sorted(found.items()))
