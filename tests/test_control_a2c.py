"""A2C: returns and losses by hand, a game of one step, and trainings that are torn and go on."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping import Saving, Torn
from torch import Tensor, nn
from toys import Facts, Toy, toy

from kt.checkpoint import Checkpoint
from kt.control import a2c, policies
from kt.control.games import Games, facts
from kt.control.spec import A2C, Game
from kt.errors import Interrupted, KtError
from kt.transfer.engine import Diverged, History

PLAN = A2C(steps=160, envs=4, rollout=3, evaluations=4, episodes=5, lr=1e-2)  # 13 updates: 3, 3, 3 and 4


def policy(seed: int = 0, arch: str = "policy_tiny", **args: Any) -> nn.Module:
    torch.manual_seed(seed)
    return policies.build(arch, {"width": 16, **args}, Facts(), "zoo.models.a")  # type: ignore[arg-type]


def trained(checkpoint: Checkpoint, plan: A2C = PLAN, seed: int = 1, **options: Any) -> tuple[nn.Module, History]:
    learner, make = policy(seed), toy(length=2, cuts=True)
    validate = a2c.evaluation(learner, make, plan, seed)
    return learner, a2c.train(learner, make, plan, seed, checkpoint, validate, **options)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_returns_by_hand_with_an_end_and_a_cut_inside() -> None:
    """Three steps of three copies: the first goes on, the second ends after its second step, the third is cut there."""
    rewards = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    over = np.array([[False] * 3, [False, True, True], [False] * 3])
    after = np.array([[9.0, 9.0, 9.0], [9.0, 0.0, 10.0], [9.0, 9.0, 9.0]])  # 9: of no use
    found = a2c.returns(rewards, over, after, np.array([8.0, 8.0, 8.0]), 0.5)
    assert found.tolist() == [[1 + (0 + 8 / 2) / 2, 1 + 2 / 2, 1 + (2 + 10 / 2) / 2], [4, 2, 7], [8, 8, 8]]


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_returns_agree_with_a_plain_sum(steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rewards, after, last = random.normal(size=steps), random.normal(size=steps), random.normal()
    over = random.random(steps) < 0.4
    found = a2c.returns(rewards[:, None], over[:, None], after[:, None], np.array([last]), 0.9)[:, 0]
    for t in range(steps):
        total, factor = 0.0, 1.0
        for k in range(t, steps):
            total, factor = total + factor * rewards[k], factor * 0.9
            if over[k]:
                total += factor * after[k]
                break
        else:
            total += factor * last
        assert found[t] == pytest.approx(total)


def test_loss_by_hand() -> None:
    """π = (¾, ¼), V = 2: R = 3 for the first action, R = 1 for the second."""
    outputs = torch.tensor([[math.log(3), 0.0, 2.0]] * 2, requires_grad=True)
    found = a2c.losses(outputs, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]), 0.1, 0.5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.tolist() == pytest.approx(
        [-math.log(0.75) - 0.1 * entropy + 0.25, math.log(0.25) - 0.1 * entropy + 0.25]
    )
    plain = a2c.losses(outputs, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]), 0.0, 0.5)
    (gradient,) = torch.autograd.grad(plain.sum(), outputs)
    assert gradient.flatten().tolist() == pytest.approx(  # (π − 1{a}) · A of the logits, c · (V − R) of the value
        [-0.25, 0.25, -0.5, -0.75, 0.75, 0.5]
    )


class Told(nn.Module):
    """V is the time that the toy shows; both actions are equally likely."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        value = 255 * x[:, 0, 1, 1] + self.weight
        return torch.stack([0 * value, 0 * value, 0 * value, value], 1)


