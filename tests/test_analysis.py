import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import tables

from kt.analysis import dyadic, statistics
from kt.analysis.deltas import compare, summarise
from kt.errors import KtError
from kt.tables import schema


def all_pairs(models):
    return np.array(list(permutations(range(models), 2))).T


def slow_standard_error(values, teachers, students):
    """The definition, pair by pair."""
    n, average = len(values), sum(values) / len(values)
    total = count = 0
    for p in range(n):
        for q in range(n):
            if {teachers[p], students[p]} & {teachers[q], students[q]}:
                total += (values[p] - average) * (values[q] - average)
                count += 1
    ordinary = sum((v - average) ** 2 for v in values) / (n * (n - 1))
    left = 1 - count / n**2
    return math.sqrt(max(total / n**2 / left if left > 1e-12 else 0.0, ordinary))


def least(values, teachers, students):
    """The share of what effects of models and pairs would give, below which the error never is."""
    dyads = dyadic.Dyads.of(teachers, students)
    if dyadic._left(np.full((len(values), 1), 1 / len(values)), np.ones((len(values), 1)),
                    np.full((1, 1), 1 / len(values)), dyads)[0] <= dyadic.NOTHING_LEFT:  # fmt: skip
        return 0.0
    found = statistics.moments(values - values.mean(), teachers, students)
    carried = dyadic._carried(np.full((len(values), 1), 1 / len(values)), found, dyads)
    return math.sqrt(dyadic.LEAST * carried.sum())


@pytest.mark.parametrize("second", [("a", "c"), ("c", "a"), ("b", "a"), ("a", "b")])
def test_two_pairs_that_share_one_or_both_models_count_once(second):
    # residuals 2, 2, −2, −2: squares 16, and 2·(2·2) for the two that share; K = 4 + 2; 24/16 / (1 − 6/16) = 2.4
    teachers, students = zip(("a", "b"), second, ("d", "e"), ("f", "g"), strict=True)
    mean, error = dyadic.mean([4.0, 4.0, 0.0, 0.0], teachers, students)
    assert mean == 2
    assert error == pytest.approx(math.sqrt(2.4))


def test_pairs_that_share_nothing_have_the_ordinary_standard_error():
    mean, error = dyadic.mean([1.0, 3.0, 8.0], ["a", "c", "e"], ["b", "d", "f"])
    assert mean == 4
    assert error == pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3))


def test_standard_error_agrees_with_the_definition_on_incomplete_sets_of_pairs():
    rng = np.random.default_rng(0)
    above = 0
    for models in (3, 4, 6, 12):
        for _ in range(5):
            t, s = all_pairs(models)
            some = rng.permutation(len(t))[: rng.integers(2, len(t) + 1)]
            t, s = t[some], s[some]
            values = rng.normal(size=len(t)) + rng.normal(size=models)[s]
            _, error = dyadic.mean(values, t, s)
            slow = slow_standard_error(values.tolist(), t.tolist(), s.tolist())
            assert error == pytest.approx(max(slow, least(values, t, s)))
            above += error > dyadic.ordinary(values) * 1.01
    assert above > 5


def test_standard_error_ignores_order_roles_and_level_and_follows_the_scale():
    rng = np.random.default_rng(1)
    t, s = all_pairs(7)
    values = rng.normal(size=7)[s] + rng.normal(size=len(t))
    mean, error = dyadic.mean(values, t, s)
    order = rng.permutation(len(t))
    assert dyadic.mean(values[order], t[order], s[order]) == pytest.approx((mean, error))
    assert dyadic.mean(values, s, t) == pytest.approx((mean, error))
    assert dyadic.mean(3 * values + 10, t, s) == pytest.approx((3 * mean + 10, 3 * error))


def test_a_hundred_thousand_pairs_of_additive_models_have_the_error_of_the_models():
    rng = np.random.default_rng(2)
    models = 320
    teaches, learns = rng.normal(size=models), rng.normal(size=models)
    t, s = all_pairs(models)
    _, error = dyadic.mean(teaches[t] + learns[s], t, s)
    assert len(t) > 100_000
    assert error == pytest.approx(np.std(teaches + learns, ddof=1) / math.sqrt(models))


