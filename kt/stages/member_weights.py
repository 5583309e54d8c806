"""A member's weights, trained here, given or published, and their facts; alone, or with its predictions.

The facts record a hash of all that the weights were made from, so that the same weights are never made twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kt import pairs, predictions, store
from kt.data.clips import Targets
from kt.data.datasets import Dataset
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.layout import Layout
from kt.progress import Progress, stopping
from kt.spec import as_written
from kt.stages.common import MADE_FROM, build, channels, known_model, outputs, pick_device
from kt.study.study import Study
from kt.tasks.classification import positions
from kt.zoo import header, knowledge, registry, segmentation
from kt.zoo.fit import check_head
from kt.zoo.header import differing
from kt.zoo.registry import Pretrained
from kt.zoo.spec import FineTune, Member, fingerprint, labels_of

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def member(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Make a zoo member's weights, unless those that are there were made from the same, and then its predictions.

    Trained weights outlive a failure: until the predictions are there, their last checkpoint stays.
    """
    from kt.stages.members import predict

    source, dataset = study.zoo.models[known_model(study, name)], Dataset.open(layout.data)
    facts, sources = _facts(layout, name), made_from(study, name, dataset)
    if facts.get(MADE_FROM) == sources and _whole(study, layout, name, facts):
        log.info("weights %s: there", name)
        store.write_json(layout.member(name), facts | _known(study, source))
        layout.weights(name).touch()  # not older than what they were made from
    else:
        _make(study, layout, name, dataset, sources, threads)
    predict(study, layout, name, threads)
    _forget_progress(layout, name)


def weights(study: Study, layout: Layout, name: str, threads: int) -> None:
    """Train a zoo member, or load and fine-tune its weights; write them and their facts."""
    known_model(study, name)
    dataset = Dataset.open(layout.data)
    _make(study, layout, name, dataset, made_from(study, name, dataset), threads)
    _forget_progress(layout, name)


def made_from(study: Study, name: str, dataset: Dataset) -> str:
    """Hash of all that a member's weights depend on."""
    member, spec = study.zoo.models[name], study.zoo.input_of(name)
    given = store.digest_file(member.checkpoint) if member.checkpoint else ""
    trains = member.train or member.finetune
    seen = dataset.hash if trains else [outputs(study, name, dataset), channels(study, name, dataset)]
    return store.digest([member.plain(), spec.plain(), seen, study.zoo.modules, given])


def adopt(study: Study, layout: Layout, name: str) -> None:
    """Note what weights were made from that an older version made, which took no note; they must be of this recipe.

    Weights that are older than the images or the checkpoint are left alone: they will be made again.
    """
    facts, path = _facts(layout, name), layout.weights(name)
    if MADE_FROM in facts or not _whole(study, layout, name, facts):
        return
    sources = [layout.data / "meta.json", *map(Path, filter(None, [study.zoo.models[name].checkpoint]))]
    if all(source.exists() and source.stat().st_mtime <= path.stat().st_mtime for source in sources):
        made = made_from(study, name, Dataset.open(layout.data))
        store.write_json(layout.member(name), facts | {MADE_FROM: made})


def _facts(layout: Layout, name: str) -> dict[str, Any]:
    """A member's facts; none where they are not there, or damaged."""
    try:
        facts: dict[str, Any] = store.read_json(layout.member(name))
    except KtError:
        return {}
    return facts


def _whole(study: Study, layout: Layout, name: str, facts: Mapping[str, Any]) -> bool:
    """Whether the weights are there that a member's facts are about."""
    return layout.weights(name).exists() and facts.get("fingerprint") == _fingerprint(study, layout, name)


def _fingerprint(study: Study, layout: Layout, name: str) -> str:
    """Hash of a member's architecture, input and weights on disk."""
    member, of_file = study.zoo.models[name], store.digest_file(layout.weights(name))
    return fingerprint(member.arch, member.plain()["args"], study.zoo.input_of(name).plain(), of_file)


def _forget_progress(layout: Layout, name: str) -> None:
    from kt.checkpoint import Checkpoint

    Checkpoint(_progress(layout, name), "", 0).remove()


def _progress(layout: Layout, name: str) -> Path:
    """The checkpoint of a member's training."""
    return layout.checkpoints / f"weights-{name}.pt"


def _make(study: Study, layout: Layout, name: str, dataset: Dataset, sources: str, threads: int) -> None:
    """Train a zoo member, or load and fine-tune its weights; write them and their facts.

    Predictions of other weights are deleted.
    """
    import torch

    from kt.zoo import models
    from kt.zoo import weights as files

    member, spec = study.zoo.models[name], study.zoo.input_of(name)
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
        fitted = _fit(study, layout, name, dataset, model, sources, threads) if recipe else None
    except KtError as error:
        given = f" (args: {member.args})" if member.args else ""
        raise KtError(str(error) if str(error).startswith("zoo.") else f"zoo.models.{name}: {error}{given}") from error
    files.save(model, layout.weights(name))
    facts = {
        "name": name,
        **models.sizes(model),
        "macs": macs,
        **_known(study, member),
        "input_size": spec.side,
        "train_images": fitted and fitted.images,
        "train_seconds": fitted and fitted.seconds,
        "fingerprint": _fingerprint(study, layout, name),
        MADE_FROM: sources,
    }
    store.write_json(layout.member(name), facts)
    path = layout.predictions(name)
    if predictions.current(path) and predictions.File.open(path).facts.get("fingerprint") != facts["fingerprint"]:
        path.unlink()


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


class _Fitted(NamedTuple):
    """Images that a member was trained on, and the seconds that it took, in all processes."""

    images: int
    seconds: float


def _fit(
    study: Study, layout: Layout, name: str, dataset: Dataset, model: nn.Module, sources: str, threads: int
) -> _Fitted:
    """Train or fine-tune the model in place, from where an interrupted run stopped."""
    from kt.checkpoint import Checkpoint
    from kt.zoo import train

    member, spec, device = study.zoo.models[name], study.zoo.input_of(name), pick_device(study.device, threads)
    ((key, recipe),) = member.recipes.items()
    recipe = recipe.numbered(f"zoo.models.{name}.{key}", dataset.class_names)
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
        raise KtError(f"zoo.models.{name}.{key}{str(error).removeprefix('train')}") from error
    progress, every = Progress(f"train {name}", recipe.epochs), study.transfer.checkpoint_seconds

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
    with stopping() as stop:
        checkpoint = Checkpoint(_progress(layout, name), sources, every, stop)
        run(model, batch, len(chosen), study.task.loss, recipe, device, report, checkpoint, drawn=drawn)
        return _Fitted(len(chosen), checkpoint.seconds)


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
