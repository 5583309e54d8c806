"""Arguments of the command line: one line for each mistake, with what is allowed and the nearest name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from kt.errors import quoted, shortened, unknown


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each, in the words of ``kt.errors``."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        line = shortened(" ".join(message.split()))
        self.exit(2, f"{self.prog}: {line}; `{self.prog} --help` says more\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if isinstance(action, argparse._SubParsersAction) else str(action.metavar or action.dest)
            raise argparse.ArgumentError(None, unknown(what, str(value), map(str, action.choices)))


def whole(least: int, most: int = (1 << 32) - 1) -> Callable[[str], int]:
    """A type for whole numbers in a range."""
    return lambda text: int(_number(text, int, least, most, f"a whole number from {least} to {most}"))


def number(least: float, most: float, unit: str = "a number") -> Callable[[str], float]:
    """A type for numbers in a range, both ends included."""
    return lambda text: _number(text, float, least, most, f"{unit} from {least:g} to {most:g}")


def _number(text: str, convert: Callable[[str], float], least: float, most: float, allowed: str) -> float:
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{quoted(text)}: allowed is {allowed}")
    return value
