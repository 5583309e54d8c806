"""Stages up to the table of models: images, weights, predictions, zoo."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from kt import predictions, schema, store, tables
from kt.config import Study
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.layout import Layout
from kt.progress import Progress
from kt.stages.common import build, known_model, metadata, pick_device
from kt.zoo import registry

log = logging.getLogger(__name__)


def data(study: Study, layout: Layout, threads: int) -> None:
    """Split and decode the data set."""
    datasets.write(layout.data, study.data, threads, study.check_splits)
    counts = Dataset.open(layout.data).splits["split"].value_counts(sort=False)
    log.info("data: %s decoded, %s images", study.data.source, ", ".join(f"{n} {split}" for split, n in counts.items()))


def weights(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Train a zoo member, or import its checkpoint; write its weights and what is known of it."""
    import torch

    from kt.zoo import models, train

    member, spec = study.zoo.models[known_model(study, name)], study.zoo.input_of(name)
    dataset, device, start = Dataset.open(layout.data), pick_device(study.device, threads), time.perf_counter()
    recipe = member.train
    torch.manual_seed(recipe.seed if recipe else 0)
    model = build(study, name, dataset)
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

    spec = study.zoo.input_of(known_model(study, name))
    dataset, device = Dataset.open(layout.data), pick_device(study.device, threads)
    model = models.load_weights(build(study, name, dataset), layout.weights(name)).to(device).eval()
    found = {
        split: (
            inference.logits(model, Inputs(dataset.images, dataset.rows(split), spec, device)),
            dataset.ids(split),
        )
        for split in predictions.SPLITS
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
    schema.write(out, "zoo", table, metadata(study))
    accuracy = table["acc"].to_pylist()
    log.info("zoo: %d models, test accuracy %.1f to %.1f %%", len(accuracy), min(accuracy), max(accuracy))
