"""Synchronous advantage actor-critic (A2C), and the play that measures a policy. Source: KF, for its losses.

n copies of a game take a few steps with the current policy, and one update follows: so a rerun gives the same bits, and
a training that is killed and goes on from its checkpoint, which holds the games too, does as well. Whatever is random
has a generator of its own that begins from the seed: the games, the actions, and each evaluation. The learner is in
eval mode throughout: it learns as it acts.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.control.spec import A2C
from kt.errors import Interrupted
from kt.transfer.engine import History, Progress, end_epoch, restore, state_of
from kt.zoo.inference import channels_last

if TYPE_CHECKING:
    from kt.control.games import Step

MOST = 100
"""Copies of a game that are played at once when a policy is measured."""

Purpose = Literal["games", "actions", "validation", "test", "untrained"]


class Copies(Protocol):
    """Copies of a game that are played at once, as ``kt.control.games.Games``."""

    actions: int
    observations: NDArray[Any]

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Take one action in each copy."""

    def state(self) -> dict[str, Any]:
        """Everything that decides how the games go on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""


Make = Callable[[int, int], Copies]
"""Makes copies of a game: how many, and the seed of all their episodes."""

Extra = Callable[[Tensor, Tensor, float], Tensor | float]
"""What is added to the loss of a rollout: from its observations [B, C, H, W], the learner's outputs for them
[B, A + 1], and the share of the updates that are done."""


class Rollout(NamedTuple):
    """A few steps of n copies, B = steps × n.

    Attributes:
        observations: float32 [B, C, H, W].
        actions: int64 [B].
        returns: R, float32 [B].
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor


def seed_for(purpose: Purpose, *numbers: int) -> int:
    """A seed of 32 bits, from what it is for and the numbers that distinguish it."""
    return int(np.random.SeedSequence([get_args(Purpose).index(purpose), *numbers]).generate_state(1)[0])


