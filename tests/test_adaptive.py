"""Adaptive pairs: numbers per round known beforehand, choices from finished transfers, inference from the rest."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from studies import small_zoo

from kt import stages
from kt.analysis import adaptive, lowrank
from kt.analysis.adaptive import Zoo
from kt.analysis.inputs import prepare
from kt.analysis.outcomes import Pairs, collect
from kt.errors import KtError
from kt.layout import Layout
from kt.pairs import Adaptive, Pattern, candidates, jobs, quotas, rounds, spread, start
from kt.stages.rounds import affordable, hours_of_pair
from kt.status import screen, survey
from kt.study import units
from kt.study.load import load, parse
from kt.study.study import Study
from kt.tables import schema


def rule(**keys: Any) -> Adaptive:
    return Adaptive.model_validate({"select": "adaptive", "share": 0.5, "start": 1, "rounds": 2, **keys})


# numbers of pairs


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 9), min_size=1), st.integers(0, 60))
def test_a_number_is_spread_evenly_within_the_limits_and_no_part_shrinks_when_it_grows(most, total):
    parts = spread(total, most)
    assert sum(parts.values()) == min(total, sum(most.values()))
    assert all(0 <= parts[name] <= most[name] for name in most)
    open_ = [parts[name] for name in most if parts[name] < most[name]]
    assert not open_ or max(parts.values()) - min(open_) <= 1
    assert all(spread(total + 1, most)[name] >= part for name, part in parts.items())


def test_quotas_by_hand():
    # 12 pairs of 4 models, half of them: 4 in round 0, and 1 + 1 of the 2 that are left
    teachers = {"a": 3, "b": 3, "c": 3, "d": 3}
    assert quotas(teachers, rule()) == {"a": [1, 1, 0], "b": [1, 0, 1], "c": [1, 0, 0], "d": [1, 0, 0]}
    assert quotas(teachers, rule(share=1.0))["d"] == [1, 1, 1]
    assert quotas({"a": 1, "b": 5}, rule(share=1.0, start=2)) == {"a": [1, 0, 0], "b": [2, 1, 2]}
    assert quotas(teachers, rule(share=None, budget=3.0))["a"] == [1]
    names = ["a", "b", "c", "d"]
    assert rounds(names, rule()) == {"a": [0, 1], "b": [0, 2], "c": [0], "d": [0]}
    assert jobs(names, rule(), 16) == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert jobs(names, rule(share=None, budget=3.0), 16) == dict.fromkeys(names, 3)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"share": 0.1},
            "pairs.share: 0.1 of 12 pairs are 1, and round 0 takes 4 (1 for each student);"
            " allowed: at least 0.417, or a smaller pairs.start",
        ),
        (
            {"share": 1.0, "start": 3},
            "pairs.share: 1 of 12 pairs are 12, and round 0 takes 12 (3 for each student);"
            " allowed: a smaller pairs.start",
        ),
        ({"rounds": 3}, "pairs.rounds: 3 for 2 pairs; allowed: at most 2"),
        ({"exclude": (Pattern(),)}, "pairs: the rule 'adaptive' selects no pair of the 4 models"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(keys, line):
    with pytest.raises(KtError) as error:
        candidates(["a", "b", "c", "d"], rule(**keys))
    assert str(error.value) == line


def test_random_teachers_of_round_0_do_not_depend_on_other_students_or_on_the_rest():
    names = [f"m{i}" for i in range(9)]
    drawn = start(names, rule(start=3))
    assert [student for _, student in drawn] == [name for name in names for _ in range(3)]
    assert set(drawn) == set(start(names[::-1], rule(start=3)))
    assert set(start(names, rule(start=2))) < set(drawn)
    assert set(start(names, rule(start=3, seed=1))) != set(drawn)


# the configuration


def study_with(pairs: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": "cpu",
        "data": {"source": "digits", "splits": {"zoo": 60, "transfer": 40, "validation": 30, "test": 30}},
        "zoo": small_zoo(
            **{name: {"arch": "tiny_mixer", "train": {"epochs": 1, "seed": i}} for i, name in enumerate("abc")}
        ),
        "pairs": pairs,
        "transfer": {
            "methods": {"kl": {}, "self": {}},
            "seeds": [0],
            "training": {"epochs": 1, "batch_size": 20, "lr": 1e-3},
        },
    }


def test_the_aim_is_called_for():
    given = {"select": "adaptive", "start": 1, "rounds": 2, "share": 0.9, "for": "predict"}
    study = parse(study_with(given), "c.yaml")
    assert isinstance(study.pairs, Adaptive)
    assert study.pairs.aim == "predict"
    assert study.pairs.plain().items() >= given.items()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({}, "pairs: one of 'share' and 'budget' is needed, not none"),
        ({"share": 0.5, "budget": 1.0}, "pairs: one of 'share' and 'budget' is needed, not both"),
        (
            {"share": 0.5, "for": "best_teachr"},
            "pairs.for: unknown value 'best_teachr'; allowed: best_teacher, predict; did you mean 'best_teacher'?",
        ),
        (
            {"share": 0.5, "aim": "predict"},
            "pairs: unknown key 'aim'; allowed: exclude, select, start, rounds, share, budget, for, seed",
        ),
        ({"share": 1.5}, "pairs.share: input should be less than or equal to 1, not 1.5"),
        ({"share": 0.5, "start": 0}, "pairs.start: input should be greater than 0, not 0"),
    ],
)
def test_mistakes_of_the_rule_are_one_line(keys, line):
    with pytest.raises(KtError) as error:
        parse(study_with({"select": "adaptive", **keys}), "c.yaml")
    assert str(error.value).removeprefix("c.yaml: ") == line


# choices


def test_expected_improvement_by_hand():
    mean, error, best = np.array([0.0, 1.0, -9.0, 5.0]), np.array([1.0, 2.0, 1.0, 0.01]), np.array([0.0, 0.0, 0.0, 3.0])
    found = adaptive.improvement(mean, error, best)
    half = 2 * (0.5 * math.erfc(-0.5 / math.sqrt(2)) * 0.5 + math.exp(-1 / 8) / math.sqrt(2 * math.pi))
    assert found == pytest.approx([1 / math.sqrt(2 * math.pi), half, 0, 2], abs=1e-9)


def test_a_pair_is_worth_its_best_method_or_the_mean_over_methods():
    rows = [
        ("a", "b", "kl", False, True, "ok", 1.0),
        ("a", "b", "kl", False, True, "ok", 3.0),
        ("a", "b", "xekl", False, True, "ok", 5.0),
        ("a", "b", "xekl", False, True, "failed", 90.0),
        ("a", "b", "self", True, True, "ok", 99.0),
        ("a", "b", "ensemble", False, False, "ok", 99.0),
        ("c", "b", "kl", False, True, "failed", math.nan),
    ]
    names = ["teacher", "student", "method", "control", "trains", "status", "delta"]
    transfers = pd.DataFrame(rows, columns=names)
    assert adaptive.values(transfers, "best_teacher").to_dict() == {("a", "b"): 5.0}
    assert adaptive.values(transfers, "predict").to_dict() == {("a", "b"): 3.5}


def planted(models: int = 12, seed: int = 0, noise: float = 0.1) -> tuple[Zoo, np.ndarray]:
    """All pairs of some models, and values of teachers, students and one property."""
    rng = np.random.default_rng(seed)
    t, s = (grid.ravel() for grid in np.indices((models, models)))
    t, s = t[t != s], s[t != s]
    x = rng.normal(size=len(t))
    value = rng.normal(0, 2, models)[t] + rng.normal(0, 3, models)[s] + 1.5 * x + rng.normal(0, noise, len(t)) + 4
    pairs = Pairs(t, s, pd.DataFrame({"x": x}))
    return Zoo(pairs, np.column_stack([np.ones(len(t)), x]), models, np.array([False, False])), value


def flags(zoo: Zoo) -> np.ndarray:
    """The rows of the design, written out."""
    return np.column_stack([zoo.x, np.eye(zoo.models)[zoo.pairs.teachers], np.eye(zoo.models)[zoo.pairs.students]])


def test_what_was_learnt_is_the_posterior_for_its_variances_and_predicts_pairs_not_seen():
    zoo, value = planted()
    seen = np.random.default_rng(1).choice(len(value), 60, replace=False)
    known = adaptive.learn(zoo.rows(seen), value[seen])
    z = flags(zoo)
    assert known.mean == pytest.approx(known.covariance @ z[seen].T @ value[seen] / known.noise, rel=1e-6)
    mean, variance = known.predicted(zoo)
    assert variance == pytest.approx(np.einsum("ij,jk,ik->i", z, known.covariance, z))
    others = np.setdiff1d(np.arange(len(value)), seen)
    assert np.sqrt(((mean - value)[others] ** 2).mean()) < 0.4
    assert known.noise < 0.1


def test_promising_properties_are_expected_to_raise_the_value_until_transfers_tell_otherwise():
    zoo, value = planted()
    hoping, few = replace(zoo, promising=np.array([False, True])), np.argsort(abs(zoo.x[:, 1]))[:3]
    learnt = adaptive.learn(hoping.rows(few), value[few], 0.5)  # from pairs that hardly differ in the property
    assert learnt.mean[1] == pytest.approx(0.5 * value[few].std(), rel=0.1)
    for true in (1.5, -1.5):
        known = adaptive.learn(hoping, value + (true - 1.5) * zoo.x[:, 1], 0.5)
        assert known.mean[1] == pytest.approx(true, abs=0.05)
        assert known.noise < 0.1


def test_best_teachers_are_chosen_within_the_quota_of_each_student():
    zoo, value = planted()
    rng = np.random.default_rng(2)
    seen = np.concatenate([rng.choice(np.flatnonzero(zoo.pairs.students == s), 4, replace=False) for s in range(12)])
    allowed = np.ones(len(value), bool)
    allowed[seen] = False
    quota = np.array([2, 0, *[1] * 10])
    picks = adaptive.choose(zoo, seen, value[seen], allowed, quota, "best_teacher")
    rows = [pick.row for pick in picks]
    assert np.bincount(zoo.pairs.students[rows], minlength=12).tolist() == quota.tolist()
    assert allowed[rows].all()
    for student in range(2, 12):
        mine = np.flatnonzero(zoo.pairs.students == student)
        best, taken = value[mine].max(), [row for row in (*rows, *seen) if zoo.pairs.students[row] == student]
        assert best - value[taken].max() < 0.5
    assert picks[0].why.startswith("expected ")
    assert "; best so far " in picks[0].why


@pytest.mark.parametrize("block", [2, 128])
def test_the_most_telling_pair_is_the_one_that_lowers_the_mean_variance_most(block, monkeypatch):
    monkeypatch.setattr(lowrank, "BLOCK", block)
    zoo, value = planted(models=5)
    seen = np.array([0, 3, 7, 11, 14, 18])
    allowed = np.ones(len(value), bool)
    allowed[seen] = False
    picks = adaptive.choose(zoo, seen, value[seen], allowed, np.array([0, 3, 0, 2, 0]), "predict")
    known, z = adaptive.learn(zoo.rows(seen), value[seen]), flags(zoo)
    covariance, expected = known.covariance, []
    for student in (1, 3, 1, 3, 1):
        after = {}
        for row in np.flatnonzero(allowed & (zoo.pairs.students == student)):
            if row not in expected:
                lower = np.linalg.inv(np.linalg.inv(covariance) + np.outer(z[row], z[row]) / known.noise)
                after[row] = np.einsum("ij,jk,ik->i", z, lower, z).mean(), lower
        expected.append(min(after, key=lambda row: after[row][0]))
        covariance = after[expected[-1]][1]
    assert [pick.row for pick in picks] == expected
    error = np.sqrt(np.einsum("ij,jk,ik->i", z, covariance, z).mean())
    assert picks[-1].why.endswith(f"to {error:.4f}")


def test_a_student_without_a_value_and_equal_values_are_no_trouble():
    zoo, value = planted(models=5)
    seen = np.flatnonzero(zoo.pairs.students > 1)[:5]
    allowed = np.ones(len(value), bool)
    for values in (value[seen], np.zeros(5)):
        picks = adaptive.choose(zoo, seen, values, allowed, np.array([1, 1, 0, 0, 0]), "best_teacher")
        assert [zoo.pairs.students[pick.row] for pick in picks] == [0, 1]
        assert "nan" not in picks[0].why


# hours


def test_hours_by_hand():
    rows = [("t", "a", False, 3600.0), ("t", "a", False, 3600.0), ("u", "a", False, 3600.0), ("t", "a", True, 9e9)]
    transfers = pd.DataFrame(rows, columns=["teacher", "student", "control", "seconds"])
    assert hours_of_pair(transfers, ["a", "b"]) == {"a": 1.5, "b": 1.5}
    left = {"a": 9, "b": 9}
    assert affordable(7.0, {"a": 1.0, "b": 2.0}, left) == {"a": 3, "b": 2}
    assert affordable(0.5, {"a": 1.0, "b": 2.0}, left) == {"a": 0, "b": 0}
    assert affordable(-1.0, {"a": 1.0, "b": 2.0}, left) == {"a": 0, "b": 0}
    assert affordable(1e9, {"a": 1.0, "b": 2.0}, left) == left


# the analysis


def test_pairs_chosen_by_results_are_left_out_of_the_analysis():
    transfers = pd.DataFrame(
        [("a", "b", 1.0), ("b", "a", 2.0), ("c", "a", 9.0), ("c", "a", 9.5)], columns=["teacher", "student", "delta"]
    ).assign(method="kl")
    zoo = pd.DataFrame({"name": ["a", "b", "c"]})
    pairs = pd.DataFrame([("a", "b", 0), ("b", "a", 0), ("c", "a", 1)], columns=["teacher", "student", "round"])
    drawn = prepare(transfers, zoo, pairs=pairs)
    assert drawn.transfers["delta"].tolist() == [1.0, 2.0]
    assert drawn.left_out == 1
    for table in (None, pairs.drop(columns="round"), pairs.assign(round=0)):
        assert prepare(transfers, zoo, pairs=table).left_out == 0


# a study


def opened(folder: Path) -> tuple[Study, Layout]:
    pairs = {"select": "adaptive", "start": 1, "rounds": 2, "share": 1.0}
    (folder / "config.yaml").write_text(yaml.safe_dump({**study_with(pairs), "results": str(folder / "results")}))
    study = load(folder / "config.yaml")
    return study, Layout(Path(study.results))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose models are there, with their scores, and without a transfer."""
    folder = tmp_path_factory.mktemp("adaptive")
    study, layout = opened(folder)
    stages.data(study, layout, 1)
    for name in study.names:
        stages.weights(study, layout, name, 1)
        stages.predict(study, layout, name, 1)
    stages.zoo(study, layout, layout.table("zoo"))
    for split in ("validation", "test"):
        stages.complementarity(study, layout, split, layout.complementarity(split), 1)
    return folder


