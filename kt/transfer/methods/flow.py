"""Knowledge flow: frozen teachers of other tasks, and a student that learns its own. Source: KF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from kt.errors import KtError, quoted, unknown
from kt.spec import Options
from kt.transfer.experiments import Experiment, Labels, Problem
from kt.transfer.ledger import Record, unpack
from kt.transfer.method import Method
from kt.transfer.rows import flowing, measured
from kt.transfer.training import Training
from kt.zoo.registry import Registry
from kt.zoo.spec import ZooSpec, labels_named

if TYPE_CHECKING:
    from kt.costs import Needs
    from kt.tasks.task import Task
    from kt.transfer.bench import Bench
    from kt.transfer.session import Session
    from kt.transfer.unit import Unit


def _stage(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"a stage is given by its position or the name of its module, not {quoted(value)}")
    return value


Stages = Annotated[
    tuple[Annotated[int | str, BeforeValidator(_stage, json_schema_input_type=int | str)], ...],
    Field(description="feature stages by their position, from 0, or from the last one as -1; or modules by their name"),
]


class Supervised(Method):
    """Methods of experiments that learn from labels."""

    takes: ClassVar[Literal["experiment"]] = "experiment"
    uses_labels: ClassVar[bool] = True


class KnowledgeFlow(Supervised):
    """Teachers' features flow into the student's stages, less and less, until it is on its own. Source: KF.

    Loss: CE + λ1 · L_dep + λ2 · KL(previous output ‖ output).
    """

    name: ClassVar[str] = "flow"

    dependency: float = Field(1.0, ge=0, description="λ1 at its largest: it grows in a line until the student is alone")
    stability: float = Field(0.1, ge=0, description="λ2")
    alone: float = Field(
        0.3, ge=0, lt=1, description="share of the training, at its end, in which the student has no teachers"
    )
    rate: PositiveFloat = Field(30.0, description="how much faster than others the scalars behind the weights move")
    candidates: Literal["nearest", "all"] = Field(
        "nearest", description="of each teacher the stage of nearest relative depth, or all of them"
    )
    stages: Stages = Field((), description="stages of the student that take something; all when empty")
    teacher_stages: dict[str, Stages] = Field(
        default_factory=dict, description="stages of a teacher that may give something, by its name; else all"
    )
    untrained: ClassVar[bool] = False

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student with its teachers attached, who are gone at the end."""
        from kt.transfer import flow

        return flow.attached(session, self, teachers, seed)

    def needs(self, bench: Bench, teachers: Sequence[str]) -> Needs:
        """Of the student with its teachers attached."""
        from kt.transfer import flow

        return flow.needs(bench, self, teachers)


class UntrainedFlow(KnowledgeFlow):
    """Control: knowledge flow from teachers with the same architectures and random weights."""

    name: ClassVar[str] = "flow_untrained"
    untrained: ClassVar[bool] = True


class Scratch(Supervised):
    """Control: cross-entropy with the labels, no teacher."""

    name: ClassVar[str] = "scratch"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student alone, from labels."""
        from kt.transfer import flow

        return flow.scratch(session, self, seed)


class FineTuned(Supervised):
    """Fine-tuning: each teacher in turn, with a new classifier, takes the student's place."""

    name: ClassVar[str] = "finetune_teacher"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """A teacher with a new classifier, from labels."""
        from kt.transfer import flow

        (name,) = teachers
        return flow.finetune(session, self, name, seed)

    def needs(self, bench: Bench, teachers: Sequence[str]) -> Needs:
        """Of the largest teacher."""
        from kt.transfer import flow

        return flow.needs_of_finetuning(bench, self, teachers)


class Distilled(Supervised):
    """Distillation: CE + weight · Σ_t [t knows the label] · T² · KL(p_t ‖ p), both over the classes that t knows."""

    name: ClassVar[str] = "distil"

    weight: PositiveFloat = Field(1.0, description="of the distillation term")
    temperature: PositiveFloat = Field(2.0, description="T")

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student from labels and the teachers' cached logits."""
        from kt.transfer import flow

        return flow.distil(session, self, teachers, seed)


