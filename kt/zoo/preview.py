"""Cost of a zoo before anything is downloaded or run: sizes of its models, bytes, and hours of a GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kt.data.seen import in_pixels
from kt.zoo import knowledge
from kt.zoo.registry import Probe, Registry, Size
from kt.zoo.segmentation import backbone, published
from kt.zoo.spec import FineTune, Member, Recipe, ZooSpec

BYTES = 4
"""Published weights are float32, with few exceptions."""

TRAINING = 3
"""A training step costs about three forward passes: one forward and two backward."""


@dataclass(frozen=True)
class Line:
    """Facts of one member; None where they are known only once the model is built.

    Attributes:
        name: the member's.
        kind: of the architecture.
        params: number of parameters.
        macs: multiply-accumulate operations of one image.
        sides: height and width of the input, pixels.
        download: bytes that are still to be downloaded.
        seconds: of a GPU, for training or fine-tuning and for predictions.
    """

    name: str
    kind: str | None
    params: int | None
    macs: int | None
    sides: tuple[int, int]
    download: int | None
    seconds: float | None


def lines(
    zoo: ZooSpec,
    registry: Registry,
    sizes: Callable[[list[str]], Mapping[str, Size | None]],
    predicted: int,
    trained: int,
    rate: float,
    probed: Mapping[str, Probe],
) -> list[Line]:
    """One line per member, in the zoo's order.

    Args:
        zoo: with every member complete.
        registry: what timm and the user's modules register.
        sizes: parameters and operations of pretrained tags.
        predicted: images that every model runs on once.
        trained: images of the zoo split.
        rate: multiply-accumulate operations of a GPU per second.
        probed: sizes and operations of members that have been looked at, by name.
    """
    tags = {name: tag for name, member in zoo.models.items() if not member.args and (tag := registry.tag(member.arch))}
    weights = {name: tag for name, member in zoo.models.items() if (tag := published(member, registry))}
    known = sizes(sorted({*tags.values(), *weights.values()}))
    found = []
    for name, member in zoo.models.items():
        arch, sides = backbone(member, registry), zoo.input_of(name).sides
        size = probed.get(name) or known.get(tags.get(name, ""))
        macs = probed[name].macs if name in probed else None
        if size and size.macs and name not in probed:  # most operations grow with the area of the image
            macs = round(size.macs * math.prod(sides) / math.prod(registry.tags[tags[name]].input_size[1:]))
        images = predicted + _passes(member, trained)
        found.append(
            Line(
                name,
                member.kind or knowledge.kind_of(arch, registry.models[arch]),
                size.params if size else None,
                macs,
                sides,
                _download(weights.get(name), known, registry),
                macs * images / rate if macs else None,
            )
        )
    return found


def _passes(member: Member, trained: int) -> float:
    """Forward passes that cost as much as a member's training."""
    recipe: Recipe | None = member.train or member.finetune
    if recipe is None:
        return 0
    images = min(recipe.images or trained, trained)
    if isinstance(recipe, FineTune) and recipe.mode == "linear":
        return images * (1 if recipe.augment == "none" else recipe.epochs)
    return TRAINING * images * recipe.epochs


def _download(tag: str | None, sizes: Mapping[str, Size | None], registry: Registry) -> int | None:
    """Bytes of published weights that are not in the cache."""
    if tag is None or cached(registry.tags[tag].hf_hub_id or ""):
        return 0
    size = sizes.get(tag)
    return BYTES * size.params if size else None


def cached(repository: str) -> bool:
    """Whether the Hugging Face cache holds a snapshot of a repository, given as owner/name."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return any((hub / f"models--{repository.replace('/', '--')}" / "snapshots").glob("*/*"))


def render(found: list[Line], rate: float) -> str:
    """The preview as text: one line per model, and the sums."""
    width = max(len(line.name) for line in found)
    head = f"{'model':{width}}  {'kind':11}  {'params':>8}  {'GMACs':>7}  {'input':>5}  {'download':>8}  {'GPU':>8}"
    rows = [
        f"{line.name:{width}}  {line.kind or '?':11}  {_number(line.params, 1e6, 'M'):>8}  "
        f"{_number(line.macs, 1e9, ''):>7}  {in_pixels(line.sides):>5}  {_number(line.download, 1e6, ' MB'):>8}  "
        f"{_number(line.seconds, 1, ' s'):>8}"
        for line in found
    ]
    params, download = sum(line.params or 0 for line in found), sum(line.download or 0 for line in found)
    hours = sum(line.seconds or 0 for line in found) / 3600
    unknown = sum(line.params is None for line in found)
    total = (
        f"{len(found)} models, {params / 1e6:.0f} million parameters, {download / 1e9:.1f} GB to download, about "
        f"{hours:.2g} GPU-hours for training and predictions at {rate / 1e12:g} trillion multiply-adds per second"
    )
    missing = f"; {unknown} models have no published size and count for nothing" if unknown else ""
    return "\n".join([head, *rows, total + missing])


def _number(value: float | None, unit: float, mark: str) -> str:
    if value is None:
        return "?"
    value /= unit
    return (
        f"{value:.0f}{mark}"
        if value >= 100
        else f"{value:.3g}{mark}"
        if value >= 0.01
        else f"<0.01{mark}"
        if value
        else "0"
    )
