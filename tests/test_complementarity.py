"""Complementarity of all pairs at once agrees with a loop over pairs and images."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt import complementarity, schema
from kt.complementarity import class_entropy, expertise, kappa, score


@st.composite
def zoos(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Predicted classes of some models [M, N], labels [N], and the number of classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    models, n, classes = draw(st.integers(2, 5)), draw(st.integers(1, 60)), draw(st.integers(2, 6))
    labels = rng.integers(0, classes, n)
    predicted = np.where(
        rng.random((models, n)) < rng.random((models, 1)), labels, rng.integers(0, classes, (models, n))
    )
    return predicted, labels, classes


def names_of(predicted: np.ndarray) -> list[str]:
    return [f"m{i}" for i in range(len(predicted))]


def plain(t: list[int], s: list[int], labels: list[int], classes: int) -> dict[str, object]:
    """One row of the table, slowly."""
    n, flips, negative, agree, both = len(labels), [0] * classes, 0, 0, 0
    for a, b, y in zip(t, s, labels, strict=True):
        flips[y] += a == y and b != y
        negative += a != y and b == y
        agree += a == b
        both += (a == y) == (b == y)
    positive = sum(flips)
    acc_t, acc_s = (sum(a == y for a, y in zip(who, labels, strict=True)) / n for who in (t, s))
    expected = acc_t * acc_s + (1 - acc_t) * (1 - acc_s)
    areas = {}
    for share in (2, 5, 20, 50):
        ranked, held, areas[f"expertise_{share}"] = sorted(range(classes), key=lambda c: -flips[c]), 0, []
        for c in ranked if positive else []:
            if 100 * held >= share * positive:
                break
            held += flips[c]
            areas[f"expertise_{share}"].append(c)
    return {
        "n": n,
        "acc_teacher": 100 * acc_t,
        "acc_student": 100 * acc_s,
        "acc_difference": 100 * (acc_t - acc_s),
        "pos_flips": 100 * positive / n,
        "pos_flips_se": 100 * math.sqrt(positive / n * (1 - positive / n) / n),
        "neg_flips": 100 * negative / n,
        "agreement": 100 * agree / n,
        "kappa": (both / n - expected) / (1 - expected) if expected < 1 else math.nan,
        "class_entropy": -sum(f / positive * math.log(f / positive) for f in flips if f) if positive else math.nan,
        "flips_by_class": flips,
        **areas,
    }


@given(zoos())
def test_score_agrees_with_a_loop_over_pairs_and_images(zoo):
    predicted, labels, classes = zoo
    table = score(names_of(predicted), predicted, labels, classes, "test")
    assert len(table) == len(predicted) * (len(predicted) - 1)
    for row in table.to_dict("records"):
        t, s = (predicted[int(row[who][1:])].tolist() for who in ("teacher", "student"))
        for name, value in plain(t, s, labels.tolist(), classes).items():
            found = list(row[name]) if isinstance(value, list) else row[name]
            expected = value if isinstance(value, list) else pytest.approx(value, abs=1e-9, nan_ok=True)
            assert found == expected, name


@given(zoos())
def test_positive_minus_negative_flips_is_exactly_the_difference_of_accuracies(zoo):
    predicted, labels, classes = zoo
    table = score(names_of(predicted), predicted, labels, classes, "test")
    n = len(labels)
    positive, negative, difference = (
        (table[c] * n / 100).round().astype(int) for c in ("pos_flips", "neg_flips", "acc_difference")
    )
    assert (positive - negative).equals(difference)
    np.testing.assert_allclose(table["pos_flips"] - table["neg_flips"], table["acc_difference"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(table["acc_teacher"] - table["acc_student"], table["acc_difference"], rtol=0, atol=1e-12)
    assert [sum(flips) for flips in table["flips_by_class"]] == positive.tolist()


@given(zoos(), st.integers(0, 5))
def test_the_order_of_images_does_not_matter(zoo, seed):
    predicted, labels, classes = zoo
    order = np.random.default_rng(seed).permutation(len(labels))
    turned = score(names_of(predicted), predicted[:, order], labels[order], classes, "test")
    pd.testing.assert_frame_equal(turned, score(names_of(predicted), predicted, labels, classes, "test"))


@given(zoos())
def test_exchanging_teacher_and_student_exchanges_the_flips(zoo):
    predicted, labels, classes = zoo
    table = score(names_of(predicted), predicted, labels, classes, "test").set_index(["teacher", "student"])
    back = table.swaplevel().loc[table.index]
    np.testing.assert_array_equal(table["pos_flips"], back["neg_flips"])
    np.testing.assert_array_equal(table["agreement"], back["agreement"])
    np.testing.assert_allclose(table["kappa"], back["kappa"], rtol=0, atol=1e-12)


@given(zoos())
def test_identical_models_have_no_flips_and_agree_always(zoo):
    predicted, labels, classes = zoo
    predicted = np.repeat(predicted[:1], 2, 0)
    row = score(["a", "b"], predicted, labels, classes, "test").iloc[0]
    assert (row["pos_flips"], row["neg_flips"], row["acc_difference"], row["agreement"]) == (0, 0, 0, 100)
    assert math.isnan(row["class_entropy"])
    assert sum(row["flips_by_class"]) == 0
    assert row["expertise_50"] == []
    always_same = (predicted[0] == labels).all() or (predicted[0] != labels).all()
    assert math.isnan(row["kappa"]) if always_same else row["kappa"] == pytest.approx(1)


@given(zoos(), st.integers(0, 2000))
def test_blocks_of_teachers_do_not_change_results(zoo, block_bytes):
    predicted, labels, classes = zoo
    whole = score(names_of(predicted), predicted, labels, classes, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complementarity, "BLOCK_BYTES", block_bytes)
        pd.testing.assert_frame_equal(score(names_of(predicted), predicted, labels, classes, "test"), whole)


def test_score_by_hand_and_in_its_schema():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([[0, 0, 1, 1, 0, 0, 2, 0], [1, 0, 0, 0, 2, 0, 2, 1]])  # teacher: 5 right, student: 3
    table = score(["t", "s"], predicted, labels, 3, "test")
    row = table.iloc[0].to_dict()
    assert (row["teacher"], row["student"], row["split"], row["n"]) == ("t", "s", "test", 8)
    assert (row["acc_teacher"], row["acc_student"], row["acc_difference"]) == (62.5, 37.5, 25)
    assert (row["pos_flips"], row["neg_flips"], row["agreement"]) == (37.5, 12.5, 37.5)
    assert row["flips_by_class"].tolist() == [1, 2, 0]
    assert row["class_entropy"] == pytest.approx(-(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)))
    assert [row[f"expertise_{share}"] for share in (2, 5, 20, 50)] == [[1]] * 4
    # both right or both wrong: 4 of 8; expected by chance 5/8 · 3/8 + 3/8 · 5/8 = 30/64
    assert row["kappa"] == pytest.approx((4 / 8 - 30 / 64) / (1 - 30 / 64))
    assert row["pos_flips_se"] == pytest.approx(100 * math.sqrt(3 / 8 * 5 / 8 / 8))
    assert schema.build("complementarity", table.to_dict("list")).num_rows == 2


def test_kappa_is_one_for_same_errors_zero_for_chance_and_unknown_without_errors():
    accuracy = np.array([0.5, 0.5, 0.8, 1.0])
    both = np.array([[1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 0.8], [0.5, 0.5, 0.8, 1.0]])
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, math.nan]]
    np.testing.assert_allclose(kappa(accuracy, both), expected, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_class_entropy_is_ln_c_for_uniform_flips_and_zero_for_one_class(classes):
    one = np.zeros(classes, np.float32)
    one[-1] = 7
    found = class_entropy(np.stack([np.full(classes, 3, np.float32), one, np.zeros(classes, np.float32)]))
    assert found[:2] == pytest.approx([math.log(classes), 0], abs=1e-12)
    assert math.isnan(found[2])


def test_expertise_by_hand():
    flips = np.array([[1, 50, 29, 20], [0, 0, 0, 0], [5, 5, 5, 5], [0, 0, 3, 0]], np.float32)
    assert expertise(flips, 0.02) == [[1], [], [0], [2]]
    assert expertise(flips, 0.5) == [[1], [], [0, 1], [2]]  # exactly half is enough
    assert expertise(flips, 0.51) == [[1, 2], [], [0, 1, 2], [2]]
    assert expertise(flips, 1.0) == [[1, 2, 3, 0], [], [0, 1, 2, 3], [2]]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 100))
def test_expertise_is_the_fewest_classes_that_hold_the_share(counts, percent):
    (found,) = expertise(np.array([counts], np.float32), percent / 100)
    needed = percent * sum(counts)
    held = [counts[c] for c in found]
    assert 100 * sum(held) >= needed
    assert not held or 100 * sum(held[:-1]) < needed
    assert held == sorted(counts, reverse=True)[: len(held)]
    assert len(set(found)) == len(found)


@given(zoos())
def test_agreement_and_flips_by_class_are_counts_of_images(zoo):
    predicted, labels, classes = zoo
    found = complementarity.agreement(predicted, classes)
    assert found.tolist() == [[int((a == b).sum()) for b in predicted] for a in predicted]
    right = predicted == labels
    for start in range(len(predicted)):
        block = complementarity.flips_by_class(right, labels, classes, slice(start, start + 2))
        expected = [
            [[int((t & ~s & (labels == c)).sum()) for c in range(classes)] for s in right]
            for t in right[start : start + 2]
        ]
        assert block.tolist() == expected