class FlowMethods(Options):
    """Methods of an experiment with knowledge flow, and their controls."""

    flow: KnowledgeFlow | None = Field(None, description="knowledge flow")
    flow_untrained: UntrainedFlow | None = Field(None, description="control: the same from teachers of random weights")
    distil: Distilled | None = Field(None, description="distillation from all teachers, each on the classes it knows")
    finetune_teacher: FineTuned | None = Field(None, description="each teacher with a new classifier, fine-tuned")
    scratch: Scratch | None = Field(None, description="control: labels alone")


class FlowExperiment(Experiment):
    """Frozen teachers of other tasks, and a student that learns its own from labelled images."""

    rule: ClassVar[str] = "flow"
    table: ClassVar[str] = "flow"
    training_of: ClassVar[Training] = Training(epochs=60, batch_size=25, lr=2e-3)

    teachers: tuple[str, ...] = Field(min_length=1, description="members of the zoo, specialists or not")
    methods: FlowMethods
    task: tuple[int | str, ...] | None = Field(
        None, min_length=2, description="the student's classes, by number or name; all of the data set when left out"
    )
    images: PositiveInt | None = Field(
        None, description="transfer images that the student learns from, balanced, drawn by the seed; all when left out"
    )

    def sets(self, method: Method) -> list[tuple[str, ...]]:
        """All teachers; each by itself where it takes the student's place; none where the student learns alone."""
        if isinstance(method, FineTuned):
            return [(name,) for name in self.teachers]
        return [() if isinstance(method, Scratch) else self.teachers]

    @property
    def settings(self) -> dict[str, Any]:
        """The number of images, where it is limited."""
        return {"images": self.images} if self.images else {}

    def check(self, at: str, zoo: ZooSpec, known: Registry) -> Self:
        """The same; names in `teacher_stages` are checked too."""
        checked = super().check(at, zoo, known)
        for method in self.chosen().values():
            for name in getattr(method, "teacher_stages", {}):
                if name not in self.teachers:
                    text = unknown("teacher", name, self.teachers)
                    raise KtError(f"{at}.methods.{method.name}.teacher_stages: {text}")
        return checked

    def classes(self, at: str, own: Mapping[str, Labels], known: Sequence[str]) -> Labels:
        """The student's task, or all labels of the data set."""
        return np.arange(len(known)) if self.task is None else labels_named(f"{at}.task", self.task, known)

    def learnt_from(self, images: int) -> int:
        """Those that are drawn."""
        return min(images, self.images or images)

    def fits(self, bench: Any) -> None:
        """Fail where images, batches or classes do not fit.

        Raises:
            KtError: more images are requested than there are or fewer than a batch, or no teacher knows a class of the
                student.
        """
        there = bench.learnt_from
        if (self.images or 0) > there:
            text = f"{self.images} asked for, but {there} transfer images have its classes"
            raise KtError(f"{bench.at}.images: {text}")
        for method in self.chosen().values():
            training = method.trained(self.plan)
            if training.batch_size > self.learnt_from(there):
                size = f"{training.batch_size} is larger than images ({self.learnt_from(there)})"
                raise KtError(f"{bench.at}.training.batch_size: {size}")
            if isinstance(method, Distilled) and not any((bench.positions(t) >= 0).any() for t in self.teachers):
                raise KtError(f"{bench.at}.methods.distil: no teacher knows a class of the student's task")

    def details(self, task: Task, unit: Unit, outcome: Record, problem: Problem) -> list[dict[str, Any]]:
        """A row for each epoch, stage and source of knowledge flow; one row of other methods."""
        shared = {
            "images": self.images,
            **measured(task, unpack(outcome["last"]), problem.truth),
            "acc_best": measured(task, unpack(outcome["best"]), problem.truth)["acc"],
        }
        if "weights" not in outcome:
            return [shared]
        return [{**shared, **part} for part in flowing(unit, outcome)]
