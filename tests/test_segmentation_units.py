"""Units of a dense task on the bench: models of several strides and inputs, answers kept or computed when read."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pixels
import pytest
import torch
from PIL import Image
from pixels import TASK
from torch import Tensor, nn

from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.stages.pictures import as_text
from kt.tasks.segmentation import IGNORED
from kt.transfer import session
from kt.transfer.bench import Begun, Bench, Settings
from kt.transfer.ledger import Record, unpack
from kt.transfer.method import Method, registry
from kt.transfer.training import Training
from kt.transfer.unit import Plans, Unit
from kt.zoo.inference import kept

CPU = torch.device("cpu")
TRAINING = Training(epochs=2, batch_size=8, lr=0.01)
SIDE, CLASSES = 12, 3
STRIDES = {"s": 2, "t": 4, "u": 1}
REPEATED = {f"{name} pixel": registry()[name].model_validate({"level": "pixel"}) for name in ("sequential", "soup")}
METHODS = pixels.variants() | {name: registry()[name]() for name in ("ensemble_max", "ensemble_mean")} | REPEATED


def build(name: str) -> nn.Module:
    """A network with BatchNorm and logits at a stride."""
    torch.manual_seed(ord(name))
    first = [nn.Conv2d(3, 8, 3, STRIDES[name], 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(8, CLASSES, 1)).eval()


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Images whose brightness tells the class, with some pixels that have no truth."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, CLASSES, (40, 4, 4)).repeat(3, 1).repeat(3, 2).astype(np.uint8)
    images = (80 * masks[..., None] + rng.integers(0, 90, (*masks.shape, 3))).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.1] = IGNORED
    split = np.repeat(["transfer", "validation", "test"], [24, 6, 10])
    splits = pd.DataFrame({"row": np.arange(40), "image_id": np.arange(40), "label": -1, "split": split})
    return Dataset(images, masks, splits, ("a", "b", "c"), "hash", dense=True)


class Zoo:
    """Models by their names, without files; one has another input. Their answers are kept or not."""

    def __init__(self, data: Dataset, keeps: bool) -> None:
        self.data, self.keeps = data, keeps

    def fingerprint(self, name: str) -> str:
        return f"print of {name}"

    def load(self, name: str) -> nn.Module:
        return build(name)

    def input_of(self, name: str) -> InputSpec:
        return InputSpec(size=8 if name == "u" else SIDE, mean=(0.3,) * 3, std=(0.3,) * 3, crop_pct=1.0)

    def view(self, name: str, split: str) -> Inputs:
        return Inputs(self.data.images, self.data.rows(split), self.input_of(name), CPU)

    def logits(self, name: str, split: str) -> np.ndarray | None:
        if not self.keeps:
            return None
        with torch.inference_mode():
            return TASK.cached(self.load(name)(self.view(name, split)[slice(None)])).numpy()

    def likeliest(self, name: str, split: str) -> np.ndarray:
        truth = torch.from_numpy(self.data.truth[self.data.rows(split)])
        with torch.inference_mode():
            found = TASK.likeliest(TASK.aligned(self.load(name)(self.view(name, split)[slice(None)]), truth))
        return found.numpy()

    def predicted(self, name: str, split: str) -> np.ndarray:
        return kept(self.load(name), self.view(name, split), self.data.truth[self.data.rows(split)], TASK)


def computed(data: Dataset, folder: Path, method: Method, keeps: bool = True, seed: int = 0) -> Record:
    """The record of a unit whose student is `s`."""
    zoo, settings = Zoo(data, keeps), Settings(TRAINING, folder / "checkpoints", 3600, CPU, Event())
    bench = Bench(Begun("s", ("tiny", {}), zoo.input_of("s"), 3, member=True), zoo, TASK, data, settings)
    teachers = () if method.control else ("t", "u") if method.takes == "group" else ("t",)
    unit = Unit(method, Plans("data", TRAINING).of(method, seed), "s", teachers, seed)
    record, _ = session.compute(bench, unit, "key")
    assert record["status"] == "ok", record
    return {**record, **record.get("models", {}).get("print of s", {})}


def counts(record: Record, which: str = "last") -> np.ndarray:
    return unpack(record[which])


@pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])
def test_every_method_keeps_counts_whether_answers_are_kept_or_computed(data, tmp_path, method):
    records = [computed(data, tmp_path / str(keeps), method, keeps) for keeps in (True, False)]
    truth = data.truth[data.rows("test")]
    pixels_of = np.stack([[(mask == c).sum() for c in range(CLASSES)] for mask in truth])
    for record in records:
        for which in ("last", "best"):
            found = counts(record, which)
            assert found.shape == (len(truth), CLASSES, 3)
            assert np.array_equal(found[..., 2], pixels_of)
            assert np.array_equal(found[..., 1].sum(1), (truth != IGNORED).sum((1, 2)))
            assert (found[..., 0] <= found[..., 1:].min(-1)).all()
    first, second = records
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)  # batches of other sizes round differently
    assert np.abs(counts(first) - counts(second)).sum() <= 0.01 * pixels_of.sum()
    if first["teacher_share"] is not None:
        assert 0 <= first["teacher_share"] <= 100
        assert first["teacher_share"] == pytest.approx(second["teacher_share"], abs=0.2)


def test_models_that_teach_with_no_weight_are_finetuned(data, tmp_path):
    together = computed(data, tmp_path / "a", registry()["bikd"].model_validate({"weight": 0.0}))
    alone = computed(data, tmp_path / "b", registry()["finetune"]())
    assert np.array_equal(counts(together), counts(alone))
    weighted = computed(data, tmp_path / "c", registry()["bikd"]())
    assert not np.array_equal(counts(weighted), counts(alone))


def test_training_helps_and_the_teacher_has_a_say(data, tmp_path):
    before = TASK.value(TASK.scores(Zoo(data, True).predicted("s", "test"), data.truth))
    ends = {name: counts(computed(data, tmp_path / name, registry()[name]())) for name in ("kl", "self", "finetune")}
    value = {name: TASK.value(TASK.scores(found, data.truth)) for name, found in ends.items()}
    assert value["finetune"] > before + 2
    assert len({found.tobytes() for found in ends.values()}) == 3


def test_the_metric_of_a_recomputed_answer_is_that_of_the_resized_logits(data):
    zoo = Zoo(data, True)
    truth = torch.from_numpy(data.truth[data.rows("test")])
    with torch.inference_mode():
        coarse: Tensor = build("t")(zoo.view("t", "test")[slice(None)])
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    assert np.array_equal(zoo.predicted("t", "test"), TASK.kept(fine, truth).numpy())


def test_the_largest_logits_alone_count_on_the_transfer_images_where_answers_are_computed(data, tmp_path):
    zoo, settings = Zoo(data, keeps=False), Settings(TRAINING, tmp_path, 3600, CPU, Event(), top=1)
    bench = Bench(Begun("s", ("tiny", {}), zoo.input_of("s"), 3, member=True), zoo, TASK, data, settings)
    found, exact = bench.cached("t", "transfer")[np.arange(4)], Zoo(data, keeps=True).logits("t", "transfer")[:4]
    for own, logits in zip(
        found.transpose(0, 1).flatten(1).T, exact.swapaxes(0, 1).reshape(CLASSES, -1).T, strict=True
    ):
        label = int(logits.argmax())
        assert int(own.argmax()) == label
        assert own[label] == pytest.approx(logits[label], abs=1e-2)
        assert len(set(np.delete(own.numpy(), label).tolist())) == 1
    assert torch.unique(bench.cached("t", "test")[np.arange(1)][0, :, 0, 0]).numel() == CLASSES


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("sides", [(5, 8), (1, 6), (1, 1)])
def test_a_picture_has_its_sides_whatever_the_channels(channels, sides):
    shape = sides if channels is None else (*sides, channels)
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(as_text(picture)))))
    colour = channels is not None and channels >= 3
    assert np.array_equal(found, picture[..., :3] if colour else picture.reshape(*sides, -1)[..., 0])
