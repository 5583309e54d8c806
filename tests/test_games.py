"""Games: our own and gymnasium's, the facts that determine them, and refusals."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from kt.control import games as games_module
from kt.control import said
from kt.control.arcade import GAMES, Boards
from kt.control.environments import Environment
from kt.control.facts import facts, found
from kt.control.games import Games, Step, check_repeats
from kt.control.spec import Game
from kt.errors import KtError

OWN = sorted(GAMES)


class Odd(gymnasium.Env[Any, Any]):
    """An environment that has what it is told to have: ``observe`` of the step since the reset."""

    def __init__(self, space: Any, actions: Any, observe: Any, reward: float = 1.0, length: int = 10**9) -> None:
        self.observation_space, self.action_space = space, actions
        self.observe, self.reward, self.length, self.time, self.taken = observe, reward, length, 0, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.taken = 0, []
        return self.observe(self.time), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.taken.append(action)
        return self.observe(self.time), self.reward, self.time >= self.length, False, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
CHOICE = spaces.Discrete(2)


@pytest.fixture
def odd() -> Iterator[Any]:
    """Register environments by what they have, and forget them after the test."""
    made: list[str] = []
    found.cache_clear()

    def register(space: Any = VECTOR, actions: Any = CHOICE, observe: Any = None, **more: Any) -> Game:
        name = f"test/Odd{len(made)}-v0"
        kept = {key: more.pop(key) for key in ("reward", "length") if key in more}
        observe = observe or (lambda time: np.zeros(space.shape, space.dtype))
        gymnasium.register(name, lambda: Odd(space, actions, observe, **kept), **more)
        made.append(name)
        return Game(id=name)

    yield register
    for name in made:
        del gymnasium.registry[name]


def played(games: Games, steps: int, seed: int = 0) -> list[Step]:
    rng = np.random.default_rng(seed)
    return [games.step(rng.integers(0, games.actions, games.n)) for _ in range(steps)]


def same(one: list[Step], other: list[Step]) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", OWN)
def test_all_copies_in_one_array_are_bit_by_bit_single_environments(name: str, monkeypatch: Any) -> None:
    game = Game(id=name)
    fast = Games(game, 5, 3)
    monkeypatch.setattr(games_module, "_is_own", lambda facts: False)
    slow = Games(game, 5, 3)
    assert type(fast._players) is not type(slow._players)
    rng = np.random.default_rng(0)
    over = 0
    for _ in range(220):
        actions = rng.integers(0, 3, 5)
        a, b = fast.step(actions), slow.step(actions)
        same([a], [b])
        np.testing.assert_array_equal(fast.observations, slow.observations)
        over += int((a.ended | a.cut).sum())
    assert over > 3


def test_things_fall_and_are_caught_dodged_or_hit() -> None:
    fruit, stones = Boards(GAMES["kt/Catch-v0"], 1), Boards(GAMES["kt/Avoid-v0"], 1)
    for boards, channel in ((fruit, 1), (stones, 2)):
        boards.begin(0, 0)
        first = boards.draw()[0]
        assert (first[0] > 0).nonzero()[0].tolist() == [9]  # the player's row
        assert [(each > 0).sum() for each in first[1:]] == [channel == 1, channel == 2]
        column = int(first[channel, 0].argmax())
        for _ in range(9):
            (reward,), (ended,), (cut,) = boards.step(np.array([1 if boards.player[0] > column else 2]))
        assert boards.draw()[0, channel, 9, column] == 255
        met = boards.player[0] == column
        assert (reward, ended, cut) == ((met, False, False) if channel == 1 else (-1 if met else 1, met, False))


def towards_fruit(boards: Any) -> Any:
    """Actions of a player who goes where the lowest fruit will land."""
    rows = boards[:, 1].any(2)
    lowest = 9 - rows[:, ::-1].argmax(1)
    columns = boards[np.arange(len(boards)), 1, lowest].argmax(1)
    way = np.sign(columns - boards[:, 0, 9].argmax(1))
    return np.where(way < 0, 1, np.where(way > 0, 2, 0))


@pytest.mark.parametrize(
    ("name", "idle", "best"), [("kt/Catch-v0", (2, 8), (10, 46)), ("kt/Gather-v0", (-1, 2), (0, 23))]
)
def test_who_goes_where_fruit_lands_catches_it(name: str, idle: tuple[int, int], best: tuple[int, int]) -> None:
    for act, (least, most) in ((lambda seen: np.zeros(len(seen), int), idle), (towards_fruit, best)):
        games = Games(Game(id=name), 32, 0)
        found = np.concatenate([games.step(act(games.observations)).returns for _ in range(100)])
        assert least < np.nanmean(found) < most


@pytest.mark.parametrize("name", [*OWN, "CartPole-v1"])
def test_a_restored_game_goes_on_bit_by_bit(name: str) -> None:
    game = Game(id=name)
    straight, killed = Games(game, 3, 7), Games(game, 3, 7)
    same(played(straight, 70), played(killed, 70))
    state = killed.state()
    assert all(isinstance(each, int | list | torch.Tensor) for each in state.values())
    fresh = Games(game, 3, 0)
    fresh.restore(state)
    np.testing.assert_array_equal(fresh.observations, straight.observations)
    same(played(straight, 250, 1), played(fresh, 250, 1))


def test_an_episode_depends_on_nothing_before_it() -> None:
    """The second episode is the same, however the first was played."""
    starts = []
    for action in (0, 1):
        games = Games(Game(id="CartPole-v1"), 1, 5)
        while not games.step(np.array([action])).ended[0]:
            pass
        starts.append(games.observations)
    np.testing.assert_array_equal(*starts)


def test_copies_and_seeds_have_episodes_of_their_own() -> None:
    seen = [Games(Game(id="CartPole-v1"), 2, seed).observations for seed in (0, 1)]
    assert len({row.tobytes() for each in seen for row in each}) == 4


def test_a_cut_episode_tells_its_last_observation(odd: Any) -> None:
    game = odd(observe=lambda time: np.full(3, time / 100, np.float32), max_episode_steps=4)
    games = Games(game, 2, 0)
    steps = played(games, 4)
    assert [bool(each.cut.any()) for each in steps] == [False, False, False, True]
    assert not steps[-1].ended.any()
    np.testing.assert_array_equal(steps[-1].final, np.full((2, 3, 1, 1), 0.04, np.float32))
    np.testing.assert_array_equal(steps[-1].returns, [4, 4])
    np.testing.assert_array_equal(games.observations, np.zeros((2, 3, 1, 1), np.float32))


def test_an_episode_that_ends_at_its_limit_was_not_cut(odd: Any) -> None:
    steps = played(Games(odd(max_episode_steps=4, length=4), 1, 0), 4)
    assert (steps[-1].ended[0], steps[-1].cut[0], len(steps[-1].final)) == (True, False, 0)


def test_frames_are_stacked_and_actions_repeated(odd: Any) -> None:
    game = odd(observe=lambda time: np.full(3, time / 100, np.float32), length=5)
    games = Games(game.model_copy(update={"frame_stack": 2, "frame_skip": 2}), 1, 0)
    assert games.shape == (6, 1, 1)
    first, second, third = played(games, 3)
    assert [each.rewards[0] for each in (first, second, third)] == [2, 2, 1]  # the game ends within the third
    assert third.ended[0]
    games = Games(game.model_copy(update={"frame_stack": 2, "frame_skip": 2}), 1, 0)
    assert games.observations.ravel().tolist() == [0] * 6
    played(games, 2)
    np.testing.assert_allclose(games.observations.ravel(), [0.02] * 3 + [0.04] * 3)


@pytest.mark.parametrize(
    ("space", "shape", "scale"),
    [
        (spaces.Box(0, 255, (7, 5, 3), np.uint8), (3, 7, 5), 255),
        (spaces.Box(0, 255, (3, 7, 5), np.uint8), (3, 7, 5), 255),
        (spaces.Box(0, 255, (10, 10, 10), np.uint8), (10, 10, 10), 255),
        (spaces.Box(0, 1, (7, 5), np.float64), (1, 7, 5), 1),
        (spaces.Box(0, 1, (7, 5, 2), np.bool_), (2, 7, 5), 255),
        (spaces.Box(0, 255, (6,), np.uint8), (6, 1, 1), 255),
    ],
)
def test_observations_are_channels_of_bytes_or_floats(odd: Any, space: Any, shape: Any, scale: float) -> None:
    value = space.sample()
    games = Games(odd(space, observe=lambda time: value), 2, 0)
    assert (games.shape, games.facts.scale) == (shape, scale)
    assert games.observations.dtype == (np.uint8 if scale == 255 else np.float32)
    expected = value * np.uint8(255) if value.dtype == np.bool_ else value
    if (value.ndim == 3 and value.shape != shape) or shape == (10, 10, 10):
        expected = expected.transpose(2, 0, 1)
    np.testing.assert_allclose(games.observations[1], expected.reshape(shape), rtol=1e-6)


def test_actions_that_begin_at_another_number_are_counted_from_it(odd: Any) -> None:
    game = odd(actions=spaces.Discrete(3, start=-1))
    one = Environment(facts(game, "env"))
    one.begin(0, 0)
    for action in range(3):
        one.step(action)
    assert one._env.unwrapped.taken == [-1, 0, 1]  # type: ignore[attr-defined]


# Atari


def test_atari_is_seen_grey_in_four_frames_and_skips_four() -> None:
    found = facts(Game(id="ALE/Pong-v5"), "env")
    assert (found.shape, found.actions, found.frame_skip, found.noops) == ((4, 84, 84), 6, 4, 30)
    assert found.args["repeat_action_probability"] == 0.25
    assert found.plain()["meanings"][:2] == ["NOOP", "FIRE"]
    assert facts(Game(id="ALE/Pong-v5", args={"full_action_space": True}), "env").actions == 18
    assert facts(Game(id="PongNoFrameskip-v4"), "env").args["repeat_action_probability"] == 0
    games = Games(Game(id="ALE/Pong-v5"), 2, 0)
    assert games.observations.dtype == np.uint8
    ale = games._players._copies[0]._env.unwrapped.ale  # type: ignore[attr-defined]
    before = ale.getEpisodeFrameNumber()
    assert 0 <= before <= 30
    played(games, 3)
    assert ale.getEpisodeFrameNumber() == before + 12
    fresh = Games(Game(id="ALE/Pong-v5"), 2, 1)
    fresh.restore(games.state())
    same(played(games, 5, 2), played(fresh, 5, 2))


# refusals


def refusal(game: Game) -> str:
    with pytest.raises(KtError) as caught:
        facts(game, "zoo.models.a.env")
    text = str(caught.value)
    assert text.startswith("zoo.models.a.env")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kt/Catsh-v0", ("unknown environment 'kt/Catsh-v0'", "did you mean 'kt/Catch-v0'")),
        ("kt/Catch", ("'kt/Catch-v0'",)),
        ("Cartpole", ("'CartPole-v0' or 'CartPole-v1'",)),
        ("CartPole-v9", ("'CartPole-v0' or 'CartPole-v1'",)),
        ("Pong-v5", ("did you mean 'ALE/Pong-v5'",)),
        ("Pong-v4", ("skips frames at random", "'ALE/Pong-v5'")),
        ("no_such_module:Game-v0", ("module 'no_such_module'", "cannot be imported")),
        ("Pendulum-v1", ("actions are Box(-2.0, 2.0, (1,), float32)", "allowed: Discrete")),
        ("FrozenLake-v1", ("observations are Discrete(16)", "allowed: Box")),
        ("LunarLander-v3", ("needs a package that is not installed", "box2d")),
        ("HalfCheetah-v5", ("needs a package that is not installed", "mujoco")),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(name: str, words: tuple[str, ...]) -> None:
    text = refusal(Game(id=name))
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("CartPole-v1", {"sutton_barto": True}, "did you mean 'sutton_barto_reward'"),
        ("CartPole-v1", {"render_mode": "human"}, ".args.render_mode: cannot be set"),
        ("CartPole-v1", {"max_episode_steps": -1}, ".args.max_episode_steps: must be a whole number above 0, not -1"),
        ("kt/Catch-v0", {"game": "kt/Avoid-v0"}, ".args.game: cannot be set: the id names the game"),
        ("ALE/Pong-v5", {"game": "breakout"}, ".args.game: cannot be set"),
        ("ALE/Pong-v5", {"frameskip": 2}, ".args.frameskip: cannot be set: use the key frame_skip"),
        ("ALE/Pong-v5", {"continuous": True}, "actions are Box"),
        ("ALE/Pong-v5", {"sound_obs": True}, "observations are Dict"),
        ("CartPole-v1", {"sutton_barto_reward": "no"}, ".args.sutton_barto_reward: must be true or false, not 'no'"),
        ("MountainCar-v0", {"goal_velocity": "fast"}, ".args.goal_velocity: must be a number, not 'fast'"),
        ("CartPole-v1", {"max_episode_steps": 10**30}, ".args.max_episode_steps: must be at most 1000000000"),
        ("ALE/Pong-v5", {"mode": 99}, ".args.mode: 99: ALE/Pong-v5 cannot be made: RuntimeError: Invalid game mode"),
        ("ALE/Pong-v5", {"repeat_action_probability": 2}, "must be a number from 0 to 1, not 2"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(name: str, args: dict[str, Any], words: str) -> None:
    assert words in refusal(Game(id=name, args=args))


def test_the_output_of_a_game_is_limited_and_the_rest_counted(odd: Any, caplog: Any, capfd: Any) -> None:
    def observe(time: int) -> Any:
        print("\x1b[33mWARN: step\x1b[0m", time)
        warnings.warn("careful", stacklevel=1)
        logging.getLogger("game").warning("logged")
        return np.zeros(3, np.float32)

    game = odd(observe=observe)
    with caplog.at_level("INFO"):
        played(Games(game, 2, 0), 10)
        said.tell()
        said.tell()
    lines = [record.message for record in caplog.records]
    assert lines[0] == f"{game.id} says: step 0"
    assert len(lines) == said.FEW + 1
    # made once for its facts, then two copies: begun, and ten steps; a warning counts once for both of them
    assert lines[-1] == f"{game.id}: {(1 + 2) * 3 + 10 * (2 * 2 + 1) - said.FEW} lines more of its output left out"
    assert "step" not in capfd.readouterr().out


def test_an_old_version_of_a_game_is_told_in_one_plain_line(caplog: Any) -> None:
    found.cache_clear()
    facts(Game(id="CartPole-v0"), "env")
    (line,) = (record.message for record in caplog.records)
    assert line.startswith("CartPole-v0 says: The environment CartPole-v0 is out of date")


def test_odd_spaces_are_refused(odd: Any) -> None:
    assert "actions are MultiDiscrete" in refusal(odd(actions=spaces.MultiDiscrete([2, 2])))
    assert "there are 100000 actions; allowed: at most 10000" in refusal(odd(actions=spaces.Discrete(100_000)))
    assert "there is one action" in refusal(odd(actions=spaces.Discrete(1)))
    assert "observations are int64 numbers" in refusal(odd(spaces.Box(0, 9, (3,), np.int64)))
    assert "allowed: Box" in refusal(odd(spaces.Box(0, 1, (2, 2, 2, 2))))
    assert "is registered as nondeterministic" in refusal(odd(nondeterministic=True))
    game = odd().model_copy(update={"noops": 3})
    assert ".noops: " in refusal(game)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "needs the package ale-py, which is not installed; run: pip install 'kt[control]'" in refusal(
        Game(id="ALE/Pong-v5")
    )
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert "the package gymnasium, which is not installed; run: pip install" in refusal(Game(id="kt/Catch-v0"))


def test_wrong_observations_and_rewards_stop_the_game(odd: Any) -> None:
    broken = np.array([0, np.nan, 0], np.float32)
    with pytest.raises(KtError, match=r"^test/Odd0-v0: an observation has values that are not finite"):
        played(Games(odd(observe=lambda time: broken if time == 2 else np.zeros(3, np.float32)), 1, 0), 2)
    with pytest.raises(KtError, match=r"^test/Odd1-v0: an observation has shape \(4,\), not Box"):
        played(Games(odd(observe=lambda time: np.zeros(3 + (time == 2), np.float32)), 1, 0), 2)
    with pytest.raises(KtError, match=r"^test/Odd2-v0: a reward is nan"):
        played(Games(odd(reward=float("nan")), 1, 0), 1)
    with pytest.raises(KtError, match=r"^test/Odd3-v0: the game fails: TypeError: float"):
        played(Games(odd(reward=None), 1, 0), 1)
    octets = spaces.Box(0, 255, (3,), np.uint8)
    with pytest.raises(KtError, match=r"^test/Odd4-v0: an observation has values that are no bytes, as Box"):
        played(Games(odd(octets, observe=lambda time: np.array([0, 300 * (time == 2), 0])), 1, 0), 2)
    for value in (0.5, np.nan):  # a cast would make both a byte
        with pytest.raises(KtError, match="values that are no bytes"):
            played(Games(odd(octets, observe=lambda time, value=value: np.full(3, value * (time == 2))), 1, 0), 2)


def test_a_game_that_ends_the_process_is_told(odd: Any) -> None:
    def ends(time: int) -> Any:
        if time == 2:
            raise SystemExit(3)
        return np.zeros(3, np.float32)

    with pytest.raises(KtError, match=r"^test/Odd0-v0: the game fails: SystemExit: 3"):
        played(Games(odd(observe=ends), 1, 0), 2)


def test_a_game_that_does_not_repeat_itself_is_refused(odd: Any) -> None:
    noise = np.random.default_rng()
    with pytest.raises(KtError, match=r"^here: test/Odd0-v0: the same seed and actions lead to different episodes"):
        check_repeats(odd(observe=lambda time: noise.random(3, np.float32)), "here")
    check_repeats(odd(), "here")
    check_repeats(Game(id="kt/Gather-v0"), "here")
    check_repeats(Game(id="CartPole-v1"), "here")


def test_an_episode_without_end_is_told(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(games_module, "LONGEST", 5)
    with pytest.raises(KtError, match=r"no end after 5 actions, and the game no limit; set args.max_episode_steps"):
        played(Games(odd(), 1, 0), 5)
    played(Games(odd(max_episode_steps=7), 1, 0), 6)


def test_a_game_of_chance_cannot_be_restored(odd: Any) -> None:
    rng = np.random.default_rng()
    games = Games(odd(observe=lambda time: rng.random(3, np.float32)), 1, 0)
    played(games, 3)
    with pytest.raises(KtError, match="the same seed and actions lead to another state than before"):
        games.restore(games.state())


def test_facts_are_plain_values() -> None:
    import json

    for name in ("kt/Gather-v0", "ALE/Pong-v5"):
        found = facts(Game(id=name), "env").plain()
        assert json.loads(json.dumps(found)) == found
        assert "gymnasium" in found["versions"]