def test_standard_error_is_right_on_average_where_the_ordinary_one_is_far_too_small():
    rng = np.random.default_rng(3)
    t, s = all_pairs(8)
    means, robust, ordinary = [], [], []
    for _ in range(1500):
        values = rng.normal(size=8)[s] + 0.3 * rng.normal(size=len(t))
        mean, error = dyadic.mean(values, t, s)
        means.append(mean)
        robust.append(error**2)
        ordinary.append(dyadic.ordinary(values) ** 2)
    assert np.mean(robust) == pytest.approx(np.var(means), rel=0.12)
    assert np.mean(ordinary) < 0.3 * np.var(means)


def test_three_models_fall_back_on_the_ordinary_error():
    t, s = all_pairs(3)
    values = np.arange(6.0)
    assert dyadic.mean(values, t, s)[1] == pytest.approx(dyadic.ordinary(values))


def test_one_pair_has_no_bounded_error_and_no_pair_no_mean():
    assert dyadic.mean([2.0], ["a"], ["b"]) == (2.0, math.inf)
    assert math.isnan(dyadic.mean([], [], [])[0])


def test_a_model_that_teaches_itself_is_refused():
    with pytest.raises(ValueError, match="teacher is its student"):
        dyadic.mean([1.0, 2.0], ["a", "b"], ["a", "c"])


# Three models, a with 80 %, b with 82 %, c with 90 %; a threshold of 2 makes a and b equals.
ACCURACY = {"a": 80.0, "b": 82.0, "c": 90.0}


def scores():
    rows = [(t, s, ACCURACY[t] - ACCURACY[s]) for t, s in permutations(ACCURACY, 2)]
    frame = pd.DataFrame(rows, columns=["teacher", "student", "acc_difference"])
    return frame.assign(split="test", n=100, pos_flips=5.0)


def transfers(*rows):
    """Rows of (method, teacher, student, seed, delta); a delta of None is a failure."""
    return pd.DataFrame(
        [
            {
                "method": m, "teacher": t, "student": s, "seed": seed, "control": m in tables.CONTROLS,
                "uses_labels": m in tables.LABELLED, "trains": True,
                "status": "failed" if delta is None else "ok", "delta": np.nan if delta is None else delta,
                "delta_se": 1.0, "transfer_rate": 50.0, "transfer_rate_published": 70.0, "taught_errors": 9.0, "n": 100,
                "key": f"{m}{'' if m in tables.CONTROLS else t}{s}{seed}",
            }
            for m, t, s, seed, delta in rows
        ]
    )  # fmt: skip


