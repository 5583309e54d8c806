"""Fixed random crops of the transfer images: the same for every model, and shown in turn."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from batches import all_taught
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs, cut, normalise
from kt.data.seen import ColourSpec, InputSpec, ViewsSpec
from kt.data.views import draw_views
from kt.transfer import engine
from kt.transfer.training import Training

CPU = torch.device("cpu")
SPEC = InputSpec(size=8, mean=(0.5,), std=(0.25,))


def images(n: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Random images uint8 [n, height, width, 1]."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 1), dtype=np.uint8)


@given(
    st.integers(1, 4),
    st.floats(0.01, 1),
    st.floats(0.2, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(0, 50), min_size=1, max_size=9, unique=True),
)
def test_crops_lie_in_their_images(n, scale, ratio, height, width, rows):
    views = ViewsSpec(n=n, scale=(scale / 2, scale), ratio=(ratio / 2, ratio))
    boxes = draw_views(views, np.array(rows), height, width).boxes
    assert boxes.shape == (n * len(rows), 5)
    top, left, tall, wide, mirrored = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall >= 1).all()
    assert (wide >= 1).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    assert set(mirrored) <= {0, 1}


def test_crops_have_the_shares_and_shapes_asked_for():
    views = ViewsSpec(n=2, scale=(0.2, 0.5), ratio=(0.8, 1.25))
    boxes = draw_views(views, np.arange(2_000), 500, 500).boxes
    share = boxes[:, 2] * boxes[:, 3] / 500**2
    assert 0.195 < share.min() < 0.21
    assert 0.49 < share.max() < 0.505
    assert abs(share.mean() - 0.35) < 0.01
    shape = boxes[:, 3] / boxes[:, 2]
    assert 0.79 < shape.min() < 0.81
    assert 1.24 < shape.max() < 1.26
    assert abs(boxes[:, 4].mean() - 0.5) < 0.03
    assert not ViewsSpec(n=1, flip=False).flip
    assert draw_views(ViewsSpec(n=1, flip=False), np.arange(99), 9, 9).boxes[:, 4].sum() == 0


def test_a_crop_depends_on_image_and_view_alone():
    views, rows = ViewsSpec(n=3), np.array([4, 9, 2])
    boxes = draw_views(views, rows, 30, 30).boxes.reshape(3, 3, 5)
    assert np.array_equal(draw_views(views, np.arange(10), 30, 30).boxes.reshape(3, 10, 5)[:, rows], boxes)
    assert np.array_equal(draw_views(ViewsSpec(n=2), rows, 30, 30).boxes.reshape(2, 3, 5), boxes[:2])
    assert not np.array_equal(boxes[0], boxes[1])


def test_a_view_is_its_crop_resized_and_mirrored():
    pictures, views = images(5), ViewsSpec(n=2)
    drawn = draw_views(views, np.array([3, 1]), 20, 24)
    inputs = Inputs(pictures, np.array([3, 1]), SPEC, CPU, drawn=drawn)
    assert len(inputs) == 4
    for position, row in enumerate([3, 1, 3, 1]):
        top, left, tall, wide, mirrored = drawn.boxes[position]
        part = torch.from_numpy(pictures[row, top : top + tall, left : left + wide, 0])[None, None] / 255
        antialias = max(tall, wide) > SPEC.size
        part = nn.functional.interpolate(part, (8, 8), mode="bilinear", antialias=antialias)
        expected = ((part.flip(-1) if mirrored else part) - 0.5) / 0.25
        torch.testing.assert_close(inputs[np.array([position])], expected)


def test_the_whole_image_is_a_crop_too():
    pictures = images(3, 8, 8)
    boxes = np.array([[0, 0, 8, 8, 0]] * 3, np.int32)
    torch.testing.assert_close(
        normalise(cut(pictures, boxes, SPEC, CPU), SPEC), Inputs(pictures, np.arange(3), SPEC, CPU)[slice(None)]
    )


def test_views_on_demand_are_those_in_memory(monkeypatch: pytest.MonkeyPatch):
    pictures, rows = images(6), np.array([5, 0, 2])
    views = ViewsSpec(n=2, colour=ColourSpec(brightness=0.5, contrast=0.5))
    drawn = draw_views(views, rows, 20, 24)
    kept = Inputs(pictures, rows, SPEC, CPU, drawn=drawn)
    fresh = Inputs(pictures, rows, SPEC, CPU, keep=False, drawn=drawn)
    at = np.array([4, 0, 3])
    assert torch.equal(kept[at], fresh[at])


class Watched:
    """Inputs that remember which positions were asked for."""

    def __init__(self, n: int) -> None:
        self.device, self.seen = CPU, []
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, positions):
        self.seen.append(positions)
        return torch.zeros(len(positions), 2)


def test_every_epoch_shows_one_view_in_turn(tmp_path: Path):
    seen, model = Watched(3 * 8), nn.Linear(2, 2)
    samples = all_taught(torch.zeros(24, 2), torch.zeros(24).long())
    training = Training(epochs=4, batch_size=4, lr=1e-3)
    nothing = Checkpoint(tmp_path / "none.pt", "none", float("inf"), Event())
    engine.train(
        model,
        seen,
        samples,
        lambda out, batch: out.sum(1) + batch.positions,
        lambda _: 0.0,
        training,
        7,
        nothing,
        shown=engine.Shown.views(24, 3),
    )
    epochs = [np.concatenate(seen.seen[i : i + 2]) for i in range(0, 8, 2)]
    for epoch, positions in enumerate(epochs):
        assert set(positions // 8) == {epoch % 3}
        assert np.array_equal(positions % 8, engine.epoch_order(8, 7, epoch).numpy())


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"n": 2, "scale": (0.9, 0.2)}, r"scale: \[0.9, 0.2\]; the smaller comes first, at most 1"),
        ({"n": 2, "scale": (0.2, 1.5)}, "at most 1"),
        ({"n": 2, "ratio": (2.0, 1.0)}, r"ratio: \[2, 1\]; the smaller comes first"),
        ({"n": 0}, "greater than 0"),
    ],
)
def test_views_that_cannot_be_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        ViewsSpec.model_validate(views)
