"""What an experiment of a study comes to: what is to be told apart, and its trials by key. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kt import store
from kt.data.datasets import Dataset
from kt.experiments.spec import Experiment, Problem
from kt.experiments.trial import Trial
from kt.experiments.units import describe
from kt.transfer.ledger import Record
from kt.transfer.ledger import key as ledger_key
from kt.zoo.classes import labels_of, positions

if TYPE_CHECKING:
    from kt.study.study import Study


def problem_of(study: Study, at: str, chosen: Experiment, dataset: Dataset) -> Problem:
    """What an experiment's student is to tell apart; raises ``KtError`` where the teachers' classes do not fit."""
    own = {name: labels_of(name, study.zoo.models[name], dataset.class_names) for name in chosen.teachers}
    classes = chosen.classes(at, own, dataset.class_names)
    truth = positions(dataset.labels[dataset.rows("test")], classes)
    return Problem(classes, {name: positions(labels, classes) for name, labels in own.items()}, truth[truth >= 0])


def tasks_of(
    study: Study, chosen: Experiment, problem: Problem, fingerprints: Mapping[str, str], data: str
) -> dict[str, tuple[Trial, Record]]:
    """An experiment's trials with their descriptions, by key."""
    student = chosen.student.described(study.student_input(chosen))
    units = [(trial, describe(trial, chosen, student, fingerprints, problem, data)) for trial in chosen.trials()]
    return {ledger_key(unit): (trial, unit) for trial, unit in units}


def recipe(study: Study, chosen: Experiment) -> list[Any]:
    """All in the configuration that determines an experiment beside its teachers' weights, as plain JSON."""
    classes = [study.zoo.models[name].plain()["classes"] for name in chosen.teachers]
    versions = {name: method.version for name, method in chosen.approaches().items()}
    return [chosen.plain(), versions, classes, study.student_input(chosen).plain()]


def size_hash(study: Study, chosen: Experiment) -> str:
    """Hash of what determines how much memory and time an experiment takes."""
    teachers = [[study.zoo.models[name].plain(), study.zoo.input_of(name).plain()] for name in chosen.teachers]
    return store.digest([recipe(study, chosen), teachers, study.data.plain(), study.views("transfer")])
