"""Transfer delta, its standard error, gain, loss and transfer rate."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kt.tables.columns import SHARES
from kt.tasks.classification import Classification
from kt.transfer import rows
from kt.transfer.rows import gains, taught_errors, transfer_rate

change = partial(rows.change, Classification())

THREE = hnp.arrays(bool, st.tuples(st.just(3), st.integers(1, 200)))
"""Teacher, student before and student after on the same images."""


def bools(*values: int) -> np.ndarray:
    return np.array(values, bool)


def test_change_by_hand():
    # 10 images: 3 gained, 1 lost
    before = bools(0, 0, 0, 1, 1, 1, 1, 0, 0, 0)
    after = bools(1, 1, 1, 0, 1, 1, 1, 0, 0, 0)
    assert change(before, after) == {
        "acc_before": 40.0,
        "acc_after": 60.0,
        "delta": 20.0,
        "delta_se": pytest.approx(18.973665961010276),  # 100 · sqrt((0.3 + 0.1 − 0.2²) / 10)
        "knowledge_gain": 30.0,
        "knowledge_loss": 10.0,
    }


def test_transfer_rate_by_hand():
    teacher, before = bools(1, 1, 1, 1, 0, 0), bools(0, 0, 0, 1, 0, 1)
    assert transfer_rate(teacher, before, bools(1, 0, 0, 1, 1, 1)) == pytest.approx(100 / 3)
    assert transfer_rate(teacher, before, bools(1, 1, 1, 0, 0, 0)) == 100.0
    assert transfer_rate(teacher, before, before) == 0.0


@given(THREE)
def test_change_and_rate_agree_with_a_loop_over_images(three):
    teacher, before, after = three
    n, differences, taught = len(before), [], []
    for i in range(n):
        differences.append(int(after[i]) - int(before[i]))
        if teacher[i] and not before[i]:
            taught.append(bool(after[i]))
    found = change(before, after)
    assert found["knowledge_gain"] == pytest.approx(100 * differences.count(1) / n)
    assert found["knowledge_loss"] == pytest.approx(100 * differences.count(-1) / n)
    assert found["acc_before"] == pytest.approx(100 * sum(before) / n)
    assert found["acc_after"] == pytest.approx(100 * sum(after) / n)
    assert found["delta"] == pytest.approx(100 * sum(differences) / n)
    error = 100 * np.std(differences) / np.sqrt(n) if n > 1 else np.nan
    assert found["delta_se"] == pytest.approx(error, abs=1e-5, nan_ok=True)
    assert transfer_rate(teacher, before, after) == (pytest.approx(100 * sum(taught) / len(taught)) if taught else None)


@given(THREE)
def test_delta_is_gain_minus_loss_and_the_difference_of_accuracies(three):
    _, before, after = three
    found = change(before, after)
    assert found["delta"] == pytest.approx(found["knowledge_gain"] - found["knowledge_loss"], abs=1e-12)
    assert found["delta"] == pytest.approx(found["acc_after"] - found["acc_before"], abs=1e-12)


@given(THREE, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(three, random):
    order = list(range(three.shape[1]))
    random.shuffle(order)
    assert change(*three[1:, order]) == change(*three[1:])
    assert transfer_rate(*three[:, order]) == transfer_rate(*three)


@given(THREE)
def test_turning_back_the_transfer_turns_the_sign_and_swaps_gain_and_loss(three):
    _, before, after = three
    there, back = change(before, after), change(after, before)
    assert back["delta"] == -there["delta"]
    np.testing.assert_equal(back["delta_se"], there["delta_se"])  # a NaN is equal to another
    assert (back["knowledge_gain"], back["knowledge_loss"]) == (there["knowledge_loss"], there["knowledge_gain"])


@given(THREE)
def test_no_change_is_exactly_zero(three):
    teacher, before, _ = three
    found = change(before, before)
    assert [found[name] for name in ("delta", "knowledge_gain", "knowledge_loss")] == [0, 0, 0]
    assert found["delta_se"] == 0 if len(before) > 1 else np.isnan(found["delta_se"])
    assert transfer_rate(teacher, before, before) in (0.0, None)
    assert transfer_rate(before, before, before) is None


@given(THREE)
def test_transfer_rate_looks_at_the_very_same_images(three):
    # As many images gained elsewhere leave the rate at zero: class or total counts would not.
    teacher, before, _ = three
    flips = teacher & ~before
    elsewhere = before | ~(teacher | before)
    expected = 0.0 if flips.any() else None
    assert transfer_rate(teacher, before, elsewhere) == expected
    assert transfer_rate(teacher, before, before | flips) == (100.0 if flips.any() else None)


LABELLED = st.integers(1, 4).flatmap(
    lambda classes: hnp.arrays(np.int64, st.tuples(st.just(4), st.integers(1, 60)), elements=st.integers(0, classes))
)
"""Labels, and the classes that teacher, student before and student after say of the same images."""


@given(LABELLED)
def test_gains_by_class_agree_with_a_loop_over_classes_and_images(four):
    labels, *said = four.tolist()
    teacher, before, after = ([a == y for a, y in zip(of, labels, strict=True)] for of in said)
    flips, gained = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    for y, t, b, a in zip(labels, teacher, before, after, strict=True):
        flips[y] += t and not b
        gained[y] += a and not b
    total, all_gained = sum(flips.values()), sum(gained.values())
    found = gains(*map(np.array, (teacher, before, after, labels)))
    rate = 100 * sum(gained[c] for c in flips if flips[c]) / total if total else None
    assert found.pop("transfer_rate_published") == (None if rate is None else pytest.approx(rate))
    shares = [g / all_gained for g in gained.values() if g]
    entropy = found.pop("gain_entropy")
    assert entropy == (pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-9) if shares else None)
    for share in SHARES:
        area, held = [], 0
        for c in sorted(flips, key=lambda c: (-flips[c], c)) if total else []:
            if 100 * held >= share * total:
                break
            area.append(c)
            held += flips[c]
        inside = 100 * sum(gained[c] for c in area) / all_gained if total and all_gained else None
        assert found.pop(f"gain_in_{share}") == (None if inside is None else pytest.approx(inside))
    assert not found


def test_the_published_rate_counts_images_that_the_teacher_gets_wrong_and_may_pass_a_hundred():
    labels = np.array([0, 0, 0, 1, 1])
    teacher, before, after = bools(1, 0, 0, 0, 0), bools(0, 0, 0, 0, 0), bools(0, 1, 1, 1, 0)
    assert transfer_rate(teacher, before, after) == 0.0
    found = gains(teacher, before, after, labels)
    assert found["transfer_rate_published"] == 200.0  # two images of class 0, the only one where the teacher helps
    assert found["gain_in_50"] == pytest.approx(200 / 3)


@given(LABELLED)
def test_taught_errors_agree_with_a_loop_over_images(four):
    labels, teacher, before, after = four
    could = [a for a, t, b, y in zip(after, teacher, before, labels, strict=True) if b == y != t]
    taught = [a == t for a, t, b, y in zip(after, teacher, before, labels, strict=True) if b == y != t]
    expected = pytest.approx(100 * sum(taught) / len(could)) if could else None
    assert taught_errors([teacher], before == labels, after, labels) == expected
    assert taught_errors([teacher] * 2, before == labels, after, labels) == expected


def test_taught_errors_by_hand():
    labels, before = np.array([0, 0, 0, 1, 1]), bools(1, 1, 1, 1, 0)
    teacher, after = np.array([1, 1, 2, 1, 0]), np.array([1, 2, 2, 0, 0])
    # the teacher is wrong on 0, 1, 2 of those that the student got right; on 0 and 2 it is now wrong in the same way
    assert taught_errors([teacher], before, after, labels) == pytest.approx(200 / 3)
    assert taught_errors([teacher], before, np.where(before, labels, 0), labels) == 0.0
    assert taught_errors([labels], before, after, labels) is None
    # a second teacher that is wrong on 1 and 3, and says on 1 what the student says now
    assert taught_errors([teacher, np.array([0, 2, 0, 2, 1])], before, after, labels) == 75.0
