"""What a checkpoint says of its own training, compared with how its member is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kt.data.spec import InputSpec
from kt.zoo.header import Header, clip

ARGUMENTS = {"bn_eps": "bn_eps", "gp": "global_pool", "act_layer": "act_layer"}
"""Options of timm's training script that change a model's outputs, and the arguments that they stand for."""


def differing(file: Header, args: Mapping[str, Any], spec: InputSpec) -> list[str]:
    """Settings of the training that are not the member's, each with both values; neither names nor shapes show them.

    Args:
        file: of the checkpoint.
        args: of the architecture, as configured.
        spec: the member's input.
    """
    settings = file.settings()

    def said(key: str) -> Any:
        return next((value for each in settings if (value := each.get(key)) not in (None, "")), None)

    wanted: dict[str, Any] = {key: getattr(spec, key) for key in ("mean", "std", "crop_pct", "interpolation")}
    found = {key: said(key) for key in wanted}
    shape = said("input_size")
    wanted["size"] = spec.size
    found["size"] = shape[-1] if isinstance(shape, list | tuple) and shape else said("img_size")
    kwargs = said("model_kwargs")
    given = {argument: said(option) for option, argument in ARGUMENTS.items()}
    given |= {str(key): value for key, value in kwargs.items()} if isinstance(kwargs, Mapping) else {}
    wanted |= {f"args.{key}": args.get(key) for key in given}
    found |= {f"args.{key}": value for key, value in given.items()}
    return [
        f"{clip(key)} {clip(str(value))}, here {wanted[key]}"
        for key, value in found.items()
        if _plain(value) and not _alike(value, wanted[key])
    ]


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        same_length = isinstance(other, list | tuple) and len(one) == len(other)
        return same_length and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-3 * abs(other)
    return bool(one == other)
