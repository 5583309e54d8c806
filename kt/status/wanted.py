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
        units: number of units of every student.
        per_pair: units of a pair.
    """

    pairs: set[tuple[str, str]]
    groups: set[tuple[str, frozenset[str]]]
    students: set[str]
    units: Mapping[str, int]
    per_pair: int

    def asks_for(self, student: str, teachers: list[str]) -> bool:
        """Whether there is something to do for a student with these teachers."""
        if len(teachers) > 1:
            return (student, frozenset(teachers)) in self.groups
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
    taught = {(teacher, student) for student, teachers in chosen.items() for teacher in teachers}
    return Wanted(taught, groups, set(chosen), units, per_pair)


def plans(study: Study, data: str) -> tuple[dict[str, Unit], dict[str, Unit]]:
    """What is done with every pair or student, and with every group, by the hash of it; ``data`` is the data's hash."""
    of_groups = study.groups.methods.chosen().values() if study.groups else ()
    return _plans(study, study.transfer.methods.chosen().values(), data), _plans(study, of_groups, data)


def _plans(study: Study, methods: Iterable[Method], data: str) -> dict[str, Unit]:
    units = group_units(methods, [()], study.transfer.seeds)
    return {index.plan_hash(describe(u, "", {"": ""}, data, study.transfer.training)): u for u in units}


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
