"""Units of video saliency on the bench: models of several clips and sizes, every method, kept or computed answers."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pytest
import torch
from stopping import again_and_again
from torch import nn

import kt.zoo.videos  # noqa: F401 - registers the networks
from kt.data.clips import Videos
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import ClipSpec, InputSpec
from kt.tasks.saliency import METRICS, Saliency
from kt.transfer import session
from kt.transfer.bench import Begun, Bench, Settings
from kt.transfer.ledger import Record, unpack
from kt.transfer.method import Method, registry
from kt.transfer.training import Training
from kt.transfer.unit import Plans, Unit
from kt.zoo import models
from kt.zoo.inference import kept

CPU = torch.device("cpu")
TASK = Saliency()
TRAINING = Training(epochs=2, batch_size=3, lr=0.01)
SIDE, FRAMES, VIDEOS = 12, 5, 14
CLIPS = {
    "s": ClipSpec(frames=2),
    "t": ClipSpec(frames=3, stride=2),
    "u": ClipSpec(frames=4, reach="around"),
}
METHODS = {name: method() for name, method in registry().items() if not method.lacks(TASK)}


def build(name: str) -> nn.Module:
    """A network of the zoo."""
    torch.manual_seed(ord(name))
    arch = {"s": "tiny_video_conv", "t": "tiny_video_separable", "u": "tiny_video_difference"}[name]
    return models.build(arch, {"width": 4}, 1, 3).eval()


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Videos of noise with a bright spot that moves, which is where people look; half of the frames are targets."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    images = rng.integers(0, 90, (VIDEOS * FRAMES, SIDE, SIDE, 3))
    places = rng.integers(2, SIDE - 2, (VIDEOS * FRAMES, 2))
    bells = np.exp(-((y - places[:, 0, None, None]) ** 2 + (x - places[:, 1, None, None]) ** 2) / 6)
    images = (images + 160 * bells[..., None]).astype(np.uint8)
    rows = np.flatnonzero(np.arange(VIDEOS * FRAMES) % FRAMES >= 2)
    split = np.repeat(["transfer", "validation", "test"], [21, 6, 15])  # videos of three targets each
    splits = pd.DataFrame({"row": rows, "image_id": rows, "label": -1, "split": split})
    videos = Videos(
        tuple(f"v{i}" for i in range(VIDEOS)), FRAMES * np.arange(VIDEOS), np.full(VIDEOS, FRAMES, np.int64)
    )
    points = np.column_stack([np.arange(VIDEOS * FRAMES), places]).astype(np.int32)
    maps = np.rint(255 * bells).astype(np.uint8)
    return Dataset(images, maps, splits, (), "hash", videos=videos, fixations=points)


class Zoo:
    """Models by their names, without files; one has another size. Their answers are kept or not."""

    def __init__(self, data: Dataset, keeps: bool) -> None:
        self.data, self.keeps = data, keeps

    def fingerprint(self, name: str) -> str:
        return f"print of {name}"

    def load(self, name: str) -> nn.Module:
        return build(name)

    def input_of(self, name: str) -> InputSpec:
        size = 16 if name == "u" else SIDE
        return InputSpec(size=size, mean=(0.3,) * 3, std=(0.3,) * 3, crop_pct=1.0, clip=CLIPS[name])

    def view(self, name: str, split: str) -> Inputs:
        return Inputs(self.data.images, self.data.rows(split), self.input_of(name), CPU, videos=self.data.videos)

    def logits(self, name: str, split: str) -> np.ndarray | None:
        if not self.keeps:
            return None
        with torch.inference_mode():
            return TASK.cached(self.load(name)(self.view(name, split)[slice(None)])).numpy()

    def likeliest(self, name: str, split: str) -> None:
        return None

    def predicted(self, name: str, split: str) -> np.ndarray:
        return kept(self.load(name), self.view(name, split), self.data.truths(split), TASK)


def bench_of(data: Dataset, folder: Path, keeps: bool = True) -> Bench:
    zoo, settings = Zoo(data, keeps), Settings(TRAINING, folder / "checkpoints", 3600, CPU, Event())
    return Bench(Begun("s", ("tiny", {}), zoo.input_of("s"), 3, member=True), zoo, TASK, data, settings)


def unit_of(method: Method) -> Unit:
    """Its student is `s`."""
    group = method.takes == "group"
    teachers = () if method.control else ("t", "u") if group else ("t",)
    return Unit(method, Plans("data", TRAINING).of(method, 0), "s", teachers, 0)


def computed(data: Dataset, folder: Path, method: Method, keeps: bool = True, unit: Unit | None = None) -> Record:
    record, _ = session.compute(bench_of(data, folder, keeps), unit or unit_of(method), "key")
    assert record["status"] == "ok", record
    return {**record, **record.get("models", {}).get("print of s", {})}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_metrics_whether_answers_are_kept_or_computed(data, tmp_path, name):
    first, second = (computed(data, tmp_path / str(keeps), METHODS[name], keeps) for keeps in (True, False))
    frames = len(data.rows("test"))
    for record in (first, second):
        found = unpack(record["last"])
        assert found.shape == (frames, len(METRICS))
        assert np.isfinite(found).all()
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)  # batches of other sizes round differently
    assert unpack(first["last"]) == pytest.approx(unpack(second["last"]), abs=0.02)
    if METHODS[name].trains:
        before = Zoo(data, keeps=True).predicted("s", "test")
        assert np.abs(unpack(first["last"]) - before).max() > 1e-4


def test_three_models_teach_each_other(data, tmp_path):
    method = registry()["bikd"]()
    unit = Unit(method, Plans("data", TRAINING).of(method, 0), "s", ("t", "u"), 0)
    record = computed(data, tmp_path, method, unit=unit)
    assert set(record["models"]) == {"print of s", "print of t", "print of u"}
    assert len({of["last"] for of in record["models"].values()}) == 3


def test_an_epoch_shows_one_frame_of_each_video(data, tmp_path):
    shown = bench_of(data, tmp_path).shown
    rows = data.rows("transfer")
    epochs = [rows[shown.order(0, epoch).numpy()] for epoch in range(12)]
    assert all(sorted(data.videos.of(of_epoch)) == list(range(7)) for of_epoch in epochs)
    assert set(np.concatenate(epochs)) == set(rows)


@pytest.mark.parametrize("name", ["kl_dp", "bikd", "sequential"])
def test_a_training_that_is_stopped_again_and_again_ends_with_the_same_record(data, tmp_path, monkeypatch, name):
    unit = unit_of(METHODS[name])
    expected, _ = session.compute(bench_of(data, tmp_path / "whole"), unit, "key")
    fresh = lambda: bench_of(data, tmp_path / "stopped")  # noqa: E731
    run = lambda bench: session.compute(bench, unit, "key")[0]  # noqa: E731
    found, _, stops = again_and_again(monkeypatch, name, 2, fresh, run)
    assert stops > 1
    timed = {"seconds", "pieces"}
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