@pytest.fixture
def made(scored: Path, tmp_path: Path) -> tuple[Study, Layout]:
    """A copy of it."""
    shutil.copytree(scored / "results", tmp_path / "results")
    return opened(tmp_path)


def transfer(study: Study, layout: Layout, number: int) -> None:
    for student, mine in rounds(study.names, study.pairs).items():
        if number in mine:
            chunk = mine.index(number)
            stages.transfer(study, layout, student, chunk, layout.round(number), layout.transfer(student, chunk), 1)


def test_rounds_of_a_study(made, tmp_path):
    study, layout = made
    lines = screen.rounds(study, layout, survey(study, layout))
    assert [line.split(",")[0] for line in lines] == ["round 0: 3 pairs", "round 1: 1 pair", "round 2: 2 pairs"]
    assert "3 trainings" in lines[0]
    assert lines[0].endswith("(not chosen yet)")
    for number in range(3):
        stages.choose_round(study, layout, number, layout.round(number))
        if number == 1:  # killed between the choice and its transfers, or before it was written: the same again
            again = tmp_path / "again.parquet"
            stages.choose_round(study, layout, number, again)
            assert schema.read(again, "pairs", extra=True).equals(schema.read(layout.round(1), "pairs", extra=True))
        transfer(study, layout, number)
    assert all(line.endswith("(done)") for line in screen.rounds(study, layout, survey(study, layout)))
    stages.pairs(study, layout, None, None, layout.table("pairs"))
    pairs = schema.read(layout.table("pairs"), "pairs", extra=True).to_pandas()
    assert sorted(pairs["round"]) == [0, 0, 0, 1, 2, 2]
    assert set(zip(pairs["teacher"], pairs["student"], strict=True)) == set(candidates(study.names, study.pairs))
    assert set(pairs.loc[pairs["round"] == 0, "why"]) == {"drawn at random"}
    assert pairs.loc[pairs["round"] > 0, "why"].str.startswith("expected ").all()
    stages.gather(study, layout, layout.tables)
    transfers = schema.read_frame(layout.table("transfers"), "transfers")
    # each pair once by the method, and once in the control, whose training all of a student's pairs share
    assert len(transfers) == 12
    assert not transfers.duplicated(["teacher", "student", "method"]).any()
    assert transfers[transfers["control"]].groupby("student")["key"].nunique().eq(1).all()


