"""Which pairs get a transfer: deterministic, without self pairs, and stable when the zoo grows."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kt.errors import KtError
from kt.pairs import (
    SCORES,
    All,
    Explicit,
    FromFile,
    PairRule,
    Pattern,
    Random,
    Stratified,
    Top,
    candidates,
    jobs,
    most,
    named,
    part,
    select,
)
from kt.spec import File
from kt.tables import columns, schema

NAMES = st.lists(st.text("abcdef_", min_size=1, max_size=4), min_size=2, max_size=9, unique=True)
PER_JOB = st.integers(1, 5)


def scores_of(names: list[str], seed: int, levels: int = 4) -> pd.DataFrame:
    """A complementarity table with ties and unknown values."""
    rng = np.random.default_rng(seed)
    pairs = [(t, s) for t, s in product(names, names) if t != s]
    values = rng.integers(0, levels, len(pairs)).astype(float)
    values[rng.random(len(pairs)) < 0.2] = np.nan
    frame = pd.DataFrame(pairs, columns=["teacher", "student"]).assign(pos_flips=values, kappa=-values)
    accuracy = dict(zip(sorted(names), rng.normal(80, 8, len(names)), strict=True))
    frame["acc_difference"] = frame["teacher"].map(accuracy) - frame["student"].map(accuracy)
    return frame.sample(frac=1, random_state=seed)


def families_of(names: list[str]) -> dict[str, str | None]:
    """Families by a name's first letter; one is not known."""
    return {name: None if name.startswith("f") else name[0] for name in names}


@st.composite
def rules(draw: st.DrawFn) -> tuple[list[str], PairRule]:
    names = draw(NAMES)
    name = st.sampled_from([*names, "*"])
    patterns = st.builds(lambda t, s: Pattern(teacher=t, student=s), name, name)
    exclude = tuple(draw(st.lists(patterns, max_size=2)))
    rule: PairRule = draw(
        st.one_of(
            st.just(All(select="all", exclude=exclude)),
            st.builds(
                lambda n, seed: Random(select="random", n=n, seed=seed, exclude=exclude),
                st.integers(1, 80),
                st.integers(0, 5),
            ),
            st.builds(
                lambda pairs: Explicit(select="explicit", pairs=tuple(pairs), exclude=exclude),
                st.lists(patterns, min_size=1, max_size=3),
            ),
            st.builds(
                lambda k, by, lowest: Top(select="top", k=k, by=by, lowest=lowest, exclude=exclude),
                st.integers(1, 10),
                st.sampled_from(["pos_flips", "kappa"]),
                st.booleans(),
            ),
            st.builds(
                lambda n, gaps, by_family: Stratified(
                    select="stratified", n=n, gaps=tuple(sorted(gaps)), by_family=by_family, exclude=exclude
                ),
                st.integers(1, 3),
                st.sets(st.floats(-20, 20), min_size=1, max_size=3),
                st.booleans(),
            ),
        )
    )
    try:
        candidates(names, rule)
    except KtError:
        assume(False)
    return names, rule


@given(rules(), PER_JOB, st.integers(0, 3))
def test_every_rule_keeps_its_promises(drawn, per_job, seed):
    names, rule = drawn
    scores = scores_of(names, seed)
    assume(not isinstance(rule, Top) or scores[rule.by].notna().any())
    chosen = select(names, rule, per_job, scores, families_of(names))
    pairs = list(zip(chosen["teacher"], chosen["student"], strict=True))
    # no pair with itself, none twice, none excluded
    assert all(t != s and t in names and s in names for t, s in pairs)
    assert len(set(pairs)) == len(pairs) > 0
    assert not any(pattern.matches(t, s) for pattern in rule.exclude for t, s in pairs)
    # in the order of the names, by student and then by teacher
    assert pairs == sorted(pairs, key=lambda pair: (names.index(pair[1]), names.index(pair[0])))
    # chunks are full but for the last, which takes a small rest too, and counted from 0
    for _, of_student in chosen.groupby("student"):
        sizes = of_student["chunk"].value_counts(sort=False).tolist()
        assert of_student["chunk"].tolist() == sorted(of_student["chunk"])
        assert sizes[:-1] == [per_job] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= per_job + per_job // 4
        assert isinstance(rule, Stratified) or len(sizes) == 1 or 4 * sizes[-1] > per_job
    # the number of jobs is known before; where it depends on scores which strata there are, the most that there may be
    made = (chosen.groupby("student", sort=False)["chunk"].max() + 1).to_dict()
    planned = jobs(names, rule, per_job)
    if isinstance(rule, Stratified):
        assert planned.keys() == made.keys()
        assert all(made[student] <= planned[student] for student in made)
    else:
        assert planned == made
    assert most(rule) is None or chosen.groupby("student").size().max() <= most(rule)
    # the same again, and a table that fits its schema
    pd.testing.assert_frame_equal(select(names, rule, per_job, scores_of(names, seed), families_of(names)), chosen)
    assert schema.build("pairs", chosen.to_dict("list")).num_rows == len(pairs)


