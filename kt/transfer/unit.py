"""Units of work: one training or evaluation each, and its key in the ledger. Nothing here imports torch.

A unit is a plan, a student and its teachers. The plan is all that determines the result beside the models: data, method
with its parameters, training, seed and split. The key is the digest of the three, so that a unit can be looked up:
jobs, planning and ``kt status`` enumerate the same units in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from kt import store
from kt.transfer.ledger import Record
from kt.transfer.method import Method
from kt.transfer.training import Training

ENGINE_VERSION = 2
"""Raise it when the training loop's results change: finished units of older versions are not reused."""

EVALUATION_VERSION = 2
"""Raise it when the evaluation's results change; version 1 took classes from rounded logits."""

FINAL_CAUSES = ("diverged", "same_model")
"""Causes of failure that another try would only repeat."""

_MARK = "\x00"


@dataclass(frozen=True)
class Plan:
    """All that determines a unit's result beside its models.

    Attributes:
        facts: as plain JSON values.
        listed: whether the description always lists its teachers; else a single one, or none, stands alone.
    """

    facts: Mapping[str, Any]
    listed: bool = False
    _templates: dict[bool, tuple[bytes, bytes, bytes]] = field(default_factory=dict, compare=False, repr=False)

    def describe(self, student: str, teachers: Sequence[str]) -> Record:
        """The description of a unit with these fingerprints, as plain JSON values."""
        return {**self.facts, "student": student, **self._told(teachers)}

    def key(self, student: str, teachers: Sequence[str]) -> str:
        """The digest of the description; quick, since the plan's part of the text is made once."""
        told = self._told(teachers)
        (name, value), several = next(iter(told.items())), "teachers" in told
        if several not in self._templates:
            text = store.canonical({**self.facts, "student": _MARK, name: _MARK})
            before, between, after = text.split(store.canonical(_MARK))
            self._templates[several] = before, between, after
        before, between, after = self._templates[several]
        inserted = store.canonical(value) if several or value is None else quoted(value).encode()
        return sha256(before + quoted(student).encode() + between + inserted + after).hexdigest()

    def _told(self, teachers: Sequence[str]) -> dict[str, Any]:
        if self.listed or len(teachers) > 1:
            return {"teachers": list(teachers)}
        return {"teacher": teachers[0] if teachers else None}


class Unit(NamedTuple):
    """One training or evaluation; a named tuple, as a large study has half a million of them.

    Attributes:
        method: does it.
        plan: all that determines its result beside the models.
        student: its name; of an experiment ``section.name``.
        teachers: their names: none for a control, one for a pair, several for a group or an experiment.
        seed: of the training.
        split: the examples that its outcome is measured on; ``validation`` for candidates of the search.
    """

    method: Method
    plan: Plan
    student: str
    teachers: tuple[str, ...]
    seed: int
    split: str = "test"

    def models(self, fingerprints: Mapping[str, str]) -> tuple[str, list[str]]:
        """Fingerprints of student and teachers; of a joint unit in an order that does not depend on the student."""
        student, *teachers = [fingerprints[name] for name in (self.student, *self.teachers)]
        if self.method.joint:
            student, *teachers = sorted([student, *teachers])
        return student, teachers

    def key(self, fingerprints: Mapping[str, str]) -> str:
        """Its key in the ledger.

        Args:
            fingerprints: of the student and the teachers by name.
        """
        return self.plan.key(*self.models(fingerprints))

    def describe(self, fingerprints: Mapping[str, str]) -> Record:
        """All that determines its result, as plain JSON values; the key is the digest of this."""
        return self.plan.describe(*self.models(fingerprints))

    @property
    def title(self) -> str:
        """Method, student, teachers and seed in words."""
        source = f" from {' and '.join(self.teachers)}" if self.teachers else ""
        return f"{self.method.name} to {self.student}{source}, seed {self.seed}"


class Plans:
    """The plans of one data set and one training.

    Args:
        data: hash of the data set, its splits and how its transfer images are shown.
        training: how students are trained, but for what a method changes of it.
    """

    def __init__(self, data: str, training: Training) -> None:
        self.data, self.training = data, training
        self._made: dict[tuple[Method, int, str], Plan] = {}

    def of(self, method: Method, seed: int, split: str = "test") -> Plan:
        """The plan of a method and seed."""
        place = method, seed, split
        if place not in self._made:
            facts = self.facts(method, seed)
            self._made[place] = Plan(facts if split == "test" else {**facts, "split": split})
        return self._made[place]

    def facts(self, method: Method, seed: int) -> Record:
        """The part that all plans share, as plain JSON values."""
        trained = {"version": ENGINE_VERSION, **method.trained(self.training).plain()} if method.trains else {}
        return {
            "data": self.data,
            "method": {"name": method.name, "version": method.version, **method.parameters()},
            "training": trained,
            "evaluation": {"version": EVALUATION_VERSION},
            "seed": seed,
        }


def of_pairs(
    methods: Iterable[Method],
    student: str,
    teachers: Sequence[str],
    seeds: Sequence[int],
    plans: Plans,
    *,
    controls: bool,
    split: str = "test",
) -> list[Unit]:
    """The units of a student and its teachers, one teacher at a time; the controls, where asked for, come first."""
    methods = list(methods)
    alone = [method for method in methods if method.control and controls]
    each = [method for method in methods if not method.control]
    return [
        *_units(alone, [()], student, seeds, plans, split),
        *_units(each, [(teacher,) for teacher in teachers], student, seeds, plans, split),
    ]


def of_groups(
    methods: Iterable[Method], student: str, groups: Iterable[Sequence[str]], seeds: Sequence[int], plans: Plans
) -> list[Unit]:
    """The units of a student's groups of teachers, group by group."""
    return _units(methods, map(tuple, groups), student, seeds, plans, "test")


def _units(
    methods: Iterable[Method],
    sets: Iterable[tuple[str, ...]],
    student: str,
    seeds: Sequence[int],
    plans: Plans,
    split: str,
) -> list[Unit]:
    """The units of every set of teachers, set by set."""
    planned = [(method, plans.of(method, seed, split), seed) for method in methods for seed in seeds_of(method, seeds)]
    return [Unit(method, plan, student, teachers, seed, split) for teachers in sets for method, plan, seed in planned]


def seeds_of(method: Method, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds of a method's units: all of them, or one where nothing is trained, so that nothing is random."""
    return seeds if method.trains else seeds[:1]


def by_key(units: Iterable[Unit], fingerprints: Mapping[str, str]) -> dict[str, Unit]:
    """Units by their keys; of two with the same key the later."""
    return {unit.key(fingerprints): unit for unit in units}


def refusal(unit: Unit, fingerprints: Mapping[str, str]) -> Record | None:
    """The outcome of a unit that is not worth a training: a teacher is its student under another name."""
    own = fingerprints[unit.student]
    if own not in (fingerprints[name] for name in unit.teachers):
        return None
    reason = "same_model: a teacher has the student's architecture, input and weights, under another name"
    return {"status": "failed", "cause": "same_model", "reason": reason}
