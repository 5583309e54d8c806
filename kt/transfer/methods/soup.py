"""``soup``: one training per teacher, and the mean of the students' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kt.transfer.methods.sequential import Repeated

if TYPE_CHECKING:
    from kt.transfer.ledger import Record
    from kt.transfer.session import Session


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
