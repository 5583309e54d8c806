"""Stages on images and models: decode the data set, predictions, the table of models."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt import predictions, status, store
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.data.listing import ORDERS, ordered
from kt.data.seen import in_pixels
from kt.errors import listed
from kt.layout import Layout
from kt.spec import as_written
from kt.stages import units
from kt.stages.common import (
    MADE_FROM,
    build,
    check_predictions,
    known_model,
    metadata,
    note_recipe,
    pick_device,
    truth_of,
)
from kt.study import recipes
from kt.study import units as requested
from kt.study.check import check_checkpoints, check_classes, check_splits, probe
from kt.study.recipes import RECIPE
from kt.study.study import Study
from kt.tables import gather, schema
from kt.tasks.classification import positions
from kt.zoo import preview as previewing
from kt.zoo import registry
from kt.zoo.knowledge import read_overrides, read_published
from kt.zoo.members import check_heads
from kt.zoo.spec import Member, labels_of

log = logging.getLogger(__name__)


def data(study: Study, layout: Layout, threads: int) -> None:
    """Split and decode the data set."""
    facts = datasets.write(layout.data, study.data, threads, partial(check_splits, study))
    store.write_json(layout.recipe_of_data, {RECIPE: recipes.of_data(study)})
    dataset = Dataset.open(layout.data)
    needs = study.task.outputs(dataset.truth, list(dataset.class_names))
    check_classes(study, dataset.class_names)
    check_heads(study.zoo, registry.load(study.zoo.modules), needs)
    check_checkpoints(study, lambda _: dataset.channels, needs)
    _warn_of_size(study, dataset.images.shape[1:3])
    units.inspect_experiments(study, layout, threads)
    log.info("data: %s: %s", as_written(study.data.source), datasets.summary(facts))


def _warn_of_size(study: Study, stored: tuple[int, ...]) -> None:
    """Name the members for which images are enlarged that were stored at a configured size."""
    inputs = {name: study.zoo.input_of(name) for name in study.members}
    wanted = {name: tuple(math.floor(side / spec.crop_pct) for side in spec.sides) for name, spec in inputs.items()}
    small = [f"{name} ({in_pixels(size)})" for name, size in wanted.items() if any(np.greater(size, stored))]
    if study.data.size and small:
        log.warning("data: images of %s pixels are enlarged for %s", in_pixels(stored), listed(small))


def predict(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Run a model once over every split that later stages read; a killed run continues where it was."""
    from kt.data.inputs import inputs, truths
    from kt.zoo import weights
    from kt.zoo.inference import predict as run

    spec, views = study.zoo.input_of(known_model(study, name)), study.transfer.views
    compared = name in study.names
    dataset, device = Dataset.open(layout.data), pick_device(study.device, threads)
    fingerprint = store.read_json(layout.member(name))["fingerprint"]
    run(
        weights.load(build(study, name, dataset), layout.weights(name)).to(device).eval(),
        {s: inputs(dataset, s, spec, device, views, keep=False) for s in predictions.SPLITS},
        {s: truths(dataset, s, views) for s in predictions.SPLITS},
        {s: np.tile(dataset.ids(s), study.views(s)) for s in predictions.SPLITS},
        layout.predictions(name),
        (fingerprint, study.shown(dataset.hash)),
        study.task,
        study.features and compared,
        study.transfer.top_k if compared else None,
        study.transfer.answers,
    )
    if study.task.classifies and study.zoo.models[name].train is None:
        _warn_of_order(study, name, dataset, layout.predictions(name))
    note_recipe(study, layout, name)
    count = sum(study.views(split) * len(dataset.rows(split)) for split in predictions.SPLITS)
    log.info("predict %s: %d %ss", name, count, study.task.example)


def _warn_of_order(study: Study, name: str, dataset: Dataset, path: Path) -> None:
    """Warn where a model's outputs fit the classes far better in another order, by the validation images."""
    classes = labels_of(name, study.zoo.models[name], dataset.class_names)
    labels = positions(dataset.labels[dataset.rows("validation")], classes)
    predicted = predictions.read(path, "validation").kept
    if not (labels >= 0).any():
        return
    names = [dataset.class_names[label] for label in classes]
    if found := better_order(predicted[labels >= 0], labels[labels >= 0], names):
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


Permutation = NDArray[np.int64]
"""The class that each output stands for, [K]."""

GAIN = 0.1
"""Accuracy by which another order has to be better, beyond two standard errors of a fair coin."""


class BetterOrder(NamedTuple):
    """Another order of the classes: its name, and the accuracies without and with it, in [0, 1]."""

    order: str
    accuracy: float
    reordered: float


