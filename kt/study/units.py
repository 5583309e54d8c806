"""Units that a study requests: one enumeration for its jobs, for planning and for ``kt status``. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from kt import pairs, predictions, store
from kt.control import units as of_policies
from kt.control.study import ControlFlow, ControlStudy
from kt.costs import answer_bytes, keeps_answers
from kt.data.datasets import Dataset
from kt.data.sources import known_classes, known_sides
from kt.errors import KtError
from kt.layout import Layout
from kt.study.check import probe
from kt.study.study import Study
from kt.tables import schema
from kt.tasks.classification import positions
from kt.transfer import groups, search
from kt.transfer.experiments import Experiment, Problem
from kt.transfer.method import Method
from kt.transfer.unit import Plan, Plans, Unit, of_groups, of_pairs
from kt.zoo.spec import labels_of


def plans(study: Study, data: str) -> Plans:
    """The plans of a study's pairs and groups; ``data`` is the data set's own hash."""
    return Plans(study.shown(data), study.transfer.training)


def methods(study: Study, layout: Layout) -> dict[str, Method]:
    """The methods for pairs by name, with the parameters that the search chose.

    Raises:
        KtError: the search has not been done.
    """
    plan = study.transfer
    return search.resolve(plan.methods.chosen(), plan.candidates(), layout.table("search"))


def of_student(
    study: Study, made: Plans, chosen: Mapping[str, Method], student: str, teachers: Sequence[str], *, controls: bool
) -> list[Unit]:
    """The units of a student and its teachers, and of its controls where asked for."""
    return of_pairs(chosen.values(), student, teachers, study.transfer.seeds, made, controls=controls)


def of_search(study: Study, made: Plans, student: str) -> list[Unit]:
    """The units of a student's candidates; none where the search has no pair with it."""
    if study.transfer.search is None:
        return []
    teachers = study.transfer.trial_pairs(study.names, study.pairs).get(student, [])
    return study.transfer.trials(student, teachers, made) if teachers else []


def of_sets(study: Study, made: Plans, student: str, sets: Sequence[Sequence[str]]) -> list[Unit]:
    """The units of a student's groups of teachers."""
    assert study.groups is not None
    return of_groups(study.groups.methods.chosen().values(), student, sets, study.transfer.seeds, made)


# experiments


def problem_of(study: Study, at: str, chosen: Experiment, dataset: Dataset) -> Problem:
    """The classes of an experiment; raises ``KtError`` where those of the teachers do not fit together."""
    own = {name: labels_of(name, study.zoo.models[name], dataset.class_names) for name in chosen.teachers}
    classes = chosen.classes(at, own, dataset.class_names)
    truth = positions(dataset.labels[dataset.rows("test")], classes)
    return Problem(classes, {name: positions(labels, classes) for name, labels in own.items()}, truth[truth >= 0])


def described(study: Study, chosen: Experiment) -> dict[str, Any]:
    """All that determines an experiment's student before training, as plain JSON values."""
    return chosen.student.described(study.student_input(chosen))


def of_experiment(study: Study, at: str, chosen: Experiment, problem: Problem, data: str) -> list[Unit]:
    """The units of an experiment.

    Args:
        study: the study.
        at: its place, ``section.name``.
        chosen: the experiment.
        problem: its classes.
        data: the data set's own hash.
    """
    return chosen.units(at, described(study, chosen), problem, study.shown(data))


def student_print(study: Study, chosen: Experiment) -> str:
    """Fingerprint of an experiment's student before training."""
    return store.digest(described(study, chosen))


def recipe(study: Study, chosen: Experiment) -> list[Any]:
    """All in the configuration that determines an experiment beside its teachers' weights, as plain JSON."""
    classes = [study.zoo.models[name].plain()["classes"] for name in chosen.teachers]
    versions = {name: method.version for name, method in chosen.chosen().items()}
    return [chosen.plain(), versions, classes, study.student_input(chosen).plain()]


def size_hash(study: Study, chosen: Experiment) -> str:
    """Hash of what determines how much memory and time an experiment takes."""
    teachers = [[study.zoo.models[name].plain(), study.zoo.input_of(name).plain()] for name in chosen.teachers]
    return store.digest([recipe(study, chosen), teachers, study.data.plain(), study.views("transfer")])


# all of them


