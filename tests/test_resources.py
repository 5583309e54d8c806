"""What jobs ask for, by hand."""

from __future__ import annotations

import pytest

from kt.costs import DENSE_BYTES, answers_mb, experiment_mb, memory_mb, minutes, prepared_mb


@pytest.mark.parametrize(
    ("facts", "megabytes"),
    [
        # 1300 + 6 · 4 · 25 + 100 + 64 · 60 · √4 = 9680
        ({"train": True, "gpu": False}, 9700),
        # 4000 + 600 + 100: activations lie on the GPU
        ({"train": True, "gpu": True}, 4700),
        # 1300 + 2 · 4 · 25 + 100 + 64 · 60 · √4 / 3 = 4160
        ({"train": False, "gpu": False}, 4200),
        ({"train": False, "gpu": True}, 4300),
        ({"train": True, "gpu": True, "attempt": 2}, 9400),
        ({"train": True, "gpu": True, "attempt": 3}, 18800),
    ],
)
def test_memory_by_hand(facts, megabytes):
    assert memory_mb(25_000_000, 4_000_000_000, 64, 100.0, **facts) == megabytes


@pytest.mark.parametrize(
    ("batch", "gpu", "attempt", "megabytes"),
    [
        (100, False, 1, 3500),  # 1300 + 200 + 100 · 20
        (30, False, 1, 3300),  # 1300 + 200 + 256 / 3 · 20: an evaluation takes more than a step
        (100, True, 1, 4200),  # 4000 + 200: activations lie on the GPU
        (100, False, 3, 14000),
    ],
)
def test_memory_of_an_experiment_by_hand(batch, gpu, attempt, megabytes):
    assert experiment_mb(200_000_000, 20_000_000, batch, gpu=gpu, attempt=attempt) == megabytes


def test_prepared_images_by_hand():
    assert prepared_mb(500, 3, 16) == 4 * 500 * 3 * 256 / 1e6
    assert prepared_mb(50_000, 3, 224) == 512  # the whole split would be 30 GB


def test_memory_of_dense_answers_by_hand():
    values = 150 * 512 * 512  # 157 MB in float32: three images at a time are below 512 MiB
    assert DENSE_BYTES // (4 * values) == 3
    assert answers_mb(values, 8, gpu=False) == pytest.approx(8 * 8 * 157.2864)
    assert answers_mb(values, 0, gpu=False) == pytest.approx(4 * 3 * 157.2864)
    assert answers_mb(values, 8, gpu=True) == pytest.approx(1.5 * 3 * 157.2864)
    assert answers_mb(11 * 48 * 48, 0, gpu=False) == pytest.approx(4 * 256 * 0.101376)
    assert answers_mb(0, 64, gpu=False) == 0  # of another task


def test_time_limits_by_hand():
    assert minutes(0, 1440) == 5
    assert minutes(3600, 1440) == 125
    assert minutes(1, 1440) == 6
    assert minutes(3600, 1440, attempt=3) == 500
    assert minutes(3600, 300, attempt=3) == 300
    assert minutes(3600, 60) == 60  # the site's limit: the job goes back to the queue and continues
