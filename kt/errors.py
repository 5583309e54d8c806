"""Errors that a user can fix: one line with the key, the value, what is allowed and the nearest name.

Quoted values are shortened: a value comes from a file, and a file may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12

LONGEST = 200
"""Characters of a value that a line quotes."""

_LINE = 2000
_QUOTED_OR_LONG = re.compile(rf"""(?<!\w)(?P<mark>['"])(?:(?!(?P=mark)).)*(?P=mark)(?!\w)|\S{{{LONGEST + 1},}}""")


class KtError(Exception):
    """A problem with the user's input or set-up; its text is one complete line for each thing that is wrong.

    Messages of libraries may quote values at any length: text in quotes or without a space is shortened here too.
    """

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(map(shortened, text.split("\n"))))


class Interrupted(Exception):
    """A signal stopped the work; the progress is saved."""


def short(value: object, longest: int = LONGEST) -> str:
    """A value as printable text in one line; of a long one the beginning, the end and the length."""
    text = str(value)
    if len(text) > longest:
        mark = f" … ({len(text):,} characters) … "
        rest = longest - len(mark)
        text = text[: rest * 3 // 4] + mark + text[-(rest // 4) :]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def quoted(value: object) -> str:
    """A value as Python writes it, text in quotes, shortened."""
    return short(repr(value))


def shortened(line: str) -> str:
    """A line in which no quoted text, and no text without a space, is longer than ``LONGEST``."""
    line = _QUOTED_OR_LONG.sub(lambda found: short(found[0]), line)
    return short(line, _LINE) if len(line) > _LINE else line


def nearest(value: str, allowed: Iterable[str]) -> str:
    """The text ``; did you mean 'x'?`` for the closest allowed names, or nothing where none is close."""
    close = get_close_matches(value, list(allowed), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(quoted, close))}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """At most ``MAX_LISTED`` names in one line, with the number left out."""
    names = list(names)
    more = f", … ({len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return ", ".join(map(short, names[:MAX_LISTED])) + more


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """One line for an unknown name: what it names, what is allowed, and the nearest allowed name."""
    allowed = list(allowed)
    return f"unknown {what} {quoted(value)}; allowed: {listed(allowed) or 'none'}{nearest(value, allowed)}"
