"""Rules that choose the ordered pairs for transfer.

``all``, ``random`` and ``explicit`` need only the names of the models, so the workflow knows its jobs before anything
runs. ``top`` and ``stratified`` use the complementarity table of the VALIDATION split: the largest number of teachers
per student is known beforehand, their names are not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise, product
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, PositiveInt, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kt.errors import KtError, listed, nearest, quoted, short, unknown
from kt.spec import File, Spec
from kt.store import canonical, digest

if TYPE_CHECKING:
    import pandas as pd

OF_METRIC = ("_teacher", "_student", "_difference")
"""Ends of the scores that begin with the key of the task's metric; `acc` stands for it in tables in memory."""

SCORES = (
    *(f"acc{end}" for end in OF_METRIC),
    *("pos_flips", "pos_flips_se", "neg_flips", "pos_flips_untrained", "class_entropy", "neg_class_entropy"),
    *(f"expertise_{share}" for share in (2, 5, 20, 50)),
    *("agreement", "kappa", "double_fault", "q_statistic"),
    *(f"expertise_similarity_{share}" for share in (2, 5, 20, 50)),
    *("pos_flips_top5", "capa", "js_divergence", "leep", "cka"),
    *("pixel_flips", "pixel_flips_se", "neg_pixel_flips"),
)
"""The numeric columns of the complementarity table in memory."""


def _known(score: str) -> str:
    """A score; it may begin with the key of any metric, and whether that is the task's is checked with the task."""
    if score not in SCORES and not score.endswith(OF_METRIC):
        raise PydanticCustomError("value_error", "{text}", {"text": unknown("value", score, SCORES)})
    return score


Score = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "anyOf": [{"enum": list(SCORES)}, {"pattern": f"({'|'.join(OF_METRIC)})$"}]}),
]
"""A numeric column of the complementarity table, as its file names it."""

ROLES = ("teacher", "student")

Pair = tuple[str, str]
"""Teacher and student."""

MOST_WRONG = 20
"""Mistakes of one file that are told."""


KINSHIP = ("same family", "another family", "family unknown")


class Pattern(Spec):
    """Pairs whose names match; `*`, `?` and `[…]` work as in file names."""

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


class Stratified(_Rule):
    """For each student `n` teachers from every stratum, drawn by a hash of the names as for `random`.

    A stratum is a range of accuracy difference on the validation split, by default with the same or another family.
    """

    select: Literal["stratified"]
    n: PositiveInt = Field(1, description="teachers of a student from each stratum")
    gaps: tuple[float, ...] = Field(
        (-10.0, -2.0, 2.0, 10.0),
        min_length=1,
        description="teacher − student in units of the metric (percentage points of accuracy), where one stratum ends "
        "and the next begins; increasing; default of other metrics: in proportion to their scale",
    )
    by_family: bool = Field(True, description="whether teachers of the student's family are strata of their own")
    seed: int = Field(0, ge=0)

    @field_validator("gaps")
    @classmethod
    def _increasing(cls, gaps: tuple[float, ...]) -> tuple[float, ...]:
        if list(gaps) != sorted(set(gaps)):
            raise ValueError(f"must increase, but is {quoted(list(gaps))}")
        return gaps


class FromFile(_Rule):
    """The pairs of a table with the columns `teacher` and `student`; further columns do not matter."""

    select: Literal["file"]
    path: File = Field(description="a .csv or .parquet file; `kt next --out` writes one")


class Adaptive(_Rule):
    """In rounds, each chosen from the finished transfers of those before; round 0 draws teachers at random."""

    select: Literal["adaptive"]
    start: PositiveInt = Field(
        2, description="teachers of every student in round 0, drawn by a hash of the names; the analysis rests on them"
    )
    rounds: PositiveInt = Field(4, description="rounds after round 0")
    share: float | None = Field(None, gt=0, le=1, description="of all pairs, those to transfer, round 0 included")
    budget: float | None = Field(
        None, gt=0, description="hours of training to spend instead, round 0 included; the number of pairs follows"
    )
    aim: Literal["best_teacher", "predict"] = Field(
        "best_teacher",
        alias="for",
        description="whether to find each student's best teacher and method, or to predict the gains of all pairs",
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.share is None) == (self.budget is None):
            given = "none" if self.share is None else "both"
            raise ValueError(f"one of 'share' and 'budget' is needed, not {given}")
        return self


