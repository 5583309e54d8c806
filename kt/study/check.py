"""Checks of a study before anything runs, without torch or timm."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt import pairs, spec, store
from kt.complementarity.spec import MEASURES, possible
from kt.data import sources
from kt.data.classes import class_map
from kt.data.seen import in_pixels
from kt.data.sources import known_channels, known_classes, known_count, known_names, made_or_named, planned_sizes
from kt.data.spec import SPLITS, DataSpec
from kt.errors import KtError, listed, quoted, unknown
from kt.spec import Options
from kt.study.study import Study
from kt.tables import schema
from kt.tables.columns import with_metric
from kt.tasks import task as tasks
from kt.tasks.task import Task
from kt.transfer import groups
from kt.transfer.training import Training
from kt.zoo import members as zoo_members
from kt.zoo import registry, segmentation
from kt.zoo.registry import Probe
from kt.zoo.spec import ZooSpec, labels_of


def check(study: Study) -> Study:
    """Fail on all errors that can be found before anything runs.

    Returns:
        The study with its zoo complete: a member for every selected model, each with its input; with the students of
        its experiments complete; and with defaults in units of its metric.

    Raises:
        KtError: an unknown architecture, a missing checkpoint, splits larger than the data set, a pair rule that
            selects nothing, a results folder that cannot be written, …
    """
    store.check_writable(study.layout.root)
    if brace := re.search(r"[{}]", study.results.written):
        raise KtError(
            f"results: {study.results.written}: {brace[0]!r} has a meaning for Snakemake; choose another name"
        )
    spec.check_all(study, {"results", *made_or_named(study.data)})
    known = registry.load(study.zoo.modules)
    check_task(study)
    zoo = zoo_members.expand(study.zoo, known, lambda tags: registry.sizes(tags, study.zoo.modules))
    zoo_members.check(zoo, known)
    segmentation.check(zoo, known, study.task)
    _check_clips(study.task, zoo)
    experiments = {
        rule: {name: experiment.check(f"{rule}.{name}", zoo, known) for name, experiment in named.items()}
        for rule, named in study.experiments.items()
    }
    study = _in_units(study.model_copy(update={"zoo": zoo, **experiments}))
    check_keys_of_task(study)
    check_data(study.data)
    if not (study.layout.data / "meta.json").exists():  # else `data` has checked more
        sources.check_images(study.data)
    if names := known_names(study.data):
        check_classes(study, names)
    if classes := known_classes(study.data):
        zoo_members.check_heads(zoo, known, classes)
    check_checkpoints(study, known_channels, classes)
    if study.task.spatial:
        _check_whole(study)
    probe(study)
    sizes = study.data.splits
    check_splits(study, {split: images for split in SPLITS if (images := sizes.known(split)) is not None})
    _check_specialists(study)
    if study.groups:
        groups.check(study.names, study.groups.choose)
    if study.data.splits.transfer.folder:
        _check_without_labels(study)
    _check_complementarity(study)
    pairs.candidates(study.names, study.pairs)
    return study


def probe(study: Study) -> dict[str, Probe]:
    """Sizes and answers of the models of a task whose answers are maps, by name; none of another task.

    Raises:
        KtError: a model does not give such answers for its input.
    """
    if not study.task.spatial:
        return {}
    outputs = known_classes(study.data) or 2
    return segmentation.probe(study.zoo, outputs, known_channels(study.data), study.task.answer_shape(outputs))


def check_task(study: Study) -> None:
    """Fail where nothing defines the task, or its metric does not fit the tables.

    The user's modules are imported only where the project itself has no such task.
    """
    if study.data.task not in tasks.registry():
        from kt.zoo.models import import_modules

        import_modules(study.zoo.modules)
    key = tasks.named(study.data.task).metric.key
    for table in schema.TABLES:
        schema.file_names(table, key)


def check_checkpoints(study: Study, channels: Callable[[DataSpec], int], classes: int | None) -> None:
    """Fail where the checkpoint of a member or a student does not fit; ``kt.zoo.members.check_checkpoints`` says how.

    Args:
        study: with every member and student complete.
        channels: gives the colour channels of the images.
        classes: of the data; None where they are not known yet.
    """
    given = {f"zoo.models.{name}": (m, study.zoo.input_of(name)) for name, m in study.zoo.models.items()}
    for rule, name, experiment in study.each_experiment():
        member = experiment.student.as_member(study.zoo)
        given[f"{rule}.{name}.student"] = (member, study.student_input(experiment))
    if given := {at: (member, spec) for at, (member, spec) in given.items() if member.checkpoint}:
        colours = channels(study.data)
        members = {at: (member, max(colours, len(spec.mean))) for at, (member, spec) in given.items()}
        zoo_members.check_checkpoints(members, study.zoo.modules, registry.load(study.zoo.modules), classes)


def check_data(data: DataSpec) -> None:
    """Fail on all errors of the data set that can be found without listing its images.

    Raises:
        KtError: the source, a class file or a file of images does not exist, fewer than two classes are taken, or the
            splits ask for too many images.
    """
    sources.check_source(data)
    chosen = class_map(data)
    if chosen is not None and len(set(chosen.values())) < 2:
        key = "class_file" if data.class_file else "classes"
        raise KtError(f"data.{key}: a study needs classes of at least two labels, not {len(set(chosen.values()))}")
    known = [take.images for take in data.splits.takes().values() if take.images and not take.folder]
    images = known_count(data)
    if images is not None and sum(known) > images:
        what = "videos" if tasks.named(data.task).clips else "images"
        raise KtError(
            f"data.splits: {sum(known)} {what} asked for, but {quoted(spec.as_written(data.source))} has {images}"
        )


def check_images(study: Study) -> None:
    """Fail where a folder or a file has fewer images than the splits, recipes and batches ask for; lists the images.

    Raises:
        KtError: as ``planned_sizes`` does, or with the numbers.
    """
    counts = planned_sizes(study.data, in_epoch=True)
    if counts is None:
        return
    check_splits(study, counts)
    for name, member in study.zoo.models.items():
        recipe, key = member.train or member.finetune, "train" if member.train else "finetune"
        if recipe and recipe.batch_size > (most := recipe.images or counts.get("zoo", recipe.batch_size)):
            text = f"{recipe.batch_size} is larger than its {most} {'videos' if study.task.clips else 'images'}"
            raise KtError(f"zoo.models.{name}.{key}.batch_size: {text}")


def check_classes(study: Study, known: Sequence[str]) -> None:
    """Fail where specialists and experiments do not fit the data set's classes, given by label."""
    zoo_members.check_classes(study.zoo, known)
    for rule, name, experiment in study.each_experiment():
        own = {teacher: labels_of(teacher, study.zoo.models[teacher], known) for teacher in experiment.teachers}
        experiment.classes(f"{rule}.{name}", own, known)


