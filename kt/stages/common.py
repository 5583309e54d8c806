"""What several stages share: the device, a member's architecture, and the facts that go into every table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kt import tables
from kt.config import Study
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn


def metadata(study: Study) -> dict[str, str]:
    """The configuration's hash and the libraries' versions, for a table's file."""
    return {"config_hash": study.hash, **{f"version_{name}": v for name, v in tables.versions().items()}}


def known_model(study: Study, name: str) -> str:
    """``name``, where it is a member of the zoo; raises ``KtError`` where it is not."""
    if name not in study.zoo.models:
        raise KtError(unknown("model", name, study.names))
    return name


def pick_device(name: str, threads: int) -> torch.device:
    """The device that the configuration names; ``auto`` takes a GPU where there is one."""
    import torch

    torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KtError(f"device: {name!r} is asked for, but torch finds no GPU here; allowed: auto, cpu")
    return torch.device(name)


def build(study: Study, name: str, data: Dataset) -> nn.Module:
    """A member's architecture with fresh weights."""
    from kt.zoo import models

    models.import_modules(study.zoo.modules)
    member, spec = study.zoo.models[name], study.zoo.input_of(name)
    if len(spec.mean) not in (1, data.channels):
        raise KtError(f"zoo.models.{name}: input has {len(spec.mean)} channels, the images have {data.channels}")
    return models.build(member.arch, member.args, data.classes, data.channels)