@given(NAMES, PER_JOB)
def test_a_model_appended_to_the_zoo_at_most_divides_the_last_chunk_of_other_pairs(names, per_job):
    *old, _ = names
    assume(len(old) > 1)
    rule = All(select="all")
    before = select(old, rule, per_job).set_index(["teacher", "student"])["chunk"]
    after = select(names, rule, per_job).set_index(["teacher", "student"])["chunk"]
    last = jobs(old, rule, per_job)[old[0]] - 1
    assert after.loc[before.index].clip(upper=last).equals(before)
    assert len(after) == len(names) * (len(names) - 1)


@given(NAMES, PER_JOB)
def test_the_parts_of_a_students_teachers_are_those_of_the_table_of_pairs(names, per_job):
    rule, student = All(select="all"), names[0]
    chosen = select(names, rule, per_job).query("student == @student")
    for chunk in range(jobs(names, rule, per_job)[student]):
        assert part(names[1:], chunk, per_job) == chosen.loc[chosen["chunk"] == chunk, "teacher"].tolist()


@given(NAMES, st.integers(1, 40), st.integers(0, 9))
def test_a_new_model_replaces_random_pairs_only_by_its_own(names, n, seed):
    *old, new = names
    assume(len(old) > 1)
    rule = Random(select="random", n=n, seed=seed)
    before, after = set(candidates(old, rule)), set(candidates(names, rule))
    assert len(after) == min(n, len(names) * (len(names) - 1))
    assert all(new in pair for pair in after - before)
    assert len(before - after) <= sum(new in pair for pair in after)


@given(NAMES, st.integers(1, 40), st.integers(0, 9))
def test_random_pairs_do_not_depend_on_the_order_of_names_and_fewer_are_part_of_more(names, n, seed):
    chosen = set(candidates(names, Random(select="random", n=n, seed=seed)))
    assert set(candidates(names[::-1], Random(select="random", n=n, seed=seed))) == chosen
    assert chosen <= set(candidates(names, Random(select="random", n=n + 1, seed=seed)))


def test_the_seed_changes_the_random_pairs():
    names = [f"m{i}" for i in range(12)]
    draws = {tuple(candidates(names, Random(select="random", n=20, seed=seed))) for seed in range(5)}
    assert len(draws) == 5


@given(NAMES, st.integers(1, 5), st.booleans(), st.integers(0, 5))
def test_top_agrees_with_sorting_each_students_teachers(names, k, lowest, seed):
    scores = scores_of(names, seed)
    assume(scores["pos_flips"].notna().any())
    chosen = select(names, Top(select="top", k=k, by="pos_flips", lowest=lowest), 16, scores)
    value = scores.set_index(["teacher", "student"])["pos_flips"].to_dict()
    for student in names:
        teachers = [t for t in names if t != student]
        sign = 1 if lowest else -1
        # unknown values last, ties in the order of the names
        ranked = sorted(
            teachers, key=lambda t: (math.isnan(value[t, student]), sign * value[t, student], names.index(t))
        )
        if any(math.isnan(value[t, student]) for t in teachers):
            known = [t for t in teachers if not math.isnan(value[t, student])]
            unknown = [t for t in teachers if math.isnan(value[t, student])]
            ranked = sorted(known, key=lambda t: (sign * value[t, student], names.index(t))) + unknown
        of_student = chosen[chosen["student"] == student]
        assert set(of_student["teacher"]) == set(ranked[:k])
        for teacher, reason in zip(of_student["teacher"], of_student["reason"], strict=True):
            assert reason == f"top {k} by pos_flips: rank {ranked.index(teacher) + 1}"


def test_all_pairs_by_hand():
    chosen = select(["a", "b", "c"], All(select="all"), 1)
    assert chosen.to_dict("list") == {
        "teacher": ["b", "c", "a", "c", "a", "b"],
        "student": ["a", "a", "b", "b", "c", "c"],
        "reason": ["all"] * 6,
        "chunk": [0, 1, 0, 1, 0, 1],
    }


