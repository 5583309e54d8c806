"""Groups of teachers: which there are, and that bad ones are named before anything runs."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt.errors import KtError
from kt.transfer.groups import Explicit, Group, GroupSpec, Random, Ranked, check, choose, count

NAMES = ["a", "b", "c", "d", "e"]
ACCURACY = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.9, "e": 0.1}


def explicit(*sets: tuple[str, ...]) -> Explicit:
    groups = tuple(Group(student=student, teachers=tuple(teachers)) for student, *teachers in sets)
    return Explicit(select="explicit", sets=groups)


def test_explicit_groups_are_those_listed_in_their_order():
    rule = explicit(("b", "d", "a"), ("a", "b", "c"), ("b", "a", "c"))
    assert choose("b", NAMES, rule) == [("d", "a"), ("a", "c")]
    assert choose("e", NAMES, rule) == []
    assert count(NAMES, rule) == {"a": 1, "b": 2}


def test_ranked_groups_are_the_most_or_least_accurate_others():
    assert choose("b", NAMES, Ranked(select="ranked", k=2), ACCURACY) == [("d", "c")]
    assert choose("e", NAMES, Ranked(select="ranked", k=3), ACCURACY) == [("b", "d", "c")]  # the first of equals
    assert choose("a", NAMES, Ranked(select="ranked", k=2, lowest=True), ACCURACY) == [("e", "c")]
    assert choose("a", NAMES, Ranked(select="ranked", k=2, students=("b",)), ACCURACY) == []
    with pytest.raises(KtError, match="needs the models' accuracies"):
        choose("a", NAMES, Ranked(select="ranked", k=2))


@given(st.integers(2, 4), st.integers(1, 8), st.integers(0, 5), st.sampled_from(NAMES))
def test_random_groups_are_distinct_sets_of_others_and_as_many_as_counted(k, n, seed, student):
    rule = Random(select="random", k=k, n=n, seed=seed)
    found = choose(student, NAMES, rule)
    assert len(found) == len(set(found)) == count(NAMES, rule)[student]
    assert set(found) <= set(combinations([name for name in NAMES if name != student], k))
    assert found == choose(student, NAMES, rule)


def test_random_groups_differ_between_seeds_and_students():
    many = [f"m{i}" for i in range(12)]
    drawn = {tuple(choose("m0", many, Random(select="random", k=3, n=2, seed=seed))) for seed in range(5)}
    assert len(drawn) == 5
    more = choose("m0", many, Random(select="random", k=3, n=3))
    assert more[:2] == choose("m0", many, Random(select="random", k=3, n=2))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (explicit(("a", "b", "a")), "groups.choose.sets.0.teachers: 'a' is the student"),
        (explicit(("a", "b", "c"), ("a", "b", "b")), "groups.choose.sets.1.teachers: ['b', 'b'] names a teacher twice"),
        (explicit(("a", "b", "x")), "groups.choose.sets.0: unknown model 'x'; allowed: a, b, c, d, e"),
        (Random(select="random", k=5), "groups.choose.k: 5 teachers asked for, but a student has 4"),
        (Ranked(select="ranked", k=2, students=("f*",)), "groups.choose.students: 'f*' fits no model"),
    ],
)
def test_a_rule_that_does_not_fit_the_zoo_is_named(rule, message):
    with pytest.raises(KtError) as error:
        check(NAMES, rule)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"choose": {"select": "ranked", "k": 1}, "methods": {"soup": {}}}, "greater than or equal to 2"),
        ({"choose": {"select": "explicit", "sets": ({"student": "a", "teachers": ("b",)},)}, "methods": {"soup": {}}},
         "at least 2 items"),
        ({"choose": {"select": "ranked", "k": 2}, "methods": {}}, "no method chosen; allowed: bikd, parallel"),
        ({"choose": {"select": "ranked", "k": 2}, "methods": {"kl": {}}}, "unknown key 'kl'"),
    ],
)  # fmt: skip
def test_a_group_of_one_and_a_method_for_pairs_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        GroupSpec.model_validate(section)
