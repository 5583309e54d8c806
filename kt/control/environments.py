"""One copy of a game as a policy sees and plays it.

Atari is played as published (Mnih et al. 2015 and 2016): an action is repeated for four frames, the picture is the
maximum of the last two, grey and 84 × 84 (means over areas), and a policy sees the latest four pictures. An episode is
a whole game, not a life, and begins with up to 30 actions that do nothing. Nothing presses a button to start a game.
Actions that are repeated at random (sticky actions) and the set of actions are those of the id unless ``args`` differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.control.facts import ATARI_SIDE, GameFacts, as_channels, first_action, make
from kt.control.registry import ATARI, line, registered
from kt.errors import KtError, short


class Environment:
    """One copy of a game: frames are stacked, actions repeated, and what the game gives is checked.

    Attributes:
        newest: latest frame, uint8 or float32 [C, H, W].
    """

    newest: NDArray[Any]

    def __init__(self, facts: GameFacts) -> None:
        self._facts = facts
        self._atari = registered(facts.id, facts.id).entry_point == ATARI
        self._env = make(facts.id, facts.args)
        self._first = first_action(self._env)
        self._frames: deque[NDArray[Any]] = deque(maxlen=facts.frame_stack)

    def begin(self, seed: int, chance: int) -> None:
        """Start an episode from a seed; ``chance`` gives the number of actions that do nothing at its start."""
        raw = self._told(self._reset, seed)
        if self._facts.noops and self._facts.meanings:
            idle = self._facts.meanings.index("NOOP")
            for _ in range(chance % (self._facts.noops + 1)):
                raw, _, ended, cut = self._told(self._step, idle + self._first)
                if ended or cut:  # a game that idling ends: begin at its first frame
                    raw = self._told(self._reset, seed)
                    break
        self.newest = self._picture([raw])
        self._frames.extend([self.newest] * self._facts.frame_stack)

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Take an action: the reward, whether the episode is over, and whether it was cut."""
        reward, raws, ended, cut = 0.0, [], False, False
        for _ in range(self._facts.frame_skip):
            raw, earned, ended, cut = self._told(self._step, action + self._first)
            raws.append(raw)
            reward += earned
            if ended or cut:
                break
        if not np.isfinite(reward):
            raise KtError(f"{self._facts.id}: a reward is {reward}")
        self.newest = self._picture(raws)
        self._frames.append(self.newest)
        return reward, ended, cut and not ended

    def _reset(self, seed: int) -> Any:
        raw, _ = self._env.reset(seed=seed)
        return raw

    def _step(self, action: int) -> tuple[Any, float, bool, bool]:
        raw, earned, ended, cut, _ = self._env.step(action)
        return raw, float(earned), bool(ended), bool(cut)

    def _told(self, call: Callable[[int], Any], number: int) -> Any:
        """Ask the game; whatever it raises, or gives that is no answer, is one line that names it."""
        try:
            return call(number)
        except (Exception, SystemExit) as error:  # a game may raise anything
            raise KtError(f"{self._facts.id}: the game fails: {line(error)}") from error

    def observation(self) -> NDArray[Any]:
        """The latest frames, [C, H, W], the newest last."""
        return np.concatenate(self._frames) if len(self._frames) > 1 else self.newest

    def _picture(self, raws: list[Any]) -> NDArray[Any]:
        frame = np.asarray(raws[-1])
        declared = self._env.observation_space
        if frame.shape != declared.shape:
            raise KtError(f"{self._facts.id}: an observation has shape {frame.shape}, not {short(declared)}")
        if self._atari:
            both = np.maximum(raws[-2], frame) if len(raws) > 1 else frame
            small = Image.fromarray(both).resize((ATARI_SIDE, ATARI_SIDE), Image.Resampling.BOX)
            return np.asarray(small)[None]
        if self._facts.scale == 255 and frame.dtype not in (np.bool_, np.uint8) and not _are_bytes(frame):
            raise KtError(f"{self._facts.id}: an observation has values that are no bytes, as {short(declared)} says")
        if frame.dtype == np.bool_:
            frame = frame * np.uint8(255)
        found = np.array(as_channels(frame), np.uint8 if self._facts.scale == 255 else np.float32, order="C")
        if not np.isfinite(found).all():
            raise KtError(f"{self._facts.id}: an observation has values that are not finite")
        return found


def _are_bytes(values: NDArray[Any]) -> bool:
    """Whether numbers of another kind are whole ones from 0 to 255."""
    with np.errstate(invalid="ignore"):
        return bool((values == values.astype(np.uint8)).all())
