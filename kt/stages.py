"""The stages: each reads its part of the configuration and its files, calls pure functions, and writes its files.

What a stage needs beyond tables (torch, timm, matplotlib) is imported when it runs, so that the table stages, and a
transfer job with nothing left to do, never wait for torch.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from kt import complementarity as scoring
from kt import pairs as pairing
from kt import predictions, schema, status, store, tables
from kt.config import Study
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.progress import Progress
from kt.transfer.ledger import Ledger, Record
from kt.transfer.units import Task, enumerate_tasks, rows
from kt.zoo import registry

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

PREDICTED = ("transfer", "validation", "test")  # every model runs on these; the zoo split only trains


def _metadata(study: Study) -> dict[str, str]:
    return {"config_hash": study.hash, **{f"version_{name}": v for name, v in tables.versions().items()}}


def _known_model(study: Study, name: str) -> str:
    if name not in study.zoo.models:
        raise KtError(unknown("model", name, study.names))
    return name


def _device(name: str, threads: int) -> torch.device:
    """The device that the configuration names; ``auto`` takes a GPU where there is one."""
    import torch

    torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KtError(f"device: {name!r} is asked for, but torch finds no GPU here; allowed: auto, cpu")
    return torch.device(name)


def _build(study: Study, name: str, data: Dataset) -> nn.Module:
    """A member's architecture with fresh weights."""
    from kt.zoo import models

    models.import_modules(study.zoo.modules)
    member, spec = study.zoo.models[name], study.zoo.input_of(name)
    if len(spec.mean) not in (1, data.channels):
        raise KtError(f"zoo.models.{name}: input has {len(spec.mean)} channels, the images have {data.channels}")
    return models.build(member.arch, member.args, data.classes, data.channels)


def data(study: Study, layout: Layout) -> None:
    """Decode and split the data set."""
    datasets.write(layout.data, study.data)
    log.info("data: %s decoded, %d images in four splits", study.data.source, study.data.splits.total)


