"""Facts of a game, found by making its environment once, and refusals in one line of what no policy here can play."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import packages_distributions, version
from typing import TYPE_CHECKING, Any

import numpy as np

from kt.control.registry import ATARI, line, registered
from kt.control.said import collected
from kt.control.spec import Game
from kt.errors import KtError, quoted, short, unknown

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

ATARI_SIDE = 84
MOST_ACTIONS = 10_000
_OWN = "kt.control.arcade:Arcade"
_DEFAULTS = {"frame_stack": 1, "frame_skip": 1, "noops": 0}
_ATARI_DEFAULTS = {"frame_stack": 4, "frame_skip": 4, "noops": 30}
_FIXED = {"render_mode": "nothing is shown", "disable_env_checker": "kt checks environments itself"}
_NAMED = {"game": "the id names the game"}
_FIXED_OF = {
    _OWN: _NAMED,
    ATARI: {**_NAMED, "obs_type": "policies see grey pictures", "frameskip": "use the key frame_skip, beside args"},
}
"""Arguments that cannot be set, and why."""

_LIMITS = ("max_episode_steps", "max_num_frames_per_episode")
_MOST_STEPS = 10**9


@dataclass(frozen=True)
class GameFacts:
    """All that determines a game and how a policy sees it.

    Attributes:
        id: of gymnasium.
        args: keyword arguments of the environment: those of the id, with those of the configuration in their place.
        shape: of an observation as a policy sees it, (C, H, W); a vector is (d, 1, 1).
        scale: 255 where observations are bytes, else 1; a policy gets them divided by it.
        actions: number of actions.
        meanings: names of the actions, where the game tells them.
        limit: steps of the environment (frames, of Atari) after which an episode is cut; None where there is no such.
        frame_stack, frame_skip, noops: as in ``Game``.
        versions: of the packages that the game comes from.
    """

    id: str
    args: dict[str, Any]
    shape: tuple[int, int, int]
    scale: float
    actions: int
    meanings: tuple[str, ...] | None
    limit: int | None
    frame_stack: int
    frame_skip: int
    noops: int
    versions: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        return dataclasses.asdict(self) | {
            "args": {name: value if _is_plain(value) else repr(value) for name, value in self.args.items()},
            "shape": list(self.shape),
            "meanings": None if self.meanings is None else list(self.meanings),
        }


def facts(game: Game, at: str) -> GameFacts:
    """Find the facts of a game.

    Args:
        game: from the configuration.
        at: its key there, for errors.

    Raises:
        KtError: there is no such game, it cannot be made with these arguments, or no policy here can play it.
    """
    return found(game.model_dump_json(), at)


@lru_cache
def found(text: str, at: str) -> GameFacts:
    """The same of a game as JSON; made once a process, since it takes Atari 0.2 seconds."""
    game = Game.model_validate_json(text)
    spec = registered(game.id, at)
    _parameters(spec, at)  # imports its module
    with collected(game.id, failing=False):
        return _found(game, spec, at)


def _found(game: Game, spec: EnvSpec, at: str) -> GameFacts:
    atari = spec.entry_point == ATARI
    _check_args(spec, game.args, at)
    args = {**spec.kwargs, **game.args} | ({"obs_type": "grayscale", "frameskip": 1} if atari else {})
    env = _made(game, args, at)
    limit: int | None = args.get("max_episode_steps", spec.max_episode_steps)
    if atari and limit is None:
        limit = args.get("max_num_frames_per_episode")
    settings = {
        name: default if (given := getattr(game, name)) is None else given
        for name, default in (_ATARI_DEFAULTS if atari else _DEFAULTS).items()
    }
    shape, scale = _seen(env, atari, at)
    actions = _actions(env, at)
    meanings = _meanings(env, actions)
    if settings["noops"] and "NOOP" not in (meanings or ()):
        raise KtError(f"{at}.noops: {game.id} names no action that does nothing (NOOP); allowed: 0")
    return GameFacts(
        id=game.id,
        args=args,
        shape=(shape[0] * settings["frame_stack"], *shape[1:]),
        scale=scale,
        actions=actions,
        meanings=meanings,
        limit=limit,
        versions=_versions(spec),
        **settings,
    )


def make(name: str, args: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make an environment with all its arguments."""
    import gymnasium

    return gymnasium.make(name, disable_env_checker=True, **args)


def _check_args(spec: EnvSpec, args: dict[str, Any], at: str) -> None:
    """Refuse arguments that the environment does not take, or that are not the user's to choose."""
    fixed = _FIXED | _FIXED_OF.get(str(spec.entry_point), {})
    for name, value in args.items():
        if name in fixed:
            raise KtError(f"{at}.args.{name}: cannot be set: {fixed[name]}")
        if name in _LIMITS and (type(value) is not int or value < 1):
            raise KtError(f"{at}.args.{name}: must be a whole number above 0, not {quoted(value)}")
        if name in _LIMITS and value > _MOST_STEPS:
            raise KtError(f"{at}.args.{name}: must be at most {_MOST_STEPS}, not {quoted(value)}")
        if name == "max_episode_steps":
            continue
        if name == "repeat_action_probability" and not (type(value) in (int, float) and 0 <= value <= 1):
            raise KtError(f"{at}.args.{name}: must be a number from 0 to 1, not {quoted(value)}")
        allowed, any_other = _parameters(spec, at)
        if name not in allowed and not any_other:
            raise KtError(
                f"{at}.args: {unknown('argument', str(name), sorted({*allowed, 'max_episode_steps'} - {*fixed}))}"
            )
        if (kind := _kind(allowed.get(name))) and not _is_of(value, kind):
            raise KtError(f"{at}.args.{name}: must be {_KINDS[kind]}, not {quoted(value)}")


