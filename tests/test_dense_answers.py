"""Answers of a dense task on disk: kept whole, in part, or computed when they are read."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kt import compression, predictions
from kt.costs import KEPT_ANSWER, answer_bytes, keeps_answers
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.stages.common import check_predictions
from kt.tasks.classification import Classification
from kt.tasks.segmentation import Segmentation
from kt.zoo.inference import Recomputed, _cut, forward, kept, predict

TASK, CPU = Segmentation(), torch.device("cpu")
SPEC = InputSpec(size=(8, 12), mean=(0.5,), std=(0.3,))
SPLITS = {"transfer": np.arange(9), "validation": np.arange(9, 12), "test": np.arange(12, 20)}


@pytest.fixture(scope="module")
def world() -> tuple[nn.Module, dict[str, Inputs], np.ndarray]:
    """A network with a stride of 2, images, and masks with pixels of no class."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)).eval()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, 8, 12, 1), dtype=np.uint8)
    masks = generator.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (20, 8, 12))
    return model, {split: Inputs(images, rows, SPEC, CPU, keep=False) for split, rows in SPLITS.items()}, masks


def written(world: Any, path: Path, top: int | None = None, rule: str = "auto") -> Path:
    model, inputs, masks = world
    truth = {split: masks[rows] for split, rows in SPLITS.items()}
    predict(model, inputs, truth, SPLITS, path, ("print", "data"), TASK, False, top, rule)
    predictions.verify(path)
    return path


def test_answers_have_the_networks_size_and_counts_and_classes_that_of_the_masks(world, tmp_path):
    path = written(world, tmp_path / "m.safetensors")
    model, inputs, masks = world
    for split, rows in SPLITS.items():
        found = predictions.read(path, split)
        exact = forward(model, inputs[split][:]).answer
        assert found.answers is not None
        assert found.answers.shape == (len(rows), 5, 4, 6)
        assert np.array_equal(np.asarray(found.answers), TASK.cached(exact).numpy())
        aligned = TASK.aligned(exact, torch.from_numpy(masks[rows]))
        assert np.array_equal(found.kept, TASK.kept(aligned, torch.from_numpy(masks[rows])).numpy())
        assert found.kept.dtype == np.int32
        file = predictions.File.open(path, split)
        assert file.has(f"{split}.top") == (split != "transfer"), "class maps are those of the splits that are scored"
        if split != "transfer":
            classes = file.map(f"{split}.top")
            assert classes.dtype == np.uint8
            assert np.array_equal(classes, aligned.argmax(1).numpy())


def test_what_is_not_kept_is_computed_to_the_same_numbers(world, tmp_path, caplog):
    kept = written(world, tmp_path / "kept.safetensors")
    with caplog.at_level(logging.INFO):
        none = written(world, tmp_path / "none.safetensors", rule="recomputed")
    assert "predict none: answers to transfer are computed when they are needed" in caplog.text
    assert none.stat().st_size < kept.stat().st_size / 2
    model, inputs, _ = world
    for split in SPLITS:
        one, other = predictions.read(kept, split), predictions.read(none, split)
        assert other.answers is None
        assert np.array_equal(one.kept, other.kept)
        again = Recomputed(model, inputs[split], TASK)
        assert again.shape == one.answers.shape
        rows = np.array([2, 0])
        stored = torch.from_numpy(one.answers[rows])
        # a forward pass of other images may differ in the last bits of float32, and so in one step of float16
        torch.testing.assert_close(again[rows], stored, rtol=2**-10, atol=1e-4)
    damaged = bytearray(none.read_bytes())
    damaged[damaged.index(b'"recomputed"') + 15] ^= 1
    none.write_bytes(damaged)
    with pytest.raises(KtError, match="not what was written"):
        predictions.verify(none)


