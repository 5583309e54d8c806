"""Work that is stopped by a signal again and again, after a few steps, and goes on as a new process would."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest

from kt.checkpoint import Checkpoint
from kt.errors import Interrupted


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
