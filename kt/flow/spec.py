"""The section ``flow`` of the configuration: a name for every experiment, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from kt.errors import KtError, unknown
from kt.experiments.spec import Experiment, Labels, Problem
from kt.experiments.trial import Trial
from kt.experiments.units import accuracy
from kt.spec import Options
from kt.transfer.approach import Approach
from kt.transfer.ledger import Record, unpack
from kt.transfer.training import Training
from kt.zoo.classes import labels_named
from kt.zoo.registry import Registry
from kt.zoo.spec import ZooSpec

Stages = Annotated[
    tuple[int | str, ...],
    Field(description="feature stages by their position, from 0, or from the last one as -1; or modules by their name"),
]


class KnowledgeFlow(Approach):
    """Teachers' features flow into the student's stages, less and less, until it is on its own. Source: KF.

    Loss: CE + λ1 · L_dep + λ2 · KL(previous output ‖ output).
    """

    name: ClassVar[str] = "flow"
    uses_labels: ClassVar[bool] = True

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


class UntrainedFlow(KnowledgeFlow):
    """Control: knowledge flow from teachers with the same architectures and random weights."""

    name: ClassVar[str] = "flow_untrained"


class Scratch(Approach):
    """Control: cross-entropy with the labels, no teacher."""

    name: ClassVar[str] = "scratch"
    uses_labels: ClassVar[bool] = True


class FineTuned(Approach):
    """Fine-tuning: each teacher in turn, with a new classifier, takes the student's place."""

    name: ClassVar[str] = "finetune_teacher"
    uses_labels: ClassVar[bool] = True


class Distilled(Approach):
    """Distillation: CE + weight · Σ_t [t knows the label] · T² · KL(p_t ‖ p), both over the classes that t knows."""

    name: ClassVar[str] = "distil"
    uses_labels: ClassVar[bool] = True

    weight: PositiveFloat = Field(1.0, description="of the distillation term")
    temperature: PositiveFloat = Field(2.0, description="T")


class FlowMethods(Options):
    """How the student is made, and what it is compared with."""

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

    def trials(self) -> list[Trial]:
        """One a method and seed; where each teacher takes the student's place, one for each of them."""
        settings = {"images": self.images} if self.images else {}
        return [
            replace(trial, teachers=names, settings=settings)
            for trial in super().trials()
            for names in self._groups(trial)
        ]

    def _groups(self, trial: Trial) -> list[tuple[str, ...]]:
        if trial.approach.name == FineTuned.name:
            return [(name,) for name in trial.teachers]
        return [() if trial.approach.name == Scratch.name else trial.teachers]

    def check(self, at: str, zoo: ZooSpec, known: Registry) -> Self:
        """The same; names in `teacher_stages` are checked too."""
        checked = super().check(at, zoo, known)
        for method in self.approaches().values():
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

    def details(self, trial: Trial, outcome: Record, problem: Problem) -> list[dict[str, Any]]:
        """A row for each epoch, stage and source of knowledge flow; one row of other methods."""
        shared = {
            "images": self.images,
            **accuracy(unpack(outcome["last"]) == problem.truth),
            "acc_best": accuracy(unpack(outcome["best"]) == problem.truth)["acc"],
        }
        if "weights" not in outcome:
            return [shared]
        over_time = zip(outcome["weights"], outcome["attached"], outcome["validation"], strict=True)
        return [
            {
                **shared,
                "epoch": epoch,
                "stage": stage,
                "source": "self" if teacher is None else trial.teachers[teacher],
                "source_stage": source_stage,
                "weight": weight,
                "attached": attached,
                "detached": detached,
            }
            for epoch, (weights, attached, detached) in enumerate(over_time, start=1)
            for (stage, candidates), of_stage in zip(outcome["inlets"], weights, strict=True)
            for (teacher, source_stage), weight in zip([(None, stage), *candidates], of_stage, strict=True)
        ]
