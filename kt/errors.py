"""Errors a user can mend: one line that names the key, the value, what is allowed and the nearest name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12


class KtError(Exception):
    """A problem with the user's input or set-up; its text is one complete line."""


class Interrupted(Exception):
    """Work was asked to stop by a signal; what was done is saved."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """The text ``; did you mean 'x'?`` for the closest allowed names, or nothing where none is close."""
    close = get_close_matches(value, list(allowed), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """At most ``MAX_LISTED`` names in one line, with the number left out."""
    names = list(names)
    more = f", … ({len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """One line for a name that is not known: what it is, what is allowed, and the nearest allowed name."""
    allowed = list(allowed)
    return f"unknown {what} {value!r}; allowed: {listed(allowed)}{nearest(value, allowed)}"
