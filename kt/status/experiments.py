"""How far a study's experiments are, from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from kt.costs import Pace
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.experiments.needs import Needs
from kt.experiments.plan import problem_of, tasks_of
from kt.experiments.spec import Experiment
from kt.experiments.trial import Trial
from kt.layout import Layout
from kt.study.study import Study


def seen(experiment: Experiment, trial: Trial, images: int) -> float:
    """Images that a trial's training sees, each as often as it is seen; at most ``images`` in an epoch."""
    if not trial.approach.trains:
        return 0.0
    training = trial.approach.trained(experiment.plan)
    return float(training.epochs * (experiment.learnt_from(images) // training.batch_size) * training.batch_size)


def expected(study: Study, images: int) -> tuple[Counter[str], dict[str, float]]:
    """Number of trials of every experiment, `section.name`, and the images that these see together."""
    units, work = Counter[str](), dict[str, float]()
    for rule, name, found in study.each_experiment():
        trials = found.trials()
        units[f"{rule}.{name}"] = len(trials)
        work[f"{rule}.{name}"] = sum(seen(found, trial, images) for trial in trials)
    return units, work


def by_key(study: Study, layout: Layout, fingerprints: Mapping[str, str]) -> dict[str, dict[str, Trial]]:
    """The trials of every experiment, `section.name`, by key; none where keys are not known yet."""
    found: dict[str, dict[str, Trial]] = {f"{rule}.{name}": {} for rule, name, _ in study.each_experiment()}
    if not found:
        return found
    try:
        dataset = Dataset.open(layout.data)
    except KtError:
        return found
    data = study.shown(dataset.hash)
    for rule, name, experiment in study.each_experiment():
        at = f"{rule}.{name}"
        if fingerprints.keys() >= set(experiment.teachers):
            tasks = tasks_of(study, experiment, problem_of(study, at, experiment, dataset), fingerprints, data)
            found[at] = {key: trial for key, (trial, _) in tasks.items()}
    return found


def pace_of(
    pace: Pace,
    at: str,
    experiment: Experiment,
    needs: Mapping[str, Needs],
    validation: int,
    done: Iterable[tuple[Trial, float, int]],
    left: Iterable[tuple[Trial, float]],
) -> Pace:
    """The pace with that of one experiment's missing trainings, whose methods cost more and less.

    Args:
        pace: of students.
        at: the experiment, `section.name`.
        experiment: the same.
        needs: of its methods; all cost the same where they are not known.
        validation: images that every epoch ends with, each a third of one that is trained on.
        done: finished trials, seconds that they took, and images that they saw.
        left: trials to do, and images that they will see.
    """

    def work(trial: Trial, seen: float) -> float:
        name = trial.approach.name
        evaluated = trial.approach.trained(experiment.plan).epochs * validation if seen else 0
        return (needs[name].macs if name in needs else 1) * (seen + evaluated / 3)

    left, done = list(left), list(done)
    images = sum(seen for _, seen in left)
    if not images:
        return pace
    mean = sum(work(*trial) for trial in left) / images
    before = sum(work(trial, seen) for trial, _, seen in done)
    own = {at: mean * sum(seconds for _, seconds, seen in done if seen) / before} if before else {}
    return replace(pace, own={**pace.own, **own}, macs={**pace.macs, **({at: round(mean)} if needs else {})})
