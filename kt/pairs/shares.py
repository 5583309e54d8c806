"""Numbers of pairs in rounds: equal shares of all students, known before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kt.errors import KtError
from kt.pairs.rules import Adaptive


def quotas(teachers: Mapping[str, int], rule: Adaptive) -> dict[str, list[int]]:
    """Pairs of every student in every round, known before anything runs; with a budget of hours those of round 0 alone.

    All students get the same number, but for one more or less: none is passed over because its pairs look bad.

    Args:
        teachers: teachers that each student may have.
        rule: the rule.

    Raises:
        KtError: the share is too small for round 0, or leaves fewer pairs than there are rounds.
    """
    start = {student: min(rule.start, count) for student, count in teachers.items()}
    found = {student: [count] for student, count in start.items()}
    if rule.share is None:
        return found
    every, begin = sum(teachers.values()), sum(start.values())
    wanted = round(rule.share * every)
    if wanted <= begin:
        least = math.ceil(1000 * (begin + 1) / every) / 1000
        text = f"pairs.share: {rule.share:g} of {every} pairs are {wanted}, and round 0 takes {begin} ({rule.start} for"
        allowed = f"at least {least:g}, or a smaller pairs.start" if least <= 1 else "a smaller pairs.start"
        raise KtError(f"{text} each student); allowed: {allowed}")
    if wanted - begin < rule.rounds:
        raise KtError(f"pairs.rounds: {rule.rounds} for {wanted - begin} pairs; allowed: at most {wanted - begin}")
    before = dict.fromkeys(teachers, 0)
    for number in range(1, rule.rounds + 1):
        total = (wanted - begin) * number // rule.rounds
        after = spread(total, {student: count - start[student] for student, count in teachers.items()})
        for student in teachers:
            found[student].append(after[student] - before[student])
        before = after
    return found


def spread(total: int, most: Mapping[str, int]) -> dict[str, int]:
    """A number in parts as equal as their limits allow; the rest of the division goes to the first that have room.

    A larger total makes no part smaller.
    """
    total = min(total, sum(most.values()))
    level = 0
    while sum(min(level + 1, limit) for limit in most.values()) <= total and level < max(most.values(), default=0):
        level += 1
    parts = {name: min(level, limit) for name, limit in most.items()}
    left = total - sum(parts.values())
    for name in [name for name, limit in most.items() if limit > level][:left]:
        parts[name] += 1
    return parts
