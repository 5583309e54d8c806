"""Small games of our own, registered with gymnasium: things fall, a player in the bottom row catches or dodges them.

- ``kt/Catch-v0``: fruit falls; each piece that is caught counts +1.
- ``kt/Avoid-v0``: stones fall; each that lands beside the player counts +1, one that hits −1, and the game is over.
- ``kt/Gather-v0``: both fall; each piece of fruit that is caught counts +1, a stone that hits −1, and the game is over.

They are related on purpose: the same board, actions and motion, and the same kind of object in the same channel, so
that knowledge of one game is of use in another. A board is uint8 [3, 10, 10], 0 or 255: player, fruit, stones. A thing
begins in the top row at a random column, and falls one row per step. An episode is cut after 100 steps.

A board has no random state: the k-th thing of an episode is a function of the episode's seed and k. So all copies of a
game are played in one array (``Boards``), bit by bit as each alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

SIDE = 10
LIMIT = 100
CHANNELS = ("player", "fruit", "stones")
MEANINGS = ("NOOP", "LEFT", "RIGHT")


@dataclass(frozen=True)
class Rules:
    """Rules of a game.

    Attributes:
        every: steps from one thing to the next.
        stones: stones among 100 things; the rest is fruit.
        dodge: reward for a stone that lands beside the player.
    """

    every: int
    stones: int
    dodge: int = 0


GAMES = {
    "kt/Catch-v0": Rules(every=2, stones=0),
    "kt/Avoid-v0": Rules(every=1, stones=100, dodge=1),
    "kt/Gather-v0": Rules(every=2, stones=50),
}


class Boards:
    """Copies of one game, played at once.

    Args:
        rules: of the game.
        n: copies.
    """

    def __init__(self, rules: Rules, n: int) -> None:
        self.rules = rules
        self.seed = np.zeros((n, 1), np.uint64)
        self.time = np.zeros((n, 1), np.int64)
        self.player = np.full(n, SIDE // 2, np.int64)
        self._slots = np.arange(-(-SIDE // rules.every))[None]
        self._copy = np.arange(n)

    def begin(self, copy: int, seed: int) -> None:
        """Start an episode of one copy."""
        first = _hash(np.array([seed], np.uint64) + np.uint64(1))
        self.seed[copy] = first & ~np.uint64(0xFFFF)  # so far apart that no two episodes share their things
        self.time[copy] = 0
        self.player[copy] = SIDE // 2

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Move all copies on by one step, with an index into ``MEANINGS`` each.

        Returns:
            Rewards float64 [n]; the episodes that ended; those that were cut at the limit, bool [n] each.
        """
        self.player = np.clip(self.player + (actions == 2) - (actions == 1), 0, SIDE - 1)
        self.time += 1
        there, row, column, stone = self._things()
        landed = there & (row == SIDE - 1)
        stones = (landed & stone).any(1)
        met = (landed & (column == self.player[:, None])).any(1)
        rewards = np.where(stones, np.where(met, -1, self.rules.dodge), met).astype(np.float64)
        ended = met & stones
        return rewards, ended, (self.time[:, 0] >= LIMIT) & ~ended

    def draw(self) -> NDArray[np.uint8]:
        """The boards as policies see them, uint8 [n, 3, 10, 10]."""
        boards = np.zeros((len(self.player), len(CHANNELS), SIDE, SIDE), np.uint8)
        boards[self._copy, 0, SIDE - 1, self.player] = 255
        there, row, column, stone = self._things()
        copy, slot = np.nonzero(there)
        boards[copy, 1 + stone[copy, slot], row[copy, slot], column[copy, slot]] = 255
        return boards

    def _things(self) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Of the latest things [n, slots]: whether they are on the board, row, column, and whether a stone."""
        every = self.rules.every
        row = self.time % every + every * self._slots
        k = self.time // every - self._slots
        drawn = _hash(self.seed + k.astype(np.uint64))
        return (row < SIDE) & (k >= 0), row, (drawn % SIDE).astype(np.int64), drawn // SIDE % 100 < self.rules.stones


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Random bits of a counter: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Arcade(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One copy of a game, as gymnasium has it; ``game`` is its id."""

    metadata = {"render_modes": []}

    def __init__(self, game: str) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (len(CHANNELS), SIDE, SIDE), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(MEANINGS))
        self._boards = Boards(GAMES[game], 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode: that of ``seed``, or else of a seed that the last one leads to."""
        super().reset(seed=seed)
        self._boards.begin(0, int(self.np_random.integers(2**32)) if seed is None else seed)
        return self._boards.draw()[0], {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move on by one step."""
        rewards, ended, cut = self._boards.step(np.array([action]))
        return self._boards.draw()[0], float(rewards[0]), bool(ended[0]), bool(cut[0]), {}

    def get_action_meanings(self) -> list[str]:
        """Name the actions, as games of ``ale-py`` do."""
        return list(MEANINGS)


for _id in GAMES:
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point="kt.control.arcade:Arcade", kwargs={"game": _id}, max_episode_steps=LIMIT)
