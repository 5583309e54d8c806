"""The job of an experiment with policies: its units, and what is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from kt import progress, store
from kt.control import said
from kt.control import units as requested
from kt.control.methods import Distilled, KnowledgeFlow
from kt.control.spec import Game, Policy
from kt.control.study import ControlFlow, ControlStudy
from kt.costs import Needs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.layout import Layout
from kt.stages.common import MADE_FROM, pick_device
from kt.stages.jobs import Job, Row
from kt.tasks.task import Array
from kt.transfer import export, rows
from kt.transfer.ledger import Record
from kt.transfer.unit import Unit

if TYPE_CHECKING:
    from torch import nn

    from kt.control.games import GameFacts
    from kt.control.session import Arena
    from kt.transfer.session import Left


class Playing(Job):
    """Units of an experiment with policies."""

    study: ControlStudy

    def __init__(self, study: ControlStudy, layout: Layout, at: str, chosen: ControlFlow) -> None:
        super().__init__(study, layout, at, chosen.teachers)
        self.again = partial(Playing, study, layout, at, chosen)
        self.chosen, games = chosen, requested.games(layout)
        if f"{at}.env" not in games:
            raise KtError(f"{at}: its game is not known yet; run: kt data")
        self.game = games[f"{at}.env"]
        self.prints[at] = requested.student_print(chosen, self.game)
        for name in chosen.teachers:
            _check_recipe(study, layout, name, games)

    @property
    def truth(self) -> Array:
        """As many places as there are test episodes, whose returns are their own scores."""
        return np.empty(self.study.data.episodes)

    def rows(self, unit: Unit, key: str, outcome: Record) -> list[Row]:
        """One row."""
        return [rows.of_experiment(self.task, unit, key, outcome, self.truth, self.chosen.epochs(unit.method))]

    def before(self) -> None:
        """None: the student is new."""

    def check_files(self, names: set[str]) -> None:
        """Fail where a teacher's weights are others than those whose fingerprint the units have."""
        for name in names:
            facts = store.read_json(self.layout.member(name))
            if facts["weights"] != store.digest_file(self.layout.weights(name)):
                raise KtError(f"{self.layout.weights(name)}: damaged, or of another training; delete it and run again")

    def begin(self, threads: int) -> Arena:
        """The arena of the experiment, where all that its methods train has been built once."""
        inspect(self.study, self.layout, self.at, self.chosen, threads)
        return arena(self.study, self.layout, self.at, self.chosen, threads)

    def compute(self, bench: Arena, unit: Unit, key: str) -> tuple[Record, Left | None]:
        """The outcome of its training."""
        from kt.control import policies
        from kt.control.session import compute
        from kt.transfer.session import Left

        record, student = compute(bench, unit, key)
        said.tell()
        if student is None:
            return record, None
        network = self.chosen.student
        if unit.method.name == "finetune_teacher":  # which takes the student's place
            network = self.study.zoo.models[unit.teachers[0]]
        arguments = policies.arguments(network.arch, network.args, bench.facts)
        return record, Left(student, (network.arch, arguments), bench.facts.shape[0], input_of(bench.facts))

    def about(self, bench: Arena, unit: Unit, left: Left, outcome: Record) -> export.About:
        """The game and its actions; methods of an experiment stand beside each other, so none is a control."""
        value = outcome["validation"][-1]
        return export.About(self.task.words, bench.facts.id, (), bench.facts.actions + 1, (None, value), [], {})


def _check_recipe(study: ControlStudy, layout: Layout, name: str, games: Mapping[str, requested.Facts]) -> None:
    """Fail where a member's weights were made from another section of the configuration than it has now."""
    made = store.read_json(layout.member(name)).get(MADE_FROM)
    if made != requested.made_from(study, name, games[f"zoo.models.{name}.env"]):
        raise KtError(f"zoo.models.{name}: its weights were made from another recipe; run: kt member --model {name}")


def input_of(facts: GameFacts) -> InputSpec:
    """What a policy sees of a game, as an exported network's input: no part of it is cut off, nothing is normalised."""
    return InputSpec(size=facts.shape[1:], mean=(0.0,), std=(1.0,))


