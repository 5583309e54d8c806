"""What a study asks for: its pairs and groups, and the units that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kt import pairs
from kt.errors import KtError
from kt.layout import Layout
from kt.status import index
from kt.study.study import Study
from kt.tables import schema
from kt.transfer import choice
from kt.transfer import groups as grouping
from kt.transfer.method import Method
from kt.transfer.training import Training
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
        training: how students are trained, but for what a method changes of it.
        images: transfer images, 0 where their number is not known yet.
    """

    pairs: set[tuple[str, str]]
    groups: set[tuple[str, frozenset[str]]]
    students: set[str]
    trials: set[tuple[str | None, str]]
    units: Mapping[str, int]
    per_pair: int
    training: Training
    images: int

    def asks_for(self, unit: Unit, student: str, teachers: list[str]) -> bool:
        """Whether such a unit is to be done for a student with these teachers."""
        if len(teachers) > 1:
            return (student, frozenset(teachers)) in self.groups
        if unit.split == "validation":
            return (teachers[0] if teachers else None, student) in self.trials
        return (teachers[0], student) in self.pairs if teachers else student in self.students

    def seen(self, unit: Unit, student: str, teachers: list[str]) -> float:
        """Images that a unit's trainings see, each as often as it is seen.

        Where all models train, the unit is shared by those of them that are asked for as students.
        """
        training = unit.method.trained(self.training)
        models, shared = [student, *teachers], 1
        if unit.method.joint:
            shared = sum(self.asks_for(unit, name, [other for other in models if other != name]) for name in models)
        epoch = self.images // training.batch_size * training.batch_size
        return unit.method.budget(len(teachers)) * training.epochs * epoch / max(shared, 1)


def wanted(study: Study, layout: Layout, images: int) -> Wanted:
    """All that a study asks for, as far as it is known yet; ``images`` are those of the transfer split."""
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
    return Wanted(taught, groups, set(chosen), trials, units, per_pair, study.transfer.training, images)


def work(study: Study, layout: Layout, asked: Wanted) -> dict[str, float]:
    """Images that all trainings of every student see, each as often as it is seen; ensembles see none."""
    seeds, found = study.transfer.seeds, dict.fromkeys(asked.units, 0.0)
    methods = study.transfer.methods.chosen() | {method.name: method for method in _methods(study, layout)}
    each = group_units([m for m in methods.values() if not (m.control or m.joint)], [()], seeds)
    together = group_units([m for m in methods.values() if m.joint], [()], seeds)
    controls = group_units([m for m in methods.values() if m.control], [()], seeds)
    of_pair = sum(asked.seen(unit, "", [""]) for unit in each)
    for student in asked.students:
        found[student] += sum(asked.seen(unit, student, []) for unit in controls)
    for student, number in Counter(student for _, student in asked.pairs).items():
        found[student] += number * of_pair
    for teacher, student in asked.pairs if together else ():
        found[student] += sum(asked.seen(unit, student, [teacher]) for unit in together)
    for student, teachers in study.transfer.trial_pairs(study.names, study.pairs).items():
        found[student] += sum(asked.seen(u, student, list(u.teachers)) for u in study.transfer.trials(teachers))
    if study.groups:
        units = group_units(study.groups.methods.chosen().values(), [()], seeds)
        known: dict[str, list[list[str]]] = {}
        for student, group in asked.groups:
            known.setdefault(student, []).append(sorted(group))
        for student, number in grouping.count(study.names, study.groups.choose).items():
            sets = known.get(student) or [[""] * grouping.largest(study.groups.choose)] * number
            found[student] += sum(asked.seen(unit, student, teachers) for teachers in sets for unit in units)
    return found


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
