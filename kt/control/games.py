"""Games for policies: n copies of an environment of gymnasium, played at once, each episode from a seed of its own.

Episode e of copy c starts from a seed that (seed, c, e) give, and depends on nothing before it. So the state of a game
is the number of each copy's episode and the actions since its start: to restore it, these are played again, and a
checksum of everything that was seen and earned must be the same. Our own games are arrays, which are kept as they are.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kt.control.environments import Environment
from kt.control.facts import GameFacts, facts
from kt.control.said import collected
from kt.control.spec import Game
from kt.errors import KtError

if TYPE_CHECKING:
    import torch
__all__ = ["GameFacts", "Games", "Step", "facts"]

LONGEST = 100_000
"""Actions after which an episode of a game without a time limit is taken for one that never ends."""


REPEATED = 50
"""Actions after which two copies of a game under one seed are taken for equal."""


@dataclass(frozen=True)
class Step:
    """Outcome of one action in each of n copies.

    Attributes:
        rewards: float64 [n], as the game gives them.
        ended: bool [n], episodes that are over.
        cut: bool [n], episodes that a time limit cut off; what would have come is not zero.
        final: last observations of those that were cut, [number of them, C, H, W] in their order.
        returns: float64 [n], sum of rewards of the episodes that are over or cut, else NaN.
    """

    rewards: NDArray[np.float64]
    ended: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    final: NDArray[Any]
    returns: NDArray[np.float64]


class _Players(Protocol):
    """Copies of a game under the seeds that they are given."""

    def begin(self, copy: int, seed: tuple[int, int]) -> None: ...

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]: ...

    def observations(self) -> NDArray[Any]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Games:
    """Copies of one game, played at once; an episode that is over is followed by the next in the same step.

    Args:
        game: which game, and how it is seen and played.
        n: copies.
        seed: of all their episodes.

    Attributes:
        n: copies.
        facts: of the game.
        actions: number of actions.
        shape: of an observation, (C, H, W).
        observations: the current ones, uint8 or float32 [n, C, H, W]; a new array after every step.

    Raises:
        KtError: there is no such game, or it is not one that a policy can play.
    """

    def __init__(self, game: Game, n: int, seed: int) -> None:
        self.n, self.seed, self.facts = n, seed, facts(game, game.id)
        self.actions, self.shape = self.facts.actions, self.facts.shape
        self._players: _Players = _Boards(self.facts.id, n) if _is_own(self.facts) else _Copies(self.facts, n)
        self._episodes = np.zeros(n, np.int64)
        self._totals = np.zeros(n)
        for copy in range(n):
            self._begin(copy)
        self.observations = self._players.observations()

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Take one action in each copy.

        Args:
            actions: int [n], 0 … ``actions`` − 1.

        Raises:
            KtError: the game does what it must not: observations or rewards that are not finite or of another shape
                than declared, or an episode without end.
        """
        rewards, ended, cut = self._players.step(actions)
        self._totals += rewards
        seen = self._players.observations()
        over = ended | cut
        returns = np.where(over, self._totals, np.nan)
        final = seen[cut]
        if over.any():
            for copy in np.flatnonzero(over):
                self._totals[copy] = 0
                self._episodes[copy] += 1
                self._begin(int(copy))
            seen = self._players.observations()
        self.observations = seen
        return Step(rewards, ended, cut, final, returns)

    def state(self) -> dict[str, Any]:
        """Everything that decides how the games go on, as tensors and plain values."""
        import torch

        mine = {"seed": self.seed, "episodes": torch.tensor(self._episodes), "totals": torch.tensor(self._totals)}
        return mine | self._players.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same game and number of copies.

        Raises:
            KtError: the game did not do the same again.
        """
        self.seed = state["seed"]
        self._episodes, self._totals = _array(state["episodes"]), _array(state["totals"])
        for copy in range(self.n):
            self._begin(copy)
        self._players.restore(state)
        self.observations = self._players.observations()

    def _begin(self, copy: int) -> None:
        """Start the current episode of a copy, from two numbers: for the environment, and for all else."""
        words = np.random.SeedSequence([copy, int(self._episodes[copy]), self.seed]).generate_state(2)
        self._players.begin(copy, (int(words[0]), int(words[1])))


def check_repeats(game: Game, at: str) -> None:
    """Fail where the same seed and actions do not lead to the same episode; ``at`` is the game's place.

    Raises:
        KtError: two copies differ within a few actions.
    """
    one, other = Games(game, 1, 0), Games(game, 1, 0)
    for action in np.random.default_rng(0).integers(0, one.actions, REPEATED):
        if not np.array_equal(one.observations, other.observations):
            break
        steps = [copy.step(np.array([action])) for copy in (one, other)]
        if not np.array_equal(steps[0].rewards, steps[1].rewards):
            break
    else:
        return
    text = "the same seed and actions lead to different episodes, so that nothing could be repeated or compared"
    raise KtError(f"{at}: {game.id}: {text}; `reset(seed=…)` must determine all that is random")


class _Boards:
    """Copies of a game of our own, in one array."""

    def __init__(self, name: str, n: int) -> None:
        from kt.control.arcade import GAMES, Boards

        self._boards = Boards(GAMES[name], n)

    def begin(self, copy: int, seed: tuple[int, int]) -> None:
        self._boards.begin(copy, seed[0])

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        return self._boards.step(actions)

    def observations(self) -> NDArray[np.uint8]:
        return self._boards.draw()

    def state(self) -> dict[str, Any]:
        import torch

        return {"time": torch.tensor(self._boards.time), "player": torch.tensor(self._boards.player)}

    def restore(self, state: dict[str, Any]) -> None:
        self._boards.time, self._boards.player = _array(state["time"]), _array(state["player"])


class _Copies:
    """Copies of any game, one after the other."""

    def __init__(self, facts: GameFacts, n: int) -> None:
        self._facts = facts
        with collected(facts.id):
            self._copies = [Environment(facts) for _ in range(n)]
        self._actions: list[list[int]] = [[] for _ in range(n)]
        self._sums = [0] * n

    def begin(self, copy: int, seed: tuple[int, int]) -> None:
        self._actions[copy] = []
        with collected(self._facts.id):
            self._copies[copy].begin(*seed)
        self._sums[copy] = zlib.crc32(self._copies[copy].newest.data)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        with collected(self._facts.id):
            found = [self._act(copy, int(action)) for copy, action in enumerate(actions)]
        rewards, ended, cut = zip(*found, strict=True)
        return np.array(rewards, np.float64), np.array(ended, np.bool_), np.array(cut, np.bool_)

    def _act(self, copy: int, action: int) -> tuple[float, bool, bool]:
        played, environment = self._actions[copy], self._copies[copy]
        played.append(action)
        found = environment.step(action)
        told = zlib.crc32(np.array(found, np.float64).data, self._sums[copy])
        self._sums[copy] = zlib.crc32(environment.newest.data, told)
        if self._facts.limit is None and len(played) >= LONGEST and not any(found[1:]):
            name = self._facts.id
            more = "set args.max_episode_steps"
            raise KtError(f"{name}: an episode has no end after {LONGEST:,} actions, and the game no limit; {more}")
        return found

    def observations(self) -> NDArray[Any]:
        return np.stack([each.observation() for each in self._copies])

    def state(self) -> dict[str, Any]:
        import torch

        return {"actions": [torch.tensor(each, dtype=torch.int32) for each in self._actions], "sums": list(self._sums)}

    def restore(self, state: dict[str, Any]) -> None:
        for copy, (actions, told) in enumerate(zip(state["actions"], state["sums"], strict=True)):
            with collected(self._facts.id):
                for action in actions.tolist():
                    self._act(copy, action)
            if self._sums[copy] != told:
                raise KtError(
                    f"{self._facts.id}: the same seed and actions lead to another state than before, so the training "
                    f"cannot go on: the game is not deterministic, or its package was changed"
                )


def _is_own(facts: GameFacts) -> bool:
    """Whether a game is one of our own, played as it is."""
    plain = (facts.frame_stack, facts.frame_skip, facts.noops, facts.args) == (1, 1, 0, {"game": facts.id})
    return plain and facts.id.startswith("kt/")


def _array(kept: torch.Tensor) -> NDArray[Any]:
    """A copy of a tensor, from any device."""
    found: NDArray[Any] = kept.cpu().numpy().copy()
    return found
