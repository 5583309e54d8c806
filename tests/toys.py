"""Games of a few numbers for tests of policies, as ``kt.control.games.Games`` plays real ones."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch


class Step(NamedTuple):
    rewards: np.ndarray
    ended: np.ndarray
    cut: np.ndarray
    final: np.ndarray
    returns: np.ndarray


class Toy:
    """A hint names the action that counts +2, all others count −0.5; an episode is over after ``length`` steps.

    A copy's number and episode give its hints. With ``uneven`` copy c's episodes have c + 1 steps. Where ``cuts`` is
    true episodes are cut, else they end.
    """

    def __init__(
        self, n: int, seed: int, actions: int = 3, length: int = 1, uneven: bool = False, cuts: bool = False
    ) -> None:
        self.n, self.seed, self.actions, self.cuts = n, seed, actions, cuts
        self.lengths = np.arange(1, n + 1) if uneven else np.full(n, length)
        self.time = np.zeros(n, np.int64)
        self.episode = np.zeros(n, np.int64)
        self.total = np.zeros(n)

    @property
    def hints(self) -> np.ndarray:
        hashed = (self.seed + 7919 * np.arange(self.n) + 104729 * self.episode + 31 * self.time) * 2654435761
        return hashed % 2**32 // 65536 % self.actions

    @property
    def observations(self) -> np.ndarray:
        shown = np.zeros((self.n, self.actions, 2, 2), np.uint8)
        shown[np.arange(self.n), self.hints, 0, 0] = 255
        shown[:, 0, 1, 1] = self.time
        return shown

    def step(self, actions: np.ndarray) -> Step:
        rewards = np.where(actions == self.hints, 2.0, -0.5)
        self.time += 1
        self.total += rewards
        over = self.time >= self.lengths
        final = self.observations[over & self.cuts]
        returns = np.where(over, self.total, np.nan)
        self.time[over], self.total[over] = 0, 0
        self.episode[over] += 1
        return Step(rewards, over & (not self.cuts), over & self.cuts, final, returns)

    def state(self) -> dict[str, Any]:
        return {name: torch.tensor(getattr(self, name)) for name in ("time", "episode", "total")}

    def restore(self, state: dict[str, Any]) -> None:
        for name, tensor in state.items():
            setattr(self, name, tensor.numpy().copy())


class Facts(NamedTuple):
    """What is asked of a game's facts."""

    shape: tuple[int, int, int] = (3, 2, 2)
    actions: int = 3
    meanings: tuple[str, ...] | None = None
    id: str = "toy"


def toy(**options: Any) -> partial[Toy]:
    """Makes copies of the toy, from how many and a seed."""
    return partial(Toy, **options)
