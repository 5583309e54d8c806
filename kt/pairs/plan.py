"""Plan of a rule: its jobs and rounds, and what its choice needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kt.pairs.possible import candidates, draw
from kt.pairs.rules import KINSHIP, OF_METRIC, Adaptive, Pair, PairRule, Stratified, Top
from kt.pairs.shares import quotas


def rounds(names: Sequence[str], rule: Adaptive) -> dict[str, list[int]]:
    """Rounds in which each student has a transfer job, in their order; with a budget some jobs may be empty."""
    found = quotas(Counter(student for _, student in candidates(names, rule)), rule)
    if rule.share is None:
        return {student: list(range(rule.rounds + 1)) for student in found}
    return {student: [number for number, n in enumerate(of_rounds) if n] for student, of_rounds in found.items()}


def start(names: Sequence[str], rule: Adaptive) -> list[Pair]:
    """The pairs of round 0, in the order of ``names``: teachers of every student, drawn by a hash."""
    mine: dict[str, list[Pair]] = {}
    for pair in candidates(names, rule):
        mine.setdefault(pair[1], []).append(pair)
    return [pair for pairs in mine.values() for pair in draw(pairs, rule.start, rule.seed)]


def jobs(names: Sequence[str], rule: PairRule, pairs_per_job: int) -> dict[str, int]:
    """Number of transfer jobs of every student that may have one, known before anything runs."""
    if isinstance(rule, Adaptive):
        return {student: len(found) for student, found in rounds(names, rule).items()}
    teachers = Counter(student for _, student in candidates(names, rule))
    limit = most(rule) or len(names)
    return {student: parts(min(count, limit), pairs_per_job) for student, count in teachers.items()}


def parts(teachers: int, pairs_per_job: int) -> int:
    """Jobs of a student with so many teachers: a rest of at most a quarter of a job stays with the last one."""
    return max(1, -((pairs_per_job - 4 * teachers) // (4 * pairs_per_job)))


def part(teachers: Sequence[str], chunk: int, pairs_per_job: int) -> Sequence[str]:
    """The teachers of one job of a student, where names alone decide."""
    last = chunk == parts(len(teachers), pairs_per_job) - 1
    return teachers[chunk * pairs_per_job : None if last else (chunk + 1) * pairs_per_job]


def needs_scores(rule: PairRule) -> bool:
    """Whether the choice uses the complementarity table of the validation split."""
    return isinstance(rule, Top | Stratified | Adaptive)


def score_of(rule: PairRule) -> str:
    """The column of the complementarity table in memory that the choice uses, where it uses one."""
    if not isinstance(rule, Top):
        return "acc_difference"
    return next((f"acc{end}" for end in OF_METRIC if rule.by.endswith(end)), rule.by)


def needs_families(rule: PairRule) -> bool:
    """Whether the choice uses the families in the table of models."""
    return isinstance(rule, Stratified) and rule.by_family


def most(rule: PairRule) -> int | None:
    """The most teachers that the rule gives a student, known before anything runs; None for all candidates."""
    if isinstance(rule, Stratified):
        return rule.n * (len(rule.gaps) + 1) * (len(KINSHIP) if rule.by_family else 1)
    return rule.k if isinstance(rule, Top) else None
