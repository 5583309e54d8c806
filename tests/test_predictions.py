"""Logits on disk, what they say, and how damage to them is found."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt import predictions
from kt.errors import KtError


def splits_of(seed: int = 0, n: int = 7, classes: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=(n + i, classes)).astype(np.float16), rng.permutation(100)[: n + i])
        for i, name in enumerate(("validation", "test"))
    }


def test_read_gives_back_what_write_wrote(tmp_path):
    splits = splits_of()
    predictions.write(tmp_path / "m.safetensors", splits, "print", "data")
    predictions.verify(tmp_path / "m.safetensors")
    for name, (logits, ids) in splits.items():
        found = predictions.read(tmp_path / "m.safetensors", name)
        assert (found.logits.dtype, found.ids.dtype) == (np.float16, np.int64)
        assert np.array_equal(found.logits, logits)
        assert np.array_equal(found.ids, ids)
        assert (found.fingerprint, found.data) == ("print", "data")


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    predictions.write(tmp_path / "m.safetensors", splits_of(), "print", "data")
    with pytest.raises(KtError, match=r"no predictions for the split 'zoo'; it has: test, validation"):
        predictions.read(tmp_path / "m.safetensors", "zoo")


@pytest.mark.parametrize("content", [None, b"", b"no safetensors file at all", b"\x08\0\0\0\0\0\0\0not json"])
def test_missing_and_unreadable_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "m.safetensors").write_bytes(content)
    for call in (predictions.verify, lambda path: predictions.read(path, "test")):
        with pytest.raises(KtError, match=r"m\.safetensors: predictions cannot be read"):
            call(tmp_path / "m.safetensors")


def test_a_safetensors_file_without_our_facts_is_refused(tmp_path):
    from safetensors.numpy import save_file

    logits, ids = splits_of()["test"]
    save_file({"test.logits": logits, "test.ids": ids}, tmp_path / "m.safetensors")
    with pytest.raises(KtError, match=r"predictions cannot be read \('fingerprint'\)"):
        predictions.read(tmp_path / "m.safetensors", "test")
    with pytest.raises(KtError, match="its content is not what was written"):
        predictions.verify(tmp_path / "m.safetensors")


@given(st.data())
def test_verify_finds_any_damaged_byte(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        predictions.write(path, splits_of(), "print", "data")
        whole = path.read_bytes()
        read = {name: predictions.read(path, name) for name in splits_of()}
        at, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        try:
            predictions.verify(path)
        except KtError:
            return
        for name, before in read.items():  # a byte that means nothing, such as white space of the header
            after = predictions.read(path, name)
            assert after.logits.tobytes() == before.logits.tobytes()
            assert after.ids.tobytes() == before.ids.tobytes()
            assert (after.fingerprint, after.data) == (before.fingerprint, before.data)


def test_verify_finds_a_changed_type_and_changed_facts(tmp_path):
    path = tmp_path / "m.safetensors"
    predictions.write(path, splits_of(), "print", "data")
    whole = path.read_bytes()
    for old, new in [(b'"F16"', b'"I16"'), (b'"print"', b'"prunt"'), (b'"data":"data"', b'"data":"dota"')]:
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(KtError, match="its content is not what was written; delete it and run again"):
            predictions.verify(path)


def test_read_all_keeps_the_order_of_models(tmp_path):
    paths = {}
    for i, name in enumerate(["zeta", "alpha"]):
        splits = {"test": (splits_of(i)["test"][0], splits_of(0)["test"][1])}
        paths[name] = tmp_path / f"{name}.safetensors"
        predictions.write(paths[name], splits, name, "data")
    found = predictions.read_all(paths, "test")
    assert list(found) == ["zeta", "alpha"]


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_predicted_classes_are_the_smallest_integers_that_hold_them_all(classes, dtype):
    logits = np.zeros((3, classes), np.float16)
    logits[1, -1] = logits[2, classes // 2] = 1
    found = predictions.classes(logits)
    assert (found.tolist(), found.dtype) == ([0, classes - 1, classes // 2], dtype)


@pytest.mark.parametrize("other", ["ids", "order", "data"])
def test_read_all_refuses_models_on_different_images(tmp_path, other):
    logits, ids = splits_of()["test"]
    theirs = {"ids": ids + 1, "order": ids[::-1].copy(), "data": ids}[other]
    predictions.write(tmp_path / "a", {"test": (logits, ids)}, "a", "data")
    predictions.write(tmp_path / "b", {"test": (logits, theirs)}, "b", "other" if other == "data" else "data")
    with pytest.raises(KtError, match="predictions of 'b' and 'a' on 'test' are about different images"):
        predictions.read_all({"a": tmp_path / "a", "b": tmp_path / "b"}, "test")


def test_correct_by_hand():
    logits = np.array([[1, 0, 2], [3, 3, 0], [0, 1, 0]], np.float16)
    assert predictions.correct(logits, np.array([2, 1, 1])).tolist() == [True, False, True]  # ties go to the first


def logits_with_confidence(*confidence: float) -> np.ndarray:
    """Logits of two classes where the first has the given probability."""
    return np.array([[math.log(p), math.log(1 - p)] for p in confidence])


def test_calibration_error_by_hand():
    logits = logits_with_confidence(0.9, 0.9, 0.9, 0.6)
    labels = np.array([0, 0, 1, 0])
    # bin of 0.9: 2 of 3 right, gap |0.9 − 2/3|; bin of 0.6: 1 of 1 right, gap 0.4; weights 3/4 and 1/4
    assert predictions.calibration_error(logits, labels) == pytest.approx(100 * (0.75 * (0.9 - 2 / 3) + 0.25 * 0.4))
    # one bin: |mean confidence − accuracy|
    assert predictions.calibration_error(logits, labels, bins=1) == pytest.approx(100 * (0.825 - 0.75))


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_calibration_error_agrees_with_a_loop_over_bins_and_images(seed, bins):
    rng = np.random.default_rng(seed)
    logits, labels = (3 * rng.normal(size=(40, 4))).astype(np.float16), rng.integers(0, 4, 40)
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for z, y in zip(logits.astype(float).tolist(), labels.tolist(), strict=True):
        powers = [math.exp(v) for v in z]
        confidence = max(powers) / sum(powers)
        members[min(int(confidence * bins), bins - 1)].append((confidence, z.index(max(z)) == y))
    expected = 0.0
    for inside in members:
        if inside:
            mean, accuracy = (sum(part) / len(inside) for part in zip(*inside, strict=True))
            expected += len(inside) / 40 * abs(mean - accuracy)
    assert predictions.calibration_error(logits, labels, bins) == pytest.approx(100 * expected, abs=1e-9)
    order = rng.permutation(40)
    assert predictions.calibration_error(logits[order], labels[order], bins) == pytest.approx(100 * expected, abs=1e-9)


def test_calibration_error_is_zero_for_a_sure_and_right_model_and_a_hundred_for_a_sure_and_wrong_one():
    sure = np.array([[60000, -60000], [-60000, 60000]], np.float16)
    assert predictions.calibration_error(sure, np.array([0, 1])) == 0
    assert predictions.calibration_error(sure, np.array([1, 0])) == 100
