"""Work that is stopped by a signal again and again, or torn at a step, and goes on as a new process would."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest

from kt.checkpoint import Checkpoint
from kt.errors import Interrupted


class Torn(BaseException):
    """Ends a training from inside, as a signal would."""


class Saving(Checkpoint):
    """A checkpoint after chosen steps, counted from 1; the training is torn at one of them."""

    def __init__(self, path: Path, after: Callable[[int], bool] = lambda step: False, torn: int = 0) -> None:
        super().__init__(path, "key", 0)
        self.after, self.torn, self.step = after, torn, 0

    def due(self) -> bool:
        self.step += 1
        if self.step == self.torn:
            raise Torn
        return self.after(self.step)


class Stoppable(Protocol):
    """Work on a bench: the ``stop`` of its settings ends the running training after its next step."""

    @property
    def settings(self) -> Any: ...


class Work(NamedTuple):
    """A bench and the experiment that it is for."""

    bench: Any
    experiment: Any

    @property
    def settings(self) -> Any:
        """The bench's."""
        return self.bench.settings


B = TypeVar("B", bound=Stoppable)


def again_and_again(
    monkeypatch: pytest.MonkeyPatch, seed: str, most: int, fresh: Callable[[], B], run: Callable[[B], Any]
) -> tuple[Any, B, int]:
    """What the work ends with, the bench it ended on, and how often it was stopped: after 1 to ``most`` steps each."""
    order, due, stops = random.Random(seed), Checkpoint.due, 0
    left, bench = order.randint(1, most), fresh()

    def stopping(checkpoint: Checkpoint) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            bench.settings.stop.set()
        return due(checkpoint)

    monkeypatch.setattr(Checkpoint, "due", stopping)
    while True:
        try:
            return run(bench), bench, stops
        except Interrupted:
            stops += 1
            left, bench = order.randint(1, most), fresh()
