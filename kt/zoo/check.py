"""What can be known to be wrong with a zoo before anything runs, and without torch."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from kt import store
from kt.errors import KtError, listed, nearest
from kt.zoo import overrides
from kt.zoo.classes import labels_of
from kt.zoo.registry import Registry
from kt.zoo.spec import Member, ZooSpec

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".pth.tar")

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and wrapping modules put before the names."""

HARMLESS = ("torch", "collections", "argparse", "numpy", "_codecs", "builtins", "__builtin__")
"""Packages whose objects a file of weights may name; torch itself has the last word when it loads."""


_GLOBAL = re.compile(r"c([\w.]+)\n([\w.]+)\n")
"""The operation of a pickle that names an object: letter, module, name."""


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
    if member.checkpoint:
        check_checkpoint(f"{at}.checkpoint", Path(member.checkpoint))


def check_classes(zoo: ZooSpec, known: Sequence[str]) -> None:
    """Fail where a specialist names a class that the data set has not; ``known`` has the classes' names by label."""
    for name, member in zoo.models.items():
        labels_of(name, member, known)


def check_heads(zoo: ZooSpec, registry: Registry, classes: int) -> None:
    """Fail where a given head has another class count than its data, and no new one is trained.

    Of checkpoints only headers of .safetensors files are read, for architectures whose classifier timm names.

    Raises:
        KtError: naming the models and what helps.
    """
    heads = {
        name: (_outputs(member, registry), len(member.classes or ()) or classes)
        for name, member in zoo.models.items()
        if (member.pretrained or member.checkpoint) and not member.finetune
    }
    if wrong := {name: (has, needs) for name, (has, needs) in heads.items() if has not in (None, needs)}:
        name, (has, needs) = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} models more)" if len(wrong) > 1 else ""
        raise KtError(
            f"zoo.models.{name}: its head has {has} classes, the data {needs}{more}; give `finetune` for a new head, "
            f"or select models by `classes: {needs}`"
        )


def _outputs(member: Member, registry: Registry) -> int | None:
    """Outputs of a member's given head; None where only loading it will tell."""
    if member.pretrained:
        return registry.tags[member.arch].num_classes
    known = registry.tags.get(registry.tag(member.arch.partition(".")[0]) or "")
    if not (known and known.classifier and (member.checkpoint or "").endswith(".safetensors")):
        return None
    from safetensors import safe_open

    with safe_open(member.checkpoint, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            if unprefixed(name) == f"{known.classifier}.weight":
                return int(file.get_slice(name).get_shape()[0])
    return None


def unprefixed(name: str) -> str:
    """A tensor's name without what wrappers put before it."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def check_checkpoint(at: str, path: Path) -> None:
    """Fail where a file cannot hold weights; its tensors are not read, and nothing in it is run.

    Raises:
        KtError: it is missing, of another kind, damaged, or holds other objects than tensors.
    """
    if not path.name.endswith(SUFFIXES):
        raise KtError(f"{at}: {str(path)!r} is no file of weights; allowed: {listed(SUFFIXES)}")
    if not path.is_file():
        raise KtError(f"{at}: {str(path)!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="numpy"):
                return
        strange = [name for name in _names(path) if not _harmless(name)]
    except Exception as error:  # a damaged file can fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KtError(f"{at}: {str(path)!r} is not weights ({reason})") from error
    if strange:
        objects = listed(sorted(set(strange)))
        raise KtError(f"{at}: {str(path)!r} is not weights alone: {objects} would run as code; save its state_dict()")


def _harmless(name: str) -> bool:
    return name.split(".")[0] in HARMLESS


def _names(path: Path) -> list[str]:
    """Names of the objects that a file of ``torch.save`` would make; none of them is made.

    What later protocols of pickle name in another way is left to torch.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:  # before torch 1.6: magic number, version, system, then the objects
            return [name for _ in range(4) for name in _globals(file)]
    with zipfile.ZipFile(path) as archive:
        inner = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not inner:
            raise pickle.UnpicklingError("an archive without tensors")
        content = archive.read(inner[0])
    quick = [f"{module}.{name}" for module, name in _GLOBAL.findall(content.decode("latin-1"))]
    return quick if all(map(_harmless, quick)) else _globals(content)  # the quick look may also find other bytes


def _globals(stream: IO[bytes] | bytes) -> list[str]:
    operations = pickletools.genops(stream)
    return [str(argument).replace(" ", ".") for operation, argument, _ in operations if operation.name == "GLOBAL"]