def better_order(predicted: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]) -> BetterOrder | None:
    """The order of classes under which a model is far more often right; None where there is none.

    Tried are the usual orders of class folders, labels that are off by one, and whatever order half of the images
    suggest, on the other half.

    Args:
        predicted: the largest output of each image, int64 [n].
        labels: its class, int64 [n].
        names: of the classes, [K].
    """
    accuracy, least = float((predicted == labels).mean()), GAIN + 1 / np.sqrt(len(labels))
    tried = {order: float((classes[predicted] == labels).mean()) for order, classes in _usual(names).items()}
    order = max(tried, key=tried.__getitem__)
    if tried[order] > accuracy + least:
        return BetterOrder(order, accuracy, tried[order])
    half, rest = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    fitted = _suggested(predicted[half], labels[half], len(names))
    held_out = float((fitted[predicted[rest]] == labels[rest]).mean()) if len(rest) else 0.0
    return BetterOrder("other", accuracy, held_out) if held_out > accuracy + least else None


def _usual(names: Sequence[str]) -> dict[str, Permutation]:
    orders = {order: ordered(names, order) for order in ORDERS}
    orders["case-insensitive"] = sorted(names, key=str.lower)
    place = {name: label for label, name in enumerate(names)}
    numbers = np.arange(len(names))
    return {
        **{order: np.array([place[name] for name in those]) for order, those in orders.items()},
        "labels from 1": np.roll(numbers, 1),
        "labels from -1": np.roll(numbers, -1),
    }


def _suggested(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> Permutation:
    """The order under which most images are right, every output a class of its own."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted, labels), 1)
    found: Permutation = linear_sum_assignment(counts, maximize=True)[1]
    return found


def zoo(study: Study, layout: Layout, out: Path) -> None:
    """Make the table ``zoo``."""
    dataset = Dataset.open(layout.data)
    corrected, extra = read_overrides(study.zoo.overrides, study.members) if study.zoo.overrides else ({}, {})
    published = read_published(study.zoo.published) if study.zoo.published else {}
    truth = {split: truth_of(dataset, split, study.task) for split in ("validation", "test")}
    check_predictions(study, layout, dataset, study.members)
    table = gather.zoo(
        [
            _properties(layout, name) | {"published_acc": member.published(published)}
            for name, member in study.zoo.models.items()
        ],
        {name: layout.predictions(name) for name in study.members},
        {name: _specialist(name, m, dataset, truth) for name, m in study.zoo.models.items() if m.classes},
        truth,
        corrected,
        extra,
        study.task,
    )
    clusters = study.task.clusters(truth["test"])
    about = _classes(study, layout, dataset) | ({} if clusters is None else {schema.CLUSTERS: str(len(set(clusters)))})
    schema.write(out, "zoo", table, {**metadata(study), **about, "extra_columns": " ".join(extra)})
    metric = study.task.metric
    unit = f" {metric.unit}" if metric.unit else ""
    for row in table.select(["name", "acc", "acc_published", "acc_agrees"]).to_pylist():
        if row["acc_agrees"] is False:
            measured, given = (f"{metric.shown(row[column], 4)}{unit}" for column in ("acc", "acc_published"))
            log.warning("zoo: %s: %s %s, but %s is published", row["name"], metric.name, measured, given)
    values = table["acc"].to_pylist()
    span = f"{metric.shown(min(values))} to {metric.shown(max(values))}{unit}"
    log.info("zoo: %d models, test %s %s", len(values), metric.name, span)


def _properties(layout: Layout, name: str) -> dict[str, Any]:
    """The facts of a member that are columns of the table."""
    facts = store.read_json(layout.member(name))
    return {fact: value for fact, value in facts.items() if fact not in (MADE_FROM, RECIPE)}


def _classes(study: Study, layout: Layout, dataset: Dataset) -> dict[str, str]:
    """Names and sizes of the classes, for the table's metadata; nothing of a task without classes."""
    if not study.task.has_classes:
        return {}
    if study.task.dense:
        kept = predictions.read(layout.predictions(study.members[0]), "test").kept
        sizes = kept[..., 2].sum(0, dtype=np.int64)
    else:
        labels = dataset.labels[dataset.rows("test")]
        sizes = np.bincount(labels[labels >= 0], minlength=dataset.classes)
    return {schema.CLASS_NAMES: json.dumps(dataset.class_names), schema.CLASS_SIZES: json.dumps(sizes.tolist())}


def _specialist(name: str, member: Member, dataset: Dataset, truth: Mapping[str, Any]) -> gather.Specialist:
    classes = labels_of(name, member, dataset.class_names)
    return gather.Specialist(classes, {split: positions(labels, classes) for split, labels in truth.items()})


def preview(study: Study, layout: Layout, tera_macs: float) -> str:
    """The zoo's models with their sizes, downloads and estimated GPU time."""
    rate, modules = tera_macs * 1e12, study.zoo.modules
    images = datasets.split_sizes(layout.data, study.data)
    found = previewing.lines(
        study.zoo,
        registry.load(modules),
        lambda tags: registry.sizes(tags, modules),
        sum(study.views(split) * images.get(split, 0) for split in predictions.SPLITS),
        images.get("zoo", 0),
        rate,
        probe(study),
    )
    disk = requested.disk(study, layout, images)
    kept = f"\npredictions take about {status.in_bytes(disk.size)} on disk" if disk else ""
    if disk and disk.recomputed:
        kept += f"; answers of {disk.recomputed} models are computed whenever a training reads them"
    return previewing.render(found, rate) + kept
