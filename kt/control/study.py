"""A study of policies: ``config.yaml`` where ``data.task`` is ``control``. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from kt import spec, store
from kt.control import registry as games
from kt.control.methods import ControlMethods, Played
from kt.control.spec import A2C, A2CChanges, Env, Game, Net, Policy
from kt.errors import KtError, quoted, unknown
from kt.layout import Root
from kt.spec import Spec
from kt.tasks.control import Control
from kt.transfer.method import Method
from kt.transfer.spec import Running
from kt.transfer.training import Seeds
from kt.transfer.unit import seeds_of
from kt.zoo import registry
from kt.zoo.registry import Registry
from kt.zoo.spec import Name

POLICIES = "kt.control.policies"
"""Module that registers the networks of this project."""


class Episodes(Spec):
    """Episodes that policies are measured on."""

    task: Literal["control"]
    episodes: PositiveInt = Field(100, le=10**6, description="test episodes of a policy")
    validation: PositiveInt = Field(100, le=10**6, description="episodes of other seeds, of a finished policy")


class PolicyZoo(Spec):
    """The zoo: policies by name."""

    modules: tuple[str, ...] = Field(
        (),
        description="Python modules that register models with timm's `register_model` or games with gymnasium: "
        "installed ones, or those that lie in this file's folder",
    )
    models: dict[Name, Policy] = Field(min_length=1, json_schema_extra={"additionalProperties": False})


class ControlFlow(Spec):
    """One student and its game, and teachers of the zoo that play games of their own.

    Attributes:
        rule: its section of ``config.yaml``, and the name of the workflow's rule and of the command.
        table: its detail table.
    """

    rule: ClassVar[str] = "flow"
    table: ClassVar[str] = "flow"

    env: Env = Field(description="the student's game: an id of gymnasium, or a mapping with `id` and settings")
    teachers: tuple[str, ...] = Field(min_length=1, description="members of the zoo; their weights stay")
    student: Net
    methods: ControlMethods
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="one training a seed; distinct, 0 to 4294967295")
    training: A2CChanges = Field(A2CChanges(), description="what is changed of A2C's defaults")

    @field_validator("methods")
    @classmethod
    def _not_empty(cls, methods: ControlMethods) -> ControlMethods:
        if not methods.options():
            raise ValueError(f"no method chosen; allowed: {', '.join(type(methods).model_fields)}")
        return methods

    @property
    def plan(self) -> A2C:
        """Training of its students, but for the changes of a method."""
        return self.training.of(A2C())

    def trained(self, method: Played) -> A2C:
        """Training by a method."""
        return method.training.of(self.plan) if method.training else self.plan

    def chosen(self) -> dict[str, Played]:
        """The methods that the configuration names."""
        return self.methods.options()

    def work(self) -> list[tuple[Played, tuple[str, ...], int]]:
        """Method, teachers and seed of each of its units."""
        return [
            (method, names, seed)
            for method in self.chosen().values()
            for seed in seeds_of(method, self.seeds)
            for names in self.sets(method)
        ]

    def sets(self, method: Played) -> list[tuple[str, ...]]:
        """All teachers; each by itself where it takes the student's place; none where the student learns alone."""
        if method.name == "finetune_teacher":
            return [(name,) for name in self.teachers]
        return [() if method.name == "scratch" else self.teachers]

    def epochs(self, method: Method) -> int:
        """Evaluations of a training by a method."""
        assert isinstance(method, Played)
        return self.trained(method).evaluations

    def seen(self, method: Method, images: int) -> float:
        """Actions of a training by a method; images play no part."""
        assert isinstance(method, Played)
        plan = self.trained(method)
        return float(plan.updates * plan.batch_size)


class ControlStudy(Root):
    """The whole of ``config.yaml``."""

    plays: ClassVar[bool] = True
    task: ClassVar[Control] = Control()

    title: str = Field("Knowledge flow between policies", description="title of the report")
    data: Episodes
    zoo: PolicyZoo
    flow: dict[Name, ControlFlow] = Field(
        min_length=1,
        json_schema_extra={"additionalProperties": False},
        description="experiments by name: teachers of other games, a student that learns its own",
    )
    transfer: Running = Field(Running(), description="how trainings run")

    @property
    def members(self) -> list[str]:
        """The policies, in the order of the file."""
        return list(self.zoo.models)

    @property
    def names(self) -> list[str]:
        """The same: no policy is left out of anything."""
        return self.members

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that define networks and games, kt's own first."""
        return (POLICIES, *self.zoo.modules)

    @property
    def experiments(self) -> dict[str, Mapping[str, ControlFlow]]:
        """The experiments by name, by the section that they stand in."""
        return {"flow": self.flow}

    def each_experiment(self) -> list[tuple[str, str, ControlFlow]]:
        """Section, name and experiment of all of them."""
        return [("flow", name, found) for name, found in self.flow.items()]

    def games(self) -> dict[str, Game]:
        """Every game that is played, by its place in the configuration."""
        return {
            **{f"zoo.models.{name}.env": member.env for name, member in self.zoo.models.items()},
            **{f"flow.{name}.env": experiment.env for name, experiment in self.flow.items()},
        }


def check(study: ControlStudy) -> ControlStudy:
    """Fail on all errors that can be found without torch.

    Raises:
        KtError: an unknown game, architecture or teacher, a member with no weights or two sources of them, a missing
            checkpoint, a results folder that cannot be written.
    """
    store.check_writable(study.layout.root)
    spec.check_all(study, {"results"})
    if not study.zoo.modules:  # which may register more; the stage `data` imports them
        for at, game in study.games().items():
            games.registered(game.id, at)
    known = registry.load(study.modules)
    for name, member in study.zoo.models.items():
        at = f"zoo.models.{name}"
        _check_arch(at, member.arch, known)
        member.check(at)
        if (member.train is None) == (member.checkpoint is None):
            given = "not both: weights that are given are not trained further" if member.train else "one is needed"
            raise KtError(f"{at}: give one of `train` and `checkpoint`, {given}")
        if member.train:
            member.train.check(f"{at}.train")
    for name, experiment in study.flow.items():
        at = f"flow.{name}"
        _check_arch(f"{at}.student", experiment.student.arch, known)
        experiment.student.check(f"{at}.student")
        for teacher in experiment.teachers:
            if teacher not in study.zoo.models:
                raise KtError(f"{at}.teachers: {unknown('model', teacher, study.zoo.models)}")
        if len(set(experiment.teachers)) < len(experiment.teachers):
            raise KtError(f"{at}.teachers: {quoted(list(experiment.teachers))} names a teacher twice")
        experiment.plan.check(f"{at}.training")
        for method in experiment.chosen().values():
            experiment.trained(method).check(f"{at}.methods.{method.name}.training")
            for teacher in getattr(method, "teacher_stages", {}):
                if teacher not in experiment.teachers:
                    text = unknown("teacher", teacher, experiment.teachers)
                    raise KtError(f"{at}.methods.{method.name}.teacher_stages: {text}")
    return study


def _check_arch(at: str, arch: str, known: Registry) -> None:
    if arch.partition(".")[0] not in known.models:
        raise KtError(f"{at}.arch: {unknown('model', arch, known.models)}")
