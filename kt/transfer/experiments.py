"""Experiments: one student with a section of its own, its teachers from the zoo, and methods. No torch here.

The sections ``amalgamate`` and ``flow`` are sub-classes, beside their methods in ``kt/transfer/methods``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from numpy import int64
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from kt import store
from kt.data.seen import InputSpec
from kt.errors import KtError, quoted, unknown
from kt.spec import Arguments, File, Options, Spec
from kt.transfer.ledger import Record
from kt.transfer.method import Method
from kt.transfer.training import Changes, Seeds, Training
from kt.transfer.unit import Plan, Plans, Unit, seeds_of
from kt.zoo import members as zoo_members
from kt.zoo.registry import Registry
from kt.zoo.spec import FineTune, Member, Recipe, ZooSpec

if TYPE_CHECKING:
    from kt.tasks.task import Task

Labels = NDArray[int64]


class Student(Spec):
    """The student: an architecture with fresh weights, with published ones, or with those of a checkpoint."""

    arch: str = Field(description="a timm model name, or one registered by `zoo.modules`")
    args: Arguments = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")
    input: InputSpec | None = Field(
        None, description="what the student sees; default: `zoo.input`, with published weights that of their tag"
    )
    pretrained: bool = Field(
        False, description="begin with the weights that timm publishes; a head of another class count is made anew"
    )
    checkpoint: File | None = Field(
        None, description="begin with a file's weights, as zoo members do; a head of another class count is made anew"
    )

    @property
    def given(self) -> bool:
        """Whether it begins with given weights."""
        return self.pretrained or self.checkpoint is not None

    @model_serializer(mode="wrap")
    def _given_alone(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys of given weights where there are none, so that finished units keep their keys."""
        plain: dict[str, Any] = dump(self)
        if not self.given:
            del plain["pretrained"], plain["checkpoint"]
        return plain

    def described(self, spec: InputSpec) -> dict[str, Any]:
        """All that determines the student before training, as plain JSON: of a checkpoint the content, not the path.

        Args:
            spec: what the student sees.

        Raises:
            KtError: the checkpoint is gone.
        """
        found = {**self.plain(), "input": spec.plain()}
        return found | {"checkpoint": _digest(self.checkpoint)} if self.checkpoint else found

    def as_member(self, zoo: ZooSpec) -> Member:
        """The member of the zoo that it is checked as: fitted with given weights, or trained from fresh ones."""
        return Member(
            arch=self.arch,
            args=self.args,
            input=self.input if self.given else self.input or zoo.input,
            train=None if self.given else Recipe(epochs=1),
            finetune=FineTune(mode="full", epochs=1) if self.given else None,
            pretrained=self.pretrained,
            checkpoint=self.checkpoint,
        )

    def complete(self, at: str, zoo: ZooSpec, known: Registry) -> Student:
        """The student with its full pretrained tag and its input, checked as a member of the zoo.

        Args:
            at: its place in the configuration.
            zoo: whose input is the student's where it has none of its own.
            known: models that timm and the user's modules register.

        Raises:
            KtError: an unknown architecture or tag, two sources of weights, a checkpoint that is not weights, no input.
        """
        if self.pretrained and self.checkpoint:
            raise KtError(f"{at}: give one of `checkpoint` and `pretrained`, not both")
        try:
            member = zoo_members.complete(f"zoo.models.{at}", self.as_member(zoo), zoo, known)
            zoo_members.check(ZooSpec(models={at: member}), known)
        except KtError as error:
            raise KtError(str(error).removeprefix("zoo.models.")) from error
        if not self.given and (self.input or zoo.input):
            return self
        return self.model_copy(update={"arch": member.arch, "input": member.input})


def _digest(path: str) -> str:
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise KtError(f"{path}: cannot be read ({error.strerror})") from error
    return _digest_once(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _digest_once(path: str, modified: int, size: int) -> str:
    """The file's hash; it is requested again and again while a run is watched."""
    return store.digest_file(path)


class Problem(NamedTuple):
    """Classes that a student learns to tell apart.

    Attributes:
        classes: the data set's labels behind the student's outputs, int64 [K].
        own: position of each teacher's classes among them, int64 [K'], by the teacher's name; −1 where there is none.
        truth: position of the test images' classes among them, int64 [n]; images of other classes are left out.
    """

    classes: Labels
    own: Mapping[str, Labels]
    truth: Labels


class Experiment(Spec):
    """One student and its teachers. The workflow has a rule and a job for each experiment.

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
        """Training of its students, but for the changes of a method."""
        return self.training.of(self.training_of)

    def chosen(self) -> dict[str, Method]:
        """The methods that the configuration names."""
        return self.methods.options()

    def work(self) -> list[tuple[Method, tuple[str, ...], int]]:
        """Method, teachers and seed of each of its units."""
        return [
            (method, names, seed)
            for method in self.chosen().values()
            for seed in seeds_of(method, self.seeds)
            for names in self.sets(method)
        ]

    def sets(self, method: Method) -> list[tuple[str, ...]]:
        """Teachers of each unit of a method and seed."""
        return [self.teachers]

    @property
    def settings(self) -> dict[str, Any]:
        """Further facts that determine its results, as plain JSON values."""
        return {}

    def units(self, at: str, student: Record, problem: Problem, data: str) -> list[Unit]:
        """Its units.

        Args:
            at: its place in the configuration, ``section.name``; the name of the units' student.
            student: all that determines the student before training.
            problem: the classes to tell apart.
            data: the data set's hash, splits included.
        """
        plans = Plans(data, self.plan)
        found = []
        for method, teachers, seed in self.work():
            facts = {
                **plans.facts(method, seed),
                "experiment": self.rule,
                "architecture": student,
                "classes": problem.classes.tolist(),
                "teachers_classes": [problem.own[name].tolist() for name in teachers],
                **self.settings,
            }
            found.append(Unit(method, Plan(facts, listed=True), at, teachers, seed))
        return found

    def check(self, at: str, zoo: ZooSpec, known: Registry) -> Self:
        """The experiment with its student complete, where names are right; ``at`` is its place in the configuration.

        Raises:
            KtError: an unknown teacher or architecture, a teacher named twice, or a student without input or weights.
        """
        for name in self.teachers:
            if name not in zoo.models:
                raise KtError(f"{at}.teachers: {unknown('model', name, zoo.models)}")
        if len(set(self.teachers)) < len(self.teachers):
            raise KtError(f"{at}.teachers: {quoted(list(self.teachers))} names a teacher twice")
        return self.model_copy(update={"student": self.student.complete(f"{at}.student", zoo, known)})

    def fits(self, bench: Any) -> None:
        """Fail where images or classes are not what the methods need; called before anything is trained.

        Args:
            bench: the ``kt.transfer.bench.Bench`` of the experiment.

        Raises:
            KtError: they are not.
        """

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
        """Number of transfer images, of so many, that its students learn from, at most."""
        return images

    def epochs(self, method: Method) -> int:
        """Epochs of a training by a method."""
        return method.trained(self.plan).epochs

    def seen(self, method: Method, images: int) -> float:
        """Images that a training by a method sees, each as often as it is seen, of ``images`` transfer images."""
        if not method.trains:
            return 0.0
        training = method.trained(self.plan)
        return float(training.epochs * (self.learnt_from(images) // training.batch_size) * training.batch_size)

    @abstractmethod
    def details(self, task: Task, unit: Unit, outcome: Record, problem: Problem) -> list[dict[str, Any]]:
        """Rows of the detail table that a finished unit gives, without what all rows of experiments share."""
