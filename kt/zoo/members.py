"""Members of the zoo before anything runs, without torch: selected by name, glob and filter, completed and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from kt import store
from kt.data.seen import InputSpec
from kt.errors import KtError, listed, nearest
from kt.zoo import header, knowledge, registry
from kt.zoo.fit import check_head, fit
from kt.zoo.header import Header
from kt.zoo.knowledge import read_overrides, read_published
from kt.zoo.registry import Pretrained, Registry, Size
from kt.zoo.segmentation import encoder_of
from kt.zoo.spec import Member, Select, ZooSpec, labels_of

Sizes = Callable[[list[str]], Mapping[str, Size | None]]


def input_of(known: Pretrained) -> InputSpec:
    """The input that a pretrained tag's configuration asks for."""
    return InputSpec(
        size=known.input_size[1:],
        mean=known.mean,
        std=known.std,
        crop_pct=known.crop_pct,
        crop_mode=known.crop_mode,  # type: ignore[arg-type]  # pydantic refuses others
        interpolation=known.interpolation,  # type: ignore[arg-type]
    )


def expand(zoo: ZooSpec, registry: Registry, sizes: Sizes) -> ZooSpec:
    """The zoo with every selected tag as a member, every pretrained name as a full tag, and every input filled in.

    Args:
        zoo: as the configuration has it.
        registry: what timm and the user's modules register.
        sizes: parameters and operations of tags; called only where a filter needs them.

    Raises:
        KtError: a filter selects nothing, a pretrained name is not known, two models have one name, or a model has no
            input.
    """
    models = {name: complete(f"zoo.models.{name}", member, zoo, registry) for name, member in zoo.models.items()}
    given = set(models)
    for i, select in enumerate(zoo.select):
        at = f"zoo.select.{i}"
        for tag in select_tags(select, registry, sizes, at):
            member = complete(at, Member(arch=tag, pretrained=True, finetune=select.finetune), zoo, registry)
            if tag in given and models[tag].arch != tag:
                raise KtError(f"{at}: selects {tag!r}, but zoo.models has another model of this name")
            if tag in models and tag not in given and models[tag] != member:
                raise KtError(f"{at}: {tag!r} is selected twice, with different settings")
            models.setdefault(tag, member)
    if len(models) < 2:
        raise KtError(f"zoo: at least 2 models needed, not {len(models)}; give `models`, `select` or both")
    return zoo.model_copy(update={"models": models})


def complete(at: str, member: Member, zoo: ZooSpec, registry: Registry) -> Member:
    """A member with its full pretrained tag, where it is pretrained, and its input.

    Raises:
        KtError: timm publishes no such weights, or there is no input; ``at`` begins the message.
    """
    tag = registry.tag(member.arch) if member.pretrained or "." in member.arch else None
    if member.pretrained and tag is None:
        known = member.arch.partition(".")[0]
        have = [name for name in registry.tags if name.startswith(f"{known}.")]
        hint = f"its tags: {listed(have)}" if have else "timm publishes no weights for it; give `checkpoint` or `train`"
        raise KtError(f"{at}.arch: no pretrained weights {member.arch!r}; {hint}{nearest(member.arch, registry.tags)}")
    spec = member.input or (input_of(registry.tags[tag]) if tag else None) or zoo.input
    if spec is None:
        raise KtError(f"{at}.input: this key is missing; the model has no input of its own, and zoo.input is not given")
    arch = tag if member.pretrained and tag else member.arch
    return member.model_copy(update={"input": spec, "arch": arch})


def select_tags(select: Select, registry: Registry, sizes: Sizes, at: str) -> list[str]:
    """The pretrained tags that pass all filters, sorted by name.

    Tags for oblong images never pass (``zoo.models`` can name them), and those without a classifier only where a new
    one is trained.

    Raises:
        KtError: a glob matches no tag, or a filter lets none pass.
    """
    tags = registry.tags
    for key, globs in (("match", select.match), ("exclude", select.exclude)):
        for glob in globs:
            if not any(fnmatchcase(tag, glob) for tag in tags):
                near = nearest(glob.strip("*"), {*tags, *(known.arch for known in tags.values())})
                raise KtError(f"{at}.{key}: {glob!r} matches none of {len(tags)} pretrained tags{near}")
    found = [tag for tag in sorted(tags) if _any(tag, select.match)]
    found = _passing(at, "exclude", found, lambda tag: not _any(tag, select.exclude))
    for key, passes in _filters(select, registry):
        found = _passing(at, key, found, passes)
    if select.min_params or select.max_params or select.max_macs:
        known = sizes(found)
        for key, passes in _size_filters(select, known):
            found = _passing(at, key, found, passes)
    return found