def row_of(summary, method, group="all"):
    rows = summary[(summary["method"] == method) & (summary["group"] == group)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_deltas_are_averaged_over_seeds_before_pairs():
    of_seeds = [("kl", "a", "c", seed, delta) for seed, delta in enumerate((-8.0, 2.0, 0.0))]
    summary = summarise(transfers(*of_seeds, ("kl", "b", "c", 0, 6.0)), scores(), 2.0)
    row = row_of(summary, "kl", "weaker")
    assert (row["delta"], row["median"], row["worst"]) == (2.0, 2.0, -2.0)
    assert (row["pairs"], row["students"], row["seeds"], row["success"]) == (2, 1, 3, 50.0)
    assert row["delta_se_iid"] == pytest.approx(4.0)


def test_taught_errors_are_held_against_those_of_self_with_the_same_teachers_and_seeds():
    rows = [("kl", "a", "c", 0, 1.0), ("kl", "a", "c", 1, 1.0), ("kl", "b", "c", 0, 1.0), ("kl", "c", "a", 0, 1.0)]
    rows += [("self", "a", "c", 0, 0.0), ("self", "b", "c", 0, 0.0), ("self", "c", "a", 1, 0.0)]
    frame = transfers(*rows)
    frame["taught_errors"] = [9.0, 50.0, 7.0, 50.0, 2.0, 4.0, None]
    row = row_of(summarise(frame, scores(), 2.0), "kl")
    assert row["taught_errors"] == pytest.approx((29.5 + 7 + 50) / 3)
    assert row["taught_errors_beyond"] == pytest.approx((7 + 3) / 2)  # only (a, c) and (b, c), seed 0, have both
    own = row_of(summarise(frame, scores(), 2.0), "self")
    assert (own["taught_errors_beyond"], own["taught_errors_beyond_se"]) == (0, np.inf)  # one student's, all equal
    alone = summarise(frame[frame["method"] == "kl"], scores(), 2.0)
    assert alone[["taught_errors_beyond", "taught_errors_beyond_se"]].isna().all(axis=None)


def test_a_teacher_exactly_at_the_threshold_is_equal_and_empty_groups_are_left_out():
    summary = summarise(transfers(("kl", "a", "b", 0, 1.0), ("kl", "c", "a", 0, 2.0)), scores(), 2.0)
    assert summary["group"].tolist() == ["all", "equal", "stronger"]
    tighter = summarise(transfers(("kl", "a", "b", 0, 1.0), ("kl", "c", "a", 0, 2.0)), scores(), 1.9)
    assert tighter["group"].tolist() == ["all", "weaker", "stronger"]


def test_a_seed_mean_of_zero_is_no_success_whatever_rounding_does():
    deltas = (0.1, 0.2, -0.3)
    assert sum(deltas) != 0
    summary = summarise(transfers(*(("kl", "a", "c", i, d) for i, d in enumerate(deltas))), scores(), 2.0)
    assert row_of(summary, "kl")["success"] == 0


def test_failed_units_are_counted_once_and_their_pair_lives_on_its_other_seeds():
    rows = [("kl", "a", "c", 0, None), ("kl", "a", "c", 1, 4.0), ("kl", "b", "c", 0, None)]
    rows += [("self", t, "c", seed, None if seed else 1.0) for t in "ab" for seed in (0, 1)]
    summary = summarise(transfers(*rows), scores(), 2.0)
    assert tuple(row_of(summary, "kl")[["pairs", "failed", "delta"]]) == (1, 2, 4.0)
    assert tuple(row_of(summary, "self")[["pairs", "failed", "delta"]]) == (2, 1, 1.0)


def test_the_error_of_a_control_is_that_of_its_students():
    study = tables.study()
    control = study["transfers"].query("method == 'self'")
    of_students = control.groupby("student")["delta"].mean()
    row = row_of(study["methods"], "self")
    assert row["delta_se"] == pytest.approx(of_students.std(ddof=1) / math.sqrt(len(of_students)))
    assert row["delta_se_iid"] < row["delta_se"] / 2


def test_summary_fits_its_schema_and_lists_the_best_method_first_and_controls_last():
    summary = tables.study()["methods"]
    schema.build("methods", summary.to_dict("list"))
    assert summary["method"].drop_duplicates().tolist() == ["kl_dp", "kl_dp_unsup", "kl", "finetune", "self"]
    one_pair = summarise(transfers(("kl", "a", "c", 0, 1.0)), scores(), 2.0)
    assert schema.build("methods", one_pair.to_dict("list")).num_rows == 2


def test_a_pair_without_a_score_is_named():
    with pytest.raises(KtError, match="teacher 'x' and student 'c'"):
        summarise(transfers(("kl", "x", "c", 0, 1.0)), scores(), 2.0)


def test_methods_are_compared_over_the_pairs_and_seeds_that_both_finished():
    data = transfers(
        ("kl", "a", "c", 0, 1.0), ("kl", "a", "c", 1, 100.0), ("kl", "b", "c", 0, 2.0), ("kl", "c", "a", 0, 50.0),
        ("self", "a", "c", 0, 0.0), ("self", "a", "c", 1, None), ("self", "b", "c", 0, -1.0),
    )  # fmt: skip
    found = compare(data, scores(), 2.0, "kl", "self", "weaker")
    assert (found.mean, found.n) == (2.0, 2)
    back = compare(data, scores(), 2.0, "self", "kl", "weaker")
    assert (back.mean, back.se, back.sign) == (-found.mean, found.se, -found.sign)
    nothing = compare(data, scores(), 2.0, "kl", "self", "stronger")
    assert math.isnan(nothing.mean)
    assert (nothing.n, nothing.sign) == (0, 0)
