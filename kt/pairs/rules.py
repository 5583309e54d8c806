"""Rules that choose ordered pairs, with the keys that the configuration gives them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kt.errors import quoted, unknown
from kt.spec import File, Seed, Spec

ROLES = ("teacher", "student")

Pair = tuple[str, str]
"""Teacher and student."""

KINSHIP = ("same family", "another family", "family unknown")
"""Kinds of strata by family."""

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
    seed: Seed = 0


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
    seed: Seed = 0

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
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.share is None) == (self.budget is None):
            given = "none" if self.share is None else "both"
            raise ValueError(f"one of 'share' and 'budget' is needed, not {given}")
        return self


PairRule = Annotated[All | Random | Explicit | Top | Stratified | FromFile | Adaptive, Field(discriminator="select")]
