"""What every experiment has: teachers from the zoo, a student made anew, methods, seeds and a training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from numpy import int64
from numpy.typing import NDArray
from pydantic import Field, field_validator

from kt.data.spec import InputSpec
from kt.errors import KtError, nearest, quoted, unknown
from kt.experiments.trial import Trial
from kt.spec import Options, Spec
from kt.transfer.approach import Approach
from kt.transfer.ledger import Record
from kt.transfer.training import Changes, Seeds, Training
from kt.zoo.registry import Registry
from kt.zoo.spec import ZooSpec

Labels = NDArray[int64]


class Problem(NamedTuple):
    """What is to be told apart.

    Attributes:
        classes: the data set's labels behind the student's outputs, int64 [K].
        own: where each teacher's classes stand among them, int64 [K'], by the teacher's name; −1 where they do not.
        truth: where the classes of the test images stand among them, int64 [n]; images of other classes are left out.
    """

    classes: Labels
    own: Mapping[str, Labels]
    truth: Labels


class Student(Spec):
    """The student: an architecture with fresh weights."""

    arch: str = Field(description="a timm model name, or one registered by `zoo.modules`")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")
    input: InputSpec | None = Field(None, description="what the student sees; default: `zoo.input`")


class Experiment(Spec):
    """One student and its teachers. The workflow has a rule and a job for each experiment.

    A kind of experiment is a sub-class: its fields are its parameters, its methods say what there is to do and what
    comes of it. What does it is a ``kt.experiments.kind.Kind``.

    Attributes:
        rule: its section of ``config.yaml``, and the name of the workflow's rule and of the command.
        table: its detail table.
        training_of: the training that `training` changes parts of.
    """

    rule: ClassVar[str]
    table: ClassVar[str]
    training_of: ClassVar[Training]

    teachers: tuple[str, ...] = Field(description="members of the zoo, specialists or not; their weights stay")
    student: Student
    methods: Options
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="one training a seed; distinct, 0 to 4294967295")
    training: Changes = Field(Changes(), description="what is changed of the training that the guide names")

    @field_validator("methods")
    @classmethod
    def _not_empty(cls, methods: Options) -> Options:
        if not methods.options():
            raise ValueError(f"no method chosen; allowed: {', '.join(type(methods).model_fields)}")
        return methods

    @property
    def plan(self) -> Training:
        """How its students are trained, but for what a method changes."""
        return self.training.of(self.training_of)

    def approaches(self) -> dict[str, Approach]:
        """The methods that the configuration names."""
        return self.methods.options()

    def trials(self) -> list[Trial]:
        """Its units of work; one a method without training, else one a seed."""
        return [
            Trial(approach, self.teachers, seed)
            for approach in self.approaches().values()
            for seed in (self.seeds if approach.trains else self.seeds[:1])
        ]

    def check(self, at: str, zoo: ZooSpec, known: Registry) -> None:
        """Fail where names are wrong; ``at`` is its place in the configuration.

        Raises:
            KtError: an unknown teacher or architecture, a teacher named twice, or no input for the student.
        """
        for name in self.teachers:
            if name not in zoo.models:
                raise KtError(f"{at}.teachers: {unknown('model', name, zoo.models)}")
        if len(set(self.teachers)) < len(self.teachers):
            raise KtError(f"{at}.teachers: {quoted(list(self.teachers))} names a teacher twice")
        arch = self.student.arch.partition(".")[0]
        if arch not in known.models:
            allowed = f"allowed: the {len(known.models)} names of timm and zoo.modules{nearest(arch, known.models)}"
            raise KtError(f"{at}.student.arch: unknown model {self.student.arch!r}; {allowed}")
        if self.student.input is None and zoo.input is None:
            raise KtError(f"{at}.student.input: this key is missing, and zoo.input is not given")

    @abstractmethod
    def classes(self, at: str, own: Mapping[str, Labels], known: Sequence[str]) -> Labels:
        """The data set's labels behind the student's outputs, int64 [K].

        Args:
            at: its place in the configuration.
            own: the labels behind each teacher's outputs, by the teacher's name.
            known: names of the data set's classes, by label.

        Raises:
            KtError: the teachers' classes do not fit together.
        """

    def learnt_from(self, images: int) -> int:
        """How many of so many transfer images its students learn from, at most."""
        return images

    @abstractmethod
    def details(self, trial: Trial, outcome: Record, problem: Problem) -> list[dict[str, Any]]:
        """Rows of the detail table that a finished trial gives, without what all rows of experiments share."""
