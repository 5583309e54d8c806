"""One unit of an experiment with policies: its trainings, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt.checkpoint import Checkpoint
from kt.control import a2c
from kt.control.a2c import Extra, Make, seed_for
from kt.control.spec import A2C
from kt.transfer.failures import attempt_in_pieces, resumes
from kt.transfer.ledger import Record, pack
from kt.transfer.session import Trained
from kt.transfer.unit import Unit
from kt.zoo.inference import channels_last

if TYPE_CHECKING:
    from kt.control.games import GameFacts


class Teacher(NamedTuple):
    """A member of the zoo, as an experiment reads it.

    Attributes:
        facts: of its game.
        load: gives the policy with its weights.
        fresh: gives its architecture with weights from torch's global generator.
    """

    facts: GameFacts
    load: Callable[[], nn.Module]
    fresh: Callable[[], nn.Module]


class Arena(NamedTuple):
    """Where the units of an experiment run.

    Attributes:
        at: its place in the configuration, ``flow.name``.
        facts: of the student's game.
        make: makes copies of this game.
        student: gives the student with weights from torch's global generator.
        teachers: by name.
        plan: the training, but for the changes of a method.
        episodes: test episodes of a student.
        checkpoints: folder of the checkpoints.
        every: seconds between two of them.
        device: where everything runs.
        stop: set to end the running training after its next update, with a checkpoint.
    """

    at: str
    facts: GameFacts
    make: Make
    student: Callable[[], nn.Module]
    teachers: Mapping[str, Teacher]
    plan: A2C
    episodes: int
    checkpoints: Path
    every: float
    device: torch.device
    stop: Event

    def share(self, processes: int) -> None:
        """Let so many processes use the device: policies are small, and nothing has to be divided."""


class Session:
    """One unit: all that a method's ``learn`` works with.

    Args:
        arena: game, student and teachers.
        unit: method, teachers and seed.
        key: the unit's key.

    Attributes:
        plan: the training of the unit.
        left: the student with its last weights, once there is an outcome.
    """

    def __init__(self, arena: Arena, unit: Unit, key: str) -> None:
        self.arena, self.unit, self.key = arena, unit, key
        changes: Any = unit.method.training
        self.plan: A2C = changes.of(arena.plan) if changes else arena.plan
        self.left: nn.Module | None = None

    def student(self, seed: int) -> nn.Module:
        """The student of a seed, before training."""
        torch.manual_seed(seed)
        return self._placed(self.arena.student())

    def teacher(self, name: str) -> nn.Module:
        """A teacher with its weights."""
        return self._placed(self.arena.teachers[name].load()).eval()

    def untaught(self, name: str, seed: int) -> nn.Module:
        """A network as a teacher's with random weights of a seed; those of two teachers differ."""
        torch.manual_seed(seed_for("untrained", seed, self.unit.teachers.index(name)))
        return self._placed(self.arena.teachers[name].fresh()).eval()

    def value(self, policy: nn.Module) -> Callable[[int], float]:
        """The mean return of a policy after each part of the training, by the part's number, counted from 0."""
        return a2c.evaluation(policy, self.arena.make, self.plan, self.unit.seed, self.arena.stop)

    def fit(
        self,
        learner: nn.Module,
        student: nn.Module,
        extra: Extra | None = None,
        after: Callable[[], None] | None = None,
        validate: Callable[[int], float] | None = None,
    ) -> Trained:
        """Train the student, alone or in a learner, with the unit's plan and seed.

        Args:
            learner: all that trains.
            student: the part of it that stays.
            extra: what is added to the loss of a rollout.
            after: called after each update.
            validate: mean return after a part of the training; the student's own where None.
        """
        arena = self.arena
        checkpoint = Checkpoint(arena.checkpoints / f"{self.key}.pt", self.key, arena.every, arena.stop)
        value = validate or self.value(student)
        self._learner, self.left = learner, student
        history = a2c.train(learner, arena.make, self.plan, self.unit.seed, checkpoint, value, extra, after)
        return Trained.of(learner, history, [])

    def outcome(self, trained: Trained) -> Record:
        """The record of a unit that trained: the returns of its student, alone, with its last and its best weights."""
        best = pack(self._returns(trained.best))
        only = trained.best_epoch == len(trained.loss)
        last = best if only else pack(self._returns(trained.last))
        return {
            "status": "ok",
            "last": last,
            "best": best,
            "best_epoch": trained.best_epoch,
            "steps": trained.steps,
            "loss": trained.loss,
            "validation": trained.validation,
            "pieces": trained.pieces,
            "curve": a2c.curve(self.plan),
        }

    def _returns(self, weights: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        """Returns of the student on the test episodes, float32; these are the same for all students of a game."""
        assert self.left is not None, "`fit` has trained it"
        self._learner.load_state_dict(weights)
        found = a2c.play(self.left, self.arena.make, self.arena.episodes, seed_for("test"), self.arena.stop)
        return found.astype(np.float32)

    def _placed(self, policy: nn.Module) -> nn.Module:
        return channels_last(policy.to(self.arena.device))


def compute(arena: Arena, unit: Unit, key: str) -> tuple[Record, nn.Module | None]:
    """The outcome of one unit for the ledger, and the student that it leaves; a failure is an outcome too.

    Args:
        arena: game, student and teachers.
        unit: method, teachers and seed.
        key: the unit's key.

    Raises:
        Interrupted: the arena was told to stop; the unit goes on from its checkpoint next time.
    """
    session = Session(arena, unit, key)

    def run(_: int) -> Record:
        record = unit.method.run(session, unit.teachers, unit.seed)
        return record | {"teacher_share": None, "budget": unit.method.budget(len(unit.teachers))}

    record = attempt_in_pieces(run, key, 2, arena.device)  # so few that they are never cut into pieces
    if not resumes(record):
        for path in arena.checkpoints.glob(f"{key}.*"):
            path.unlink(missing_ok=True)
    return record, session.left if record["status"] == "ok" else None