_KINDS: dict[type, str] = {bool: "true or false", float: "a number", str: "a text"}


def _kind(default: Any) -> type | None:
    """Kind of an argument's values, by its default; None where that tells none."""
    return float if type(default) is int else type(default) if type(default) in _KINDS else None


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value may be of a kind; a maker may take other things for numbers and texts than these."""
    others = {bool: (int, float, str, list, dict, type(None)), float: (bool, str), str: (bool, int, float)}
    return isinstance(value, kind) or not isinstance(value, others[kind])


def _parameters(spec: EnvSpec, at: str) -> tuple[dict[str, Any], bool]:
    """Arguments that an environment takes, with their defaults, and whether it takes any other."""
    creator: Callable[..., Any]
    if isinstance(spec.entry_point, str):
        module, name = spec.entry_point.split(":")
        try:
            creator = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:
            raise _unmade(spec.id, error, at) from error
    else:
        assert callable(spec.entry_point)
        creator = spec.entry_point
    found = inspect.signature(creator).parameters.values()
    any_other = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in found)
    return {each.name: each.default for each in found}, any_other


def _made(game: Game, args: dict[str, Any], at: str) -> gymnasium.Env[Any, Any]:
    """An environment that begins an episode; an error names the argument of the configuration that is in its way."""

    def begun(args: dict[str, Any]) -> gymnasium.Env[Any, Any]:
        env = make(game.id, args)
        env.reset(seed=0)
        return env

    def at_fault(name: str) -> bool:
        try:
            begun({key: value for key, value in args.items() if key != name})
        except (Exception, SystemExit):  # the same, or another of its arguments is wrong
            return False
        return True

    try:
        return begun(args)
    except (Exception, SystemExit) as error:  # an environment may raise anything
        wrong = next(filter(at_fault, game.args), None)
        place = at if wrong is None else f"{at}.args.{wrong}: {quoted(game.args[wrong])}"
        raise _unmade(game.id, error, place) from error


def _unmade(name: str, error: BaseException, at: str) -> KtError:
    from gymnasium.error import DependencyNotInstalled

    if isinstance(error, DependencyNotInstalled | ImportError):
        return KtError(f"{at}: {name} needs a package that is not installed: {line(error)}")
    return KtError(f"{at}: {name} cannot be made: {line(error)}")


def _seen(env: gymnasium.Env[Any, Any], atari: bool, at: str) -> tuple[tuple[int, int, int], float]:
    """Shape and scale of one frame as policies see it."""
    from gymnasium.spaces import Box

    space = env.observation_space
    allowed = "pictures [H, W], [H, W, C] or [C, H, W] and vectors [d], of bytes, booleans or floats"
    if not isinstance(space, Box) or space.dtype is None or len(space.shape) not in (1, 2, 3):
        raise KtError(f"{at}: observations are {short(space)}; allowed: Box: {allowed}")
    if space.dtype not in (np.uint8, np.bool_) and space.dtype.kind != "f":
        raise KtError(f"{at}: observations are {space.dtype} numbers; allowed: {allowed}")
    shape = (1, ATARI_SIDE, ATARI_SIDE) if atari else as_channels(np.zeros(space.shape, np.bool_)).shape
    return shape, 1.0 if space.dtype.kind == "f" else 255.0


def as_channels(frame: Any) -> Any:
    """A frame as [C, H, W]; of the first and the last axis of three, the shorter is that of channels, else the last."""
    if frame.ndim == 1:
        return frame[:, None, None]
    if frame.ndim == 2:
        return frame[None]
    return frame if frame.shape[0] < frame.shape[2] else frame.transpose(2, 0, 1)


def first_action(env: gymnasium.Env[Any, Any]) -> int:
    """Number by which an environment calls action 0 of a policy."""
    from gymnasium.spaces import Discrete

    assert isinstance(env.action_space, Discrete)
    return int(env.action_space.start)


def _actions(env: gymnasium.Env[Any, Any], at: str) -> int:
    from gymnasium.spaces import Discrete

    space = env.action_space
    if not isinstance(space, Discrete):
        kind = "; a policy here chooses one of several actions, and has no continuous ones"
        raise KtError(f"{at}: actions are {short(space)}; allowed: Discrete{kind}")
    if space.n < 2:
        raise KtError(f"{at}: there is one action, {short(space)}; allowed: Discrete with two or more")
    if space.n > MOST_ACTIONS:
        raise KtError(f"{at}: there are {space.n} actions; allowed: at most {MOST_ACTIONS}")
    return int(space.n)


def _meanings(env: gymnasium.Env[Any, Any], actions: int) -> tuple[str, ...] | None:
    tell = getattr(env.unwrapped, "get_action_meanings", None)
    names = tuple(map(str, tell())) if callable(tell) else ()
    return names if len(names) == actions else None


def _versions(spec: EnvSpec) -> dict[str, str]:
    """Versions of gymnasium, and of the package that has the environment or simulates its bodies."""
    entry = spec.entry_point if isinstance(spec.entry_point, str) else getattr(spec.entry_point, "__module__", "")
    top = "Box2D" if ".box2d" in entry else entry.split(":")[0].split(".")[0]
    others = [] if top in ("gymnasium", "kt") else _distributions().get(top, [])
    return {name: version(name) for name in sorted({"gymnasium", *others})}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Installed packages by the modules that they have; reads the metadata of all, so once."""
    return packages_distributions()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return value is None or isinstance(value, bool | int | float | str)
