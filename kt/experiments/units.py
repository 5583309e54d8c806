"""Trials of experiments: their keys in the ledger and the rows that all experiments have in common. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt import store
from kt.experiments.spec import Experiment, Problem
from kt.experiments.trial import Trial
from kt.transfer.ledger import Record, unpack
from kt.transfer.units import ENGINE_VERSION, EVALUATION_VERSION, FROM_LEDGER


def describe(
    trial: Trial,
    experiment: Experiment,
    student: Record,
    fingerprints: Mapping[str, str],
    problem: Problem,
    data: str,
) -> Record:
    """All that determines a trial's result, as plain JSON; its hash is the trial's key.

    Args:
        trial: one of the experiment's trials.
        experiment: its names do not count, only what they stand for.
        student: the student's architecture, arguments and input.
        fingerprints: of the teachers by name.
        problem: what is to be told apart.
        data: the data set's hash, splits included.
    """
    approach = trial.approach
    return {
        "experiment": experiment.rule,
        "data": data,
        "student": store.digest(student),
        "architecture": student,
        "classes": problem.classes.tolist(),
        "teachers": [fingerprints[name] for name in trial.teachers],
        "teachers_classes": [problem.own[name].tolist() for name in trial.teachers],
        "method": {"name": approach.name, "version": approach.version, **approach.parameters()},
        "training": {"version": ENGINE_VERSION, **approach.trained(experiment.plan).plain()} if approach.trains else {},
        "evaluation": {"version": EVALUATION_VERSION},
        "seed": trial.seed,
        **trial.settings,
    }


def accuracy(right: NDArray[np.bool_]) -> dict[str, float]:
    """``n``, ``acc`` (percent) and its binomial standard error ``acc_se`` (percentage points), from bool [n], n > 0."""
    share = float(right.mean())
    return {"n": len(right), "acc": 100 * share, "acc_se": 100 * math.sqrt(share * (1 - share) / len(right))}


def row(
    experiment: Experiment, name: str, trial: Trial, key: str, outcome: Record, truth: NDArray[np.int64]
) -> dict[str, Any]:
    """The row of the table ``transfers`` that a finished trial gives.

    Args:
        experiment: whose trial it is.
        name: the experiment's.
        trial: what was done.
        key: its key.
        outcome: what the ledger holds of it.
        truth: where the test images' classes stand among the student's, int64 [n].
    """
    approach = trial.approach
    shared = {
        "student": name,
        "teachers": list(trial.teachers),
        "method": approach.name,
        "seed": trial.seed,
        "control": False,
        "uses_labels": approach.uses_labels,
        "trains": approach.trains,
        "status": outcome["status"],
        "reason": outcome.get("reason"),
        "n": len(truth),
        "epochs": approach.trained(experiment.plan).epochs if approach.trains else 0,
        "key": key,
        **{column: outcome.get(column) for column in FROM_LEDGER},
    }
    if outcome["status"] == "ok":
        shared["acc_after"] = accuracy(unpack(outcome["last"]) == truth)["acc"]
    return shared


def identity(experiment: Experiment, name: str, trial: Trial, key: str) -> dict[str, Any]:
    """What every row of a detail table begins with."""
    return {
        "experiment": name,
        "method": trial.approach.name,
        "seed": trial.seed,
        "student": experiment.student.arch,
        "teachers": list(trial.teachers),
        "uses_labels": trial.approach.uses_labels,
        "trains": trial.approach.trains,
        "key": key,
    }