def weights(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Train a zoo member, or import its checkpoint; write its weights and what is known of it."""
    import torch

    from kt.zoo import models, train

    member, spec = study.zoo.models[_known_model(study, name)], study.zoo.input_of(name)
    dataset, device, start = Dataset.open(layout.data), _device(study.device, threads), time.perf_counter()
    recipe = member.train
    torch.manual_seed(recipe.seed if recipe else 0)
    model = _build(study, name, dataset)
    if recipe:
        zoo_rows = dataset.rows("zoo")
        try:
            chosen = zoo_rows[train.choose(dataset.labels[zoo_rows], recipe)]
        except KtError as error:
            raise KtError(f"zoo.models.{name}.{error}") from error
        progress = Progress(f"train {name}", recipe.epochs)
        train.train(
            model,
            dataset.images[chosen],
            dataset.labels[chosen],
            recipe,
            spec,
            device,
            lambda epoch, loss: progress.step(f"loss {loss:.3f}"),
        )
    elif member.checkpoint:
        models.load_weights(model, member.checkpoint)
    models.save_weights(model, layout.weights(name))
    family = member.family or registry.architectures(study.zoo.modules)[member.arch]
    facts = {
        "name": name,
        "arch": member.arch,
        "family": family,
        "kind": member.kind or registry.kind_of(family),
        **models.properties(model, dataset.channels, spec.size),
        "input_size": spec.size,
        "pretraining": study.data.source if recipe else member.pretraining or "unknown",
        "recipe": recipe.tags() if recipe else [],
        "licence": member.licence,
        "train_images": len(chosen) if recipe else None,
        "train_seconds": time.perf_counter() - start if recipe else None,
        "fingerprint": models.fingerprint(
            member.arch, member.plain()["args"], spec.plain(), store.digest_file(layout.weights(name))
        ),
    }
    store.write_json(layout.member(name), facts)


def predict(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Run a model once over every split that later stages read."""
    from kt.data.views import Inputs
    from kt.zoo import inference, models

    spec = study.zoo.input_of(_known_model(study, name))
    dataset, device = Dataset.open(layout.data), _device(study.device, threads)
    model = models.load_weights(_build(study, name, dataset), layout.weights(name)).to(device).eval()
    found = {
        split: (
            inference.logits(model, Inputs(dataset.images, dataset.rows(split), spec, device)),
            dataset.ids(split),
        )
        for split in PREDICTED
    }
    fingerprint = store.read_json(layout.member(name))["fingerprint"]
    predictions.write(layout.predictions(name), found, fingerprint, dataset.hash)
    log.info("predict %s: %d images", name, sum(len(ids) for _, ids in found.values()))


def zoo(study: Study, layout: Layout, out: Path) -> None:
    """Make the table ``zoo``."""
    dataset = Dataset.open(layout.data)
    table = tables.zoo(
        [store.read_json(layout.member(name)) for name in study.names],
        {name: layout.predictions(name) for name in study.names},
        {split: dataset.labels[dataset.rows(split)] for split in ("validation", "test")},
    )
    schema.write(out, "zoo", table, _metadata(study))
    accuracy = table["acc"].to_pylist()
    log.info("zoo: %d models, test accuracy %.1f to %.1f %%", len(accuracy), min(accuracy), max(accuracy))


def complementarity(study: Study, layout: Layout, split: str, out: Path) -> None:
    """Score every ordered pair on a split."""
    if split not in PREDICTED:
        raise KtError(unknown("split", split, PREDICTED))
    dataset = Dataset.open(layout.data)
    found = predictions.read_all({name: layout.predictions(name) for name in study.names}, split)
    labels = dataset.labels[dataset.rows(split)]
    scores = scoring.score(study.names, predictions.stack(list(found.values())), labels, dataset.classes, split)
    schema.write(out, "complementarity", schema.build("complementarity", scores.to_dict("list")), _metadata(study))
    log.info("complementarity: %d ordered pairs scored on %d %s images", len(scores), len(labels), split)


def pairs(study: Study, layout: Layout, scores: Path | None, out: Path) -> None:
    """Choose the pairs that get a transfer."""
    table = schema.read_frame(scores, "complementarity") if scores else None
    chosen = pairing.select(study.names, study.pairs, study.transfer.pairs_per_job, table)
    schema.write(out, "pairs", schema.build("pairs", chosen.to_dict("list")), _metadata(study))
    log.info("pairs: %d chosen by the rule %r", len(chosen), study.pairs.select)


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
    mine = chosen[chosen["student"] == _known_model(study, student)]
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
    schema.write(out, "transfers", schema.build("transfers", done), _metadata(study))
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
    from kt.zoo import models

    device, stop = _device(study.device, threads), Event()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # what schedulers send before they take a machine away
        signal.signal(number, lambda *_: stop.set())
    for name in {student} | {task.unit.teacher for task in missing.values() if task.unit.teacher}:
        predictions.verify(layout.predictions(name))
    bench = Workbench.set_up(
        models.load_weights(_build(study, student, dataset), layout.weights(student)),
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


def gather(study: Study, layout: Layout, out: Path) -> None:
    """Make the final tables: transfers and methods, and every table as CSV too."""
    from kt.analysis import describe

    jobs = pairing.jobs(study.names, study.pairs, study.transfer.pairs_per_job)
    files = [layout.transfer(student, chunk) for student, count in jobs.items() for chunk in range(count)]
    transfers = tables.transfers(files)
    scores = schema.read(layout.complementarity("test"), "complementarity")
    summary = describe.summarise(tables.frame(transfers), tables.frame(scores), study.analysis.equal_within)
    made = {
        "transfers": transfers,
        "complementarity": scores,
        "methods": schema.build("methods", summary.to_dict("list")),
    }
    for name, table in made.items():
        schema.write(out / f"{name}.parquet", name, table, _metadata(study))
    for name in ("zoo", "pairs"):
        made[name] = schema.read(out / f"{name}.parquet", name)
    for name, table in made.items():
        schema.write_csv(out / f"{name}.csv", table)
    log.info("tables: %d rows of transfers in %s", transfers.num_rows, out)


def report(study: Study, config: Path, source: Path, drawn: Path, out: Path) -> None:
    """Write the HTML report from tables and figures."""
    from kt.report import render

    page = render(source, drawn, config.read_text("utf-8"), tables.versions(), study.title, study.analysis.equal_within)
    store.write_text(out, page)
    log.info("report: %s", out)