def test_the_largest_logits_of_each_pixel(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        few = written(world, tmp_path / "few.safetensors", top=2)
    full = predictions.read(written(world, tmp_path / "full.safetensors"), "transfer").answers
    answers = predictions.read(few, "transfer").answers
    assert isinstance(answers, compression.Largest)
    assert answers.values.shape == (9, 2, 4, 6)
    assert answers.shape == full.shape == (9, 5, 4, 6)
    rows = np.array([4, 1])
    restored = answers[rows]
    for i, row in enumerate(rows):
        for y in range(4):
            for x in range(6):
                logits = full[row, :, y, x].astype(np.float32)
                largest = np.argsort(-logits, kind="stable")[:2]
                assert np.array_equal(restored[i, largest, y, x], full[row, largest, y, x])
                others = np.delete(logits, largest).astype(np.float64)
                assert np.delete(restored[i, :, y, x], largest) == pytest.approx(
                    np.log(np.exp(others).mean()), abs=2e-3
                )
    lost = compression.divergence(np.asarray(full), answers)
    assert lost.shape == (9, 4, 6)
    assert f"2 of 5 logits kept: KL divergence {lost.mean():.2g} nats" in caplog.text
    assert predictions.read(few, "test").answers.shape == (8, 5, 4, 6), "other splits are whole"


def test_of_computed_answers_the_largest_logits_count_as_of_kept_ones(world, tmp_path):
    few = predictions.read(written(world, tmp_path / "few.safetensors", top=2), "transfer").answers
    model, inputs, _ = world
    found = Recomputed(model, inputs["transfer"], TASK, 2)
    assert found.shape == few.shape
    torch.testing.assert_close(found[np.arange(9)], torch.from_numpy(few[:]), rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_computed_and_kept_logits_agree_to_the_bit_with_ties_too(top):
    logits = np.random.default_rng(0).integers(-3, 4, (3, 5, 7, 6)).astype(np.float16)
    logits[0, :, 0, 0], logits[0, :, 0, 1] = 1, [0, 0, 2, 0, 0]
    kept_ones = compression.largest(logits, top)[:]
    assert np.array_equal(_cut(torch.from_numpy(logits), top).numpy(), kept_ones)
    assert np.array_equal(kept_ones.argmax(1), logits.argmax(1))


def test_a_run_that_ended_early_goes_on_to_the_same_file(world, tmp_path, monkeypatch):
    model, inputs, masks = world
    whole = written(world, tmp_path / "a/m.safetensors", top=2).read_bytes()
    monkeypatch.setattr("kt.zoo.inference.PART_BYTES", 1)
    monkeypatch.setattr("kt.zoo.inference.CPU_BYTES", 2 * inputs["test"][slice(0, 1)].nbytes)
    calls = []

    class Stops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            if len(calls) == 5:
                raise KeyboardInterrupt
            return model(x)

    truth = {split: masks[rows] for split, rows in SPLITS.items()}
    path, arguments = tmp_path / "b/m.safetensors", (("print", "data"), TASK, False, 2, "auto")
    with pytest.raises(KeyboardInterrupt):
        predict(Stops().eval(), inputs, truth, SPLITS, path, *arguments)
    assert not path.exists()
    predict(model, inputs, truth, SPLITS, path, *arguments)
    for split in SPLITS:
        one, other = predictions.read(tmp_path / "a/m.safetensors", split), predictions.read(path, split)
        assert np.array_equal(one.kept, other.kept)
        np.testing.assert_allclose(np.asarray(one.answers), np.asarray(other.answers), rtol=2**-9, atol=1e-3)
    assert len(path.read_bytes()) == len(whole)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["m.safetensors"]


@pytest.mark.parametrize(
    ("classes", "elements", "top", "size"),
    [(1000, 1, None, 2000), (150, 128 * 128, None, 4_915_200), (150, 128 * 128, 5, 16384 * 17), (300, 4, 3, 4 * 14)],
)
def test_bytes_of_an_answer_by_hand(classes, elements, top, size):
    assert answer_bytes(classes, elements, top) == size


def test_the_rule_keeps_small_answers():
    assert keeps_answers("auto", KEPT_ANSWER)
    assert not keeps_answers("auto", KEPT_ANSWER + 1)
    assert keeps_answers("kept", 1 << 40)
    assert not keeps_answers("recomputed", 1)


def test_answers_that_do_not_fit_at_the_size_of_the_masks_are_made_of_fewer_images(world, tmp_path, caplog):
    """The network's own answers fit; enlarged, those of three images and more do not."""

    class Tight(Segmentation):
        def aligned(self, answer: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            if len(answer) > 2:
                raise torch.OutOfMemoryError("no memory")
            return super().aligned(answer, truth)

    model, inputs, masks = world
    truth = {split: masks[rows] for split, rows in SPLITS.items()}
    whole, path = written(world, tmp_path / "whole.safetensors"), tmp_path / "halved.safetensors"
    with caplog.at_level(logging.INFO):
        predict(model, inputs, truth, SPLITS, path, ("print", "data"), Tight())
    assert "out of memory: batches of 2 images from here on" in caplog.text
    for split in SPLITS:
        one, other = predictions.read(whole, split), predictions.read(path, split)
        assert np.array_equal(one.kept, other.kept)
        np.testing.assert_allclose(np.asarray(one.answers), np.asarray(other.answers), rtol=2**-9, atol=1e-3)
    assert np.array_equal(kept(model, inputs["test"], truth["test"], Tight()), predictions.read(whole, "test").kept)


def test_batches_are_small_where_answers_at_the_size_of_the_masks_are_large(world, tmp_path, monkeypatch):
    model, inputs, masks = world
    truth = {split: masks[rows] for split, rows in SPLITS.items()}
    whole = written(world, tmp_path / "whole.safetensors")
    sizes = []

    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return model(x)

    monkeypatch.setattr("kt.zoo.inference.DENSE_BYTES", 3 * 4 * 5 * 8 * 12 + 1)  # three images of five classes
    found = kept(Seen().eval(), inputs["transfer"], truth["transfer"], TASK)
    assert sizes == [1, 3, 3, 3]
    assert np.array_equal(found, predictions.read(whole, "transfer").kept)
    sizes.clear()
    predict(Seen().eval(), inputs, truth, SPLITS, tmp_path / "m.safetensors", ("print", "data"), TASK)
    assert max(sizes) == 3
    monkeypatch.setattr("kt.zoo.inference.DENSE_BYTES", 1)
    sizes.clear()
    kept(Seen().eval(), inputs["test"], truth["test"], TASK)
    assert set(sizes) == {1}


def test_predictions_that_counted_other_masks_are_refused(world, tmp_path):
    """They hold counts by the masks of then, which scores of now are not to be compared with."""
    path = written(world, tmp_path / "m.safetensors")
    layout = SimpleNamespace(predictions=lambda name: tmp_path / f"{name}.safetensors")
    study = SimpleNamespace(task=TASK, shown=lambda data: data)
    check_predictions(study, layout, SimpleNamespace(hash="data"), ["m"])
    with pytest.raises(KtError, match=f"{path}: of other images, truths or views than the study has now"):
        check_predictions(study, layout, SimpleNamespace(hash="other data"), ["m"])
    check_predictions(SimpleNamespace(task=Classification()), layout, SimpleNamespace(hash="other data"), ["m"])