def played(layout: Layout, at: str, game: Game) -> GameFacts:
    """Facts of a game, as it is here.

    Args:
        layout: where the study's files lie.
        at: its place in the configuration.
        game: from there.

    Raises:
        KtError: it is another one than the study began with, as on a machine with other versions of packages.
    """
    from kt.control.games import facts

    found, known = facts(game, at), requested.games(layout).get(at)
    if known is not None and known != found.plain():
        changed = ", ".join(
            f"{key}: {known.get(key)} became {value}" for key, value in found.plain().items() if known.get(key) != value
        )
        raise KtError(f"{at}: not the game that the study began with ({changed}); use one environment on all machines")
    return found


def arena(
    study: ControlStudy,
    layout: Layout,
    at: str,
    chosen: ControlFlow,
    threads: int,
    untrained: bool = False,
) -> Arena:
    """Where the units of an experiment run; with ``untrained`` teachers before there are any weights."""
    from kt.control import policies
    from kt.control.games import Games
    from kt.control.session import Arena, Teacher
    from kt.zoo.models import import_modules
    from kt.zoo.weights import load

    import_modules(study.modules)
    device = pick_device(study.device, threads)

    def teacher(name: str) -> Teacher:
        member, place = study.zoo.models[name], f"zoo.models.{name}"
        facts = played(layout, f"{place}.env", member.env)
        fresh = partial(policies.build, member.arch, member.args, facts, place)
        path = layout.weights(name)
        return Teacher(facts, fresh if untrained else lambda: load(fresh(), path), fresh)

    facts = played(layout, f"{at}.env", chosen.env)
    network = chosen.student
    return Arena(
        at,
        facts,
        partial(Games, chosen.env),
        partial(policies.build, network.arch, network.args, facts, f"{at}.student"),
        {name: teacher(name) for name in chosen.teachers},
        chosen.plan,
        study.data.episodes,
        layout.checkpoints,
        study.transfer.checkpoint_seconds,
        device,
        progress.on_signal(),
    )


def inspect(study: ControlStudy, layout: Layout, at: str, chosen: ControlFlow, threads: int) -> dict[str, Needs]:
    """Build all that an experiment's methods train once; operations of an action by method, teachers included.

    Raises:
        KtError: a network does not fit its game, a teacher not the student, or a method has no layers to work on.
    """
    from kt.control import learn
    from kt.control.session import Session
    from kt.zoo.models import macs

    place = arena(study, layout, at, chosen, threads, untrained=True)
    own = macs(place.student(), place.facts.shape)
    theirs = {name: macs(one.fresh(), one.facts.shape) for name, one in place.teachers.items()}
    facts, found = {name: one.facts for name, one in place.teachers.items()}, dict[str, Needs]()
    for name, method in chosen.chosen().items():
        more = 0
        if isinstance(method, KnowledgeFlow):
            unit = next(unit for unit in requested.of_experiment(study, at, chosen, {}) if unit.method == method)
            learn.attach(Session(place, unit, ""), method, chosen.teachers, 0)
            more = sum(theirs.values())
        elif isinstance(method, Distilled):
            more = sum(theirs[of] for of in learn.with_actions(at, place.facts, facts))
        elif name == "finetune_teacher":
            learn.check_observations(at, place.facts, facts)
        found[name] = Needs({}, 0, chosen.trained(method).batch_size, own + more)
    return found


def weights_of(study: ControlStudy, name: str, facts: GameFacts) -> nn.Module:
    """A member's network: with fresh weights, or with those of its checkpoint.

    Raises:
        KtError: the network does not fit its game, or the checkpoint not the network.
    """
    from kt.control import policies
    from kt.zoo import models, weights

    member: Policy = study.zoo.models[name]
    at, outputs = f"zoo.models.{name}", facts.actions + 1
    fresh = policies.build(member.arch, member.args, facts, at)
    if member.checkpoint is None:
        return fresh
    arguments = policies.arguments(member.arch, member.args, facts)
    build = partial(models.build, member.arch, arguments, channels=facts.shape[0])
    try:
        return weights.given(f"{at}.checkpoint", build, member.checkpoint, outputs, new_head=False)
    except KtError as error:
        text, of_images, _ = str(error).partition("; give `finetune`")  # which policies do not have
        more = (
            f"; one for each of the {facts.actions} actions of {facts.id}, and one for the value" if of_images else ""
        )
        raise KtError(f"{text}{more}") from error
