"""The stage of experiments: the missing trials of one, and its rows; the same for every kind of experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt import predictions, progress, status, store
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown
from kt.experiments import needs
from kt.experiments.plan import problem_of, size_hash, tasks_of
from kt.experiments.spec import Experiment, Problem
from kt.experiments.student import Student
from kt.experiments.units import identity, row
from kt.layout import Layout
from kt.progress import Progress
from kt.stages.common import channels_of, metadata, pick_device
from kt.stages.transfer import FreshZoo, ZooFiles
from kt.study.study import Study
from kt.tables import schema
from kt.transfer.card import card
from kt.transfer.ledger import Ledger, Record
from kt.zoo import registry

if TYPE_CHECKING:
    from torch import nn

    from kt.experiments.bench import Bench
    from kt.experiments.kind import Kind

log = logging.getLogger(__name__)


def experiment(study: Study, layout: Layout, rule: str, name: str, threads: int) -> None:
    """Do the missing trials of one experiment, and write its rows of ``transfers`` and of its detail table."""
    section = study.experiments.get(rule, {})
    if name not in section:
        raise KtError(f"{rule}: {unknown('experiment', name, section)}")
    dataset, chosen, at = Dataset.open(layout.data), section[name], f"{rule}.{name}"
    problem, prints = problem_of(study, at, chosen, dataset), status.fingerprints(layout, list(chosen.teachers))
    if absent := [teacher for teacher in chosen.teachers if teacher not in prints]:
        raise KtError(f"{at}: {absent[0]!r} has no weights yet; run: kt weights --model {absent[0]}")
    tasks = tasks_of(study, chosen, problem, prints, study.shown(dataset.hash))
    ledger = Ledger(layout.ledger)
    outcomes = {key: found for key in tasks if (found := ledger.get(key)) and _kept(study, layout, at, key, found)}
    missing = [key for key in tasks if key not in outcomes]
    log.info("%s: %d trials, %d in the ledger, %d to do", at, len(tasks), len(outcomes), len(missing))
    if missing:
        for teacher in chosen.teachers:
            predictions.verify(layout.predictions(teacher))
        bench = _bench(study, layout, at, chosen, problem, ZooFiles(study, layout, dataset), threads)
        kind = _kind(rule)
        needs.write(layout.needs(rule, name), size_hash(study, chosen), kind.inspect(bench, chosen))
        progress = Progress(at, len(missing))
        for key in missing:
            trial, unit = tasks[key]
            outcomes[key] = kind.compute(bench, chosen, trial, key)
            if not _kept(study, layout, at, key, outcomes[key]):
                _keep(layout, at, bench, unit, row(chosen, name, trial, key, outcomes[key], problem.truth))
            ledger.add(unit, outcomes[key])
            progress.step(f"{trial.approach.name}, seed {trial.seed}")
    done = {key: (trial, outcomes[key]) for key, (trial, _) in tasks.items()}
    rows = [row(chosen, name, trial, key, outcome, problem.truth) for key, (trial, outcome) in done.items()]
    schema.write(layout.experiment(rule, name), "transfers", schema.build("transfers", rows), metadata(study))
    parts = [
        {**identity(chosen, name, trial, key), **part}
        for key, (trial, outcome) in done.items()
        if outcome["status"] == "ok"
        for part in chosen.details(trial, outcome, problem)
    ]
    table = schema.build(chosen.table, parts)
    schema.write(layout.details(rule, name), chosen.table, table, metadata(study))
    if failed := sum(outcome["status"] != "ok" for outcome in outcomes.values()):
        log.warning("%s: %d of %d trials failed; `kt retry` tries again", at, failed, len(tasks))


def _kept(study: Study, layout: Layout, at: str, key: str, outcome: Record) -> bool:
    """Whether a trial's student lies in the folder of exported students, or need not."""
    wanted = study.transfer.export == "all" and outcome["status"] == "ok" and outcome["steps"] > 0
    return not wanted or _export(layout, at, key).with_suffix(".md").exists()


def _export(layout: Layout, at: str, key: str) -> Path:
    return layout.improved(at.replace(".", "/", 1), key)


def _keep(layout: Layout, at: str, bench: Bench, unit: Record, found: Mapping[str, Any]) -> None:
    """Write a student's weights, and then its card."""
    from kt.zoo import weights

    assert bench.trained is not None, "a trial that trains leaves its student"
    path, (model, (arch, args), channels) = _export(layout, at, found["key"]), bench.trained
    weights.save(model, path)
    text = card(found, unit, path.name, arch, args, len(bench.problem.classes), channels)
    store.write_text(path.with_suffix(".md"), text)


def inspect(study: Study, layout: Layout, threads: int) -> None:
    """Find out what every experiment takes, before anything is trained; raises ``KtError`` where one cannot be."""
    dataset = Dataset.open(layout.data)
    for rule, name, chosen in study.each_experiment():
        at = f"{rule}.{name}"
        problem = problem_of(study, at, chosen, dataset)
        bench = _bench(study, layout, at, chosen, problem, FreshZoo(study, layout, dataset), threads)
        needs.write(layout.needs(rule, name), size_hash(study, chosen), _kind(rule).inspect(bench, chosen))


def _kind(rule: str) -> Kind[Any]:
    """What does the experiments of a section."""
    from kt.amalgamate.run import AMALGAMATE
    from kt.flow.run import FLOW

    kinds: dict[str, Kind[Any]] = {"amalgamate": AMALGAMATE, "flow": FLOW}
    return kinds[rule]


def _bench(
    study: Study, layout: Layout, at: str, chosen: Experiment, problem: Problem, zoo: ZooFiles, threads: int
) -> Bench:
    """The bench for an experiment's trials; a signal stops it."""
    from kt.experiments.bench import Bench
    from kt.zoo import models

    models.import_modules(study.zoo.modules)
    spec, dataset = study.student_input(chosen), zoo.dataset
    colours = channels_of(f"{at}.student", spec, dataset)
    return Bench(
        at, (chosen.student.arch, chosen.student.args), spec, colours, problem, zoo, dataset, layout.checkpoints,
        study.transfer.checkpoint_seconds, pick_device(study.device, threads), progress.on_signal(),
        study.transfer.views, partial(_given, study, at, chosen.student, colours) if chosen.student.given else None,
    )  # fmt: skip


def _given(study: Study, at: str, student: Student, colours: int, classes: int) -> nn.Module:
    """A student with the weights that it begins with, and a fresh head where theirs has another class count."""
    from kt.zoo import models, weights

    if student.checkpoint:
        build = partial(models.build, student.arch, student.args, channels=colours)
        return weights.given(f"{at}.student.checkpoint", build, student.checkpoint, classes, new_head=True)
    has = registry.load(study.zoo.modules).tags[student.arch].num_classes
    model = weights.pretrained(student.arch, student.args, colours, has)
    return model if has == classes else weights.with_new_head(model, classes)
