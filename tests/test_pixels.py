"""Complementarity of segmentation, pixel by pixel: hand-worked masks, a slow loop, single pixels, and resampling."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import InMemory, Said, score

from kt.complementarity import pixels, table
from kt.complementarity.expertise import LOOKED_UP, Areas, class_entropy
from kt.complementarity.spec import ComplementaritySpec, possible
from kt.tables import schema
from kt.tasks.segmentation import IGNORED, Segmentation

TASK = Segmentation()


def scored(maps: np.ndarray, truth: np.ndarray, classes: int) -> pd.DataFrame:
    return score(Said(maps, truth, classes), truth, classes, task=TASK)


@st.composite
def masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Predictions [M, N, H, W], truth [N, H, W] with pixels that have none, and the number of classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    models, n, classes = draw(st.integers(2, 4)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    shape = (n, draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    truth = rng.choice(classes, shape, p=rng.dirichlet(np.full(classes, 0.5))).astype(np.uint8)
    right = rng.random((models, *shape)) < rng.random((models, 1, 1, 1))
    maps = np.where(right, truth, rng.integers(0, classes, (models, *shape)))
    truth[rng.random(shape) < draw(st.sampled_from([0, 0.3]))] = IGNORED
    truth[0, 0, 0] = 0
    return maps.astype(np.uint8), truth, classes


def plain(t: np.ndarray, s: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, object]:
    """The columns of one pair that come from pixels, slowly."""
    flips, back, per_image, sizes = [0] * classes, [0] * classes, [], []
    agree = wrong = right = right_t = right_s = 0
    for a_mask, b_mask, y_mask in zip(t, s, truth, strict=True):
        per_image.append(0)
        sizes.append(0)
        for a, b, y in zip(a_mask.ravel().tolist(), b_mask.ravel().tolist(), y_mask.ravel().tolist(), strict=True):
            if y == IGNORED:
                continue
            sizes[-1] += 1
            per_image[-1] += a == y != b
            flips[y] += a == y != b
            back[y] += b == y != a
            agree += a == b
            right += a == y == b
            wrong += a != y != b
            right_t += a == y
            right_s += b == y
    n, positive, negative = sum(sizes), sum(flips), sum(back)
    rate = positive / n
    squares = sum((f - rate * v) ** 2 for f, v in zip(per_image, sizes, strict=True))
    error = math.sqrt(squares) / n if sum(map(bool, sizes)) > 1 else math.nan
    expected = (right_t * right_s + (n - right_t) * (n - right_s)) / n**2
    same, different = right * wrong, positive * negative

    def entropy(counts: list[int]) -> float:
        total = sum(counts)
        return -sum(c / total * math.log(c / total) for c in counts if c) if total else math.nan

    return {
        "pixel_flips": 100 * rate,
        "pixel_flips_se": 100 * error,
        "neg_pixel_flips": 100 * negative / n,
        "class_entropy": entropy(flips),
        "neg_class_entropy": entropy(back),
        "flips_by_class": flips,
        "agreement": 100 * agree / n,
        "kappa": ((right + wrong) / n - expected) / (1 - expected) if expected < 1 else math.nan,
        "double_fault": 100 * wrong / n,
        "q_statistic": (same - different) / (same + different) if same + different else math.nan,
    }


def assert_equal(row: dict[str, object], slow: dict[str, object]) -> None:
    for name, value in slow.items():
        found = list(row[name]) if isinstance(value, list) else row[name]
        assert found == (value if isinstance(value, list) else pytest.approx(value, abs=1e-6, nan_ok=True)), name


TRUTH = np.array([[[0, 0, 1], [1, 2, 2], [2, IGNORED, IGNORED]], [[0, 0, 0], [1, 1, 1], [2, 2, IGNORED]]], np.uint8)
FIRST = np.array([[[0, 0, 1], [1, 0, 0], [0, 1, 2]], [[0, 1, 0], [1, 1, 1], [0, 0, 0]]], np.uint8)
SECOND = np.array([[[0, 1, 1], [0, 2, 2], [2, 2, 1]], [[0, 0, 0], [1, 0, 0], [2, 0, 1]]], np.uint8)
"""Two images of 3×3 pixels: the first model knows the classes 0 and 1 better, the second one class 2."""


def test_two_images_worked_by_hand():
    first, second = scored(np.stack([FIRST, SECOND]), TRUTH, 3).to_dict("records")
    assert (first["teacher"], first["student"], first["n"]) == ("m0", "m1", 2)
    # m0 is right on 4 and 5 pixels (0 0 1 1, 0 0 1 1 1), m1 on 5 and 5; m0 alone: a 0 and a 1, then two 1s
    assert list(first["flips_by_class"]) == [1, 3, 0]
    assert list(second["flips_by_class"]) == [1, 0, 4]
    assert first["pixel_flips"] == pytest.approx(100 * 4 / 15)
    assert first["neg_pixel_flips"] == second["pixel_flips"] == pytest.approx(100 * 5 / 15)
    # 2 flips of 7 pixels, 2 of 8: their deviations from 4/15 of the pixels are 2/15 and −2/15
    assert first["pixel_flips_se"] == pytest.approx(100 * math.sqrt(2 * (2 / 15) ** 2) / 15)
    assert first["class_entropy"] == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert [first[f"expertise_{share}"] for share in (2, 5, 20, 50)] == [1, 1, 1, 1]
    assert list(first["expertise"]) == [1]
    assert first["double_fault"] == pytest.approx(100 * 1 / 15)  # the second image's last 2
    assert first["agreement"] == pytest.approx(100 * 6 / 15)  # 5 rightly, and that 2 as class 0
    # m0 says 0 nine times, 4 of the five are there; 1 six times, all five are there; 2 never
    assert first["acc_teacher"] == pytest.approx(100 * (4 / 10 + 5 / 6 + 0) / 3)


@given(masks())
def test_pixels_agree_with_a_loop_over_images_and_pixels(given_masks):
    maps, truth, classes = given_masks
    rows = scored(maps, truth, classes).to_dict("records")
    assert len(rows) == len(maps) * (len(maps) - 1)
    for row in rows:
        t, s = (maps[int(row[role][1:])] for role in ("teacher", "student"))
        assert_equal(row, plain(t, s, truth, classes))


@given(masks())
def test_flips_differ_by_exactly_the_difference_of_pixel_accuracy_and_of_mean_iou(given_masks):
    maps, truth, classes = given_masks
    found, valid = scored(maps, truth, classes), truth != IGNORED
    right = [(100 * (of_model == truth)[valid].mean()) for of_model in maps]
    for row in found.to_dict("records"):
        gap = right[int(row["teacher"][1:])] - right[int(row["student"][1:])]
        assert row["pixel_flips"] - row["neg_pixel_flips"] == pytest.approx(gap, abs=1e-9)
        assert row["pos_flips"] - row["neg_flips"] == pytest.approx(row["acc_difference"], abs=1e-9)
        assert row["n"] == len(truth)


@given(masks(), st.integers(0, 2**32))
def test_pixels_without_a_truth_change_nothing(given_masks, seed):
    maps, truth, classes = given_masks
    other = np.where(truth == IGNORED, np.random.default_rng(seed).integers(0, classes, maps.shape), maps)
    pd.testing.assert_frame_equal(scored(maps, truth, classes), scored(other, truth, classes))


@given(masks())
def test_a_model_that_predicts_the_same_teaches_nothing(given_masks):
    maps, truth, classes = given_masks
    found = scored(np.stack([maps[0], maps[0]]), truth, classes)
    for name in ("pixel_flips", "neg_pixel_flips", "pos_flips", "neg_flips"):
        assert (found[name] == 0).all()
    of_several = (truth != IGNORED).any((1, 2)).sum() > 1
    assert (found["pixel_flips_se"] == 0).all() if of_several else found["pixel_flips_se"].isna().all()
    assert (found["agreement"] == 100).all()


@given(masks(), st.integers(1, 5), st.integers(1, 200))
def test_few_images_at_a_time_give_the_same_in_one_pass_over_the_pixels(given_masks, held, most):
    maps, truth, classes = given_masks
    whole = scored(maps, truth, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "HELD", held * maps[0, 0].size * len(maps))
        patch.setattr(pixels, "SORTED", most)
        source = Said(maps, truth, classes)
        pd.testing.assert_frame_equal(score(source, truth, classes, task=TASK), whole, rtol=1e-12)
    for model in range(len(maps)):
        read = sorted((start, stop) for which, start, stop in source.read if which == model)
        assert [start for start, _ in read] == [0, *(stop for _, stop in read[:-1])]
        assert read[-1][1] == len(truth)


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 200))
def test_images_of_one_pixel_reproduce_the_columns_of_classification(seed, classes, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    said = np.where(rng.random((3, n)) < 0.6, labels, rng.integers(0, classes, (3, n)))
    named = InMemory.saying(["m0", "m1", "m2"], said, classes)
    ours, theirs = (
        scored(said[..., None, None], labels[:, None, None].astype(np.uint8), classes),
        score(named, labels, classes),
    )
    for name in ("teacher", "student", "n", "class_entropy", "neg_class_entropy", "agreement", "kappa", "q_statistic"):
        pd.testing.assert_series_equal(ours[name], theirs[name], check_exact=True)
    for name in ("double_fault", "expertise", "flips_by_class", *(f"expertise_{share}" for share in (2, 5, 20, 50))):
        pd.testing.assert_series_equal(ours[name], theirs[name], check_exact=True)
    assert ours["pixel_flips"].tolist() == theirs["pos_flips"].tolist()
    assert ours["neg_pixel_flips"].tolist() == theirs["neg_flips"].tolist()
    errors = theirs["pos_flips_se"].to_numpy()
    assert ours["pixel_flips_se"].to_numpy() == pytest.approx(errors, rel=1e-9, abs=1e-9, nan_ok=True)


def test_the_error_over_images_is_that_of_resampling_them_and_not_of_pixels():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (150, 12, 12)).astype(np.uint8)
    good = rng.random((2, 150, 1, 1)) ** 2  # whole images that a model knows
    maps = np.where(rng.random((2, 150, 12, 12)) < good, truth, rng.integers(0, 3, (2, 150, 12, 12)))
    truth[rng.random(truth.shape) < rng.random((150, 1, 1))] = IGNORED  # images of very different size
    valid = truth != IGNORED
    flips = ((maps[0] == truth) & (maps[1] != truth) & valid).sum((1, 2))
    drawn = rng.integers(0, 150, (4000, 150))
    rates = 100 * flips[drawn].sum(1) / valid.sum((1, 2))[drawn].sum(1)
    row = scored(maps, truth, 3).to_dict("records")[0]
    assert row["pixel_flips_se"] == pytest.approx(rates.std(), rel=0.04)
    binomial = math.sqrt(row["pixel_flips"] * (100 - row["pixel_flips"]) / valid.sum())
    assert row["pixel_flips_se"] > 2 * binomial


def test_measures_of_whole_images_are_left_out_and_classification_has_no_pixels():
    found = scored(np.stack([FIRST, SECOND]), TRUTH, 3)
    for name in ("pos_flips_untrained", "class_similarity", "expertise_similarity_50", "capa", "cka", "leep"):
        assert found[name].isna().all()
        assert not possible(name, TASK.words)
    labels = np.array([0, 1, 1])
    plain_table = score(InMemory.saying(["a", "b"], np.array([[0, 1, 1], [0, 0, 1]]), 2), labels, 2)
    for name in ("pixel_flips", "pixel_flips_se", "neg_pixel_flips"):
        assert plain_table[name].isna().all()
        assert not possible(name, table.CLASSIFICATION.words)


def made(source: Said, truth: np.ndarray, earlier: Path | None) -> table.Table:
    with ThreadPoolExecutor(2) as pool:
        found = table.make(source, truth, 3, "test", ComplementaritySpec(), earlier, pool, TASK)
        return table.Table(found.facts, found.measured, iter(list(found.pieces)))


def test_rows_of_an_earlier_table_are_kept_where_predictions_and_masks_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (5, 6, 6)).astype(np.uint8)
    maps = rng.integers(0, 3, (4, 5, 6, 6)).astype(np.uint8)
    path, facts = tmp_path / "c.parquet", {schema.TASK: TASK.words.to_json()}

    def run(maps: np.ndarray, truth: np.ndarray) -> tuple[int, int, pd.DataFrame]:
        source = Said(maps, truth, 3)
        found = made(source, truth, path)
        schema.write_pieces(path, "complementarity", found.pieces, facts | found.facts.metadata())
        return found.measured, len(source.read), schema.read_frame(path, "complementarity")

    assert run(maps[:3], truth)[0] == 6
    assert run(maps[:3], truth)[:2] == (0, 0)  # nothing is read
    measured, _, table_of_four = run(maps, truth)
    assert measured == 6
    pd.testing.assert_frame_equal(table_of_four, scored(maps, truth, 3), rtol=1e-12)
    changed = maps.copy()
    changed[1, 0, 0, 0] = (changed[1, 0, 0, 0] + 1) % 3
    assert run(changed, truth)[0] == 6
    swapped = changed.copy()  # the same counts of classes, elsewhere
    swapped[2] = changed[2][:, ::-1]
    measured, _, of_swapped = run(swapped, truth)
    assert measured == 6
    pd.testing.assert_frame_equal(of_swapped, scored(swapped, truth, 3), rtol=1e-12)
    other = truth.copy()
    other[0, 0, 0] = IGNORED
    assert run(swapped, other)[0] == 12


def test_a_table_of_an_earlier_version_without_these_columns_is_scored_anew(tmp_path):
    source, path = Said(np.stack([FIRST, SECOND]), TRUTH, 3), tmp_path / "c.parquet"
    first = made(source, TRUTH, None)
    schema.write_pieces(
        path, "complementarity", first.pieces, {schema.TASK: TASK.words.to_json()} | first.facts.metadata()
    )
    import pyarrow.parquet as pq

    whole = pq.read_table(path)
    pq.write_table(whole.drop_columns(["pixel_flips", "pixel_flips_se", "neg_pixel_flips"]), path)
    old = schema.read_frame(path, "complementarity")
    assert old["pixel_flips"].isna().all()
    assert made(source, TRUTH, path).measured == 2


def test_entropies_of_millions_of_flips_need_no_table_of_logarithms():
    few = np.array([[3, 1, 0, 4]])
    many = few * LOOKED_UP
    assert class_entropy(many) == pytest.approx(class_entropy(few), abs=1e-12)
    assert Areas.of(many).sizes.tolist() == Areas.of(few).sizes.tolist()
    assert Areas.of(many).classes().tolist() == Areas.of(few).classes().tolist()
