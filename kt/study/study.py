"""The study: ``config.yaml`` as one frozen, typed object, composed of the sections of all packages.

Only the command line, the Snakefile and the stages know this object; functions get their own section, or plain
arguments. Nothing here imports torch or timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, PositiveFloat

from kt import store
from kt.complementarity.spec import ComplementaritySpec
from kt.data.seen import InputSpec
from kt.data.spec import DEFAULT_TASK, DataSpec
from kt.layout import Root
from kt.pairs import All, PairRule
from kt.spec import Spec
from kt.tasks import task as tasks
from kt.tasks.task import Task
from kt.transfer.experiments import Experiment
from kt.transfer.groups import GroupSpec
from kt.transfer.method import Method
from kt.transfer.methods.amalgamation import Amalgamation
from kt.transfer.methods.flow import FlowExperiment
from kt.transfer.spec import TransferSpec
from kt.zoo.spec import Name, ZooSpec


class AnalysisSpec(Spec):
    """Settings of the summary of results."""

    equal_within: PositiveFloat = Field(
        2.0,
        description="units of the metric (percentage points of accuracy) within which a teacher counts as equal to its "
        "student; default of other metrics: 2 % of their scale",
    )


class Study(Root):
    """The whole of ``config.yaml``."""

    plays: ClassVar[bool] = False

    data: DataSpec
    zoo: ZooSpec
    complementarity: ComplementaritySpec = ComplementaritySpec()
    pairs: PairRule = Field(
        All(select="all"), description="which ordered pairs get a transfer; all of them when left out"
    )
    transfer: TransferSpec
    groups: GroupSpec | None = Field(None, description="experiments with several teachers; none when left out")
    amalgamate: dict[Name, Amalgamation] = Field(
        default_factory=dict,
        json_schema_extra={"additionalProperties": False},
        description="experiments by name: teachers of some classes each, one student of all",
    )
    flow: dict[Name, FlowExperiment] = Field(
        default_factory=dict, description="experiments by name: teachers of other tasks, a student that learns its own"
    )
    analysis: AnalysisSpec = AnalysisSpec()

    @property
    def names(self) -> list[str]:
        """The models that are compared and paired, in the order of the file: those without classes of their own."""
        return self.zoo.generalists

    @property
    def members(self) -> list[str]:
        """All of the zoo's models, specialists included, in the order of the file."""
        return list(self.zoo.models)

    @property
    def features(self) -> bool:
        """Whether anything in the study needs the models' penultimate features."""
        return "cka" in self.complementarity.measures or any(method.uses_features for method in self._methods)

    @property
    def trains_together(self) -> bool:
        """Whether a method of the pairs or groups trains all models at once."""
        return any(method.joint for method in self._methods)

    @property
    def _methods(self) -> list[Method]:
        groups = self.groups.methods.chosen().values() if self.groups else ()
        return [*self.transfer.methods.chosen().values(), *groups]

    def views(self, split: str) -> int:
        """Views of every image of a split: each model sees it so many times."""
        return self.transfer.views.n if self.transfer.views and split == "transfer" else 1

    @property
    def task(self) -> Task:
        """The task of the study."""
        return tasks.named(self.data.task)

    def shown(self, data: str) -> str:
        """Hash of the data set, from its own hash, of the task, and of how the transfer images are shown."""
        views, top, task = self.transfer.views, self.transfer.top_k, self.task
        other = [] if (task.name, task.version) == (DEFAULT_TASK, 1) else [task.name, task.version]
        return store.digest([data, views and views.plain(), top, *other]) if views or top or other else data

    @property
    def experiments(self) -> dict[str, Mapping[str, Experiment]]:
        """The experiments by name, by the section that they stand in."""
        return {"amalgamate": self.amalgamate, "flow": self.flow}

    def each_experiment(self) -> list[tuple[str, str, Experiment]]:
        """Section, name and experiment of all of them."""
        return [(rule, name, found) for rule, named in self.experiments.items() for name, found in named.items()]

    def student_input(self, experiment: Experiment) -> InputSpec:
        """Input of an experiment's student."""
        spec = experiment.student.input or self.zoo.input
        assert spec is not None, "kt.transfer.experiments.Experiment.check requires it"
        return spec