@pytest.mark.parametrize("cuts", [False, True])
def test_a_rollout_ends_where_episodes_do(cuts: bool) -> None:
    """Rewards are cut to −0.5 or 1; after the second step there comes nothing, or 2 where the episode was cut."""
    plan = A2C(steps=12, envs=2, rollout=3, evaluations=1, discount=0.5)
    games = Toy(2, 0, length=2, cuts=cuts)
    rollout = a2c._roll(Told(), games, plan, torch.Generator().manual_seed(0), torch.device("cpu"))
    hints = Toy(2, 0, length=2)
    rewards = []
    for actions in rollout.actions.reshape(3, 2).numpy():
        rewards.append(np.where(actions == hints.hints, 1.0, -0.5))
        hints.step(actions)
    end = 2.0 if cuts else 0.0
    second = rewards[1] + end / 2
    expected = np.stack([rewards[0] + second / 2, second, rewards[2] + 1 / 2])  # the third: V = 1 of what follows
    assert rollout.returns.reshape(3, 2).tolist() == pytest.approx(expected)
    assert rollout.observations[:, 0, 1, 1].mul(255).tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_a_game_of_one_step_is_solved(tmp_path: Path, optimiser: str) -> None:
    plan = A2C(steps=6000, envs=8, rollout=5, evaluations=3, episodes=20, lr=5e-3, optimiser=optimiser)  # type: ignore[arg-type]
    learner = policy()
    validate = a2c.evaluation(learner, toy(), plan, 0)
    told: list[tuple[int, int, float]] = []
    history = a2c.train(
        learner, toy(), plan, 0, Checkpoint(tmp_path / "a.pt", "a", 60), validate, report=lambda *of: told.append(of)
    )
    assert history.validation[-1] > 1.8  # of 2
    assert a2c.play(learner, toy(), 100, 5).mean() > 1.8
    assert told == list(zip((1, 2, 3), a2c.curve(plan), history.validation, strict=True))
    assert a2c.curve(plan) == [2000, 4000, 6000]


def test_parts_cover_all_updates() -> None:
    assert a2c.ends(PLAN) == [3, 6, 9, 13]
    assert a2c.curve(PLAN) == [36, 72, 108, 156]


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, History]:
    with tempfile.TemporaryDirectory() as folder:
        return trained(Saving(Path(folder) / "none.pt"))


@settings(max_examples=10)
@given(saved=st.sets(st.integers(1, 13), max_size=4), torn=st.integers(1, 13))
def test_torn_at_any_update_and_resumed_it_ends_bit_identical(
    whole: tuple[nn.Module, History], saved: set[int], torn: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unit.pt"
        with pytest.raises(Torn):
            trained(Saving(path, lambda step: step in saved, torn))
        torch.manual_seed(99)
        learner, history = trained(Saving(path))
    assert same(learner.state_dict(), whole[0].state_dict())
    assert same(history.best, whole[1].best)
    assert (history.loss, history.validation) == (whole[1].loss, whole[1].validation)
    assert (history.best_epoch, history.steps) == (whole[1].best_epoch, 13)


@pytest.mark.parametrize(("game", "arch"), [("kt/Catch-v0", "policy_tiny"), ("CartPole-v1", "policy_mlp")])
def test_torn_and_resumed_in_real_games_it_ends_bit_identical(tmp_path: Path, game: str, arch: str) -> None:
    """Boards are kept in the checkpoint; other games play the actions of their episodes again."""
    plan = A2C(steps=240, envs=4, rollout=5, evaluations=2, episodes=2, lr=1e-2)  # 12 updates
    own = Game(id=game)

    def run(checkpoint: Checkpoint) -> tuple[nn.Module, History]:
        torch.manual_seed(0)
        learner = policies.build(arch, {"width": 16}, facts(own, "here"), "here")
        validate = a2c.evaluation(learner, partial(Games, own), plan, 0)
        return learner, a2c.train(learner, partial(Games, own), plan, 0, checkpoint, validate)

    learner, history = run(Saving(tmp_path / "none.pt"))
    for torn in (5, 6, 4):  # steps of each life
        with pytest.raises(Torn):
            run(Saving(tmp_path / "a.pt", lambda step: step == 3, torn))
    resumed, again = run(Saving(tmp_path / "a.pt"))
    assert same(resumed.state_dict(), learner.state_dict())
    assert (again.loss, again.validation) == (history.loss, history.validation)


def test_stopped_in_an_evaluation_it_goes_on_there(tmp_path: Path, whole: tuple[nn.Module, History]) -> None:
    stop, make = Event(), toy(length=2, cuts=True)
    learner = policy(1)
    evaluate = a2c.evaluation(learner, make, PLAN, 1, stop)

    def validate(part: int) -> float:
        if part == 2:
            stop.set()
        return evaluate(part)

    with pytest.raises(Interrupted):
        a2c.train(learner, make, PLAN, 1, Checkpoint(tmp_path / "a.pt", "key", 1e9, stop), validate)
    done = list[int]()
    counting = Saving(tmp_path / "a.pt", lambda step: bool(done.append(step)))
    learner, history = trained(counting)
    assert len(done) == 4  # the last part alone
    assert same(learner.state_dict(), whole[0].state_dict())
    assert history.validation == whole[1].validation


def test_a_finished_training_is_not_repeated(tmp_path: Path, whole: tuple[nn.Module, History]) -> None:
    trained(Saving(tmp_path / "a.pt"))
    learner, history = trained(Saving(tmp_path / "a.pt", torn=1))
    assert same(learner.state_dict(), whole[0].state_dict())
    assert history.validation == whole[1].validation


def test_another_seed_is_another_training(tmp_path: Path, whole: tuple[nn.Module, History]) -> None:
    learner, _ = trained(Saving(tmp_path / "a.pt"), seed=2)
    assert not same(learner.state_dict(), whole[0].state_dict())


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="the loss is not finite in epoch 1"):
        trained(Saving(tmp_path / "a.pt"), extra=lambda observations, outputs, done: torch.tensor(math.nan))