def test_patterns_are_those_of_file_names_and_tell_capitals_apart():
    rule = Explicit(
        select="explicit",
        pairs=(Pattern(teacher="v*", student="cnn?"), Pattern(teacher="cnn[2]")),
        exclude=(Pattern(teacher="vit_b"),),
    )
    names = ["vit_a", "vit_b", "cnn1", "cnn2", "Vit"]
    expected = [
        ("cnn2", "vit_a"),
        ("cnn2", "vit_b"),
        ("vit_a", "cnn1"),
        ("cnn2", "cnn1"),
        ("vit_a", "cnn2"),
        ("cnn2", "Vit"),
    ]
    assert candidates(names, rule) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (All(select="all", exclude=(Pattern(),)), "pairs: the rule 'all' selects no pair of the 2 models"),
        (All(select="all", exclude=(Pattern(teacher="vitt"),)), "student: .*matches no pair.*; did you mean 'vit'"),
        (
            Explicit(select="explicit", pairs=(Pattern(student="x*"),)),
            r"\{teacher: \*, student: x\*\} matches no pair of distinct models$",
        ),
        (
            Explicit(select="explicit", pairs=(Pattern(),), exclude=(Pattern(),)),
            "the rule 'explicit' selects no pair of the 2 models",
        ),
    ],
)
def test_rules_that_select_nothing_or_patterns_without_a_pair_are_errors(rule, message):
    for call in (candidates, lambda names, rule: jobs(names, rule, 1), lambda names, rule: select(names, rule, 1)):
        with pytest.raises(KtError, match=message):
            call(["vit", "cnn"], rule)


def test_top_needs_the_scores():
    with pytest.raises(KtError, match="the rule 'top' needs the complementarity table of the validation split"):
        select(["a", "b"], Top(select="top", k=1), 1)


def stratified(**options) -> Stratified:
    return Stratified(select="stratified", **options)


@given(NAMES, st.integers(1, 3), st.booleans(), st.integers(0, 5))
def test_every_stratum_gives_each_student_n_teachers_where_it_has_them(names, n, by_family, seed):
    rule, scores, families = stratified(n=n, by_family=by_family), scores_of(names, seed), families_of(names)
    chosen = select(names, rule, 16, scores, families)
    gap = scores.set_index(["teacher", "student"])["acc_difference"]

    def stratum(teacher: str, student: str) -> tuple[object, ...]:
        pair = families[teacher], families[student]
        kin = "unknown" if None in pair else pair[0] == pair[1]
        return student, sum(gap[teacher, student] >= edge for edge in rule.gaps), kin if by_family else None

    there, taken = ({}, {})
    for counted, pairs in (
        (there, candidates(names, rule)),
        (taken, zip(chosen["teacher"], chosen["student"], strict=True)),
    ):
        for pair in pairs:
            counted[stratum(*pair)] = counted.get(stratum(*pair), 0) + 1
    assert taken == {key: min(n, count) for key, count in there.items()}


@given(NAMES, st.integers(1, 3), st.integers(0, 5))
def test_a_new_model_replaces_stratified_pairs_only_by_its_own(names, n, seed):
    *old, new = names
    assume(len(old) > 1)
    rule, scores, families = stratified(n=n, seed=seed), scores_of(names, seed), families_of(names)
    before, after = (
        set(select(zoo, rule, 16, scores, families)[["teacher", "student"]].itertuples(index=False, name=None))
        for zoo in (old, names)
    )
    assert all(new in pair for pair in after - before)
    assert len(before - after) <= sum(new in pair for pair in after)


def test_stratified_by_hand():
    names = ["a1", "a2", "b1", "f1"]
    accuracy = {"a1": 80, "a2": 83, "b1": 70, "f1": 81.9}
    scores = pd.DataFrame(
        [(t, s, accuracy[t] - accuracy[s]) for t, s in product(names, names) if t != s],
        columns=["teacher", "student", "acc_difference"],
    )
    chosen = select(names, stratified(), 16, scores, families_of(names))
    of_a1 = chosen[chosen["student"] == "a1"].set_index("teacher")["reason"].to_dict()
    assert of_a1 == {
        "a2": "stratified: +2 to +10, same family",
        "b1": "stratified: −10 to −2, another family",
        "f1": "stratified: −2 to +2, family unknown",
    }
    plain = select(names, stratified(by_family=False, gaps=(0.0,)), 16, scores)
    reasons = plain.loc[plain["student"] == "a1", "reason"].tolist()
    assert sorted(reasons) == ["stratified: below +0", "stratified: from +0"]


