"""The stage ``weights``: a member's weights, trained here, given or published, and their facts."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kt import pairs, store
from kt.data.clips import Targets
from kt.data.datasets import Dataset
from kt.data.spec import InputSpec
from kt.errors import KtError
from kt.layout import Layout
from kt.progress import Progress, on_signal
from kt.spec import as_written
from kt.stages.common import build, channels, known_model, outputs, pick_device
from kt.study.study import Study
from kt.tasks.classification import positions
from kt.zoo import header, knowledge, registry, segmentation
from kt.zoo.fit import check_head
from kt.zoo.header import differing
from kt.zoo.registry import Pretrained
from kt.zoo.spec import FineTune, Member, labels_of

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def weights(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Train a zoo member, or load and fine-tune its weights; write them and their facts."""
    import torch

    from kt.zoo import models
    from kt.zoo import weights as files

    member, spec = study.zoo.models[known_model(study, name)], study.zoo.input_of(name)
    dataset, start = Dataset.open(layout.data), time.perf_counter()
    recipe = member.train or member.finetune
    torch.manual_seed(recipe.seed if recipe else 0)
    pick_device(study.device, threads)
    try:
        model = _start(study, name, dataset)
        shape = (channels(study, name, dataset), *spec.shape(0)[1:])
        answer = study.task.answer_shape(outputs(study, name, dataset))
        macs, given = models.run_once(model, shape)
        models.check_outputs(given, answer, study.task.least)
        if recipe or _may_be_student(study, name):
            models.check_training(model, shape, answer)
        images = _fit(study, layout, name, dataset, model, threads) if recipe else None
    except KtError as error:
        raise KtError(str(error) if str(error).startswith("zoo.") else f"zoo.models.{name}: {error}") from error
    files.save(model, layout.weights(name))
    facts = {
        "name": name,
        **models.sizes(model),
        "macs": macs,
        **_known(study, member),
        "input_size": spec.side,
        "train_images": images,
        "train_seconds": time.perf_counter() - start if recipe else None,
        "fingerprint": models.fingerprint(
            member.arch, member.plain()["args"], spec.plain(), store.digest_file(layout.weights(name))
        ),
    }
    store.write_json(layout.member(name), facts)


def _may_be_student(study: Study, name: str) -> bool:
    """Whether a pair or a group may train the member."""
    return bool(study.groups) or any(student == name for _, student in pairs.candidates(study.names, study.pairs))


def _start(study: Study, name: str, dataset: Dataset) -> nn.Module:
    """The model with the weights that it begins with, and the outputs that the task needs."""
    from kt.zoo import models
    from kt.zoo import weights as files

    member, colours = study.zoo.models[name], channels(study, name, dataset)
    needs = outputs(study, name, dataset)
    models.import_modules(study.zoo.modules)
    known = registry.load(study.zoo.modules)
    if member.checkpoint:
        at = f"zoo.models.{name}.checkpoint"
        file = header.read(at, Path(member.checkpoint))
        other = differing(file, member.args, study.zoo.input_of(name)) + segmentation.differing(file.config, member)
        if other:
            log.warning("%s: the weights were trained with %s", at, "; ".join(other))
        return files.given(
            at,
            lambda n: models.build(member.arch, member.args, n, colours),
            member.checkpoint,
            needs,
            member.finetune is not None,
        )
    if encoder := segmentation.encoder_weights(member, known):
        _warn_of_input(name, known.tags[encoder], study.zoo.input_of(name))
        return files.pretrained(member.arch, member.args, colours, needs, encoder)
    if not member.pretrained:
        return build(study, name, dataset)
    has = known.tags[member.arch].num_classes
    check_head(has, needs, member.finetune is not None)
    model = files.pretrained(member.arch, member.args, colours, has)
    return model if has == needs else files.with_new_head(model, needs)