def check_splits(study: Study, counts: Mapping[str, int]) -> None:
    """Fail where splits have fewer images than the stages need.

    Args:
        study: whose recipes and batches need images.
        counts: images of each split whose number is known; of videos one each.

    Raises:
        KtError: a recipe or a batch asks for more images than its split has.
    """
    for name, member in study.zoo.models.items():
        recipe, key = member.train or member.finetune, "train" if member.train else "finetune"
        asked = (recipe.images or 1) if recipe else 0
        if asked > counts.get("zoo", asked):
            raise KtError(f"zoo.models.{name}.{key}.images: {asked} asked for, but data.splits.zoo is {counts['zoo']}")
    for at, training in _trainings(study).items():
        if training.batch_size > counts.get("transfer", training.batch_size):
            raise KtError(
                f"{at}.training.batch_size: {training.batch_size} is larger than data.splits.transfer "
                f"({counts['transfer']})"
            )


def _trainings(study: Study) -> dict[str, Training]:
    """Training of students, by its place in the configuration; of a search the candidate with the largest batch."""
    common = study.transfer.training
    methods = {f"transfer.methods.{name}": method for name, method in study.transfer.methods.chosen().items()}
    if study.groups:
        methods |= {f"groups.methods.{name}": method for name, method in study.groups.methods.chosen().items()}
    for name, candidates in study.transfer.candidates().items():
        largest = max(candidates.values(), key=lambda method: method.trained(common).batch_size)
        methods[f"transfer.search.methods.{name}"] = largest
    found = {"transfer": common} | {at: m.trained(common) for at, m in methods.items() if m.training}
    for rule, name, experiment in study.each_experiment():
        at = f"{rule}.{name}"
        found[at] = experiment.plan
        found |= {
            f"{at}.methods.{method}": approach.trained(experiment.plan)
            for method, approach in experiment.chosen().items()
            if approach.training
        }
    return found


def _check_specialists(study: Study) -> None:
    """Fail where a specialist is named among the models that are compared."""
    if len(study.names) < 2:
        raise KtError(f"zoo.models: at least 2 models without `classes` needed, not {len(study.names)}")
    for at, name in [*pairs.named(study.pairs), *(groups.named(study.groups.choose) if study.groups else ())]:
        if name in study.zoo.models and name not in study.names:
            raise KtError(f"{at}: {name!r} is a specialist (zoo.models.{name}.classes); allowed: models of all classes")


def _methods(study: Study) -> dict[str, Options]:
    """Methods of transfers by their section."""
    groups: dict[str, Options] = {"groups": study.groups.methods} if study.groups else {}
    return {"transfer": study.transfer.methods, **groups}


def _check_clips(task: Task, zoo: ZooSpec) -> None:
    """Fail where a model has no clip and the task is about videos, or the reverse."""
    for name in zoo.models:
        clip = zoo.input_of(name).clip
        if clip and not task.clips:
            raise KtError(f"zoo.models.{name}.input.clip: the task {task.name!r} has no videos; leave it out")
        if task.clips and not clip:
            text = f"this key is missing; the task {task.name!r} needs the frames that a model sees"
            raise KtError(f"zoo.models.{name}.input.clip: {text}, as clip: {{frames: 16, stride: 1, reach: before}}")