PairRule = Annotated[All | Random | Explicit | Top | Stratified | FromFile | Adaptive, Field(discriminator="select")]


def named(rule: PairRule) -> list[tuple[str, str]]:
    """Every name or pattern that a rule gives, behind its place in the configuration."""
    given = {"pairs.pairs": rule.pairs if isinstance(rule, Explicit) else (), "pairs.exclude": rule.exclude}
    rows = _rows(rule.path) if isinstance(rule, FromFile) else []
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
        included = _in_file(rule.path, names)
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


def _rows(path: File) -> list[tuple[str, Pair]]:
    """The rows of a table of pairs, behind their places; what has no value is an empty text.

    Raises:
        KtError: the file is none of the two kinds, cannot be read, or lacks a column.
    """
    import pandas as pd

    at, ending = f"pairs.path: {short(path.written)}", PurePath(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise KtError(f"{at}: allowed: a .csv or .parquet file")
    try:
        if ending == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        else:
            table = pq.read_table(path).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise KtError(f"{at}: not a readable {ending[1:]} file ({short(str(error).split(chr(10))[0])})") from error
    for role in ROLES:
        if role not in table.columns:
            close = nearest(role, map(str, table.columns))
            raise KtError(f"{at}: column {role!r} is missing; there are {listed(map(str, table.columns))}{close}")
    found = table[list(ROLES)].fillna("").astype(str).itertuples(index=False, name=None)
    return [(f"pairs.path: row {i}", (teacher, student)) for i, (teacher, student) in enumerate(found, 1)]


def _in_file(path: File, names: Sequence[str]) -> set[Pair]:
    """The pairs of a file; raises ``KtError`` with a line for each row that is none, or where there is no row."""
    known, found, wrong = set(names), dict[Pair, str](), list[str]()
    for at, pair in _rows(path):
        lines = [unknown(role, name, names) for role, name in zip(ROLES, pair, strict=True) if name not in known]
        if not lines and pair[0] == pair[1]:
            lines = [f"{quoted(pair[0])} is its own teacher"]
        elif not lines and pair in found:
            lines = [f"the same pair as in {found[pair].removeprefix('pairs.path: ')}"]
        wrong += [f"{at}: {line}" for line in lines]
        found.setdefault(pair, at)
    if wrong:
        more = [f"pairs.path: … and {len(wrong) - MOST_WRONG} mistakes more"] if len(wrong) > MOST_WRONG else []
        raise KtError("\n".join(wrong[:MOST_WRONG] + more))
    if not found:
        raise KtError(f"pairs.path: {short(path.written)}: holds no pair")
    return set(found)


def draw(pairs: list[Pair], n: int, seed: int) -> list[Pair]:
    """The ``n`` pairs whose digests of [seed, teacher, student] come first, in the given order."""
    if n >= len(pairs):
        return pairs
    # the bytes that `store.digest` hashes, the common part only once: six times as fast for a million pairs
    begun = {t: sha256(canonical([seed, t])[:-1] + b",") for t in {t for t, _ in pairs}}
    ends = {s: canonical(s) + b"]" for s in {s for _, s in pairs}}

    def rank(pair: Pair) -> bytes:
        teacher, student = pair
        state = begun[teacher].copy()
        state.update(ends[student])
        return state.digest()

    # the first eight bytes of a digest fit a number, and nearly always decide
    heads = np.fromiter(map(rank, pairs), "S32", len(pairs)).view(">u8")[::4]
    last = np.partition(heads, n - 1)[n - 1]
    first = sorted(np.flatnonzero(heads <= last).tolist(), key=lambda i: rank(pairs[i]))[:n]
    return [pairs[i] for i in sorted(first)]


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
    return {student: math.ceil(min(count, limit) / pairs_per_job) for student, count in teachers.items()}


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


def select(
    names: Sequence[str],
    rule: PairRule,
    pairs_per_job: int,
    scores: pd.DataFrame | None = None,
    families: Mapping[str, str | None] | None = None,
) -> pd.DataFrame:
    """The table ``pairs``, by student and then by teacher, in the order of ``names``.

    Args:
        names: the zoo's models.
        rule: chooses the pairs.
        pairs_per_job: a student's teachers are cut into chunks of this size.
        scores: the complementarity table of the validation split; for ``top`` and ``stratified``.
        families: family of every model, None where it is unknown; for ``stratified`` by family.

    Raises:
        KtError: the rule selects nothing, or needs scores or families that are not there.
    """
    import pandas as pd

    if isinstance(rule, Adaptive):
        raise KtError(
            "pairs: the rule 'adaptive' chooses round by round; give a round's table of pairs, as `kt round` does"
        )
    chosen = pd.DataFrame(candidates(names, rule), columns=["teacher", "student"])
    chosen["reason"] = rule.select
    if isinstance(rule, Top):
        chosen = _top(chosen, rule, scores)
    elif isinstance(rule, Stratified):
        chosen = _stratified(chosen, rule, scores, families)
    chosen["chunk"] = chosen.groupby("student").cumcount() // pairs_per_job
    return chosen


def _with_score(pairs: pd.DataFrame, rule: Top | Stratified, scores: pd.DataFrame | None) -> pd.DataFrame:
    by = score_of(rule)
    if scores is None:
        raise KtError(f"pairs: the rule {rule.select!r} needs the complementarity table of the validation split")
    if scores[by].isna().all():
        shown = rule.by if isinstance(rule, Top) else by
        raise KtError(f"pairs.by: the complementarity table has no values of {shown!r}")
    return pairs.merge(scores[["teacher", "student", by]], how="left", on=["teacher", "student"])


def _top(pairs: pd.DataFrame, rule: Top, scores: pd.DataFrame | None) -> pd.DataFrame:
    merged = _with_score(pairs, rule, scores)
    by = score_of(rule)
    rank = merged.groupby("student")[by].rank(method="first", ascending=rule.lowest, na_option="bottom")
    merged["reason"] = [f"top {rule.k} by {by}: rank {int(r)}" for r in rank]
    chosen: pd.DataFrame = merged.loc[rank <= rule.k, ["teacher", "student", "reason"]].reset_index(drop=True)
    return chosen


def _stratified(
    pairs: pd.DataFrame, rule: Stratified, scores: pd.DataFrame | None, families: Mapping[str, str | None] | None
) -> pd.DataFrame:
    """The first pairs of every stratum in an order that does not depend on the rest of the zoo."""
    merged = _with_score(pairs, rule, scores)
    if merged["acc_difference"].isna().any():
        row = merged[merged["acc_difference"].isna()].iloc[0]
        raise KtError(f"pairs: no score for teacher {row['teacher']!r} and student {row['student']!r}")
    edges = [f"{edge:+g}".replace("-", "−") for edge in rule.gaps]
    ranges = [f"below {edges[0]}", *map(" to ".join, pairwise(edges)), f"from {edges[-1]}"]
    merged["stratum"] = [ranges[i] for i in np.searchsorted(rule.gaps, merged["acc_difference"], side="right")]
    if rule.by_family:
        if families is None:
            raise KtError("pairs: the rule 'stratified' with by_family needs the table of models")
        merged["stratum"] += [
            ", " + _kinship(families.get(t), families.get(s))
            for t, s in zip(merged["teacher"], merged["student"], strict=True)
        ]
    merged["drawn"] = [digest([rule.seed, t, s]) for t, s in zip(merged["teacher"], merged["student"], strict=True)]
    rank = merged.groupby(["student", "stratum"])["drawn"].rank(method="first")
    merged["reason"] = "stratified: " + merged["stratum"]
    chosen: pd.DataFrame = merged.loc[rank <= rule.n, ["teacher", "student", "reason"]].reset_index(drop=True)
    return chosen


def _kinship(teacher: str | None, student: str | None) -> str:
    if teacher is None or student is None:
        return KINSHIP[2]
    return KINSHIP[0] if teacher == student else KINSHIP[1]
