"""What a study asks for: its pairs and groups, and the units that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kt import pairs, schema
from kt.config import Study
from kt.errors import KtError
from kt.layout import Layout
from kt.status import index
from kt.transfer import choice
from kt.transfer import groups as grouping
from kt.transfer.method import Method
from kt.transfer.units import Unit, describe, group_units


@dataclass(frozen=True)
class Wanted:
    """What a study asks for.

    Attributes:
        pairs: teacher and student.
        groups: a student and its teachers; those that are not known yet are left out.
        students: of the pairs; they have controls.
        trials: the pairs of the search, and its students without a teacher.
        units: number of units of every student.
        per_pair: units of a pair.
    """

    pairs: set[tuple[str, str]]
    groups: set[tuple[str, frozenset[str]]]
    students: set[str]
    trials: set[tuple[str | None, str]]
    units: Mapping[str, int]
    per_pair: int

    def asks_for(self, unit: Unit, student: str, teachers: list[str]) -> bool:
        """Whether such a unit is to be done for a student with these teachers."""
        if len(teachers) > 1:
            return (student, frozenset(teachers)) in self.groups
        if unit.split == "validation":
            return (teachers[0] if teachers else None, student) in self.trials
        return (teachers[0], student) in self.pairs if teachers else student in self.students


def wanted(study: Study, layout: Layout) -> Wanted:
    """All that a study asks for, as far as it is known yet."""
    chosen, methods = _pairs(study, layout), study.transfer.methods.chosen().values()
    controls, per_pair = (_count(study, [m for m in methods if m.control == own]) for own in (True, False))
    units = Counter({student: len(teachers) * per_pair + controls for student, teachers in chosen.items()})
    groups: set[tuple[str, frozenset[str]]] = set()
    if study.groups:
        rule, per_group = study.groups.choose, _count(study, study.groups.methods.chosen().values())
        accuracy = _accuracy(layout) if isinstance(rule, grouping.Ranked) else {}
        for student, number in grouping.count(study.names, rule).items():
            units[student] += number * per_group
            if not isinstance(rule, grouping.Ranked) or accuracy.keys() >= set(study.names):
                sets = grouping.choose(student, study.names, rule, accuracy)
                groups |= {(student, frozenset(teachers)) for teachers in sets}
    trials: set[tuple[str | None, str]] = set()
    for student, teachers in study.transfer.trial_pairs(study.names, study.pairs).items():
        units[student] += len(study.transfer.trials(teachers))
        trials |= {(teacher, student) for teacher in (None, *teachers)}
    taught = {(teacher, student) for student, teachers in chosen.items() for teacher in teachers}
    return Wanted(taught, groups, set(chosen), trials, units, per_pair)


def plans(study: Study, layout: Layout, data: str) -> tuple[dict[str, Unit], dict[str, Unit]]:
    """What is done with every pair or student, and with every group, by the hash of it; ``data`` is the data's hash."""
    seeds = study.transfer.seeds
    of_pairs = group_units(_methods(study, layout), [()], seeds) + study.transfer.trials([""])
    of_groups = group_units(study.groups.methods.chosen().values(), [()], seeds) if study.groups else []
    return _plans(study, of_pairs, data), _plans(study, of_groups, data)


def _plans(study: Study, units: Iterable[Unit], data: str) -> dict[str, Unit]:
    return {index.plan_hash(describe(u, "", {"": ""}, data, study.transfer.training)): u for u in units}


def _methods(study: Study, layout: Layout) -> list[Method]:
    """The methods for pairs, as far as the search has chosen their parameters."""
    methods, candidates = study.transfer.methods.chosen(), study.transfer.candidates()
    try:
        return list(choice.resolve(methods, candidates, layout.table("search")).values())
    except KtError:
        return [method for name, method in methods.items() if name not in candidates]


def _count(study: Study, methods: Iterable[Method]) -> int:
    """Units of one pair, group or student."""
    return len(group_units(methods, [()], study.transfer.seeds))


def _accuracy(layout: Layout) -> dict[str, float]:
    """Validation accuracies of the models, percent; none before the table of models is made."""
    try:
        rows = schema.read(layout.table("zoo"), "zoo", ["name", "acc_validation"]).to_pylist()
    except KtError:
        return {}
    return {row["name"]: row["acc_validation"] for row in rows}


def _pairs(study: Study, layout: Layout) -> dict[str, list[str]]:
    """Teachers of every student: the table of pairs where it is made, else what the rule may choose."""
    by_student: dict[str, list[str]] = {}
    if pairs.needs_scores(study.pairs) and layout.table("pairs").exists():
        table = schema.read(layout.table("pairs"), "pairs").to_pylist()
        chosen = [(row["teacher"], row["student"]) for row in table]
    else:
        chosen = pairs.candidates(study.names, study.pairs)
    for teacher, student in chosen:
        by_student.setdefault(student, []).append(teacher)
    most = pairs.most(study.pairs)
    return {student: teachers[:most] for student, teachers in by_student.items()}