def test_stratified_says_what_it_needs():
    scores = scores_of(["a", "b"], 0)
    with pytest.raises(KtError, match="the rule 'stratified' needs the complementarity table"):
        select(["a", "b"], stratified(), 1)
    with pytest.raises(KtError, match="the rule 'stratified' with by_family needs the table of models"):
        select(["a", "b"], stratified(), 1, scores)
    with pytest.raises(KtError, match=r"no score for teacher '.' and student '.'"):
        select(["a", "b", "c"], stratified(by_family=False), 1, scores)
    with pytest.raises(ValueError, match="must increase"):
        stratified(gaps=(2.0, 1.0))


def test_top_by_a_column_without_values_is_an_error():
    scores = scores_of(["a", "b"], 0).assign(cka=np.nan)
    with pytest.raises(KtError, match=r"pairs.by: the complementarity table has no values of 'cka'"):
        select(["a", "b"], Top(select="top", k=1, by="cka"), 1, scores)


def test_pairs_can_be_ranked_by_every_numeric_column_that_is_not_the_same_for_all():
    numeric = {c.name for c in schema.TABLES["complementarity"] if c.dtype in (columns.REAL, columns.COUNT)}
    assert set(SCORES) == numeric - {"n", "class_similarity"}


def of_file(path: Path, content: str | pd.DataFrame) -> FromFile:
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    else:
        content.to_parquet(path)
    return FromFile(select="file", path=File(str(path), path.name))


def test_pairs_of_a_file_are_in_the_order_of_the_names_whatever_its_kind(tmp_path):
    names, text = ["a", "b", "NA"], "hours,student,teacher\n2,b,NA\n1,a,b\n"
    for rule in (
        of_file(tmp_path / "list.csv", text),
        of_file(tmp_path / "marked.CSV", f"\ufeff{text}"),
        of_file(tmp_path / "list.parquet", pd.DataFrame({"student": ["b", "a"], "teacher": ["NA", "b"]})),
    ):
        chosen = select(names, rule, 16)
        assert list(zip(chosen["teacher"], chosen["student"], strict=True)) == [("b", "a"), ("NA", "b")]
        assert set(chosen["reason"]) == {"file"}
        assert jobs(names, rule, 16) == {"a": 1, "b": 1}
    assert named(rule) == [
        ("pairs.path: row 1: teacher", "NA"),
        ("pairs.path: row 1: student", "b"),
        ("pairs.path: row 2: teacher", "b"),
        ("pairs.path: row 2: student", "a"),
    ]
    excluding = rule.model_copy(update={"exclude": (Pattern(student="b"),)})
    assert candidates(names, excluding) == [("b", "a")]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        (
            "l.csv",
            "teacher,student\nvitt,cnn\ncnn,cnn\nvit,cnn\nvit,cnn\nvit\n",
            [
                "row 1: unknown teacher 'vitt'; allowed: vit, cnn; did you mean 'vit'?",
                "row 2: 'cnn' is its own teacher",
                "row 4: the same pair as in row 3",
                "row 5: unknown student ''; allowed: vit, cnn",
            ],
        ),
        ("l.csv", "teacher,student\n", ["l.csv: holds no pair"]),
        ("l.csv", "", ["l.csv: not a readable csv file (No columns to parse from file)"]),
        (
            "l.csv",
            "teachr,student\nvit,cnn\n",
            ["l.csv: column 'teacher' is missing; there are teachr, student; did you mean 'teachr'?"],
        ),
        (
            "l.parquet",
            pd.DataFrame({"teacher": ["vit", None], "student": ["cnn", "cnn"]}),
            ["row 2: unknown teacher ''; allowed: vit, cnn"],
        ),
        ("l.txt", "vit cnn", ["l.txt: allowed: a .csv or .parquet file"]),
    ],
)
def test_each_mistake_of_a_file_of_pairs_is_one_line(tmp_path, name, content, lines):
    rule = of_file(tmp_path / name, content)
    with pytest.raises(KtError) as error:
        candidates(["vit", "cnn"], rule)
    assert str(error.value).split("\n") == [f"pairs.path: {line}" for line in lines]
