"""Torch's compiler, loaded by the first that needs it.

Importing it takes longer than a small model's training. torchvision imports it to ask a question that it has only when
a certain function is called, and every optimiser to tell it what not to compile. Nothing here is compiled, so both can
be answered without it; whatever else is asked loads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

PACKAGE, UTILS = "torch._dynamo", "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for a module until somebody asks it for more than it knows."""

    def __getattr__(self, name: str) -> Any:
        path = name == "__path__" and self.__name__ == PACKAGE  # asked for by imports from inside the package
        if name.startswith("__") and not path:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_load(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_load(self.__name__), name, value)


def put_off() -> None:
    """Let the compiler be loaded by the first that needs it, unless it is loaded already."""
    if PACKAGE in sys.modules:
        return
    package, utils = _Later(PACKAGE), _Later(UTILS)
    # `find_spec` says that both are there
    vars(package).update(
        __spec__=ModuleSpec(PACKAGE, None, is_package=True), disable=_disable, graph_break=_graph_break
    )
    vars(utils).update(__spec__=ModuleSpec(UTILS, None), is_compile_supported=_is_compile_supported)
    sys.modules |= {PACKAGE: package, UTILS: utils}


def _is_put_off() -> bool:
    return isinstance(sys.modules.get(PACKAGE), _Later)


def _load(name: str) -> ModuleType:
    """The module itself; those that stood for the two leave."""
    for each in (PACKAGE, UTILS):
        if isinstance(sys.modules.get(each), _Later):
            del sys.modules[each]
    return import_module(name)


def _disable(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """The function, which the compiler leaves alone; as long as there is none, as it is."""
    if not isinstance(fn, FunctionType) or not _is_put_off():  # of a module or a class it makes something else
        return _load(PACKAGE).disable(fn, *args, **kwargs)
    disabled = None

    @wraps(fn)
    def run(*given: Any, **named: Any) -> Any:
        nonlocal disabled
        if disabled is None and not _is_put_off():
            disabled = _load(PACKAGE).disable(fn, *args, **kwargs)
        return (disabled or fn)(*given, **named)

    return run


def _graph_break(*args: Any, **kwargs: Any) -> None:
    """Ends a piece of compiled code: here is none."""


def _is_compile_supported(device: str) -> bool:
    """Whether code for a device can be compiled."""
    return bool(_load(UTILS).is_compile_supported(device))