def rewrite(path: Path, table: str, values: dict[str, float]) -> None:
    """Other values in all rows of a table."""
    rows = schema.read(path, table).to_pylist()
    schema.write(path, table, schema.build(table, [{**row, **values} for row in rows]))


def test_a_choice_sees_no_test_image(made, tmp_path):
    study, layout = made
    stages.choose_round(study, layout, 0, layout.round(0))
    transfer(study, layout, 0)
    first = tmp_path / "first.parquet"
    stages.choose_round(study, layout, 1, first)
    changed = {"acc": 99.0, "ece": 50.0, "entropy": 9.0, "log_ratio": 9.0}
    rewrite(layout.table("zoo"), "zoo", changed)
    for student in study.names:
        rewrite(layout.transfer(student, 0), "transfers", {"delta": -50.0})
    layout.complementarity("test").unlink()
    second = tmp_path / "second.parquet"
    stages.choose_round(study, layout, 1, second)
    assert schema.read(first, "pairs", extra=True).equals(schema.read(second, "pairs", extra=True))


def test_with_a_budget_a_round_spends_its_part_of_the_hours(made, tmp_path):
    study, layout = made
    hourly = study.model_copy(update={"pairs": rule(share=None, budget=1e6)})
    stages.choose_round(hourly, layout, 0, layout.round(0))
    lines = screen.rounds(hourly, layout, survey(hourly, layout))
    assert lines[1:] == [
        "round 1: an equal part of what is left of 1e+06 hours",
        "round 2: all of what is left of 1e+06 hours",
    ]
    assert len(units.rounds(hourly, layout, hourly.pairs).pairs) == 3
    transfer(study, layout, 0)
    stages.choose_round(hourly, layout, 1, layout.round(1))
    assert schema.read(layout.round(1), "pairs").num_rows == 3  # all that is left
    broke = study.model_copy(update={"pairs": rule(share=None, budget=1e-9)})
    stages.choose_round(broke, layout, 1, layout.round(1))
    assert schema.read(layout.round(1), "pairs").num_rows == 0
    stages.transfer(broke, layout, "a", 1, layout.round(1), layout.transfer("a", 1), 1)
    assert schema.read(layout.transfer("a", 1), "transfers").num_rows == 0


