"""Ids of games: those that gymnasium knows here, and refusals in one line of all others."""

from __future__ import annotations

import importlib
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from kt.errors import KtError, quoted, short

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

INSTALL = "run: pip install 'kt[control]'"
ATARI = "ale_py.env:AtariEnv"


def registered(name: str, at: str) -> EnvSpec:
    """What gymnasium knows of an id, without making the environment.

    Raises:
        KtError: gymnasium or the game's package is not installed, or no game has this id.
    """
    try:
        gymnasium = importlib.import_module("gymnasium")
        importlib.import_module("kt.control.arcade")
    except ModuleNotFoundError as error:
        raise KtError(f"{at}: games need the package {error.name}, which is not installed; {INSTALL}") from error
    atari = _register_atari()
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise KtError(
                f"{at}: module {quoted(module)} of {quoted(name)} cannot be imported: {line(error)}"
            ) from error
    if not atari and (bare.startswith("ALE/") or "NoFrameskip" in bare):
        raise KtError(f"{at}: {bare} needs the package ale-py, which is not installed; {INSTALL}")
    spec: EnvSpec | None = gymnasium.registry.get(bare)
    if spec is None:
        known = [each.id for each in gymnasium.registry.values() if not _refused(each)]
        raise KtError(
            f"{at}: unknown environment {quoted(name)}, not among the {len(known)} known here{_near(bare, known)}"
        )
    if why := _refused(spec):
        raise KtError(f"{at}: {name} {why}")
    return spec


def _register_atari() -> bool:
    """Whether Atari is installed; its games are then known to gymnasium."""
    try:
        import ale_py
    except ModuleNotFoundError:
        return False
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else each process prints a banner
    return True


def _refused(spec: EnvSpec) -> str:
    """Why a registered environment is none for policies here, or nothing."""
    if spec.entry_point is None:
        return "has only a vectorised form, and kt makes copies of single environments"
    if spec.nondeterministic:
        return "is registered as nondeterministic: the same seed would not give the same results"
    if spec.entry_point == ATARI and not isinstance(spec.kwargs.get("frameskip"), int):
        return f"skips frames at random; use 'ALE/{spec.name}-v5' or '{spec.name}NoFrameskip-v4', and frame_skip"
    return ""


def _near(name: str, known: list[str]) -> str:
    """The nearest ids, whatever their case, folder and version."""

    def bare(each: str) -> str:
        return each.lower().rpartition("/")[2].rpartition("-v")[0] or each.lower().rpartition("/")[2]

    def likeness(each: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, name.lower(), each.lower()).ratio()
        return max(whole, SequenceMatcher(None, bare(name), bare(each)).ratio()), whole

    best = sorted(known, key=likeness, reverse=True)[:3]
    close = [quoted(each) for each in best if likeness(each)[0] >= 0.6]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    first = next(iter(str(error).strip().splitlines()), "")
    return short(f"{type(error).__name__}: {first}" if first else type(error).__name__)
