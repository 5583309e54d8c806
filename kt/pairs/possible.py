"""Pairs that a rule may choose, from the names of the models alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from itertools import product

import numpy as np

from kt.errors import KtError, nearest, short
from kt.pairs import file
from kt.pairs.rules import ROLES, Adaptive, Explicit, FromFile, Pair, PairRule, Pattern, Random
from kt.pairs.shares import quotas
from kt.store import canonical


def named(rule: PairRule) -> list[tuple[str, str]]:
    """Every name or pattern that a rule gives, behind its place in the configuration."""
    given = {"pairs.pairs": rule.pairs if isinstance(rule, Explicit) else (), "pairs.exclude": rule.exclude}
    rows = file.rows(rule.path) if isinstance(rule, FromFile) else []
    of_file = [(f"{at}: {role}", name) for at, pair in rows for role, name in zip(ROLES, pair, strict=True)]
    return of_file + [
        (f"{at}.{i}.{role}", getattr(pattern, role))
        for at, patterns in given.items()
        for i, pattern in enumerate(patterns)
        for role in ("teacher", "student")
    ]


def candidates(names: Sequence[str], rule: PairRule) -> list[Pair]:
    """Every ordered pair that the rule may choose, in the order of ``names``; where no scores are needed, the choice.

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
    elif isinstance(rule, FromFile):
        included = file.in_file(rule.path, names)
        every = (pair for pair in every if pair in included)
    pairs = [pair for pair in every if pair not in excluded] if excluded else list(every)
    if isinstance(rule, Random):
        pairs = draw(pairs, rule.n, rule.seed)
    if not pairs:
        raise KtError(f"pairs: the rule {rule.select!r} selects no pair of the {len(names)} models")
    if isinstance(rule, Adaptive):
        quotas(Counter(student for _, student in pairs), rule)
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
            text = f"{{teacher: {short(pattern.teacher)}, student: {short(pattern.student)}}}"
            raise KtError(f"pairs: {text} matches no pair of distinct models{''.join(sorted(hints))}")
        found |= pairs
    return found


def draw(pairs: list[Pair], n: int, seed: int) -> list[Pair]:
    """The ``n`` pairs whose digests of [seed, teacher, student] come first, in the given order."""
    if n >= len(pairs):
        return pairs
    # the bytes that `store.digest` hashes, the common part only once: six times as fast for a million pairs
    begun = {t: sha256(canonical([seed, t])[:-1] + b",") for t in {t for t, _ in pairs}}
    ends = {s: canonical(s) + b"]" for s in {s for _, s in pairs}}

    def digests(of: Iterable[Pair]) -> Iterator[bytes]:
        for teacher, student in of:
            state = begun[teacher].copy()
            state.update(ends[student])
            yield state.digest()

    # the first eight bytes of a digest fit a number, and nearly always decide
    heads = np.fromiter(digests(pairs), "S32", len(pairs)).view(">u8")[::4]
    last = np.partition(heads, n - 1)[n - 1]
    first = np.flatnonzero(heads <= last).tolist()
    if len(first) > n:
        ranks = dict(zip(first, digests(pairs[i] for i in first), strict=True))
        first = sorted(sorted(first, key=ranks.__getitem__)[:n])
    return [pairs[i] for i in first]
