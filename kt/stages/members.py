"""Stages on images and models: decode the data set, predictions, the table of models."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np

from kt import predictions, store
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.data.listing import ORDERS
from kt.errors import listed
from kt.layout import Layout
from kt.spec import as_written
from kt.stages import units
from kt.stages.common import build, known_model, metadata, pick_device
from kt.study.check import check_checkpoints, check_classes, check_splits
from kt.study.study import Study
from kt.tables import gather, schema
from kt.zoo import order, overrides, registry
from kt.zoo import preview as previewing
from kt.zoo.check import check_heads
from kt.zoo.classes import labels_of, positions

log = logging.getLogger(__name__)


def data(study: Study, layout: Layout, threads: int) -> None:
    """Split and decode the data set."""
    facts = datasets.write(layout.data, study.data, threads, partial(check_splits, study))
    dataset = Dataset.open(layout.data)
    check_classes(study, dataset.class_names)
    check_heads(study.zoo, registry.load(study.zoo.modules), dataset.classes)
    check_checkpoints(study, lambda _: dataset.channels, dataset.classes)
    wanted = {name: math.floor((spec := study.zoo.input_of(name)).size / spec.crop_pct) for name in study.members}
    if small := [f"{name} ({side})" for name, side in wanted.items() if study.data.size and side > study.data.size]:
        log.warning("data: images of %d pixels are enlarged for %s", study.data.size, listed(small))
    units.inspect(study, layout, threads)
    log.info("data: %s: %s", as_written(study.data.source), datasets.summary(facts))


def predict(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Run a model once over every split that later stages read; a run that was killed goes on where it was."""
    from kt.data.views import inputs
    from kt.zoo import weights
    from kt.zoo.predict import predict as run

    spec, views = study.zoo.input_of(known_model(study, name)), study.transfer.views
    compared = name in study.names
    dataset, device = Dataset.open(layout.data), pick_device(study.device, threads)
    fingerprint = store.read_json(layout.member(name))["fingerprint"]
    run(
        weights.load(build(study, name, dataset), layout.weights(name)).to(device).eval(),
        {s: inputs(dataset, s, spec, device, views, keep=False) for s in predictions.SPLITS},
        {s: np.tile(dataset.ids(s), study.views(s)) for s in predictions.SPLITS},
        layout.predictions(name),
        fingerprint,
        study.shown(dataset.hash),
        study.features and compared,
        study.transfer.top_k if compared else None,
    )
    if study.zoo.models[name].train is None:
        _warn_of_order(study, name, dataset, layout.predictions(name))
    count = sum(study.views(split) * len(dataset.rows(split)) for split in predictions.SPLITS)
    log.info("predict %s: %d images", name, count)


def _warn_of_order(study: Study, name: str, dataset: Dataset, path: Path) -> None:
    """Say where a model's outputs fit the classes far better in another order, by the validation images."""
    classes = labels_of(name, study.zoo.models[name], dataset.class_names)
    labels = positions(dataset.labels[dataset.rows("validation")], classes)
    predicted = predictions.read(path, "validation").predicted
    if not (labels >= 0).any():
        return
    names = [dataset.class_names[label] for label in classes]
    if found := order.better(predicted[labels >= 0], labels[labels >= 0], names):
        by_folder = study.data.is_folder and not (study.data.classes or study.data.class_file)
        key = "the order of data.classes"
        if study.zoo.models[name].classes:
            key = f"the order of zoo.models.{name}.classes"
        elif by_folder and found.order in ORDERS:
            key = f"data.class_order: {found.order}"
        log.warning(
            "predict %s: accuracy on validation is %.1f %%, but %.1f %% with the classes in another order "
            "(%s); if the weights were trained so, set %s",
            *(name, 100 * found.accuracy, 100 * found.reordered, found.order, key),
        )


def zoo(study: Study, layout: Layout, out: Path) -> None:
    """Make the table ``zoo``."""
    dataset = Dataset.open(layout.data)
    corrected, extra = overrides.read(study.zoo.overrides, study.members) if study.zoo.overrides else ({}, {})
    published = overrides.published(study.zoo.published) if study.zoo.published else {}
    table = gather.zoo(
        [
            store.read_json(layout.member(name)) | {"published_acc": member.published(published)}
            for name, member in study.zoo.models.items()
        ],
        {name: layout.predictions(name) for name in study.members},
        {name: labels_of(name, m, dataset.class_names) for name, m in study.zoo.models.items() if m.classes},
        {split: dataset.labels[dataset.rows(split)] for split in ("validation", "test")},
        corrected,
        extra,
    )
    schema.write(out, "zoo", table, {**metadata(study), "extra_columns": " ".join(extra)})
    for row in table.select(["name", "acc", "acc_published", "acc_agrees"]).to_pylist():
        if row["acc_agrees"] is False:
            log.warning("zoo: %(name)s: accuracy %(acc).2f %%, but %(acc_published).2f %% is published", row)
    accuracy = table["acc"].to_pylist()
    log.info("zoo: %d models, test accuracy %.1f to %.1f %%", len(accuracy), min(accuracy), max(accuracy))


def preview(study: Study, layout: Layout, tera_macs: float) -> str:
    """The zoo's models with their sizes, what is to be downloaded, and about how long a GPU will take."""
    rate, modules = tera_macs * 1e12, study.zoo.modules
    images = datasets.split_sizes(layout.data, study.data)
    found = previewing.lines(
        study.zoo,
        registry.load(modules),
        lambda tags: registry.sizes(tags, modules),
        sum(study.views(split) * images.get(split, 0) for split in predictions.SPLITS),
        images.get("zoo", 0),
        rate,
    )
    return previewing.render(found, rate)
