"""The transfer stage: the missing trainings of one job, and the rows of all of them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from threading import Event

from kt import pairs as pairing
from kt import predictions, schema, status
from kt.config import Study
from kt.data.datasets import Dataset
from kt.layout import Layout
from kt.progress import Progress
from kt.stages.common import build, known_model, metadata, pick_device
from kt.transfer.ledger import Ledger, Record
from kt.transfer.units import Task, enumerate_tasks, rows

log = logging.getLogger(__name__)


def transfer(
    study: Study, layout: Layout, student: str, chunk: int, table: Path | None, out: Path, threads: int
) -> None:
    """Do the missing trainings of one job and write the rows of all of them.

    ``table`` holds the pairs; without one they are chosen anew, which needs no file but for the rule ``top``.

    A job is one chunk of a student's teachers; its first chunk also trains the student's controls.
    """
    dataset, plan = Dataset.open(layout.data), study.transfer
    chosen = (
        schema.read_frame(table, "pairs") if table else pairing.select(study.names, study.pairs, plan.pairs_per_job)
    )
    mine = chosen[chosen["student"] == known_model(study, student)]
    teachers = mine.loc[mine["chunk"] == chunk, "teacher"].tolist()
    first = chunk == 0 and len(mine) > 0
    needed = mine["teacher"].tolist() if first else teachers
    tasks = enumerate_tasks(
        student,
        teachers,
        first,
        list(plan.methods.chosen().values()),
        plan.seeds,
        plan.training,
        status.fingerprints(layout, [student, *needed]),
        dataset.hash,
    )
    ledger = Ledger(layout.ledger)
    outcomes = {key: outcome for key in tasks if (outcome := ledger.get(key))}
    missing = {key: task for key, task in tasks.items() if key not in outcomes}
    teaching = {task.unit.teacher for task in missing.values()} - {None}
    counts = len(tasks), len(outcomes), len(missing), len(teaching)
    log.info("transfer to %s: %d trainings, %d in the ledger, %d to do for %d pairs", student, *counts)
    if missing:
        outcomes |= _compute(study, layout, dataset, student, missing, ledger, threads)
    labels = dataset.labels[dataset.rows("test")]
    found = predictions.read_all({name: layout.predictions(name) for name in [student, *needed]}, "test")
    right = {name: predictions.correct(p.logits, labels) for name, p in found.items()}
    before = right.pop(student)
    done = [
        row
        for key, task in tasks.items()
        for row in rows(task, key, outcomes[key], student, right, before, labels, plan.training.epochs)
    ]
    schema.write(out, "transfers", schema.build("transfers", done), metadata(study))
    failed = sum(outcome["status"] != "ok" for outcome in outcomes.values())
    if failed:
        log.warning("transfer to %s: %d of %d trainings failed; `kt retry` tries again", student, failed, len(tasks))


def _compute(
    study: Study,
    layout: Layout,
    dataset: Dataset,
    student: str,
    missing: Mapping[str, Task],
    ledger: Ledger,
    threads: int,
) -> dict[str, Record]:
    """Train the missing units, on verified predictions; each goes into the ledger as soon as it is finished."""
    from kt.transfer.job import Workbench
    from kt.zoo import weights

    device, stop = pick_device(study.device, threads), Event()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # what schedulers send before they take a machine away
        signal.signal(number, lambda *_: stop.set())
    for name in {student} | {task.unit.teacher for task in missing.values() if task.unit.teacher}:
        predictions.verify(layout.predictions(name))
    bench = Workbench.set_up(
        weights.load(build(study, student, dataset), layout.weights(student)),
        predictions.read(layout.predictions(student), "transfer").logits,
        dataset,
        study.zoo.input_of(student),
        study.transfer.training,
        layout.checkpoints,
        study.transfer.checkpoint_seconds,
        device,
        stop,
    )
    progress, outcomes = Progress(f"transfer to {student}", len(missing)), {}
    for key, task in missing.items():
        teacher = task.unit.teacher
        cached = predictions.read(layout.predictions(teacher), "transfer").logits if teacher else None
        outcomes[key] = bench.compute(task.unit, key, cached)
        ledger.add(task.description, outcomes[key])
        progress.step(f"{task.unit.method.name} from {teacher or 'nobody'}, seed {task.unit.seed}")
    return outcomes
