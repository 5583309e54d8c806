"""The stages: each reads its part of the configuration and its files, calls pure functions, and writes its files.

What a stage needs (torch, timm, matplotlib, scipy) is imported when it runs: the table stages, and a transfer job with
nothing left to do, never wait for torch, and a training never for the analysis.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kt.control.study import ControlStudy
    from kt.stages.member_weights import adopt, member, weights
    from kt.stages.members import data, predict, preview, zoo
    from kt.stages.one_pair import pair, write_images
    from kt.stages.results import choose, complementarity, explore, gather, pairs, report
    from kt.stages.rounds import choose_round
    from kt.stages.units import Wanted, experiment, groups, plan_export, run_export, search, transfer
    from kt.study.study import Study

__all__ = [
    "Wanted",
    "adopt",
    "choose",
    "choose_round",
    "complementarity",
    "data",
    "experiment",
    "explore",
    "gather",
    "groups",
    "member",
    "of",
    "pair",
    "pairs",
    "plan_export",
    "predict",
    "preview",
    "report",
    "run_export",
    "search",
    "transfer",
    "weights",
    "write_images",
    "zoo",
]

_HOMES = {
    "member_weights": ("adopt", "member", "weights"),
    "members": ("data", "predict", "preview", "zoo"),
    "one_pair": ("pair", "write_images"),
    "results": ("choose", "complementarity", "explore", "gather", "pairs", "report"),
    "rounds": ("choose_round",),
    "units": ("Wanted", "experiment", "groups", "plan_export", "run_export", "search", "transfer"),
}
"""Stages by the module that has them."""


def of(study: Study | ControlStudy) -> ModuleType:
    """The stages of a study: those of this package, or of one of policies."""
    return import_module(f"{__name__}.policies" if study.plays else __name__)


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
