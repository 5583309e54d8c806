"""Which ordered pairs get a transfer, and why: deterministic, and stable when the zoo grows.

The rules ``all``, ``random`` and ``explicit`` need the models' names only, so the workflow knows its jobs before
anything runs. ``top`` ranks by a column of the complementarity table of the VALIDATION split; the number of its
pairs is known before, which pairs they are is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from itertools import product
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from kt.errors import KtError, nearest
from kt.spec import Spec
from kt.store import canonical

Score = Literal["pos_flips", "neg_flips", "acc_difference", "agreement", "kappa", "class_entropy"]
Pair = tuple[str, str]
"""Teacher and student."""


class Pattern(Spec):
    """Pairs whose names match; `*`, `?` and `[…]` as in file names."""

    teacher: str = "*"
    student: str = "*"

    def matches(self, teacher: str, student: str) -> bool:
        """Whether the pattern fits a pair."""
        return fnmatchcase(teacher, self.teacher) and fnmatchcase(student, self.student)


class _Rule(Spec):
    exclude: tuple[Pattern, ...] = Field((), description="pairs that are never chosen")


class All(_Rule):
    """Every ordered pair."""

    select: Literal["all"]


class Random(_Rule):
    """`n` pairs drawn by a hash of their names: adding models replaces some, the rest stay."""

    select: Literal["random"]
    n: PositiveInt
    seed: int = Field(0, ge=0)


class Explicit(_Rule):
    """Pairs that match one of the patterns."""

    select: Literal["explicit"]
    pairs: tuple[Pattern, ...] = Field(min_length=1)


class Top(_Rule):
    """For each student the `k` teachers with the highest (or lowest) score on the validation split."""

    select: Literal["top"]
    k: PositiveInt
    by: Score = "pos_flips"
    lowest: bool = False


PairRule = Annotated[All | Random | Explicit | Top, Field(discriminator="select")]


def candidates(names: Sequence[str], rule: PairRule) -> list[Pair]:
    """Every ordered pair that the rule may choose, in the order of ``names``; for all rules but ``top``, the choice.

    Raises:
        KtError: there is none, or a pattern fits no pair.
    """
    return list(_candidates(tuple(names), rule))


@lru_cache(maxsize=1)  # a thousand models have a million pairs, and the same ones are asked for several times
def _candidates(names: tuple[str, ...], rule: PairRule) -> tuple[Pair, ...]:
    excluded = _matching(rule.exclude, names)
    every = ((t, s) for s, t in product(names, names) if t != s)
    if isinstance(rule, Explicit):
        included = _matching(rule.pairs, names)
        every = (pair for pair in every if pair in included)
    pairs = [pair for pair in every if pair not in excluded] if excluded else list(every)
    if isinstance(rule, Random):
        pairs = _draw(pairs, rule)
    if not pairs:
        raise KtError(f"pairs: the rule {rule.select!r} selects no pair of the {len(names)} models")
    return tuple(pairs)


def _matching(patterns: Sequence[Pattern], names: Sequence[str]) -> set[Pair]:
    """The pairs of distinct models that fit one of the patterns; each pattern must fit one."""
    texts = {text for pattern in patterns for text in (pattern.teacher, pattern.student)}
    known = set(names)
    fitting = {text: [text] if text in known else [n for n in names if fnmatchcase(n, text)] for text in texts}
    found: set[Pair] = set()
    for pattern in patterns:
        pairs = {(t, s) for t in fitting[pattern.teacher] for s in fitting[pattern.student] if t != s}
        if not pairs:
            hints = {nearest(text, names) for text in (pattern.teacher, pattern.student) if text not in known}
            text = f"{{teacher: {pattern.teacher}, student: {pattern.student}}}"
            raise KtError(f"pairs: {text} matches no pair of distinct models{''.join(sorted(hints))}")
        found |= pairs
    return found


def _draw(pairs: list[Pair], rule: Random) -> list[Pair]:
    """The ``n`` pairs whose digests of [seed, teacher, student] come first, in the given order."""
    if rule.n >= len(pairs):
        return pairs
    # the bytes that `store.digest` hashes, the common part only once: six times as fast for a million pairs
    begun = {t: sha256(canonical([rule.seed, t])[:-1] + b",") for t in {t for t, _ in pairs}}
    ends = {s: canonical(s) + b"]" for s in {s for _, s in pairs}}

    def rank(pair: Pair) -> bytes:
        state = begun[pair[0]].copy()
        state.update(ends[pair[1]])
        return state.digest()

    # the first eight bytes of a digest decide nearly everything, and fit a number
    heads = np.fromiter((int.from_bytes(rank(pair)[:8], "big") for pair in pairs), np.uint64, len(pairs))
    last = np.partition(heads, rule.n - 1)[rule.n - 1]
    first = sorted(np.flatnonzero(heads <= last).tolist(), key=lambda i: rank(pairs[i]))[: rule.n]
    return [pairs[i] for i in sorted(first)]


def jobs(names: Sequence[str], rule: PairRule, pairs_per_job: int) -> dict[str, int]:
    """Number of transfer jobs of every student that may have one, known before anything runs."""
    teachers = Counter(student for _, student in candidates(names, rule))
    most = rule.k if isinstance(rule, Top) else len(names)
    return {student: math.ceil(min(count, most) / pairs_per_job) for student, count in teachers.items()}


def select(
    names: Sequence[str], rule: PairRule, pairs_per_job: int, scores: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table ``pairs``, by student and then by teacher, in the order of ``names``.

    Args:
        names: the zoo's models.
        rule: which pairs.
        pairs_per_job: a student's teachers are cut into chunks of this size.
        scores: the complementarity table of the validation split; needed by ``top`` only.

    Raises:
        KtError: the rule selects nothing, or needs scores that are not there.
    """
    chosen = pd.DataFrame(candidates(names, rule), columns=["teacher", "student"])
    chosen["reason"] = rule.select
    if isinstance(rule, Top):
        chosen = _top(chosen, rule, scores)
    chosen["chunk"] = chosen.groupby("student").cumcount() // pairs_per_job
    return chosen


def _top(pairs: pd.DataFrame, rule: Top, scores: pd.DataFrame | None) -> pd.DataFrame:
    if scores is None:
        raise KtError("pairs: the rule 'top' needs the complementarity table of the validation split")
    merged = pairs.merge(scores[["teacher", "student", rule.by]], how="left", on=["teacher", "student"])
    rank = merged.groupby("student")[rule.by].rank(method="first", ascending=rule.lowest, na_option="bottom")
    merged["reason"] = [f"top {rule.k} by {rule.by}: rank {int(r)}" for r in rank]
    chosen: pd.DataFrame = merged.loc[rank <= rule.k, ["teacher", "student", "reason"]].reset_index(drop=True)
    return chosen
