"""Output of games: its first lines go to the log as plain ones, the rest is counted: a game may print at each step.

It is collected whether a game prints, warns or logs. Output of libraries in C goes past Python, and past this module.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from kt.errors import short

FEW = 3
"""Lines of a game that a process shows."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _Sink(io.StringIO):
    """Stays open whatever a game does."""

    def close(self) -> None:
        """Do nothing."""


_SINK = _Sink()
_LOGGED = logging.StreamHandler(_SINK)
_shown: Counter[str] = Counter()
_left_out: Counter[str] = Counter()

log = logging.getLogger(__name__)


@contextmanager
def collected(game: str, failing: bool = True) -> Iterator[None]:
    """Keep what a game says from the log, but for its first lines; not to be nested, and no place to import games in.

    Args:
        game: its id.
        failing: also show what it says when it then fails, where the error does not tell it all.
    """
    root, failed = logging.getLogger(), False
    handlers, root.handlers = root.handlers, [_LOGGED]
    try:
        with redirect_stdout(_SINK), redirect_stderr(_SINK), warnings.catch_warnings(record=True) as warned:
            yield
    except BaseException:
        failed = True
        raise
    finally:
        root.handlers = handlers
        said = _SINK.getvalue()
        _SINK.seek(0)
        _SINK.truncate()
        if (said or warned) and (failing or not failed):
            _note(game, [*said.splitlines(), *(line for each in warned for line in str(each.message).splitlines())])


def _note(game: str, lines: list[str]) -> None:
    for line in filter(None, (_COLOURS.sub("", line).strip().removeprefix("WARN: ") for line in lines)):
        if _shown[game] < FEW:
            _shown[game] += 1
            log.warning("%s says: %s", game, short(line))
        else:
            _left_out[game] += 1


def tell() -> None:
    """Log how much was left out since the last time, a line for each game."""
    for game, lines in _left_out.items():
        log.warning("%s: %s more of its output left out", game, f"{lines:,} line{'s' * (lines != 1)}")
    _left_out.clear()