@dataclass(frozen=True)
class Job:
    """The units of one student or experiment, as far as they are known.

    Attributes:
        student: its name; of an experiment ``section.name``.
        units: of its controls, pairs, groups and search, or of the experiment.
        experiment: the experiment; None of a student of the zoo.
        print: fingerprint of an experiment's student before training; empty where it is not known.
        sizes: hash of what determines how much memory and time an experiment takes.
        known: whether the units have their keys; not before the data, the search, or the groups of an experiment are
            known.
    """

    student: str
    units: Sequence[Unit]
    experiment: Experiment | ControlFlow | None = None
    known: bool = True
    print: str = ""
    sizes: str = ""


def teachers_of(study: Study, layout: Layout) -> dict[str, list[str]]:
    """Teachers of every student: the table of pairs where it is made, else those that the rule may choose.

    Of rounds that are not chosen yet, teachers that are left stand for those that will be.
    """
    if isinstance(study.pairs, pairs.Adaptive):
        chosen = [pair for of_round in rounds(study, layout, study.pairs).pairs for pair in of_round]
    elif pairs.needs_scores(study.pairs) and layout.table("pairs").exists():
        table = schema.read(layout.table("pairs"), "pairs", ["teacher", "student"]).to_pylist()
        chosen = [(row["teacher"], row["student"]) for row in table]
    else:
        chosen = pairs.candidates(study.names, study.pairs)
    found: dict[str, list[str]] = {}
    for teacher, student in chosen:
        found.setdefault(student, []).append(teacher)
    most = pairs.most(study.pairs)
    return {student: teachers[:most] for student, teachers in found.items()}


class Rounds(NamedTuple):
    """Rounds of the rule ``adaptive``.

    Attributes:
        chosen: how many of them are chosen.
        pairs: those of every round, first the chosen ones; of the others stand-ins, none where only hours are known.
    """

    chosen: int
    pairs: list[list[pairs.Pair]]


def rounds(study: Study, layout: Layout, rule: pairs.Adaptive) -> Rounds:
    """The rounds of a study, as far as they are known."""
    left: dict[str, dict[str, None]] = {}
    for teacher, student in pairs.candidates(study.names, rule):
        left.setdefault(student, {})[teacher] = None
    planned = pairs.quotas({student: len(teachers) for student, teachers in left.items()}, rule)
    found: list[list[pairs.Pair]] = []
    while len(found) <= rule.rounds and layout.round(len(found)).exists():
        table = schema.read(layout.round(len(found)), "pairs", ["teacher", "student"]).to_pylist()
        found.append([(row["teacher"], row["student"]) for row in table])
        for teacher, student in found[-1]:
            left.get(student, {}).pop(teacher, None)
    chosen, others = len(found), {student: iter(teachers) for student, teachers in left.items()}
    for number in range(chosen, rule.rounds + 1):
        quota = {student: of_rounds[number] for student, of_rounds in planned.items() if number < len(of_rounds)}
        found.append([(teacher, student) for student, n in quota.items() for teacher in islice(others[student], n)])
    return Rounds(chosen, found)


def jobs(study: Study, layout: Layout, teachers: Mapping[str, Sequence[str]]) -> Iterator[Job]:
    """All units that a study requests, student by student, then experiment by experiment.

    Args:
        study: the study.
        layout: where its files lie.
        teachers: of every student, as ``teachers_of`` finds them.
    """
    data = data_hash(layout)
    made, configured = plans(study, data), study.transfer.methods.chosen()
    try:
        resolved, searched = methods(study, layout), True
    except KtError:
        resolved, searched = configured, not study.transfer.candidates()
    unsearched = {} if searched else {name: configured[name] for name in study.transfer.candidates()}
    sure = {name: method for name, method in resolved.items() if name not in unsearched}
    counts, accuracy = groups.count(study.names, study.groups.choose) if study.groups else {}, on_validation(layout)
    for student in dict.fromkeys([*teachers, *counts]):
        mine = teachers.get(student, [])
        units = of_student(study, made, sure, student, mine, controls=student in teachers)
        units += of_search(study, made, student)
        if student in counts and (sets := _sets(study, student, accuracy)):
            units += of_sets(study, made, student, sets)
        yield Job(student, units, known=bool(data))
        unknown = of_student(study, made, unsearched, student, mine, controls=student in teachers) if unsearched else []
        if student in counts and not _sets(study, student, accuracy):
            assert study.groups is not None
            stand_ins = [(student,) * groups.largest(study.groups.choose)] * counts[student]
            unknown += of_sets(study, made, student, stand_ins)
        if unknown:
            yield Job(student, unknown, known=False)
    yield from _experiments(study, layout)


