"""Methods by which a policy learns its game, alone or from teachers of other games: their parameters. Source: KF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from kt.control.spec import A2CChanges
from kt.spec import Options
from kt.transfer.ledger import Record
from kt.transfer.method import Method
from kt.transfer.methods.flow import Stages

if TYPE_CHECKING:
    from kt.control.session import Session


class Played(Method):
    """Methods of policies, which learn from rewards by A2C."""

    takes: ClassVar[Literal["experiment"]] = "experiment"

    training: A2CChanges | None = Field(  # type: ignore[assignment]
        None, description="what this method trains with instead of the experiment's `training`"
    )


class KnowledgeFlow(Played):
    """Hidden layers of teachers flow into the student's, less and less, until it is on its own. Source: KF.

    Loss: A2C + λ1 · L_dep + λ2 · KL(earlier policy ‖ policy).
    """

    name: ClassVar[str] = "flow"
    untrained: ClassVar[bool] = False

    dependency: float = Field(0.1, ge=0, description="λ1 at its largest: it grows in a line until the student is alone")
    stability: float = Field(0.1, ge=0, description="λ2")
    refresh: PositiveInt = Field(100, description="updates between two copies of the earlier policy")
    alone: float = Field(
        0.3, ge=0, lt=1, description="share of the training, at its end, in which the student has no teachers"
    )
    rate: PositiveFloat = Field(30.0, description="how much faster than others the scalars behind the weights move")
    candidates: Literal["nearest", "all"] = Field(
        "nearest", description="of each teacher the layer of nearest relative depth, or all of them"
    )
    stages: Stages = Field((), description="layers of the student that take something; all hidden ones when empty")
    teacher_stages: dict[str, Stages] = Field(
        default_factory=dict, description="layers of a teacher that may give something, by its name; else all"
    )

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student with its teachers attached, who are gone at the end."""
        from kt.control import learn

        return learn.attached(session, self, teachers, seed)


class UntrainedFlow(KnowledgeFlow):
    """Control: knowledge flow from teachers with the same architectures and random weights."""

    name: ClassVar[str] = "flow_untrained"
    untrained: ClassVar[bool] = True


class Distilled(Played):
    """Policy distillation: A2C + weight · T² · KL(π_t ‖ π) on the states that the student visits.

    The mean over the teachers that have the student's actions.
    """

    name: ClassVar[str] = "distil"

    weight: PositiveFloat = Field(1.0, description="of the distillation term at the start; it falls in a line to zero")
    temperature: PositiveFloat = Field(1.0, description="T")

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student from rewards and the teachers' policies."""
        from kt.control import learn

        return learn.distil(session, self, teachers, seed)


class FineTuned(Played):
    """Fine-tuning: each teacher in turn, with a new head, takes the student's place."""

    name: ClassVar[str] = "finetune_teacher"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """A teacher with a new head."""
        from kt.control import learn

        (name,) = teachers
        return learn.finetune(session, self, name, seed)


class Scratch(Played):
    """Control: A2C from random weights, no teacher."""

    name: ClassVar[str] = "scratch"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student alone."""
        from kt.control import learn

        return learn.scratch(session, self, seed)


class ControlMethods(Options):
    """Methods of an experiment with policies, and their controls."""

    flow: KnowledgeFlow | None = Field(None, description="knowledge flow")
    flow_untrained: UntrainedFlow | None = Field(None, description="control: the same from teachers of random weights")
    distil: Distilled | None = Field(None, description="distillation from the teachers that have the same actions")
    finetune_teacher: FineTuned | None = Field(None, description="each teacher with a new head, trained further")
    scratch: Scratch | None = Field(None, description="control: rewards alone")
