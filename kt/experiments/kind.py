"""How a kind of experiment is done: its trials, one by one, and what they will take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from kt.errors import KtError
from kt.experiments import memory
from kt.experiments.bench import Bench
from kt.experiments.needs import Needs
from kt.experiments.spec import Experiment
from kt.experiments.trial import Trial
from kt.transfer.approach import Approach
from kt.transfer.failures import attempt_in_pieces, resumes
from kt.transfer.ledger import Record

E = TypeVar("E", bound=Experiment)


@dataclass(frozen=True)
class Kind(Generic[E]):
    """What does the experiments whose section of the configuration is an ``E``.

    Attributes:
        run: what does a trial, by the name of its method; the record holds ``last``, the packed positions among the
            student's classes that it gives the test images.
        needs: what a training by a method takes, where it is not that of the student by itself. Raises ``KtError``
            where what the method needs cannot be built.
        check: raises ``KtError`` where images or classes do not fit.
    """

    run: Mapping[str, Callable[[Bench, E, Trial, str], Record]]
    needs: Callable[[Bench, E, Approach], Needs | None]
    check: Callable[[Bench, E], None] = lambda bench, experiment: None

    def compute(self, bench: Bench, experiment: E, trial: Trial, key: str) -> Record:
        """The record of a trial for the ledger; a failure is one too. The bench then has what it left, if it trained.

        A batch that does not fit in memory is cut into two, four, … pieces.

        Args:
            bench: images, teachers and the student.
            experiment: whose trial it is.
            trial: one of its ``trials``.
            key: of the trial, which its checkpoint needs.

        Raises:
            Interrupted: the bench's ``stop`` was set; the trial goes on from its checkpoint next time.
        """
        bench.trained = None

        def run(pieces: int) -> Record:
            bench.pieces = pieces
            return self.run[trial.approach.name](bench, experiment, trial, key)

        batch = trial.approach.trained(experiment.plan).batch_size
        record = attempt_in_pieces(run, key, batch, bench.device)
        if not resumes(record):
            bench.forget(key)
        return record

    def inspect(self, bench: Bench, experiment: E) -> dict[str, Needs]:
        """Fail where an experiment cannot be: called before anything is trained, with teachers of fresh weights.

        Returns:
            What a training by each of its methods takes, by the method's name.

        Raises:
            KtError: the student cannot be built, its outputs are not its classes, a batch has too many images, or
                memory does not suffice.
        """
        self.check(bench, experiment)
        student = bench.student(experiment.seeds[0])
        images, approaches = bench.learnt_from, experiment.approaches()
        trainings = {"training": experiment.plan}
        trainings |= {f"methods.{n}.training": a.trained(experiment.plan) for n, a in approaches.items()}
        for key, training in trainings.items():
            if training.batch_size > images:
                what = f"{images} transfer images of the student's classes"
                raise KtError(f"{bench.at}.{key}.batch_size: {training.batch_size}, but there are {what}")
        found = {
            name: self.needs(bench, experiment, approach)
            or memory.needs(student, bench.shape(), approach.trained(experiment.plan), {"images": bench.prepared()})
            for name, approach in approaches.items()
            if approach.trains
        }
        if found:
            name, most = max(found.items(), key=lambda one: one[1].total(one[1].batch))
            memory.check(f"{bench.at}.methods.{name}", most, bench.device)
        return found
