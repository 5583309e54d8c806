"""Several teachers for one student: which groups there are, deterministic, and by which methods they teach.

The rules ``explicit`` and ``random`` need the models' names only. ``ranked`` needs accuracies on the VALIDATION split;
how many groups it makes is known before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations, islice
from math import comb
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, create_model

from kt.errors import KtError, nearest, quoted, unknown
from kt.spec import Seed, Spec
from kt.store import digest
from kt.transfer.method import registry
from kt.transfer.spec import MethodsBase, option

GroupMethods: type[MethodsBase] = create_model(
    "GroupMethods",
    __base__=MethodsBase,
    __doc__="The methods to run on groups, with their parameters.",
    **{name: option(method) for name, method in registry().items() if method.takes != "pair"},
)


class Group(Spec):
    """One student and its teachers, by their names."""

    student: str
    teachers: tuple[str, ...] = Field(min_length=2, description="in the order in which `order: given` takes them")


class _Draw(Spec):
    k: int = Field(ge=2, description="teachers in a group")
    students: tuple[str, ...] = Field(("*",), min_length=1, description="patterns of the students' names")


class Explicit(Spec):
    """The groups that are listed."""

    select: Literal["explicit"]
    sets: tuple[Group, ...] = Field(min_length=1)


class Random(_Draw):
    """For each student `n` groups of `k` teachers, drawn by a hash of their names."""

    select: Literal["random"]
    n: PositiveInt = 1
    seed: Seed = 0


class Ranked(_Draw):
    """For each student the `k` most (or least) accurate teachers on the validation split."""

    select: Literal["ranked"]
    lowest: bool = False


class GroupSpec(Spec):
    """Experiments with several teachers."""

    choose: Annotated[Explicit | Random | Ranked, Field(discriminator="select")]
    methods: GroupMethods


def named(rule: Explicit | Random | Ranked) -> list[tuple[str, str]]:
    """Every name or pattern that a rule gives, behind its place in the configuration."""
    if isinstance(rule, Explicit):
        return [
            (f"groups.choose.sets.{i}", name)
            for i, group in enumerate(rule.sets)
            for name in (group.student, *group.teachers)
        ]
    return [("groups.choose.students", pattern) for pattern in rule.students]


def check(names: Sequence[str], rule: Explicit | Random | Ranked) -> None:
    """Fail where a rule does not fit the zoo.

    Raises:
        KtError: an unknown name, a student among its own teachers, a teacher named twice, a pattern that fits no
            student, or more teachers in a group than there are.
    """
    if isinstance(rule, Explicit):
        for i, group in enumerate(rule.sets):
            at = f"groups.choose.sets.{i}"
            for name in (group.student, *group.teachers):
                if name not in names:
                    raise KtError(f"{at}: {unknown('model', name, names)}")
            if group.student in group.teachers:
                raise KtError(f"{at}.teachers: {group.student!r} is the student; it cannot teach itself")
            if len(set(group.teachers)) < len(group.teachers):
                raise KtError(f"{at}.teachers: {quoted(list(group.teachers))} names a teacher twice")
        return
    for pattern in rule.students:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise KtError(f"groups.choose.students: {pattern!r} fits no model{nearest(pattern, names)}")
    if rule.k > len(names) - 1:
        raise KtError(f"groups.choose.k: {rule.k} teachers asked for, but a student has {len(names) - 1} in this zoo")


def count(names: Sequence[str], rule: Explicit | Random | Ranked) -> dict[str, int]:
    """Number of groups of every student that has one, known before anything runs; in the order of ``names``."""
    if isinstance(rule, Explicit):
        return {s: n for s in names if (n := sum(group.student == s for group in rule.sets))}
    each = min(rule.n, comb(len(names) - 1, rule.k)) if isinstance(rule, Random) else 1
    return {s: each for s in names if any(fnmatchcase(s, pattern) for pattern in rule.students)}


def largest(rule: Explicit | Random | Ranked) -> int:
    """Most teachers in a group."""
    return max(len(group.teachers) for group in rule.sets) if isinstance(rule, Explicit) else rule.k


def choose(
    student: str,
    names: Sequence[str],
    rule: Explicit | Random | Ranked,
    accuracy: Mapping[str, float] | None = None,
) -> list[tuple[str, ...]]:
    """The groups of teachers of one student.

    Args:
        student: its name.
        names: the zoo's models.
        rule: which groups.
        accuracy: of every model on the validation split; needed by ``ranked`` only.

    Raises:
        KtError: ``ranked`` has no accuracies.
    """
    if isinstance(rule, Explicit):
        return [group.teachers for group in rule.sets if group.student == student]
    if not count(names, rule).get(student):
        return []
    others = [name for name in names if name != student]
    if isinstance(rule, Random):
        return _draws(others, student, rule)
    if accuracy is None:
        raise KtError("groups: the rule 'ranked' needs the models' accuracies on the validation split")
    ranked = sorted(others, key=lambda name: accuracy[name] if rule.lowest else -accuracy[name])
    return [tuple(ranked[: rule.k])]


def involved(student: str, names: Sequence[str], rule: Explicit | Random | Ranked) -> list[str]:
    """The models that may be in a student's groups, itself included, known before anything runs."""
    if isinstance(rule, Ranked):
        return list(names)
    teaching = {name for teachers in choose(student, names, rule) for name in teachers}
    return [name for name in names if name == student or name in teaching]


def _draws(others: Sequence[str], student: str, rule: Random) -> list[tuple[str, ...]]:
    """The first ``n`` distinct draws; each takes the ``k`` names whose hashes with the draw's number are lowest."""
    wanted = min(rule.n, comb(len(others), rule.k))
    if wanted == comb(len(others), rule.k):
        return list(combinations(others, rule.k))
    return list(islice(_distinct(others, student, rule), wanted))


def _distinct(others: Sequence[str], student: str, rule: Random) -> Any:
    seen, draw = set(), 0
    while True:
        ranked = sorted(others, key=lambda name: digest([rule.seed, student, draw, name]))
        group = tuple(name for name in others if name in ranked[: rule.k])
        if group not in seen:
            seen.add(group)
            yield group
        draw += 1
