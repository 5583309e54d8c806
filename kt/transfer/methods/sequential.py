"""``sequential`` and ``soup``: several teachers one after another, or each alone and the mean of the students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat

from kt.errors import KtError
from kt.transfer.method import Method, Partitioned, registry

if TYPE_CHECKING:
    from kt.tasks.task import Task
    from kt.transfer.ledger import Record
    from kt.transfer.session import Session


class Repeated(Partitioned):
    """Base class of methods that train by another method, once per teacher."""

    takes: ClassVar[Literal["group"]] = "group"
    base: Literal["kl", "kl_dp", "kl_dp_unsup"] = Field("kl_dp", description="the method for each teacher")
    temperature: PositiveFloat = Field(1.0, description="softmax temperature T of that method")

    @property
    def labelled(self) -> bool:
        """Whether the repeated method uses labels."""
        return self.single().uses_labels

    def single(self) -> Method:
        """The method that trains with one teacher."""
        level = {} if self.base == "kl" else {"level": self.level}
        return registry()[self.base].model_validate({"temperature": self.temperature, **level})

    def check(self, task: Task, at: str) -> None:
        """Fail where the repeated method cannot be used."""
        super().check(task, at)
        if self.base == "kl" and self.level == "pixel":
            raise KtError(f"{at}.level: 'pixel', but `base: kl` divides nothing among models; leave it out")
        self.single().check(task, f"{at}.base")

    def budget(self, teachers: int) -> int:
        """One training per teacher."""
        return teachers


class Sequential(Repeated):
    """One transfer after another; at each new teacher the frozen student is the current one, the optimiser fresh.

    The budget is that of as many transfers as there are teachers. Source: FG section 4.4, sequential transfer.
    """

    name: ClassVar[str] = "sequential"
    order: Literal["ascending", "descending", "random", "given"] = Field(
        "ascending",
        description="of the teachers: by validation accuracy, by the seed, or as the group names them",
    )

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The outcome after the last teacher; epochs are counted through all of them."""
        from kt.transfer.session import follow

        start, stages = None, []
        for stage, teacher in enumerate(session.ordered(teachers, self.order, seed)):
            stages.append(session.train(self.single(), [teacher], seed, start=start, stage=stage))
            start = stages[-1].last
        return session.outcome(follow(stages))


class Soup(Repeated):
    """The mean of the weights, and of BatchNorm's statistics, of the students transferred from each teacher alone.

    A soup of one is that one. ``delta_best`` is that of the mean of each student's best epoch. The budget is that of
    as many transfers as there are teachers. Source: FG section 4.4, model soup transfer.
    """

    name: ClassVar[str] = "soup"

    def run(self, session: Session, teachers: Sequence[str], seed: int) -> Record:
        """The outcome of the mean student."""
        from kt.transfer.session import average

        single = self.single()
        stages = [session.train(single, [teacher], seed, stage=stage) for stage, teacher in enumerate(teachers)]
        return session.outcome(average(stages))
