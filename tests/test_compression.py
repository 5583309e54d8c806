"""The largest logits alone: what comes back, and the error that is told."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kt import compression, predictions
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.tasks.classification import Classification
from kt.zoo.inference import predict


def random_logits(n: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (n, classes)).astype(np.float16)


def test_by_hand():
    logits = np.log(np.array([[0.5, 0.1, 0.3, 0.1]])).astype(np.float16)
    kept = compression.largest(logits, 2)
    assert kept.classes.tolist() == [[0, 2]]
    assert kept.classes.dtype == np.uint8
    np.testing.assert_allclose(np.exp(kept.values.astype(float)), [[0.5, 0.3]], rtol=1e-3)
    np.testing.assert_allclose(np.exp(kept.rest.astype(float)), [0.1], rtol=1e-3)
    # the two that are left out are equal, so nothing is lost; with one kept, 0.5 is shared by three
    assert compression.divergence(logits, kept)[0] == pytest.approx(0, abs=1e-3)
    p = np.array([0.1, 0.3, 0.1])
    lost = (p * np.log(p / (0.5 / 3))).sum()
    assert compression.divergence(logits, compression.largest(logits, 1))[0] == pytest.approx(lost, rel=5e-3)


@given(st.integers(1, 30), st.integers(2, 40), st.integers(1, 39), st.integers(0, 5))
def test_what_is_kept_comes_back_and_the_rest_keeps_its_sum(n, classes, k, seed):
    k = min(k, classes - 1)
    logits = random_logits(n, classes, seed)
    kept = compression.largest(logits, k)
    full = kept[:]
    assert (full.dtype, full.shape) == (np.float16, logits.shape)
    assert np.array_equal(full.argmax(1), logits.argmax(1)) or (full.max(1) == logits.max(1)).all()
    at = kept.classes.astype(np.int64)
    assert np.array_equal(np.take_along_axis(full, at, 1), np.take_along_axis(logits, at, 1))
    assert (np.diff(kept.values.astype(np.float32), axis=1) <= 0).all()
    sums = [np.exp(z.astype(np.float64)).sum(1) for z in (logits, full)]
    np.testing.assert_allclose(*sums, rtol=2e-2)  # one float16 for all of the rest
    assert (compression.divergence(logits, kept) > -1e-3).all()


def test_the_error_falls_with_more_logits_and_is_that_of_a_slow_reference():
    logits = random_logits(50, 20)
    errors = []
    for k in (1, 4, 12, 19):
        kept = compression.largest(logits, k)
        errors.append(compression.divergence(logits, kept).mean())
        full = torch.from_numpy(kept[:]).double().log_softmax(1)
        p = torch.from_numpy(logits).double().softmax(1)
        assert errors[-1] == pytest.approx(float((p * (p.log() - full)).sum(1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_blocks_of_rows_make_no_difference(monkeypatch):
    logits = random_logits(11, 6)
    whole = compression.largest(logits, 2)
    monkeypatch.setattr(compression, "VALUES", 18)
    parts = compression.largest(logits, 2)
    for name in compression.PARTS:
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    rows = np.array([4, 0, 9])
    assert np.array_equal(whole[rows], np.asarray(whole)[rows])
    assert (whole.shape, len(whole)) == (np.asarray(whole).shape, 11)
    assert len(compression.divergence(logits, whole)) == 11


def test_a_file_of_predictions_with_the_largest_logits_of_the_transfer_images(tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    spec = InputSpec(size=4, mean=(0.5,), std=(0.1,))
    splits = {"transfer": np.arange(30), "validation": np.arange(30, 40), "test": np.arange(40, 60)}
    inputs = {name: Inputs(images, rows, spec, torch.device("cpu")) for name, rows in splits.items()}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12)).eval()
    paths = [tmp_path / "full.safetensors", tmp_path / "few.safetensors"]
    with caplog.at_level(logging.INFO):
        for path, top in zip(paths, (None, 3), strict=True):
            predict(model, inputs, splits, splits, path, ("print", "data"), Classification(), False, top)
            predictions.verify(path)
    assert "predict few on transfer: 3 of 12 logits kept: KL divergence" in caplog.text
    full, few = (predictions.read(path, "transfer") for path in paths)
    kept = compression.largest(full.answers, 3)
    assert np.array_equal(few.answers, kept[:])
    assert np.array_equal(few.ids, full.ids)
    for split in ("validation", "test"):
        assert np.array_equal(*(predictions.read(path, split).answers for path in paths))
    damaged = bytearray(paths[1].read_bytes())
    damaged[-1] ^= 1
    paths[1].write_bytes(damaged)
    with pytest.raises(KtError, match="not what was written"):
        predictions.verify(paths[1])


def test_more_logits_than_classes_are_refused(tmp_path):
    inputs = Inputs(
        np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), InputSpec(size=4, mean=(0,), std=(1,)), torch.device("cpu")
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    ids, task = {"transfer": np.arange(2)}, Classification()
    with pytest.raises(KtError, match=r"transfer\.top_k: 3, but m has 3 classes; allowed: fewer than that"):
        predict(model, {"transfer": inputs}, ids, ids, tmp_path / "m.safetensors", ("p", "d"), task, False, 3)
