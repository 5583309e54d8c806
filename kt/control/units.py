"""Units of a study of policies: one enumeration for its jobs, for planning and for ``kt status``. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kt import store
from kt.control.methods import Played
from kt.control.study import ControlFlow, ControlStudy
from kt.layout import Layout
from kt.transfer.unit import Plan, Unit

ALGORITHM_VERSION = 1
"""Raise it when the results of a training by A2C change: finished units of older versions are not reused."""

Facts = Mapping[str, Any]
"""What determines a game, as plain JSON values."""


def made_from(study: ControlStudy, name: str, game: Facts) -> str:
    """Hash of all that a member's weights depend on; ``game`` has the facts of its game."""
    member = study.zoo.models[name]
    given = store.digest_file(member.checkpoint) if member.checkpoint else ""
    return store.digest([member.plain(), dict(game), study.zoo.modules, ALGORITHM_VERSION, given])


def games(layout: Layout) -> dict[str, Facts]:
    """Facts of every game by its place in the configuration; none before the stage ``data`` has found them.

    Raises:
        KtError: the file is damaged.
    """
    if not layout.games.exists():
        return {}
    found: dict[str, Facts] = store.read_json(layout.games)
    return found


def described(chosen: ControlFlow, game: Facts) -> dict[str, Any]:
    """All that determines an experiment's student before training, as plain JSON values."""
    return {**chosen.student.plain(), "game": game}


def student_print(chosen: ControlFlow, game: Facts) -> str:
    """Fingerprint of an experiment's student before training."""
    return store.digest(described(chosen, game))


def of_experiment(study: ControlStudy, at: str, chosen: ControlFlow, game: Facts | None) -> list[Unit]:
    """The units of an experiment.

    Args:
        study: the study.
        at: its place, ``flow.name``.
        chosen: the experiment.
        game: facts of its game; None where they are not known yet, and then the units have no keys.
    """
    return [
        Unit(method, Plan(_facts(study, chosen, game, method, seed), listed=True), at, teachers, seed)
        for method, teachers, seed in chosen.work()
    ]


def _facts(study: ControlStudy, chosen: ControlFlow, game: Facts | None, method: Played, seed: int) -> dict[str, Any]:
    plan = chosen.trained(method)
    return {
        "experiment": chosen.rule,
        "task": [study.task.name, study.task.version],
        "game": None if game is None else dict(game),
        "architecture": chosen.student.plain(),
        "method": {"name": method.name, "version": method.version, **method.parameters()},
        "training": {"version": ALGORITHM_VERSION, **plan.plain(), "batch_size": plan.batch_size},
        "evaluation": {"episodes": study.data.episodes},
        "seed": seed,
    }


def recipe(study: ControlStudy, chosen: ControlFlow) -> list[Any]:
    """All in the configuration that determines an experiment beside its teachers' weights, as plain JSON."""
    versions = {name: method.version for name, method in chosen.chosen().items()}
    return [chosen.plain(), versions, study.data.episodes, study.zoo.modules]
