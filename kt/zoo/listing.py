"""Ask timm what it has. Run as a process of its own: importing timm takes seconds and hundreds of megabytes.

``python -m kt.zoo.listing models OUT [MODULE …]`` writes every architecture and pretrained tag as JSON, ``… sizes …``
the sizes of the tags whose names it reads from standard input, and ``… outlines …`` the tensors of architectures;
``kt.zoo.registry`` runs these and keeps what they write. ``python -m kt.zoo.listing table kt/zoo/sizes.csv`` makes a
table of all sizes for the timm that is installed: once, in about eight minutes of one core.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_deprecated_models, get_pretrained_cfg

from kt.errors import KtError
from kt.zoo import models

SIZES = ("params", "macs", "feature_width")

PLAIN = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes", "license", "hf_hub_id")


def everything() -> dict[str, Any]:
    """Architectures with their module, and pretrained tags with what timm says of them."""
    families = {name: timm.model_entrypoint(name).__module__.split(".")[-1] for name in timm.list_models()}
    tags = {}
    for name in timm.list_pretrained():
        known, plain = _known(name), _known(name.split(".")[0])
        tags[name] = {
            "arch": name.split(".")[0],
            "input_size": known.input_size,
            **{key: getattr(known, key) for key in PLAIN},
            "default": plain.tag == known.tag,
            "classifier": known.classifier if isinstance(known.classifier, str) else None,
        }
    renamed = {old: new.split(".")[0] for old, new in get_deprecated_models().items() if new}
    return {"models": families, "tags": tags, "renamed": renamed}


def _known(name: str) -> PretrainedCfg:
    found = get_pretrained_cfg(name)
    assert found is not None, "every registered model with weights has a configuration"
    return found


def sizes(names: Iterable[str]) -> dict[str, dict[str, int | None] | None]:
    """``params``, ``macs`` and ``feature_width`` of tags, built without memory for weights; None where that fails."""
    found: dict[str, dict[str, int | None] | None] = {}
    done: dict[tuple[Any, ...], dict[str, int | None] | None] = {}
    for name in names:
        known = _known(name)
        shape = (known.architecture, known.num_classes, known.input_size)
        if shape not in done:
            try:
                done[shape] = _size(name, known.input_size)
            except Exception:  # an architecture may raise anything while it is built
                done[shape] = None
        found[name] = done[shape]
    return found


def _size(name: str, shape: tuple[int, int, int]) -> dict[str, int | None]:
    with torch.device("meta"):
        model = timm.create_model(name)
    try:
        return {**models.sizes(model), "macs": models.macs(model, shape)}
    except KtError:  # some operations are not there for tensors without values
        return {**models.sizes(model), "macs": None}


def outlines(wanted: Iterable[tuple[str, dict[str, Any], int]]) -> list[dict[str, Any] | str]:
    """The tensors of architectures with arguments and colour channels, or why there is no such architecture."""
    found: list[dict[str, Any] | str] = []
    for arch, args, channels in wanted:
        try:
            slots = models.outline(partial(models.build, arch, args, channels=channels))
            found.append({name: dataclasses.asdict(slot) for name, slot in slots.items()})
        except KtError as error:
            found.append(str(error).removeprefix("zoo: "))
    return found


def table(found: Mapping[str, Mapping[str, int | None] | None]) -> str:
    """Sizes as CSV, below a line with timm's version; models of unknown size are left out."""
    lines = [f"# timm {timm.__version__}", f"name,{','.join(SIZES)}"]
    for name, known in found.items():
        if known:
            lines.append(",".join([name, *("" if known[key] is None else str(known[key]) for key in SIZES)]))
    return "\n".join([*lines, ""])


def main(argv: Sequence[str]) -> int:
    """Write one listing; 1 where a module fails to import, with one line that says which and why."""
    what, out, *modules = argv
    warnings.filterwarnings("ignore")
    try:
        models.import_modules(modules)
    except KtError as error:
        print(error, file=sys.stderr)
        return 1
    if what == "table":
        Path(out).write_text(table(sizes(sorted(everything()["tags"]))), encoding="utf-8")
        return 0
    ask: dict[str, Callable[[Any], Any]] = {"models": lambda _: everything(), "sizes": sizes, "outlines": outlines}
    listed = ask[what](json.load(sys.stdin))
    Path(out).write_text(json.dumps(listed), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