def test_every_copy_counts_with_as_many_episodes() -> None:
    """Copy c's episodes have c + 1 steps; were the first ones to end taken, the long ones would be missed."""

    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # an action that no hint names, as they are drawn from two
            return torch.tensor([[-1e9, -1e9, 1e9, 0.0]]).repeat(len(x), 1) + 0 * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    class Two(Toy):
        @property
        def hints(self) -> np.ndarray:
            return super().hints % 2

    found = a2c.play(Never(), lambda n, seed: Two(n, seed, uneven=True), 5, 0)
    assert found.tolist() == [-0.5, -1.0, -1.5, -2.0, -2.5]
    many = a2c.play(Never(), lambda n, seed: Two(n, seed, uneven=True), 150, 0)
    assert sorted(many.tolist()) == sorted(-0.5 * length for length in [*range(1, 101), *range(1, 51)])


def test_play_is_a_matter_of_its_seed_alone() -> None:
    first = a2c.play(policy(), toy(length=3), 7, 4)
    torch.manual_seed(123)
    assert first.tolist() == a2c.play(policy(), toy(length=3), 7, 4).tolist()
    assert first.tolist() != a2c.play(policy(), toy(length=3), 7, 5).tolist()


def test_actions_are_drawn_from_the_policy() -> None:
    outputs = torch.log(torch.tensor([[0.5, 0.3, 0.2, 1.0]])).repeat(20_000, 1)
    noise = torch.empty(20_000, 3).exponential_(generator=torch.Generator().manual_seed(0)).log_()
    shares = torch.bincount(a2c._drawn(outputs, noise)) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_seeds_of_purposes_do_not_coincide() -> None:
    found = {a2c.seed_for(purpose, seed) for purpose in ("games", "actions", "test") for seed in range(50)}
    found |= {a2c.seed_for("validation", seed, part) for seed in range(50) for part in range(20)}
    assert len(found) == 3 * 50 + 50 * 20


@pytest.mark.parametrize(
    ("arch", "shape", "stages"),
    [
        ("policy_tiny", (3, 5, 4), ["hidden.conv1", "hidden.conv2", "hidden.linear"]),
        ("policy_a3c", (4, 84, 84), ["hidden.conv1", "hidden.conv2", "hidden.linear"]),
        ("policy_mlp", (6, 1, 1), ["hidden.linear1", "hidden.linear2"]),
    ],
)
def test_policies_fit_their_games(arch: str, shape: tuple[int, int, int], stages: list[str]) -> None:
    net = policies.build(arch, {}, Facts(shape, 4), "zoo.models.a")  # type: ignore[arg-type]
    outputs = net(torch.rand(2, *shape))
    assert outputs.shape == (2, 5)
    assert outputs[:, :-1].softmax(1).max() < 0.3  # about equally likely at first
    assert [entry["module"] for entry in net.feature_info] == stages  # type: ignore[union-attr, index]
    assert list(net.state_dict())[-2:] == ["head.weight", "head.bias"]
    net.reset_classifier(3)  # type: ignore[operator]
    assert net(torch.rand(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arch", "args", "said"),
    [
        ("policy_a3c", {}, "observations of 2 x 2 are too small for its convolutions"),
        ("policy_tiny", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("policy_tiny", {"img_size": 8}, "does not take an image of [3, 2, 2]"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_clear_line(arch: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(KtError) as caught:
        policies.build(arch, args, Facts(), "zoo.models.a")  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert str(caught.value).startswith("zoo.models.a: toy (3 actions): ")
    assert "\n" not in str(caught.value)