def _experiments(study: Study, layout: Layout) -> Iterator[Job]:
    if not study.each_experiment():
        return
    try:
        dataset = Dataset.open(layout.data)
    except KtError:
        dataset = None
    for rule, name, chosen in study.each_experiment():
        at = f"{rule}.{name}"
        if dataset:
            problem = problem_of(study, at, chosen, dataset)
            units = of_experiment(study, at, chosen, problem, dataset.hash)
            yield Job(at, units, chosen, print=student_print(study, chosen), sizes=size_hash(study, chosen))
        else:
            made = Plans("", chosen.plan)
            units = [
                Unit(m, Plan(made.facts(m, seed), listed=True), at, names, seed) for m, names, seed in chosen.work()
            ]
            yield Job(at, units, chosen, known=False, sizes=size_hash(study, chosen))


def jobs_of_policies(study: ControlStudy, layout: Layout) -> Iterator[Job]:
    """All units that a study of policies requests, experiment by experiment."""
    known = of_policies.games(layout)
    for rule, name, chosen in study.each_experiment():
        at = f"{rule}.{name}"
        game = known.get(f"{at}.env")
        of_student = of_policies.student_print(chosen, game) if game else ""
        units = of_policies.of_experiment(study, at, chosen, game)
        yield Job(at, units, chosen, known=game is not None, print=of_student, sizes=of_student)


class Disk(NamedTuple):
    """What the predictions of all models take on disk.

    Attributes:
        size: bytes, without penultimate features.
        recomputed: how many models do not keep their answers to the transfer images.
    """

    size: int
    recomputed: int


def answer_values(study: Study, layout: Layout, name: str) -> int:
    """Values of a model's answer that is a map, at the size of its truth; 0 of another, or if unknown."""
    classes = _classes(study, layout)
    if not study.task.spatial or not classes:
        return 0
    return classes * max(math.prod(known_sides(study.data)), math.prod(study.zoo.input_of(name).sides))


def disk(study: Study, layout: Layout, images: Mapping[str, int]) -> Disk | None:
    """Bytes of predictions of a task whose answers are known; None where classes or images are not known yet."""
    task, classes = study.task, _classes(study, layout)
    if not (task.has_classes or task.spatial) or not classes or not images.keys() >= set(predictions.SPLITS):
        return None
    total, recomputed, probed = 0, 0, probe(study)
    pixels = math.prod(known_sides(study.data)) if task.dense else 0
    for name, member in study.zoo.models.items():
        outputs = len(member.classes or ()) or classes
        elements = math.prod(probed[name].answer) // outputs if name in probed else 1
        for split in predictions.SPLITS:
            top = study.transfer.top_k if split == "transfer" else None
            answer = answer_bytes(outputs, elements, top)
            kept = not task.spatial or keeps_answers(study.transfer.answers, answer)
            recomputed += split == "transfer" and not kept
            scored = 12 * outputs + (pixels if split != "transfer" else 0) if task.dense else 2
            total += study.views(split) * images[split] * (answer * kept + scored + 8)
    return Disk(total, recomputed)


def _classes(study: Study, layout: Layout) -> int:
    """Number of classes of the data; 1 of a task without them, 0 where it is not known yet."""
    if not study.task.has_classes:
        return 1
    return len(_meta(layout).get("classes", ())) or known_classes(study.data) or 0


def data_hash(layout: Layout) -> str:
    """Hash of the decoded data set; empty where there is none."""
    return str(_meta(layout).get("hash", ""))


def _meta(layout: Layout) -> dict[str, Any]:
    """Facts of the decoded data set; none where there is none."""
    try:
        facts: dict[str, Any] = store.read_json(layout.data / "meta.json")
    except KtError:
        return {}
    return facts


def _sets(study: Study, student: str, accuracy: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A student's groups; none where they go by accuracies that are not known yet."""
    assert study.groups is not None
    rule = study.groups.choose
    if isinstance(rule, groups.Ranked) and not accuracy.keys() >= set(study.names):
        return []
    return groups.choose(student, study.names, rule, accuracy)


def on_validation(layout: Layout) -> dict[str, float]:
    """The metric of the models on validation; none before the table of models is made."""
    try:
        rows = schema.read(layout.table("zoo"), "zoo", ["name", "acc_validation"]).to_pylist()
    except KtError:
        return {}
    return {row["name"]: row["acc_validation"] for row in rows}