def _warn_of_input(name: str, known: Pretrained, spec: InputSpec) -> None:
    """Name mean and standard deviation with which an encoder was trained, where the member has others."""
    own, given = (known.mean, known.std), (spec.mean, spec.std)
    if len(known.mean) == len(spec.mean) and own != given:
        log.warning(
            "zoo.models.%s.input: the encoder was trained with mean %s and std %s, here %s and %s", name, *own, *given
        )


def _fit(study: Study, layout: Layout, name: str, dataset: Dataset, model: nn.Module, threads: int) -> int:
    """Train or fine-tune the model in place, from where an interrupted run stopped; returns the number of images."""
    from kt.checkpoint import Checkpoint
    from kt.zoo import train

    member, spec, device = study.zoo.models[name], study.zoo.input_of(name), pick_device(study.device, threads)
    recipe = member.train or member.finetune
    assert recipe is not None
    rows, spatial = dataset.rows("zoo"), study.task.spatial
    targets = Targets.of(dataset.videos, rows) if dataset.videos else None
    truth = own = rows if spatial else dataset.truth[rows]  # maps are read batch by batch
    if member.classes:
        own = positions(truth, labels_of(name, member, dataset.class_names))
        rows, truth, own = rows[own >= 0], truth[own >= 0], own[own >= 0]
    try:
        chosen = train.choose(
            truth if targets is None else np.arange(len(targets.names)),
            recipe,
            dataset.classes if study.task.dense else None,
        )
    except KtError as error:
        key = "train" if member.train else "finetune"
        raise KtError(f"zoo.models.{name}.{key}{str(error).removeprefix('train')}") from error
    given = store.digest_file(member.checkpoint) if member.checkpoint else ""
    key = store.digest([member.plain(), spec.plain(), dataset.hash, study.zoo.modules, given])
    path, every = layout.checkpoints / f"weights-{name}.pt", study.transfer.checkpoint_seconds
    progress, checkpoint = Progress(f"train {name}", recipe.epochs), Checkpoint(path, key, every, on_signal())

    def report(epoch: int, loss: float) -> None:
        progress.done = epoch - 1
        progress.step(f"loss {loss:.3f}")

    drawn = None
    if targets:
        drawn = partial(targets.some(chosen).drawn, recipe.seed)
    else:
        rows = rows[chosen]
    if study.task.dense:
        truths = train.masks(dataset.truth, rows, recipe, spec, device)
    elif spatial:
        truths = train.maps(dataset.truth, rows, spec, device)
    else:
        truths = train.in_memory(own[chosen], device)
    batch = train.batches(dataset.images, rows, truths, recipe.augment, spec, device, spatial, dataset.videos)
    run = train.linear if isinstance(recipe, FineTune) and recipe.mode == "linear" else train.train
    run(model, batch, len(chosen), study.task.loss, recipe, device, report, checkpoint, drawn=drawn)
    checkpoint.remove()
    return len(chosen)


def _known(study: Study, member: Member) -> dict[str, Any]:
    """Properties of a member that need no measurement; None where they are unknown."""
    known = registry.load(study.zoo.modules)
    published, backbone = segmentation.published(member, known), segmentation.backbone(member, known)
    family, source = known.models[backbone], as_written(study.data.source)
    history = knowledge.training(published or "")
    recipes = [recipe for recipe in (member.train, member.finetune) if recipe]
    later = [history.finetuning, source if member.finetune or (member.train and published) else None]
    return {
        "arch": member.arch.partition(".")[0],
        "tag": published.partition(".")[2] or None if published else None,
        "family": member.family or family,
        "kind": member.kind or knowledge.kind_of(backbone, family),
        "pretraining": member.pretraining or history.pretraining or (source if member.train else None),
        "finetuning": "+".join(name for name in later if name) or None,
        "recipe": [*history.recipe, *(word for recipe in recipes for word in recipe.tags())],
        "year": knowledge.year_of(backbone, family),
        "licence": member.licence or (known.tags[published].license if published else None),
    }
