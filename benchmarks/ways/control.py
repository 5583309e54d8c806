"""Variants of A2C that `benchmarks/control.py` times: a script of one file, and ours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Categorical

from kt.checkpoint import Checkpoint
from kt.control import a2c, policies
from kt.control.facts import facts
from kt.control.games import Games
from kt.control.spec import A2C, Game

ARCHS = {"kt/Catch-v0": "policy_tiny", "ALE/Pong-v5": "policy_a3c"}
Array = NDArray[Any]


class Atari(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Atari as scripts wrap it: four frames an action, the maximum of the last two, grey, 84 × 84, four of them."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self._frames: deque[Array] = deque(maxlen=4)

    def reset(self, **options: Any) -> tuple[Array, dict[str, Any]]:
        """Start an episode with up to 30 actions that do nothing."""
        raw, info = self.env.reset(**options)
        for _ in range(self.np_random.integers(31)):
            raw = self.env.step(0)[0]
        self._frames.extend([self._small(raw)] * 4)
        return np.stack(list(self._frames)), info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Repeat an action for four frames."""
        total, last = 0.0, deque[Array](maxlen=2)
        for _ in range(4):
            raw, reward, ended, cut, info = self.env.step(action)
            last.append(raw)
            total += float(reward)
            if ended or cut:
                break
        self._frames.append(self._small(np.max(last, axis=0)))
        return np.stack(list(self._frames)), total, ended, cut, info

    def _small(self, raw: Array) -> Array:
        return np.asarray(Image.fromarray(raw).resize((84, 84), Image.Resampling.BOX))


def gymnasiums(name: str, plan: A2C) -> Any:
    """The copies of a game as gymnasium steps them, one after another."""

    def one() -> gymnasium.Env[Any, Any]:
        if name.startswith("ALE/"):
            return Atari(gymnasium.make(name, obs_type="grayscale", frameskip=1))
        return gymnasium.make(name)

    return SyncVectorEnv([one] * plan.envs, autoreset_mode=AutoresetMode.SAME_STEP)


class Ours:
    """The copies of a game as this project steps them, with gymnasium's interface."""

    def __init__(self, name: str, plan: A2C) -> None:
        self._games = Games(Game(id=name), plan.envs, 0)

    def reset(self, seed: int) -> tuple[Array, dict[str, Any]]:
        """The observations at the start."""
        return self._games.observations, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One action in each copy."""
        step = self._games.step(actions)
        return self._games.observations, step.rewards, step.ended, step.cut, {}


def agent_of(name: str) -> nn.Module:
    """A policy with fresh weights."""
    torch.manual_seed(0)
    return policies.build(ARCHS[name], {}, facts(Game(id=name), name), name)


def plain(name: str, plan: A2C, copies: Callable[[str, A2C], Any]) -> float:
    """Train as a script of one file does; seconds of the CPU, without those in which the games are made.

    The same network, losses and optimiser, in the manner of CleanRL's scripts: storage for a rollout, a distribution
    object, episodes that are cut taken for ended ones.
    """
    envs, agent = copies(name, plan), agent_of(name)
    shape = facts(Game(id=name), name).shape
    optimiser = torch.optim.Adam(agent.parameters(), lr=plan.lr, eps=1e-5)
    obs = torch.zeros((plan.rollout, plan.envs, *shape))
    actions = torch.zeros((plan.rollout, plan.envs), dtype=torch.long)
    rewards = torch.zeros((plan.rollout, plan.envs))
    dones = torch.zeros((plan.rollout, plan.envs))
    next_obs = _scaled(envs.reset(seed=0)[0])
    began = time.process_time()
    for update in range(plan.updates):
        optimiser.param_groups[0]["lr"] = plan.lr * (1 - update / plan.updates)
        for t in range(plan.rollout):
            obs[t] = next_obs
            with torch.no_grad():
                actions[t] = Categorical(logits=agent(next_obs)[:, :-1]).sample()
            seen, reward, ended, cut, _ = envs.step(actions[t].numpy())
            next_obs = _scaled(seen)
            rewards[t] = torch.tensor(np.clip(reward, -1, 1))
            dones[t] = torch.tensor(np.logical_or(ended, cut), dtype=torch.float32)
        with torch.no_grad():
            following = agent(next_obs)[:, -1]
            returns = torch.zeros_like(rewards)
            for t in reversed(range(plan.rollout)):
                following = rewards[t] + plan.discount * following * (1 - dones[t])
                returns[t] = following
        outputs = agent(obs.reshape(-1, *shape))
        policy = Categorical(logits=outputs[:, :-1])
        advantages = returns.reshape(-1) - outputs[:, -1]
        loss = (
            -(policy.log_prob(actions.reshape(-1)) * advantages.detach()).mean()
            - plan.entropy * policy.entropy().mean()
            + 0.5 * plan.value * (advantages**2).mean()
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), plan.clip or float("inf"))
        optimiser.step()
    return time.process_time() - began


def ours(name: str, plan: A2C) -> float:
    """Train with this project's loop; seconds of the CPU, without those in which the games are made."""
    games, agent = Games(Game(id=name), plan.envs, 0), agent_of(name)
    with TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", "benchmark", 60)
        began = time.process_time()
        a2c.train(agent, lambda n, seed: games, plan, 0, checkpoint, lambda part: 0.0)
        return time.process_time() - began


def _scaled(seen: Array) -> Tensor:
    return torch.tensor(seen, dtype=torch.float32) / 255


WAYS: dict[str, Callable[[str, A2C], float]] = {
    "ours": ours,
    "plain": lambda name, plan: plain(name, plan, gymnasiums),
    "plain_same_games": lambda name, plan: plain(name, plan, Ours),
}
