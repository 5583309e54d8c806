"""Units of experiments with policies: the student with its teachers attached, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from kt.control.attached import PolicyFlow
from kt.control.session import Session
from kt.errors import KtError, listed
from kt.tasks.losses import distillation
from kt.transfer.knowledge_flow import inlets
from kt.transfer.ledger import Record
from kt.zoo import weights
from kt.zoo.stages import find

if TYPE_CHECKING:
    from kt.control.games import GameFacts

Distilled: TypeAlias = Any
FineTuned: TypeAlias = Any
KnowledgeFlow: TypeAlias = Any
Scratch: TypeAlias = Any
"""Methods of ``kt.control.methods``, which import this module when they run."""


def attached(session: Session, method: KnowledgeFlow, teachers: Sequence[str], seed: int) -> Record:
    """Knowledge flow, from the teachers or from others of their architectures with random weights."""
    network = attach(session, method, teachers, seed)
    alone, together = session.value(network.student), session.value(network)

    def validate(part: int) -> float:
        value = alone(part)
        network.note(part, together(part) if network.open else value)
        return value

    trained = session.fit(network, network.student, network.extra, network.updated, validate)
    return session.outcome(trained) | {
        "weights": network.trace.tolist(),
        "attached": network.attached.tolist(),
        "inlets": [(i.stage.module, [(c.teacher, c.stage.module) for c in i.candidates]) for i in network.inlets],
    }


def attach(session: Session, method: KnowledgeFlow, names: Sequence[str], seed: int) -> PolicyFlow:
    """The student of a seed with its teachers attached, before training.

    Raises:
        KtError: a teacher sees other observations; a layer is not there, or cannot be matched.
    """
    arena, at = session.arena, f"{session.arena.at}.methods.{method.name}"
    check_observations(arena.at, arena.facts, {name: arena.teachers[name].facts for name in names})
    teachers = [session.untaught(name, seed) if method.untrained else session.teacher(name) for name in names]
    seen = torch.zeros(1, *arena.facts.shape, device=arena.device)
    student = session.student(seed)
    takes = find(student, seen, method.stages, f"{at}.stages")
    gives = [
        find(teacher, seen, method.teacher_stages.get(name, ()), f"{at}.teacher_stages.{name}")
        for name, teacher in zip(names, teachers, strict=True)
    ]
    torch.manual_seed(seed)
    return PolicyFlow(
        student,
        teachers,
        inlets(takes, gives, method.candidates == "all"),
        session.plan.evaluations,
        session.plan.updates,
        1 - method.alone,
        method.rate,
        method.dependency,
        method.stability,
        method.refresh,
    )


def scratch(session: Session, method: Scratch, seed: int) -> Record:
    """The student alone, from rewards."""
    student = session.student(seed)
    return session.outcome(session.fit(student, student))


def finetune(session: Session, method: FineTuned, teacher: str, seed: int) -> Record:
    """A teacher with a new head in the student's place.

    Raises:
        KtError: it sees other observations, or cannot get another head.
    """
    arena = session.arena
    check_observations(arena.at, arena.facts, {teacher: arena.teachers[teacher].facts})
    policy = session.teacher(teacher)
    torch.manual_seed(seed)
    policy = weights.with_new_head(policy, arena.facts.actions + 1).to(arena.device).requires_grad_(True)
    return session.outcome(session.fit(policy, policy))


def distil(session: Session, method: Distilled, teachers: Sequence[str], seed: int) -> Record:
    """Rewards, and the policies of the teachers that have the student's actions.

    Raises:
        KtError: no teacher has them.
    """
    arena = session.arena
    able = with_actions(arena.at, arena.facts, {name: arena.teachers[name].facts for name in teachers})
    asked, student = [session.teacher(name) for name in able], session.student(seed)

    def extra(observations: Tensor, outputs: Tensor, done: float) -> Tensor:
        with torch.no_grad():
            answers = [teacher(observations)[:, :-1] for teacher in asked]
        terms = [distillation(answer, outputs[:, :-1], method.temperature) for answer in answers]
        mean: Tensor = method.weight * (1 - done) * torch.stack(terms).mean()
        return mean

    return session.outcome(session.fit(student, student, extra))


def check_observations(at: str, own: GameFacts, teachers: Mapping[str, GameFacts]) -> None:
    """Fail where a teacher sees something else than the student.

    Args:
        at: the experiment's place in the configuration.
        own: facts of the student's game.
        teachers: facts of the teachers' games.

    Raises:
        KtError: with both shapes.
    """
    for name, facts in teachers.items():
        if facts.shape != own.shape:
            theirs, ours = (f"{list(game.shape)} of {game.id}" for game in (facts, own))
            raise KtError(f"{at}.teachers: {name} sees {theirs}, but the student {ours}; they must be equal")


def with_actions(at: str, own: GameFacts, teachers: Mapping[str, GameFacts]) -> list[str]:
    """The teachers that see what the student sees and have its actions, as far as their games tell.

    Args:
        at: the experiment's place in the configuration.
        own: facts of the student's game.
        teachers: facts of the teachers' games.

    Raises:
        KtError: there is none.
    """
    able = [name for name, facts in teachers.items() if facts.shape == own.shape and _same_actions(facts, own)]
    if not able:
        theirs = listed(f"{name} {_told(facts)}" for name, facts in teachers.items())
        raise KtError(f"{at}.methods.distil: no teacher has the student's actions, {_told(own)}: {theirs}")
    return able


def _same_actions(one: GameFacts, other: GameFacts) -> bool:
    told = one.meanings and other.meanings
    return one.actions == other.actions and (not told or one.meanings == other.meanings)


def _told(facts: GameFacts) -> str:
    """A game's actions, and what is seen, in words."""
    meanings = f": {' '.join(facts.meanings)}" if facts.meanings else ""
    return f"{facts.id} ({facts.actions} actions{meanings}; sees {list(facts.shape)})"
