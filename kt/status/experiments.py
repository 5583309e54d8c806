"""How far a study's experiments are, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping

from kt.config import Study
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.experiments.plan import problem_of, tasks_of
from kt.layout import Layout


def keys(study: Study, layout: Layout, fingerprints: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The trials of every experiment, `section.name`, as texts by key; none where keys are not known yet."""
    found: dict[str, dict[str, str]] = {f"{rule}.{name}": {} for rule, name, _ in study.each_experiment()}
    if not found:
        return found
    try:
        dataset = Dataset.open(layout.data)
    except KtError:
        return found
    for rule, name, experiment in study.each_experiment():
        at = f"{rule}.{name}"
        if fingerprints.keys() >= set(experiment.teachers):
            tasks = tasks_of(study, experiment, problem_of(study, at, experiment, dataset), fingerprints, dataset.hash)
            found[at] = {key: f"{t.approach.name} of {at}, seed {t.seed}" for key, (t, _) in tasks.items()}
    return found
