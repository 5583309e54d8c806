"""What the trainings of an experiment take, found when it is inspected and read when its job is planned. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kt import store
from kt.errors import KtError


class Needs(NamedTuple):
    """What a training by one method takes.

    Attributes:
        held: bytes that it holds whatever the batch, by what they are.
        image: bytes that it keeps for an image of a batch.
        batch: images of a batch.
        macs: multiply-accumulate operations of an image's forward pass; of teachers, which have no backward pass, a
            third.
    """

    held: Mapping[str, int]
    image: int
    batch: int
    macs: int

    def total(self, images: int) -> int:
        """Bytes that it takes with so many images at once."""
        return sum(self.held.values()) + self.image * images


def write(path: Path, plan: str, found: Mapping[str, Needs]) -> None:
    """Keep the needs of an experiment's methods, by their names; ``plan`` is the hash of what determines them."""
    store.write_json(path, {"plan": plan, "methods": {name: needs._asdict() for name, needs in found.items()}})


def read(path: Path, plan: str) -> dict[str, Needs]:
    """The needs that were kept for this plan; none where there are none."""
    try:
        kept = store.read_json(path)
    except KtError:
        return {}
    return {name: Needs(**needs) for name, needs in kept["methods"].items()} if kept["plan"] == plan else {}