def test_rounds_by_hand_say_what_they_need(made, tmp_path):
    study, layout = made
    for call, line in (
        (
            lambda: stages.choose_round(study, layout, 3, tmp_path / "x"),
            "--round: 3 is not among those of pairs.rounds",
        ),
        (
            lambda: stages.transfer(study, layout, "a", 0, None, tmp_path / "x", 1),
            "the rule 'adaptive' chooses round by",
        ),
        (
            lambda: stages.choose_round(
                parse({**study_with({"select": "all"}), "results": str(tmp_path)}, "c.yaml"), layout, 0, tmp_path / "x"
            ),
            "pairs.select: 'all' has no rounds; allowed: adaptive",
        ),
    ):
        with pytest.raises(KtError, match=line):
            call()


def test_properties_that_do_not_differ_or_are_unknown_are_no_trouble():
    zoo = pd.DataFrame({"name": ["a", "b", "c"], "acc": [1.0, 2.0, 4.0], "year": [np.nan, 2000.0, 2001.0]})
    transfers = pd.DataFrame({"teacher": ["a"], "student": ["b"], "method": ["kl"], "delta": [1.0]})
    inputs = prepare(transfers, zoo)
    known = collect(inputs, ["a", "b", "c"])
    made = Zoo.of(known, np.array([0, 0, 1, 2]), np.array([1, 2, 2, 0]))
    assert np.isfinite(made.x).all()
    assert made.x[:, 0].tolist() == [1, 1, 1, 1]
