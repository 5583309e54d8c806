"""How far a study's experiments are, from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from kt.config import Study
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.experiments.plan import problem_of, tasks_of
from kt.experiments.spec import Experiment
from kt.experiments.units import Trial
from kt.layout import Layout


def seen(experiment: Experiment, trial: Trial, images: int) -> float:
    """Images that a trial's training sees, each as often as it is seen; at most ``images`` in an epoch."""
    if not trial.approach.trains:
        return 0.0
    training = trial.approach.trained(experiment.plan)
    return float(training.epochs * (images // training.batch_size) * training.batch_size)


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
