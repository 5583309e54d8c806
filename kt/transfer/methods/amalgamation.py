"""Amalgamation: several teachers with classes of their own, one student for all of them. Source: CFL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from kt.errors import KtError, listed
from kt.spec import Options
from kt.transfer.experiments import Experiment, Labels, Problem
from kt.transfer.ledger import Record, unpack
from kt.transfer.method import Method
from kt.transfer.rows import measured
from kt.transfer.training import Training

if TYPE_CHECKING:
    from kt.costs import Needs
    from kt.tasks.task import Task
    from kt.transfer.bench import Bench
    from kt.transfer.session import Session
    from kt.transfer.unit import Unit


class Taught(Method):
    """Methods that train a student whose classifier has a learning rate of its own. Source: CFL."""

    takes: ClassVar[Literal["experiment"]] = "experiment"
    classifier_lr: PositiveFloat = Field(
        10.0, description="how many times `lr` the learning rate of the student's classifier is"
    )

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student alone, with soft targets or labels."""
        from kt.transfer import amalgamate

        return amalgamate.alone(session, self, teachers, seed)


class CFL(Taught):
    """Soft targets, and features that meet in a common space from which the teachers' are rebuilt. Source: CFL.

    Loss: CE_soft + mmd_weight · L_M + reconstruction_weight · L_R.
    """

    name: ClassVar[str] = "cfl"
    version: ClassVar[int] = 2

    variant: Literal["map", "vector"] = Field(
        "map", description="`map`: feature maps of stages; `vector`: the pooled features before the classifier"
    )
    stages: tuple[int, ...] = Field(
        (-1,), min_length=1, description="feature stages of every network, from 0, or from the last one as -1; of `map`"
    )
    width: PositiveInt = Field(128, description="channels of the common space; align layers have twice as many")
    blocks: PositiveInt = Field(3, description="residual 3x3 blocks of the shared extractor; of `map`")
    sigmas: tuple[PositiveFloat, ...] = Field(
        (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0), min_length=1, description="widths of the MMD's Gaussian kernels"
    )
    mmd_weight: float = Field(10.0, ge=0, description="of L_M")
    reconstruction_weight: float = Field(10.0, ge=0, description="of L_R")
    block_lr: PositiveFloat = Field(5.0, description="how many times `lr` the learning rate of the common space is")

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The student with soft targets and common features."""
        from kt.transfer import amalgamate

        return amalgamate.with_common_features(session, self, teachers, seed)

    def needs(self, bench: Bench, teachers: Sequence[str]) -> Needs:
        """Of a training with common features."""
        from kt.transfer import amalgamate

        return amalgamate.needs(bench, self, teachers)


class KD(Taught):
    """Plain distillation: cross-entropy with the softmax of the teachers' concatenated logits, T = 1. Source: CFL."""

    name: ClassVar[str] = "kd"


class Supervised(Taught):
    """Control: cross-entropy with the labels of the transfer images, no teacher."""

    name: ClassVar[str] = "supervised"
    uses_labels: ClassVar[bool] = True


class Untrained(Method):
    """Methods in which the teachers themselves answer the test images."""

    takes: ClassVar[Literal["experiment"]] = "experiment"
    trains: ClassVar[bool] = False


class Teachers(Untrained):
    """No training: each teacher alone answers; the detail table has it on the images of its own classes."""

    name: ClassVar[str] = "teachers"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The predictions of one teacher."""
        (name,) = teachers
        return session.untrained(session.bench.predicted(name, "test"))


class EnsembleLogits(Untrained):
    """No training: the largest of the teachers' concatenated logits answers."""

    name: ClassVar[str] = "ensemble_logits"
    softmax: ClassVar[bool] = False

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The class with the largest concatenated score, from cached logits."""
        from kt.transfer import amalgamate

        return session.untrained(amalgamate.ensemble(session.bench, teachers, "test", self.softmax))


class EnsembleSoftmax(EnsembleLogits):
    """No training: the largest of the teachers' concatenated probabilities, each teacher's summing to 1, answers."""

    name: ClassVar[str] = "ensemble_softmax"
    softmax: ClassVar[bool] = True


class Methods(Options):
    """Methods of an amalgamation, and their controls."""

    cfl: CFL | None = Field(None, description="common feature learning with soft targets")
    kd: KD | None = Field(None, description="plain distillation on concatenated logits")
    supervised: Supervised | None = Field(None, description="control: labels instead of teachers")
    teachers: Teachers | None = Field(None, description="each teacher alone on its own classes, no training")
    ensemble_logits: EnsembleLogits | None = Field(None, description="largest concatenated logit, no training")
    ensemble_softmax: EnsembleSoftmax | None = Field(None, description="largest probability, no training")


class Amalgamation(Experiment):
    """Teachers with classes of their own, and one student for all these classes, taught without labels."""

    rule: ClassVar[str] = "amalgamate"
    table: ClassVar[str] = "amalgamation"
    training_of: ClassVar[Training] = Training(
        epochs=30,
        batch_size=64,
        lr=1e-4,
        optimiser="adam",
        weight_decay=1e-4,
        schedule="step",
        step_epochs=15,
        step_factor=0.1,
    )

    teachers: tuple[str, ...] = Field(min_length=2, description="members of the zoo, specialists or not")
    methods: Methods
    overlap: Literal["forbid", "mean"] = Field(
        "forbid", description="a class that several teachers know: an error, or the mean of their logits is its target"
    )

    def sets(self, method: Method) -> list[tuple[str, ...]]:
        """All teachers; each by itself where it answers alone."""
        return [(name,) for name in self.teachers] if isinstance(method, Teachers) else [self.teachers]

    def classes(self, at: str, own: Mapping[str, Labels], known: Sequence[str]) -> Labels:
        """The teachers' classes one after another, each once."""
        found: dict[int, str] = {}
        for name in self.teachers:
            common = [label for label in own[name].tolist() if label in found]
            if common and self.overlap == "forbid":
                text = listed(known[label] for label in common)
                whose = f"{found[common[0]]!r} and {name!r} share the classes {text}"
                raise KtError(f"{at}.teachers: {whose}; `overlap: mean` allows it")
            found |= {label: name for label in own[name].tolist() if label not in found}
        return np.array(list(found), np.int64)

    def details(self, task: Task, unit: Unit, outcome: Record, problem: Problem) -> list[dict[str, Any]]:
        """A row for all test images and one for those of each teacher's classes; of a teacher alone the latter only."""
        last, best = unpack(outcome["last"]), unpack(outcome["best"])
        parts = {name: problem.own[name] for name in unit.teachers}
        if not isinstance(unit.method, Teachers):
            parts = {"all": np.arange(len(problem.classes)), **parts}
        images = {part: np.isin(problem.truth, classes) for part, classes in parts.items()}
        return [
            {
                "part": part,
                "classes": problem.classes[classes].tolist(),
                **measured(task, last[images[part]], problem.truth[images[part]]),
                "acc_best": measured(task, best[images[part]], problem.truth[images[part]])["acc"],
                **outcome.get("losses", {}),
            }
            for part, classes in parts.items()
            if images[part].any()
        ]
