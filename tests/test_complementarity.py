"""Complementarity of all pairs at once agrees with a loop over pairs and images."""

from __future__ import annotations

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import InMemory, Kept, said, score
from vectors import Percent, Success, Vectors

from kt import predictions
from kt.complementarity import agreement, flips, table
from kt.complementarity.expertise import Areas, class_entropy
from kt.complementarity.flips import Places, Right
from kt.complementarity.sources import Files
from kt.complementarity.spec import OF_BITS, OF_CLASSES, ComplementaritySpec
from kt.errors import KtError
from kt.tables import schema
from kt.tables.columns import SHARES


@st.composite
def zoos(draw: st.DrawFn) -> tuple[InMemory, np.ndarray, int]:
    """Models, labels [N] and the number of classes; classes may have no images, or more than a word holds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    models, n, classes = draw(st.integers(2, 5)), draw(st.integers(1, 300)), draw(st.integers(2, 6))
    labels = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 0.3)))
    predicted = np.where(
        rng.random((models, n)) < rng.random((models, 1)), labels, rng.integers(0, classes, (models, n))
    )
    return InMemory.saying([f"m{i}" for i in range(models)], predicted, classes), labels, classes


def classes_of(source: InMemory) -> dict[str, list[int]]:
    return {name: logits.argmax(1).tolist() for name, logits in source.of.items()}


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c) if total else math.nan


def plain(t: list[int], s: list[int], labels: list[int], classes: int) -> dict[str, object]:
    """One row of the table, slowly."""
    n, flips, back = len(labels), [0] * classes, [0] * classes
    both_right = only_student = both_wrong = agree = 0
    for a, b, y in zip(t, s, labels, strict=True):
        flips[y] += a == y and b != y
        back[y] += a != y and b == y
        only_student += a != y and b == y
        both_right += a == y and b == y
        both_wrong += a != y and b != y
        agree += a == b
    positive = sum(flips)
    acc_t, acc_s = (sum(a == y for a, y in zip(who, labels, strict=True)) / n for who in (t, s))
    both, expected = (both_right + both_wrong) / n, acc_t * acc_s + (1 - acc_t) * (1 - acc_s)
    areas = {}
    for share in SHARES:
        ranked, held, area = sorted(range(classes), key=lambda c: -flips[c]), 0, []
        for c in ranked if positive else []:
            if 100 * held >= share * positive:
                break
            held += flips[c]
            area.append(c)
        areas[f"expertise_{share}"] = len(area)
    same, different = both_right * both_wrong, positive * only_student
    return {
        "n": n,
        "acc_teacher": 100 * acc_t,
        "acc_student": 100 * acc_s,
        "acc_difference": 100 * (acc_t - acc_s),
        "pos_flips": 100 * positive / n,
        "pos_flips_se": 100 * math.sqrt(positive / n * (1 - positive / n) / n) if n > 1 else math.nan,
        "neg_flips": 100 * only_student / n,
        "agreement": 100 * agree / n,
        "kappa": (both - expected) / (1 - expected) if expected < 1 else math.nan,
        "double_fault": 100 * both_wrong / n,
        "q_statistic": (same - different) / (same + different) if same + different else math.nan,
        "pos_flips_untrained": 100 * sum(b != y for b, y in zip(s, labels, strict=True)) / n / classes,
        "class_entropy": entropy(flips),
        "neg_class_entropy": entropy(back),
        "flips_by_class": flips,
        "expertise": area,
        **areas,
    }


@given(zoos())
def test_scores_agree_with_a_loop_over_pairs_and_images(zoo):
    source, labels, classes = zoo
    predicted = classes_of(source)
    scores = score(source, labels, classes)
    assert list(zip(scores["teacher"], scores["student"], strict=True)) == [
        (t, s) for t in predicted for s in predicted if t != s
    ]
    for row in scores.to_dict("records"):
        slow = plain(predicted[row["teacher"]], predicted[row["student"]], labels.tolist(), classes)
        for name, value in slow.items():
            found = list(row[name]) if isinstance(value, list) else row[name]
            expected = value if isinstance(value, list) else pytest.approx(value, abs=1e-9, nan_ok=True)
            assert found == expected, name


def test_a_thousand_classes_of_fifty_images_agree_with_the_loop_too():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(1000), 50))
    predicted = np.where(rng.random((2, 50_000)) < 0.8, labels, rng.integers(0, 1000, (2, 50_000)))
    right = Right.of(places := Places.of(labels, 1000), np.stack([places.pack(row == labels) for row in predicted]))
    assert right.by_class.dtype == np.uint8
    flips, negative = right.flips(np.array([0]), np.array([1]))
    slow = plain(*predicted.tolist(), labels.tolist(), 1000)
    assert flips[0].tolist() == slow["flips_by_class"]
    areas = Areas.of(flips)
    assert areas.keys.dtype == np.uint16
    assert areas.sizes[0].tolist() == [slow[f"expertise_{share}"] for share in SHARES]
    assert areas.classes().tolist() == slow["expertise"]
    assert class_entropy(flips)[0] == pytest.approx(slow["class_entropy"], abs=1e-12)
    assert class_entropy(negative)[0] == pytest.approx(slow["neg_class_entropy"], abs=1e-12)


@given(zoos())
def test_positive_minus_negative_flips_is_exactly_the_difference_of_accuracies(zoo):
    source, labels, classes = zoo
    scores, n = score(source, labels, classes), len(labels)
    positive, negative, difference = (
        (scores[c] * n / 100).round().astype(int) for c in ("pos_flips", "neg_flips", "acc_difference")
    )
    assert (positive - negative).equals(difference)
    np.testing.assert_allclose(scores["pos_flips"] - scores["neg_flips"], scores["acc_difference"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        scores["acc_teacher"] - scores["acc_student"], scores["acc_difference"], rtol=0, atol=1e-12
    )
    assert [sum(flips) for flips in scores["flips_by_class"]] == positive.tolist()


@given(zoos(), st.integers(0, 5))
def test_the_order_of_images_does_not_matter(zoo, seed):
    source, labels, classes = zoo
    order = np.random.default_rng(seed).permutation(len(labels))
    turned = InMemory({name: logits[order] for name, logits in source.of.items()})
    pd.testing.assert_frame_equal(score(turned, labels[order], classes), score(source, labels, classes))


@given(zoos())
def test_exchanging_teacher_and_student_exchanges_the_flips(zoo):
    source, labels, classes = zoo
    scores = score(source, labels, classes).set_index(["teacher", "student"])
    back = scores.swaplevel().loc[scores.index]
    np.testing.assert_array_equal(scores["pos_flips"], back["neg_flips"])
    np.testing.assert_array_equal(scores["class_entropy"], back["neg_class_entropy"])
    for name in ("agreement", "kappa", "double_fault", "q_statistic"):
        np.testing.assert_allclose(scores[name], back[name], rtol=0, atol=1e-12)


@given(zoos())
def test_identical_models_have_no_flips_and_agree_always(zoo):
    source, labels, classes = zoo
    same = InMemory(dict.fromkeys(["a", "b"], source.of["m0"]))
    row = score(same, labels, classes).iloc[0]
    assert (row["pos_flips"], row["neg_flips"], row["acc_difference"], row["agreement"]) == (0, 0, 0, 100)
    assert math.isnan(row["class_entropy"])
    assert sum(row["flips_by_class"]) == 0
    assert list(row["expertise"]) == []
    assert row["expertise_50"] == 0
    right = source.of["m0"].argmax(1) == labels
    assert row["double_fault"] == pytest.approx(100 * (~right).mean())
    if right.all() or not right.any():
        assert math.isnan(row["kappa"])
        assert math.isnan(row["q_statistic"])
    else:
        assert row[["kappa", "q_statistic"]].tolist() == pytest.approx([1, 1])


@given(zoos(), st.integers(1, 30))
def test_pieces_do_not_change_results(zoo, rows):
    source, labels, classes = zoo
    whole = score(source, labels, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS", rows)
        patch.setattr("kt.complementarity.scores.TILE", max(1, rows // 2))
        patch.setattr("kt.complementarity.agreement.TILE", 1)
        patch.setattr("kt.complementarity.agreement.HELD_CLASSES", 20 * rows)
        pd.testing.assert_frame_equal(score(source, labels, classes), whole)


def by_hand() -> tuple[InMemory, np.ndarray]:
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([[0, 0, 1, 1, 0, 0, 2, 0], [1, 0, 0, 0, 2, 0, 2, 1]])  # teacher: 5 right, student: 3
    return InMemory.saying(["t", "s"], predicted, 3), labels


def test_scores_by_hand():
    row = score(*by_hand(), 3).iloc[0].to_dict()
    assert (row["teacher"], row["student"], row["split"], row["n"]) == ("t", "s", "test", 8)
    assert (row["acc_teacher"], row["acc_student"], row["acc_difference"]) == (62.5, 37.5, 25)
    assert (row["pos_flips"], row["neg_flips"], row["agreement"], row["double_fault"]) == (37.5, 12.5, 37.5, 25)
    assert row["flips_by_class"].tolist() == [1, 2, 0]
    assert row["class_entropy"] == pytest.approx(-(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)))
    assert [row[f"expertise_{share}"] for share in SHARES] == [1] * 4
    assert row["expertise"].tolist() == [1]
    # both right or both wrong: 4 of 8; expected by chance 5/8 · 3/8 + 3/8 · 5/8 = 30/64
    assert row["kappa"] == pytest.approx((4 / 8 - 30 / 64) / (1 - 30 / 64))
    # both right 2, both wrong 2, only the teacher 3, only the student 1: (2·2 − 3·1) / (2·2 + 3·1)
    assert row["q_statistic"] == pytest.approx(1 / 7)
    assert row["neg_class_entropy"] == 0  # one flip, in class 2
    assert row["pos_flips_untrained"] == pytest.approx(62.5 / 3)
    assert row["pos_flips_se"] == pytest.approx(100 * math.sqrt(3 / 8 * 5 / 8 / 8))


def test_only_the_measures_asked_for_are_there():
    optional = ["agreement", "kappa", "double_fault", "q_statistic", "class_similarity", "expertise_similarity_50"]
    none = score(*by_hand(), 3, ComplementaritySpec(measures=()))
    assert none[optional].isna().all(axis=None)
    assert none[["pos_flips", "class_entropy", "expertise_50"]].notna().all(axis=None)
    some = score(*by_hand(), 3, ComplementaritySpec(measures=("kappa",)))
    assert some["kappa"].notna().all()
    assert some[optional].drop(columns="kappa").isna().all(axis=None)


def test_classes_are_listed_where_the_table_is_small_or_on_request(monkeypatch):
    assert score(*by_hand(), 3)["flips_by_class"].notna().all()
    monkeypatch.setattr(table, "LISTED", 5)  # 2 pairs × 3 classes are more
    lists = ["flips_by_class", "expertise"]
    small = score(*by_hand(), 3)
    assert small[lists].isna().all(axis=None)
    assert small["expertise_50"].tolist() == [1, 1]
    assert score(*by_hand(), 3, ComplementaritySpec(class_lists=True))[lists].notna().all(axis=None)
    assert score(*by_hand(), 3, ComplementaritySpec(class_lists=False))[lists].isna().all(axis=None)


def test_kappa_is_one_for_same_errors_zero_for_chance_and_unknown_without_errors():
    teacher, student, positive = np.array([[5, 5, 0], [5, 5, 5], [8, 5, 4], [10, 10, 0], [0, 0, 0], [10, 5, 5]]).T
    expected = [1, -1, 0, math.nan, math.nan, 0]
    np.testing.assert_allclose(flips.kappa(10, teacher, student, positive), expected, atol=1e-12)


def test_q_is_one_for_same_errors_minus_one_for_opposite_and_unknown_without_errors():
    teacher, student, positive = np.array([[5, 5, 0], [5, 5, 5], [8, 5, 4], [10, 10, 0]]).T
    np.testing.assert_allclose(flips.q_statistic(10, teacher, student, positive), [1, -1, 0, math.nan], atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_class_entropy_is_ln_c_for_uniform_flips_and_zero_for_one_class(classes):
    one = np.zeros(classes, np.uint32)
    one[-1] = 7
    found = class_entropy(np.stack([np.full(classes, 3, np.uint32), one, np.zeros(classes, np.uint32)]))
    assert found[:2] == pytest.approx([math.log(classes), 0], abs=1e-12)
    assert math.isnan(found[2])


def expertise(flips: np.ndarray, area: int) -> list[list[int]]:
    """Classes of one area of expertise, most flips first, for every row."""
    areas = Areas.of(flips)
    ends = np.cumsum(areas.sizes[:, -1])
    listed = np.split(areas.classes(), ends[:-1])
    found = [classes[:size].tolist() for classes, size in zip(listed, areas.sizes[:, area], strict=True)]
    assert [sorted(classes) for classes in found] == [np.flatnonzero(row).tolist() for row in areas.members(area)]
    return found


def test_expertise_by_hand():
    flips = np.array([[1, 50, 29, 20], [0, 0, 0, 0], [5, 5, 5, 5], [0, 0, 3, 0], [3, 49, 24, 24]], np.uint8)
    assert expertise(flips, 0) == [[1], [], [0], [2], [1]]
    assert expertise(flips, 3) == [[1], [], [0, 1], [2], [1, 2]]  # exactly half is enough


@given(st.lists(st.integers(0, 200), min_size=1, max_size=9), st.sampled_from(range(4)), st.sampled_from([1, 2**20]))
def test_expertise_is_the_fewest_classes_that_hold_the_share(numbers, area, times):
    flips = times * np.array([numbers], np.uint32)
    (found,) = expertise(flips, area)
    needed, held = SHARES[area] * sum(numbers), [numbers[c] for c in found]
    assert 100 * sum(held) >= needed
    assert not held or 100 * sum(held[:-1]) < needed
    assert found == sorted(range(len(numbers)), key=lambda c: -numbers[c])[: len(found)]


@pytest.mark.parametrize("says", ["one class", "any class"])
def test_untrained_teachers_have_the_expected_flips_on_average(says):
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, 4, 400), 4
    student = np.where(rng.random(400) < 0.7, labels, (labels + 1) % 4)
    teachers = np.repeat(np.arange(4), 400).reshape(4, 400) if says == "one class" else rng.integers(0, 4, (300, 400))
    names = ["s", *(f"t{i}" for i in range(len(teachers)))]
    scores = score(InMemory.saying(names, np.vstack([student, teachers]), classes), labels, classes)
    rows = scores[scores["student"] == "s"]
    assert rows["pos_flips"].mean() == pytest.approx(
        rows["pos_flips_untrained"].iloc[0], rel=1e-9 if len(rows) == 4 else 0.05
    )


def test_the_table_fits_its_schema():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS", 1)
        frame = score(*by_hand(), 3)
    assert list(frame) == [column.name for column in schema.TABLES["complementarity"]]
    assert schema.build("complementarity", frame.astype(object).where(frame.notna(), None).to_dict("list"))


def test_files_give_slices_of_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(10, 3)).astype(np.float16), np.arange(10)
    predictions.write(tmp_path / "a", {"test": said(logits, ids)}, "a", "data")
    source = Files({"a": tmp_path / "a"}, "test")
    rows = slice(2, 9)
    assert (source.names, source.images) == (["a"], 10)
    assert np.array_equal(source.logits(0, rows), logits[rows])
    assert source.kept(0, rows).tolist() == logits[rows].argmax(1).tolist()
    assert source.top(0, rows).tolist() == np.argsort(-logits[rows], 1).tolist()
    with pytest.raises(KtError, match="no features for the split 'test', which the measure 'cka' needs"):
        source.features(0, rows)


@pytest.mark.parametrize("other", ["ids", "order", "data"])
def test_files_about_different_images_are_refused(tmp_path, other):
    logits, ids = np.zeros((4, 2), np.float16), np.arange(4)
    theirs = {"ids": ids + 1, "order": ids[::-1].copy(), "data": ids}[other]
    predictions.write(tmp_path / "a", {"test": said(logits, ids)}, "a", "data")
    predictions.write(tmp_path / "b", {"test": said(logits, theirs)}, "b", "other" if other == "data" else "data")
    with pytest.raises(KtError, match="predictions of 'b' and 'a' on 'test' are about different images"):
        Files({"a": tmp_path / "a", "b": tmp_path / "b"}, "test")


def test_files_that_are_missing_or_have_no_such_split_are_named(tmp_path):
    with pytest.raises(KtError, match=r"none: predictions cannot be read"):
        Files({"a": tmp_path / "none"}, "test")
    predictions.write(tmp_path / "a", {"test": said(np.zeros((1, 2), np.float16), np.arange(1))}, "a", "data")
    with pytest.raises(KtError, match="no predictions for the split 'validation'; it has: test"):
        Files({"a": tmp_path / "a"}, "validation")


def made(path, source: InMemory, labels: np.ndarray, classes: int, measures=("agreement", "kappa")) -> int:
    """Write or renew a table; returns how many pairs were measured."""
    spec = ComplementaritySpec(measures=tuple(measures))
    with ThreadPoolExecutor(2) as pool:
        found = table.make(source, labels, classes, "test", spec, path, pool)
        schema.write_pieces(path, "complementarity", found.pieces, found.facts.metadata())
    return found.measured


def renewed_as_from_nothing(tmp_path, source: InMemory, labels: np.ndarray, classes: int, **options) -> int:
    """Renew the table, compare it with one from nothing, and return how many pairs were measured."""
    measured = made(tmp_path / "t.parquet", source, labels, classes, **options)
    (tmp_path / "new.parquet").unlink(missing_ok=True)
    made(tmp_path / "new.parquet", source, labels, classes, **options)
    renewed, new = (pq.read_table(tmp_path / name) for name in ("t.parquet", "new.parquet"))
    assert renewed.schema.equals(new.schema, check_metadata=True)
    pd.testing.assert_frame_equal(renewed.to_pandas(), new.to_pandas(), check_exact=True)  # a NaN is equal to another
    return measured


def zoo_of(models: int, seed: int = 0, classes: int = 4, n: int = 90) -> tuple[InMemory, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    predicted = np.where(rng.random((models, n)) < 0.6, labels, rng.integers(0, classes, (models, n)))
    return InMemory.saying([f"m{i}" for i in range(models)], predicted, classes), labels, classes


def without(source: InMemory, *names: str) -> InMemory:
    return InMemory({name: logits for name, logits in source.of.items() if name not in names})


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_adding_a_model_measures_its_own_row_and_column_and_nothing_else(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(table, "ROWS", rows)
    source, labels, classes = zoo_of(6)
    for last in ("m5", "m0", "m3"):  # at the end, at the beginning and in the middle
        (tmp_path / "t.parquet").unlink(missing_ok=True)
        assert made(tmp_path / "t.parquet", without(source, last), labels, classes) == 5 * 4
        assert renewed_as_from_nothing(tmp_path, source, labels, classes) == 2 * 5
        assert renewed_as_from_nothing(tmp_path, source, labels, classes) == 0


def test_agreement_of_unchanged_models_is_not_counted_again(tmp_path, monkeypatch):
    source, labels, classes = zoo_of(6)
    made(tmp_path / "t.parquet", without(source, "m2"), labels, classes)
    compared = []
    equal = agreement.equal
    monkeypatch.setattr(agreement, "equal", lambda one, others: compared.append(len(others)) or equal(one, others))
    made(tmp_path / "t.parquet", source, labels, classes)
    assert sum(compared) == 5


def test_removing_and_reordering_models_measures_nothing(tmp_path):
    source, labels, classes = zoo_of(6)
    made(tmp_path / "t.parquet", source, labels, classes)
    assert renewed_as_from_nothing(tmp_path, without(source, "m2", "m5"), labels, classes) == 0
    turned = InMemory(dict(reversed(without(source, "m2", "m5").of.items())))
    assert renewed_as_from_nothing(tmp_path, turned, labels, classes) == 0


def test_new_weights_under_an_old_name_measure_that_model_again(tmp_path):
    source, labels, classes = zoo_of(6)
    made(tmp_path / "t.parquet", source, labels, classes)
    source.of["m3"] = zoo_of(6, seed=1)[0].of["m3"]
    assert renewed_as_from_nothing(tmp_path, source, labels, classes) == 2 * 5


def test_two_models_that_change_names_are_found_out(tmp_path):
    source, labels, classes = zoo_of(4)
    made(tmp_path / "t.parquet", source, labels, classes)
    source.of["m0"], source.of["m1"] = source.of["m1"], source.of["m0"]
    assert renewed_as_from_nothing(tmp_path, source, labels, classes) == 4 * 3 - 2


@pytest.mark.parametrize("change", ["labels", "classes", "measures", "version", "lists"])
def test_other_images_or_other_measures_measure_everything_again(tmp_path, monkeypatch, change):
    source, labels, classes = zoo_of(4)
    made(tmp_path / "t.parquet", source, labels, classes)
    options = {}
    if change == "labels":
        labels = (labels + 1) % classes
    elif change == "classes":
        classes += 1
        source = InMemory({name: np.pad(logits, ((0, 0), (0, 1))) for name, logits in source.of.items()})
    elif change == "measures":
        options = {"measures": ("kappa", "q_statistic")}
    elif change == "version":
        monkeypatch.setattr(table, "VERSION", table.VERSION + 1)
    else:
        monkeypatch.setattr(table, "LISTED", 0)
    assert renewed_as_from_nothing(tmp_path, source, labels, classes, **options) == 4 * 3


def test_a_new_measure_of_all_pairs_leaves_the_rest_of_the_rows(tmp_path):
    source, labels, classes = zoo_of(4)
    made(tmp_path / "t.parquet", source, labels, classes, measures=["kappa"])
    assert renewed_as_from_nothing(tmp_path, source, labels, classes, measures=["kappa", "agreement"]) == 0
    assert renewed_as_from_nothing(tmp_path, source, labels, classes, measures=["kappa"]) == 0


def test_columns_that_a_table_does_not_have_yet_leave_its_measures_of_all_pairs(tmp_path, monkeypatch):
    source, labels, classes = zoo_of(4)
    path = tmp_path / "t.parquet"
    made(path, source, labels, classes, measures=["agreement"])
    old = pq.read_table(path)
    pq.write_table(old.drop_columns(["neg_class_entropy"]), path)
    counted = []
    equal = agreement.equal
    monkeypatch.setattr(agreement, "equal", lambda one, others: counted.append(1) or equal(one, others))
    assert made(path, source, labels, classes, measures=["agreement"]) == 4 * 3
    assert not counted
    assert pq.read_table(path).equals(old)


@given(zoos(), st.data())
def test_any_change_of_the_zoo_gives_the_table_as_from_nothing(zoo, data):
    source, labels, classes = zoo
    other = InMemory({f"n{i}": logits for i, logits in enumerate(source.of.values())} | dict(source.of))
    names = data.draw(st.lists(st.sampled_from(sorted(other.of)), min_size=2, unique=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS", data.draw(st.integers(1, 20)))
        made(Path(folder) / "t.parquet", source, labels, classes)
        changed = InMemory({name: other.of[name] for name in names})
        measured = renewed_as_from_nothing(Path(folder), changed, labels, classes)
        kept = sum(name in source.of for name in names)
        assert measured == len(names) * (len(names) - 1) - kept * (kept - 1)


@pytest.mark.parametrize("damage", ["garbage", "no facts", "rows", "columns"])
def test_a_table_that_cannot_be_added_to_is_made_anew(tmp_path, damage):
    source, labels, classes = zoo_of(4)
    path = tmp_path / "t.parquet"
    made(path, source, labels, classes)
    old = pq.read_table(path)
    if damage == "garbage":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "no facts":
        pq.write_table(old.replace_schema_metadata(None), path)
    elif damage == "rows":
        pq.write_table(old.slice(1), path)
    else:
        pq.write_table(old.drop_columns(["kappa"]), path)
    assert renewed_as_from_nothing(tmp_path, source, labels, classes) == 4 * 3


def numbers(models: int, images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(models, images))


def test_scores_that_are_numbers_flip_by_as_much_as_they_differ():
    scores, truth = numbers(4, 50), np.zeros((50, 3), np.float32)
    found = score(Kept(1 - scores), truth, 0, task=Vectors()).set_index(["teacher", "student"])
    assert len(found) == 12
    for (teacher, student), row in found.iterrows():
        t, s = scores[int(teacher)], scores[int(student)]
        gains = np.maximum(t - s, 0)
        assert row["acc_teacher"] == pytest.approx(t.mean())
        assert (
            row["acc_difference"] == pytest.approx(row["pos_flips"] - row["neg_flips"]) == pytest.approx((t - s).mean())
        )
        assert row["pos_flips"] == pytest.approx(gains.mean())
        assert row["pos_flips_se"] == pytest.approx(gains.std() / math.sqrt(50))
        assert row["neg_flips"] == pytest.approx(found.loc[(student, teacher), "pos_flips"])
    of_classes = [name for name in found if name.startswith(OF_CLASSES) or name in OF_BITS]
    assert len(of_classes) > 20
    assert found[of_classes].isna().all(axis=None)


def test_at_scores_of_0_and_1_both_ways_give_the_same_numbers():
    right = np.random.default_rng(1).random((3, 400)) < [[0.3], [0.6], [0.9]]
    labels = np.zeros(400, np.int64)
    bits = score(InMemory.saying("012", np.where(right, 0, 1), 2), labels, 2)
    plain = score(Kept(1.0 - right), np.zeros((400, 3)), 0, task=Percent())
    for name in ("n", "acc_teacher", "acc_student", "acc_difference", "pos_flips", "pos_flips_se", "neg_flips"):
        np.testing.assert_allclose(bits[name], plain[name], rtol=1e-12, atol=1e-12)


def test_a_task_of_right_and_wrong_without_classes_has_what_follows_from_bits():
    right = np.random.default_rng(1).random((3, 400)) < [[0.3], [0.6], [0.9]]
    bits = score(InMemory.saying("012", np.where(right, 0, 1), 2), np.zeros(400, np.int64), 2)
    found = score(Kept(1 - right), np.zeros((400, 3)), 0, task=Success())
    same = ["teacher", "student", "split", "n", "acc_teacher", "pos_flips", "pos_flips_se", "neg_flips", *OF_BITS]
    pd.testing.assert_frame_equal(found[same], bits[same])
    assert found[["class_entropy", "expertise_50", "pos_flips_untrained", "agreement"]].isna().all(axis=None)


def test_scores_that_are_not_finite_are_refused():
    kept = numbers(2, 9)
    kept[1, 3] = np.nan
    with pytest.raises(KtError, match="1 of 9 scores of '1' are not finite"):
        score(Kept(kept), np.zeros((9, 3)), 0, task=Vectors())


@pytest.mark.parametrize(("base", "given"), [(Vectors, np.zeros((9, 2))), (Success, np.zeros(9))])
def test_scores_of_the_wrong_form_are_refused(base, given):
    class Wrong(base):  # without a name of its own it is not registered
        def scores(self, kept, truth):
            return given

    with pytest.raises(
        KtError, match=r"scores 9 images by float64 \[9(, 2)?\]; needed is (a number|true or false) for"
    ):
        score(Kept(numbers(2, 9)), np.zeros((9, 3)), 0, task=Wrong())


def test_tables_of_another_task_are_added_to_and_survive_the_file(tmp_path):
    kept, truth = numbers(4, 30), np.zeros((30, 3))
    out, facts = tmp_path / "c.parquet", {schema.TASK: Vectors().words.to_json()}
    with ThreadPoolExecutor(1) as pool:

        def made(models: int) -> int:
            source = Kept(kept[:models])
            found = table.make(source, truth, 0, "test", ComplementaritySpec(), out, pool, Vectors())
            schema.write_pieces(out, "complementarity", found.pieces, facts | found.facts.metadata())
            return found.measured

        assert [made(3), made(4), made(4)] == [6, 6, 0]
        kept[0] += 1
        assert made(4) == 6, "pairs of the model whose scores changed"
    again = schema.read(out, "complementarity").to_pandas()
    pd.testing.assert_frame_equal(again, score(Kept(kept), truth, 0, task=Vectors()), check_dtype=False)
    assert "fit_difference" in pq.read_schema(out).names