def _any(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _passing(at: str, key: str, tags: list[str], passes: Callable[[str], bool]) -> list[str]:
    found = [tag for tag in tags if passes(tag)]
    if not found:
        raise KtError(f"{at}.{key}: none of the {len(tags)} models before this filter passes it, e.g. {tags[0]}")
    return found


def _filters(select: Select, registry: Registry) -> list[tuple[str, Callable[[str], bool]]]:
    tags = registry.tags

    def family(tag: str) -> str:
        return registry.models[tags[tag].arch]

    found: list[tuple[str, Callable[[str], bool]]] = [
        ("match", lambda tag: tags[tag].input_size[1] == tags[tag].input_size[2]),
        ("match", lambda tag: tags[tag].num_classes > 0 or select.finetune is not None),
    ]
    if select.pretrain:
        found.append(("pretrain", lambda tag: first_data(tag) in select.pretrain))
    if select.input_size:
        found.append(("input_size", lambda tag: tags[tag].input_size[1] in select.input_size))
    if select.max_input_size is not None:
        most = select.max_input_size
        found.append(("max_input_size", lambda tag: tags[tag].input_size[1] <= most))
    if select.classes:
        found.append(("classes", lambda tag: tags[tag].num_classes in select.classes))
    if select.family:
        found.append(("family", lambda tag: family(tag) in select.family))
    if select.kind:
        found.append(("kind", lambda tag: knowledge.kind_of(tags[tag].arch, family(tag)) in select.kind))
    if select.licence:
        found.append(("licence", lambda tag: tags[tag].license in select.licence))
    return found


def first_data(tag: str) -> str | None:
    """The first data set that a tag names before any fine-tuning."""
    return (knowledge.training(tag).pretraining or "").split("+")[0] or None


def _size_filters(select: Select, sizes: Mapping[str, Size | None]) -> list[tuple[str, Callable[[str], bool]]]:
    """Filters by size; a model whose size is not known does not pass."""

    def between(least: int | None, value: int | None, most: int | None) -> bool:
        return value is not None and (least or 0) <= value and (most is None or value <= most)

    def of(tag: str, key: str) -> int | None:
        known = sizes[tag]
        return getattr(known, key) if known else None

    found: list[tuple[str, Callable[[str], bool]]] = []
    if select.min_params:
        found.append(("min_params", lambda tag: between(select.min_params, of(tag, "params"), None)))
    if select.max_params:
        found.append(("max_params", lambda tag: between(None, of(tag, "params"), select.max_params)))
    if select.max_macs:
        found.append(("max_macs", lambda tag: between(None, of(tag, "macs"), select.max_macs)))
    return found


def check(zoo: ZooSpec, registry: Registry) -> None:
    """Check members, checkpoint files and overrides.

    Args:
        zoo: with every member complete, as ``kt.zoo.members.expand`` leaves it.
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
        read_overrides(zoo.overrides, list(zoo.models))
    if zoo.published:
        read_published(zoo.published)


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
        given = f"not {' and '.join(sources)}" if sources else "one is needed"
        raise KtError(f"{at}: give one of `train`, `checkpoint` and `pretrained`, {given}")
    if member.train and member.finetune:
        raise KtError(f"{at}.finetune: fits given weights; a member that is trained here has none")


def check_classes(zoo: ZooSpec, known: Sequence[str]) -> None:
    """Fail where a specialist or recipe names a class that the data set has not; ``known`` has the names by label."""
    for name, member in zoo.models.items():
        labels_of(name, member, known)
        for key, recipe in member.recipes.items():
            recipe.numbered(f"zoo.models.{name}.{key}", known)


def check_heads(zoo: ZooSpec, known: Registry, outputs: int) -> None:
    """Fail where a published head has another number of outputs than is needed, and no new one is trained.

    Raises:
        KtError: with the models and advice.
    """
    heads = {
        name: (known.tags[member.arch].num_classes, len(member.classes or ()) or outputs)
        for name, member in zoo.models.items()
        if member.pretrained and not member.finetune
    }
    if wrong := {name: (has, needs) for name, (has, needs) in heads.items() if has != needs}:
        name, (has, needs) = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} models more)" if len(wrong) > 1 else ""
        raise KtError(
            f"zoo.models.{name}: its head has {has} outputs, but {needs} are needed{more}; give `finetune` for a new "
            f"head, or select models by `classes: {needs}`"
        )


def check_checkpoints(
    members: Mapping[str, tuple[Member, int]], modules: Sequence[str], known: Registry, outputs: int | None
) -> None:
    """Fail where a checkpoint is not its member's architecture, or its head has too many or few outputs.

    Args:
        members: those with a checkpoint, by their place in the configuration, and the colour channels that they see.
        modules: the user's, which register models.
        known: what timm and these modules register.
        outputs: that a member needs; None where they are not known yet.

    Raises:
        KtError: with the member, the file and advice.
    """
    files = {at: header.read(f"{at}.checkpoint", Path(str(member.checkpoint))) for at, (member, _) in members.items()}
    for at, (member, _) in members.items():
        _check_arch(at, member, files[at], known)
    wanted = [(member.arch, member.args, colours) for member, colours in members.values()]
    outlines = registry.outlines(wanted, modules) if wanted else []
    for (at, (member, _)), outline in zip(members.items(), outlines, strict=True):
        if isinstance(outline, str):
            raise KtError(f"{at}: {outline}")
        new_head, needs = member.finetune is not None, len(member.classes or ()) or outputs
        try:
            has = fit(files[at], outline, new_head).outputs
            check_head(has, needs or has or 0, new_head)
        except KtError as error:
            raise KtError(f"{at}.checkpoint: {member.checkpoint}: {error}") from error


def _check_arch(at: str, member: Member, file: Header, known: Registry) -> None:
    """Fail where a checkpoint names another architecture or encoder, whose tensors may have the same names."""
    encoder = encoder_of(member)
    names = file.encoders() if encoder else file.architectures()
    given, key = encoder or member.arch, "args.encoder" if encoder else "arch"
    other = next(filter(None, map(known.arch, names)), None)
    if other not in (None, known.arch(given)):
        advice = "give that, or a file with the state_dict() alone"
        raise KtError(f"{at}.{key}: {given!r}, but according to {file.path} its weights are of {other!r}; {advice}")