def _check_whole(study: Study) -> None:
    """Fail where a model would see a part of the stored images, all of whose pixels need an answer."""
    stored = sources.known_sides(study.data)
    for name in study.members:
        given = study.zoo.input_of(name)
        if given.resized(*stored) != given.sides:
            raise KtError(
                f"zoo.models.{name}.input: size {in_pixels(given.sides)}, crop_pct {given.crop_pct:g}, crop_mode "
                f"{given.crop_mode!r}: shows only a part of images stored at {in_pixels(stored)} pixels, and every "
                "one needs an answer; set crop_pct: 1, and a size of the same shape or crop_mode: squash"
            )


def _check_without_labels(study: Study) -> None:
    """Fail where a method uses labels; called where the transfer images have none."""
    sections = _methods(study)
    sections |= {f"{rule}.{name}": experiment.methods for rule, name, experiment in study.each_experiment()}
    for section, methods in sections.items():
        for name, method in methods.options().items():
            if method.labelled:
                allowed = [known for known, default in methods.defaults().items() if not default.labelled]
                raise KtError(
                    f"{section}.methods.{name}: uses labels, but the images of data.splits.transfer.folder have none; "
                    f"allowed: {listed(allowed) or 'none'}"
                )


def _check_complementarity(study: Study) -> None:
    """Fail where class embeddings are missing, or pairs are chosen by a measure that is not taken."""
    vectors = study.complementarity.class_embeddings
    if vectors and not vectors.endswith((".npz", ".parquet")):
        raise KtError(f"complementarity.class_embeddings: {quoted(vectors.written)}: allowed: a .npz or .parquet file")
    words, by = study.task.words, pairs.score_of(study.pairs)
    if isinstance(study.pairs, pairs.Top):
        allowed = [with_metric(score, words.metric.key) for score in pairs.SCORES if possible(score, words)]
        if study.pairs.by not in allowed:
            raise KtError(f"pairs.by: {unknown('value', study.pairs.by, allowed)}")
    for measure in MEASURES:
        if by.startswith(measure) and measure not in study.complementarity.measures:
            raise KtError(f"pairs.by: {by!r} is not measured; add {measure!r} to complementarity.measures")
    if by == "agreement" and words.maps and study.transfer.answers == "recomputed":
        raise KtError("pairs.by: 'agreement' is read from kept answers, but transfer.answers is 'recomputed'")


def check_keys_of_task(study: Study) -> None:
    """Fail where a key or a method is given that makes no sense for the task."""
    for section, methods in _methods(study).items():
        for name, method in methods.options().items():
            method.check(study.task, f"{section}.methods.{name}")
    for name, candidates in study.transfer.candidates().items():
        for method in candidates.values():
            method.check(study.task, f"transfer.search.methods.{name}")
    words, asked = study.task.words, study.complementarity
    if study.task.clips and study.transfer.views:
        raise KtError(f"transfer.views: the task {words.name!r} has none, since its inputs are clips; leave it out")
    for measure in asked.measures if "measures" in asked.model_fields_set else ():
        if not possible(measure, words):
            allowed = listed(known for known in MEASURES if possible(known, words)) or "none"
            text = f"{measure!r} makes no sense for the task {words.name!r}; allowed: {allowed}"
            raise KtError(f"complementarity.measures: {text}")
    if study.transfer.answers != "auto" and not study.task.spatial:
        raise KtError(f"transfer.answers: answers of the task {words.name!r} are small, and always kept; leave it out")
    if words.has_classes and not words.dense:
        return
    given = _of_one_class(study) if words.dense else _of_classes(study)
    why = "a class per image, which" if words.dense else "classes, which"
    for key, value in given.items():
        if value is not None:
            raise KtError(f"{key}: is about {why} the task {words.name!r} does not have; leave it out")


def _of_one_class(study: Study) -> dict[str, Any]:
    """Values of the keys that need one class per example, by their places."""
    return {
        "complementarity.class_embeddings": study.complementarity.class_embeddings,
        **{f"zoo.models.{name}.classes": member.classes for name, member in study.zoo.models.items()},
        **{f"{rule}.{name}": experiment for rule, name, experiment in study.each_experiment()},
    }


def _of_classes(study: Study) -> dict[str, Any]:
    """Values of the keys that need classes, by their places."""
    return _of_one_class(study) | {
        "complementarity.class_lists": study.complementarity.class_lists,
        "transfer.top_k": study.transfer.top_k,
        **{
            f"zoo.models.{name}.{key}.thin": recipe.thin
            for name, member in study.zoo.models.items()
            for key, recipe in (("train", member.train), ("finetune", member.finetune))
            if recipe
        },
    }


def _in_units(study: Study) -> Study:
    """The study with defaults that are percentage points in proportion to the scale of its metric."""
    scale, rule, analysis = study.task.metric.scale / 100, study.pairs, study.analysis
    if scale != 1 and isinstance(rule, pairs.Stratified) and "gaps" not in rule.model_fields_set:
        rule = rule.model_copy(update={"gaps": tuple(scale * gap for gap in rule.gaps)})
    if scale != 1 and "equal_within" not in analysis.model_fields_set:
        analysis = analysis.model_copy(update={"equal_within": scale * analysis.equal_within})
    return study.model_copy(update={"pairs": rule, "analysis": analysis})