def ends(plan: A2C) -> list[int]:
    """Number of updates after each part of a training; the parts are as equal as can be."""
    return [part * plan.updates // plan.evaluations for part in range(1, plan.evaluations + 1)]


def curve(plan: A2C) -> list[int]:
    """Actions of all copies together after each part of a training."""
    return [plan.batch_size * end for end in ends(plan)]


def returns(
    rewards: NDArray[np.float64],
    over: NDArray[np.bool_],
    after: NDArray[np.float64],
    last: NDArray[np.float64],
    discount: float,
) -> NDArray[np.float64]:
    """R_t = r_t + γ · R_{t+1} of each step, [T, n]; where an episode is over, with the value after it for R_{t+1}.

    Args:
        rewards: r, [T, n].
        over: whether the episode is over after a step, [T, n].
        after: value of what would have come, where it is over: 0 if it ended, V of its last observation if it was cut.
        last: V of the observation after the last step, [n].
        discount: γ.
    """
    found, following = np.empty_like(rewards), last
    for t in reversed(range(len(rewards))):
        found[t] = following = rewards[t] + discount * np.where(over[t], after[t], following)
    return found


def losses(outputs: Tensor, actions: Tensor, returns: Tensor, entropy: float, value: float) -> Tensor:
    """−ln π(a|s) · (R − V) − β · H(π) + ½ · c · (R − V)² of each step, float32 [B]; the advantage gets no gradient.

    Args:
        outputs: logits and value, [B, A + 1].
        actions: a, int64 [B].
        returns: R, [B].
        entropy: β.
        value: c.
    """
    policy = outputs[:, :-1].log_softmax(1)
    errors = returns - outputs[:, -1]
    chosen = policy.gather(1, actions[:, None])[:, 0]
    uncertainty = -(policy.exp() * policy).sum(1)
    return -chosen * errors.detach() - entropy * uncertainty + 0.5 * value * errors**2


def train(
    learner: nn.Module,
    make: Make,
    plan: A2C,
    seed: int,
    checkpoint: Checkpoint,
    validate: Callable[[int], float],
    extra: Extra | None = None,
    after: Callable[[], None] | None = None,
    report: Callable[[int, int, float], None] | None = None,
) -> History:
    """Train ``learner`` in place; it ends with the weights of the last update.

    Args:
        learner: gives logits and value [B, A + 1] for observations [B, C, H, W]; on its device.
        make: makes the copies of the game.
        plan: steps, losses, optimiser.
        seed: of the games and actions.
        checkpoint: where progress is kept; its state, if any, is where training starts.
        validate: mean return after a part of the training, counted from 0; may not touch torch's random state.
        extra: what is added to the loss of a rollout.
        after: called after each update; what it changes lies in the learner's state.
        report: called after each part with its number, counted from 1, the actions so far, and the validation.

    Raises:
        Diverged: the loss of a part, or a weight after it, is not finite.
        Interrupted: the training was asked to stop; its state is saved.
        KtError: the game does what it must not.
    """
    device = next(learner.parameters()).device
    channels_last(learner).eval()
    torch.manual_seed(seed)
    games = make(plan.envs, seed_for("games", seed))
    acting = torch.Generator().manual_seed(seed_for("actions", seed))
    optimiser = optimiser_of(learner, plan)
    progress = Progress(torch.zeros((), device=device), 1)
    if state := checkpoint.load(device):
        restore(state, learner, optimiser, progress)
        games.restore(state["games"])
        acting.set_state(state["acting"].cpu())

    def save() -> None:
        more = {"games": games.state(), "acting": acting.get_state()}
        checkpoint.save(state_of(learner, optimiser, progress, device) | more)

    begin = 0
    for part, end in enumerate(ends(plan)):
        while progress.step < end:
            done = progress.step / plan.updates
            for group in optimiser.param_groups:
                group["lr"] = plan.lr * (1 - done if plan.schedule == "linear" else 1)
            progress.total += _update(
                learner, _roll(learner, games, plan, acting, device), optimiser, plan, extra, done
            )
            if after:
                after()
            progress.step += 1
            if checkpoint.due():
                save()
        if part == len(progress.validation):
            try:
                end_epoch(learner, progress, end - begin, lambda _: validate(len(progress.validation)), False)
            except Interrupted:
                save()
                raise
            if report:
                report(part + 1, plan.batch_size * end, progress.validation[-1])
        begin = end
    save()  # what follows is not begun with the training again
    return History(progress.loss, progress.validation, plan.updates, progress.best_epoch, progress.best)


def optimiser_of(learner: nn.Module, plan: A2C) -> torch.optim.Optimizer:
    """The optimiser of a plan."""
    if plan.optimiser == "rmsprop":
        return torch.optim.RMSprop(learner.parameters(), plan.lr, alpha=0.99, eps=1e-5)
    return torch.optim.Adam(learner.parameters(), plan.lr, eps=1e-5, fused=True)


def _roll(learner: nn.Module, games: Copies, plan: A2C, acting: torch.Generator, device: torch.device) -> Rollout:
    """Play a rollout with the learner's current policy."""
    seen: list[Tensor] = []
    actions: list[Tensor] = []
    steps: list[Step] = []
    n = plan.envs
    noise = torch.empty(plan.rollout, n, games.actions).exponential_(generator=acting).log_()
    with torch.inference_mode():
        for of_step in noise:
            seen.append(_observed(games, device))
            actions.append(_drawn(learner(seen[-1]), of_step))
            steps.append(games.step(actions[-1].numpy()))
        cut = np.stack([step.cut for step in steps])
        finals = [_tensor(step.final, device) for step in steps if len(step.final)]
        values = learner(torch.cat([_observed(games, device), *finals]))[:, -1].double().cpu().numpy()
    ended = np.stack([step.ended for step in steps])
    after = np.zeros(cut.shape)
    after[cut] = values[n:]
    after[ended] = 0
    rewards = np.stack([step.rewards for step in steps])
    if plan.clip_rewards:
        rewards = rewards.clip(-1, 1)
    found = returns(rewards, ended | cut, after, values[:n], plan.discount)
    return Rollout(
        torch.cat(seen), torch.cat(actions).to(device), torch.from_numpy(found).to(device, torch.float32).flatten()
    )


def _update(
    learner: nn.Module,
    rollout: Rollout,
    optimiser: torch.optim.Optimizer,
    plan: A2C,
    extra: Extra | None,
    done: float,
) -> Tensor:
    """Take one step of the optimiser; the loss of the rollout, []."""
    outputs = learner(rollout.observations)
    loss = losses(outputs, rollout.actions, rollout.returns, plan.entropy, plan.value).mean()
    if extra:
        loss = loss + extra(rollout.observations, outputs, done)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    if plan.clip:
        nn.utils.clip_grad_norm_(learner.parameters(), plan.clip)
    optimiser.step()
    return loss.detach()


def play(policy: nn.Module, make: Make, episodes: int, seed: int, stop: Event | None = None) -> NDArray[np.float64]:
    """Returns of so many episodes of a policy that draws its actions, unclipped, float64 [episodes].

    Copies of the game are played at once, and how many episodes of each count is fixed beforehand: the first to be over
    are the short ones.

    Args:
        policy: gives logits and value; on its device.
        make: makes the copies of the game.
        episodes: how many.
        seed: of games and actions.
        stop: set to give up.

    Raises:
        Interrupted: it was asked to stop.
        KtError: the game does what it must not.
    """
    device, n = next(policy.parameters()).device, min(episodes, MOST)
    channels_last(policy).eval()
    games, acting = make(n, seed), torch.Generator().manual_seed(seed_for("actions", seed))
    left = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    found: list[list[float]] = [[] for _ in range(n)]
    with torch.inference_mode():
        while left.any():
            if stop and stop.is_set():
                raise Interrupted("stopped by a signal while a policy was played; it is played again next time")
            noise = torch.empty(n, games.actions).exponential_(generator=acting).log_()
            step = games.step(_drawn(policy(_observed(games, device)), noise).numpy())
            for copy in np.flatnonzero((step.ended | step.cut) & (left > 0)):
                found[copy].append(float(step.returns[copy]))
                left[copy] -= 1
    return np.array([one for of_copy in found for one in of_copy])


def evaluation(
    policy: nn.Module, make: Make, plan: A2C, seed: int, stop: Event | None = None
) -> Callable[[int], float]:
    """The mean return of a policy on the validation episodes of each part of a training, counted from 0."""
    return lambda part: float(play(policy, make, plan.episodes, seed_for("validation", seed, part), stop).mean())


def _drawn(outputs: Tensor, noise: Tensor) -> Tensor:
    """Actions of the policy's distribution, int64 [n] on the CPU: the first of exponential clocks that rings.

    Args:
        outputs: logits and value, [n, A + 1].
        noise: logarithms of exponential draws, [n, A], on the CPU.
    """
    return (outputs[:, :-1].cpu() - noise).argmax(1)


def _observed(games: Copies, device: torch.device) -> Tensor:
    return _tensor(games.observations, device)


def _tensor(observations: NDArray[Any], device: torch.device) -> Tensor:
    """Observations as policies take them, float32 [n, C, H, W]: bytes are divided by 255."""
    x = torch.from_numpy(observations).to(device)
    scaled = x.to(torch.float32, memory_format=torch.channels_last)
    return scaled.div_(255) if x.dtype == torch.uint8 else scaled
