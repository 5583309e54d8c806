"""Numbers as words: one way to print them in the answer, in figures and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "−"  # a true minus sign: as wide as the plus beside it


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed decimals; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def signed(value: float | None, digits: int = 2) -> str:
    """The same with its sign, ``+`` included."""
    text = number(value, digits)
    return text if text[0] in f"{MINUS}–" else f"+{text}"


def with_error(value: float | None, error: float | None, digits: int = 2) -> str:
    """A signed number with its standard error: ``+4.02 ± 0.81``."""
    if value is None or not math.isfinite(value):
        return "–"
    known = error is not None and math.isfinite(error)
    return f"{signed(value, digits)} ± {number(error, digits) if known else 'unknown'}"


def counted(count: int, noun: str) -> str:
    """A count and its noun in the right number: ``1 seed``, ``3 seeds``, ``1,797 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted_range(counts: Iterable[int], noun: str) -> str:
    """One count or more, and their noun: ``5 seeds``, ``3 to 5 seeds``."""
    ordered = sorted(counts)
    least, most = ordered[0], ordered[-1]
    return counted(least, noun) if least == most else f"{least:,} to {counted(most, noun)}"


def in_points(value: float) -> str:
    """Percentage points with the right number: ``1 point``, ``2.5 points``."""
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def listing(items: list[str]) -> str:
    """Items with commas and a closing ``and``."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)
