"""What can be known to be wrong with a zoo before anything runs, and without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kt import store
from kt.errors import KtError, nearest
from kt.zoo import header, overrides, registry
from kt.zoo.classes import labels_of
from kt.zoo.fit import check_head, fit
from kt.zoo.header import Header
from kt.zoo.registry import Registry
from kt.zoo.spec import Member, ZooSpec


def check(zoo: ZooSpec, registry: Registry) -> None:
    """Check members, checkpoint files and overrides.

    Args:
        zoo: with every member complete, as ``kt.zoo.selection.expand`` leaves it.
        registry: what timm and the user's modules register.

    Raises:
        KtError: an unknown architecture, no weights or two sources of them, a checkpoint that is not weights, …
    """
    for name, member in zoo.models.items():
        at = f"zoo.models.{name}"
        arch = member.arch.partition(".")[0]
        if arch not in registry.models:
            near = nearest(member.arch, registry.models)
            allowed = f"allowed: the {len(registry.models)} names of timm and zoo.modules{near}"
            raise KtError(f"{at}.arch: unknown model {member.arch!r}; {allowed}")
        _check_source(at, member)
        spec = zoo.input_of(name)
        if len(spec.mean) != len(spec.std):
            raise KtError(f"{at}: input.mean and input.std need the same number of channels")
    _check_twins(zoo)
    if zoo.overrides:
        overrides.read(zoo.overrides, list(zoo.models))
    if zoo.published:
        overrides.published(zoo.published)


def _check_twins(zoo: ZooSpec) -> None:
    """Fail where two members are the same given weights: they could only teach each other what both know."""
    seen: dict[str, str] = {}
    for name, member in zoo.models.items():
        if not (member.pretrained or member.checkpoint):
            continue
        file = os.path.realpath(member.checkpoint) if member.checkpoint else None
        fit = member.finetune.plain() if member.finetune else None
        same = store.digest([member.arch, member.args, zoo.input_of(name).plain(), file, fit])
        if same in seen:
            what = f"the same {'checkpoint' if file else 'published weights'}, input and arguments"
            equal = f"{what} as {seen[same]!r}: teacher and student would be equal"
            raise KtError(f"zoo.models.{name}: {equal}; leave one out")
        seen[same] = name


def _check_source(at: str, member: Member) -> None:
    sources = [key for key in ("train", "checkpoint", "pretrained") if getattr(member, key)]
    if len(sources) != 1:
        said = f"not {' and '.join(sources)}" if sources else "one is needed"
        raise KtError(f"{at}: give one of `train`, `checkpoint` and `pretrained`, {said}")
    if member.train and member.finetune:
        raise KtError(f"{at}.finetune: fits given weights; a member that is trained here has none")


def check_classes(zoo: ZooSpec, known: Sequence[str]) -> None:
    """Fail where a specialist names a class that the data set has not; ``known`` has the classes' names by label."""
    for name, member in zoo.models.items():
        labels_of(name, member, known)


def check_heads(zoo: ZooSpec, known: Registry, classes: int) -> None:
    """Fail where a published head has another class count than its data, and no new one is trained.

    Raises:
        KtError: naming the models and what helps.
    """
    heads = {
        name: (known.tags[member.arch].num_classes, len(member.classes or ()) or classes)
        for name, member in zoo.models.items()
        if member.pretrained and not member.finetune
    }
    if wrong := {name: (has, needs) for name, (has, needs) in heads.items() if has != needs}:
        name, (has, needs) = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} models more)" if len(wrong) > 1 else ""
        raise KtError(
            f"zoo.models.{name}: its head has {has} classes, the data {needs}{more}; give `finetune` for a new head, "
            f"or select models by `classes: {needs}`"
        )


def check_checkpoints(
    members: Mapping[str, tuple[Member, int]], modules: Sequence[str], known: Registry, classes: int | None
) -> None:
    """Fail where a checkpoint is not its member's architecture, or its head has another class count than the data.

    Args:
        members: those with a checkpoint, by their place in the configuration, and the colour channels that they see.
        modules: the user's, which register models.
        known: what timm and these modules register.
        classes: of the data; None where they are not known yet.

    Raises:
        KtError: naming the member, the file and what helps.
    """
    files = {at: header.read(f"{at}.checkpoint", Path(str(member.checkpoint))) for at, (member, _) in members.items()}
    for at, (member, _) in members.items():
        _check_arch(at, member.arch, files[at], known)
    wanted = [(member.arch, member.args, colours) for member, colours in members.values()]
    outlines = registry.outlines(wanted, modules) if wanted else []
    for (at, (member, _)), outline in zip(members.items(), outlines, strict=True):
        if isinstance(outline, str):
            raise KtError(f"{at}: {outline}")
        new_head, needs = member.finetune is not None, len(member.classes or ()) or classes
        try:
            has = fit(files[at], outline, new_head).outputs
            check_head(has, needs or has or 0, new_head)
        except KtError as error:
            raise KtError(f"{at}.checkpoint: {member.checkpoint}: {error}") from error


def _check_arch(at: str, arch: str, file: Header, known: Registry) -> None:
    """Fail where a checkpoint says that it is of another architecture, whose tensors may have the same names."""
    said = next(filter(None, map(known.arch, file.architectures())), None)
    if said not in (None, known.arch(arch)):
        advice = "give that, or a file with the state_dict() alone"
        raise KtError(f"{at}.arch: {arch!r}, but {file.path} says that its weights are of {said!r}; {advice}")
