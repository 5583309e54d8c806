"""Logits on disk, what they say, and how damage to them is found."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import said
from torch import nn
from vectors import Vectors

from kt import predictions
from kt.complementarity.sources import Files
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.store import Growing
from kt.tables import gather as final
from kt.tasks import classification
from kt.tasks.classification import Classification
from kt.zoo import inference
from kt.zoo.inference import predict


def splits_of(seed: int = 0, n: int = 7, classes: int = 3) -> dict[str, predictions.Outputs]:
    rng = np.random.default_rng(seed)
    return {
        name: said(rng.normal(size=(n + i, classes)).astype(np.float16), rng.permutation(100)[: n + i])
        for i, name in enumerate(("validation", "test"))
    }


def test_read_gives_back_what_write_wrote(tmp_path):
    splits = splits_of()
    predictions.write(tmp_path / "m.safetensors", splits, "print", "data")
    predictions.verify(tmp_path / "m.safetensors")
    for name, (logits, _, ids, *_) in splits.items():
        found = predictions.read(tmp_path / "m.safetensors", name)
        assert (found.answers.dtype, found.ids.dtype) == (np.float16, np.int64)
        assert np.array_equal(found.answers, logits)
        assert np.array_equal(found.ids, ids)
        assert (found.fingerprint, found.data) == ("print", "data")


def test_the_file_is_one_that_safetensors_reads_with_classes_and_features(tmp_path):
    from safetensors.numpy import load_file

    splits, rng = splits_of(), np.random.default_rng(1)
    features = {name: rng.normal(size=(len(of.ids), 5)).astype(np.float16) for name, of in splits.items()}
    with_features = {name: of._replace(features=features[name]) for name, of in splits.items()}
    predictions.write(tmp_path / "m.safetensors", with_features, "print", "data")
    predictions.verify(tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert sorted(tensors) == sorted(
        f"{s}.{what}" for s in splits for what in ("features", "ids", "logits", "predicted", "top")
    )
    for name, (logits, *_) in splits.items():
        assert np.array_equal(tensors[f"{name}.predicted"], logits.argmax(1))
        assert tensors[f"{name}.predicted"].dtype == np.uint8
        assert np.array_equal(predictions.read(tmp_path / "m.safetensors", name).features, features[name])
    predictions.write(tmp_path / "m.safetensors", splits, "print", "data")
    assert predictions.read(tmp_path / "m.safetensors", "test").features is None


def test_blocks_change_nothing(tmp_path, monkeypatch):
    wide = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float16)
    labels, splits = np.arange(50) % 6, {"test": said(wide[:, :6], np.arange(50))._replace(features=wide[:, 6:])}
    written = []
    for block in (1 << 24, 100, 1):
        monkeypatch.setattr(predictions, "BLOCK", block)
        predictions.write(tmp_path / "m.safetensors", splits, "print", "data")
        predictions.verify(tmp_path / "m.safetensors")
        error = calibration_error(wide[:, :6], labels)
        written.append(((tmp_path / "m.safetensors").read_bytes(), round(error, 9)))
    assert written[0] == written[1] == written[2]


def test_predictions_that_are_read_may_be_changed_in_memory_and_stay_as_they_are_on_disk(tmp_path):
    predictions.write(tmp_path / "m.safetensors", splits_of(), "print", "data")
    found = predictions.read(tmp_path / "m.safetensors", "test")
    assert isinstance(found.answers, np.memmap)
    found.answers[:] = 0
    predictions.verify(tmp_path / "m.safetensors")


@pytest.mark.parametrize(("classes", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_classes_are_kept_in_the_smallest_integers_that_hold_them(tmp_path, classes, dtype):
    logits = np.zeros((3, classes), np.float16)
    logits[:, -1] = 1
    predictions.write(tmp_path / "m.safetensors", {"test": said(logits, np.arange(3))}, "print", "data")
    predictions.verify(tmp_path / "m.safetensors")
    assert predictions.read(tmp_path / "m.safetensors", "test").kept.tolist() == [classes - 1] * 3
    source = Files({"m": tmp_path / "m.safetensors"}, "test")
    assert source.kept(0, slice(0, 3)).dtype == source.top(0, slice(0, 3)).dtype == dtype


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

    logits, _, ids, *_ = splits_of()["test"]
    save_file({"test.logits": logits, "test.predicted": ids, "test.ids": ids}, tmp_path / "m.safetensors")
    with pytest.raises(KtError, match=r"predictions cannot be read \(no 'fingerprint' in the header\)"):
        predictions.read(tmp_path / "m.safetensors", "test")
    with pytest.raises(KtError, match="its content is not what was written"):
        predictions.verify(tmp_path / "m.safetensors")


@given(st.data())
def test_verify_finds_any_damaged_byte(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        predictions.write(path, splits_of(), "print", "data")
        whole = path.read_bytes()
        read = {
            name: (r.answers.copy(), r.ids, r.fingerprint, r.data)
            for name in splits_of()
            if (r := predictions.read(path, name))
        }
        at, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        try:
            predictions.verify(path)
        except KtError:
            return
        for name, before in read.items():  # a byte that means nothing, such as white space of the header
            after = predictions.read(path, name)
            assert after.answers.tobytes() == before[0].tobytes()
            assert after.ids.tobytes() == before[1].tobytes()
            assert (after.fingerprint, after.data) == before[2:]


def test_verify_finds_a_changed_type_and_changed_facts(tmp_path):
    path = tmp_path / "m.safetensors"
    predictions.write(path, splits_of(), "print", "data")
    whole = path.read_bytes()
    for old, new in [(b'"F16"', b'"I16"'), (b'"print"', b'"prunt"'), (b'"data":"data"', b'"data":"dota"')]:
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(
            KtError, match=r"its content is not what was written; delete it and run again|cannot be read \('I16'\)"
        ):
            predictions.verify(path)


def test_read_all_keeps_the_order_of_models(tmp_path):
    paths = {}
    for i, name in enumerate(["zeta", "alpha"]):
        splits = {"test": splits_of(i)["test"]._replace(ids=splits_of(0)["test"].ids)}
        paths[name] = tmp_path / f"{name}.safetensors"
        predictions.write(paths[name], splits, name, "data")
    found = predictions.read_all(paths, "test")
    assert list(found) == ["zeta", "alpha"]


@pytest.mark.parametrize("other", ["ids", "order", "data"])
def test_read_all_refuses_models_on_different_images(tmp_path, other):
    logits, _, ids, *_ = splits_of()["test"]
    theirs = {"ids": ids + 1, "order": ids[::-1].copy(), "data": ids}[other]
    predictions.write(tmp_path / "a", {"test": said(logits, ids)}, "a", "data")
    predictions.write(tmp_path / "b", {"test": said(logits, theirs)}, "b", "other" if other == "data" else "data")
    with pytest.raises(KtError, match="predictions of 'b' and 'a' on 'test' are about different images"):
        predictions.read_all({"a": tmp_path / "a", "b": tmp_path / "b"}, "test")


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    return classification.calibration_error(logits, logits.argmax(1) == labels, bins)


def logits_with_confidence(*confidence: float) -> np.ndarray:
    """Logits of two classes where the first has the given probability."""
    return np.array([[math.log(p), math.log(1 - p)] for p in confidence])


def test_calibration_error_by_hand():
    logits = logits_with_confidence(0.9, 0.9, 0.9, 0.6)
    labels = np.array([0, 0, 1, 0])
    # bin of 0.9: 2 of 3 right, gap |0.9 − 2/3|; bin of 0.6: 1 of 1 right, gap 0.4; weights 3/4 and 1/4
    assert calibration_error(logits, labels) == pytest.approx(100 * (0.75 * (0.9 - 2 / 3) + 0.25 * 0.4))
    # one bin: |mean confidence − accuracy|
    assert calibration_error(logits, labels, bins=1) == pytest.approx(100 * (0.825 - 0.75))


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
    assert calibration_error(logits, labels, bins) == pytest.approx(100 * expected, abs=1e-9)
    order = rng.permutation(40)
    assert calibration_error(logits[order], labels[order], bins) == pytest.approx(100 * expected, abs=1e-9)


def test_calibration_error_is_zero_for_a_sure_and_right_model_and_a_hundred_for_a_sure_and_wrong_one():
    sure = np.array([[60000, -60000], [-60000, 60000]], np.float16)
    assert calibration_error(sure, np.array([0, 1])) == 0
    assert calibration_error(sure, np.array([1, 0])) == 100


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_sharpness_agrees_with_a_loop_over_images(seed, classes):
    logits = (9 * np.random.default_rng(seed).normal(size=(20, classes))).astype(np.float16)
    ratios, entropies = [], []
    for z in logits.astype(float).tolist():
        powers = [math.exp(v - max(z)) for v in z]
        p = sorted(power / sum(powers) for power in powers)
        ratios.append(math.log(p[-1] / p[-2]))
        entropies.append(-sum(q * math.log(q) for q in p))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "BLOCK", 50)
        found = classification.sharpness(logits)
    assert found == {"log_ratio": pytest.approx(np.mean(ratios)), "entropy": pytest.approx(np.mean(entropies))}


def test_sharpness_by_hand():
    assert classification.sharpness(np.array([[math.log(9), 0.0]], np.float64)) == {
        "log_ratio": pytest.approx(math.log(9)),
        "entropy": pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)),
    }
    assert classification.sharpness(np.zeros((3, 4), np.float16)) == {
        "log_ratio": 0,
        "entropy": pytest.approx(math.log(4)),
    }
    sure = classification.sharpness(np.array([[60000, -60000]], np.float16))
    assert (sure["entropy"], math.isfinite(sure["log_ratio"])) == (0, True)
    assert classification.sharpness(np.ones((3, 1), np.float16)) == {"log_ratio": None, "entropy": 0}


def test_an_accuracy_agrees_with_the_published_one_within_three_standard_errors():
    # 80 % of 10,000 images: one standard error is 0.4 points
    def agrees(right: int, of: int, published: float) -> bool:
        return classification.Classification().agrees(np.arange(of) < right, published)

    assert agrees(8119, 10_000, 80.0)
    assert agrees(7881, 10_000, 80.0)
    assert not agrees(8121, 10_000, 80.0)
    assert not agrees(7879, 10_000, 80.0)
    assert agrees(5, 5, 100.0)
    assert not agrees(99, 100, 100.0)


MEMBER = {
    **dict.fromkeys(("params", "macs", "input_size", "feature_width"), 1),
    "arch": "a",
    "pretraining": "x",
    "recipe": [],
    "fingerprint": "print",
}


def test_the_table_of_models_compares_measured_and_published_accuracy(tmp_path):
    labels = np.zeros(100, np.int64)
    logits = np.zeros((100, 2), np.float16)
    logits[:20, 1] = 1  # 80 % right
    splits = {split: said(logits, np.arange(100)) for split in ("validation", "test")}
    members = [MEMBER | {"name": "near", "published_acc": 85.0}, MEMBER | {"name": "far", "published_acc": 95.0}]
    members.append(MEMBER | {"name": "unknown"})
    paths = {member["name"]: tmp_path / member["name"] for member in members}
    for path in paths.values():
        predictions.write(path, splits, "print", "data")
    table = final.zoo(members, paths, {}, {"validation": labels, "test": labels}, {}, {})
    assert table["acc"].to_pylist() == [80.0] * 3
    assert table["acc_published"].to_pylist() == [85.0, 95.0, None]
    assert table["acc_agrees"].to_pylist() == [True, False, None]


def test_the_table_of_models_of_a_real_valued_task(tmp_path):
    kept, truth = np.random.default_rng(0).random(50), np.zeros((50, 3), np.float32)
    outputs = predictions.Outputs(np.zeros((50, 3), np.float32), kept, np.arange(50))
    predictions.write(tmp_path / "m", dict.fromkeys(("validation", "test"), outputs), "print", "data")
    members = [MEMBER | {"name": "m", "published_acc": 0.9}]
    both = {"validation": truth, "test": truth}
    (row,) = final.zoo(members, {"m": tmp_path / "m"}, {}, both, {}, {}, Vectors()).to_pylist()
    assert row["acc"] == row["acc_validation"] == pytest.approx(1 - kept.mean())
    assert row["acc_se"] == pytest.approx(kept.std() / math.sqrt(50))
    assert row["acc_agrees"] is False
    assert [row[name] for name in ("ece", "log_ratio", "entropy", "classes")] == [None] * 4


# a model's run over the images


class Small(nn.Module):
    """A classifier that counts its images, needs memory, and has features as timm's models do."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.most, self.seen = most, 0
        self.body, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        self.seen += len(x)
        return self.body(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


N = {"transfer": 40, "validation": 7, "test": 300}


def run(folder: Path, model: nn.Module, features: bool = False, value: int | None = None) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (347, 8, 8, 1), dtype=np.uint8)
    order = rng.permutation(347)
    rows = dict(zip(N, np.split(order, np.cumsum(list(N.values()))[:-1]), strict=True))
    spec = InputSpec(size=8, mean=(0.5,), std=(0.5,))
    inputs = {split: Inputs(images, rows[split], spec, torch.device("cpu"), keep=False) for split in N}
    ids = {split: 1000 + rows[split] for split in N}
    truth, path = {split: np.zeros(n, np.int64) for split, n in N.items()}, folder / "m.safetensors"
    predict(model.eval(), inputs, truth, ids, path, ("print", "data"), Classification(), features)
    return folder / "m.safetensors"


def small(most: int = 10**6) -> Small:
    torch.manual_seed(0)
    return Small(most)


@pytest.mark.parametrize("features", [False, True])
def test_a_model_runs_once_over_every_split_and_leaves_one_file(tmp_path, features):
    model = small()
    path = run(tmp_path, model, features)
    predictions.verify(path)
    assert model.seen == sum(N.values()) + 1  # one image tells how wide the outputs are
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    for split, n in N.items():
        found = predictions.read(path, split)
        assert (found.answers.shape, found.ids.min() >= 1000) == ((n, 4), True)
        assert (found.features is not None) == features
        if found.features is not None:
            with torch.inference_mode():
                again = model.head(torch.from_numpy(np.array(found.features)).float())
            np.testing.assert_allclose(again, found.answers, atol=2e-3)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, most, caplog):
    whole = run(tmp_path / "whole", small())
    with caplog.at_level("INFO"):
        path = run(tmp_path / "halved", small(most))
    assert "out of memory: batches of" in caplog.text
    for split in N:
        found, expected = (predictions.read(p, split).answers for p in (path, whole))
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_an_image_that_does_not_fit_alone_is_an_error(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, small(0))


def test_a_killed_run_goes_on_at_its_last_part(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    whole = run(tmp_path / "whole", small(), True)
    monkeypatch.setattr(inference, "EVALUATED", 10)
    monkeypatch.setattr(inference, "PART_BYTES", 1)
    append = Growing.append

    def killing(self: Growing, rows: np.ndarray, note: object = None) -> None:
        if self.rows == 150:
            raise Killed
        append(self, rows, note)

    with monkeypatch.context() as patch:
        patch.setattr(Growing, "append", killing)
        with pytest.raises(Killed):
            run(tmp_path / "killed", small(), True)
    model = small()
    path = run(tmp_path / "killed", model, True)
    assert model.seen == 1 + 150
    assert len(list(path.parent.iterdir())) == 1
    for split in N:
        found, expected = (predictions.read(p, split) for p in (path, whole))
        np.testing.assert_allclose(found.answers, expected.answers, atol=2e-3)
        np.testing.assert_allclose(found.features, expected.features, atol=2e-3)
        assert np.array_equal(found.ids, expected.ids)


def test_answers_that_are_not_finite_are_an_error_that_names_split_and_image(tmp_path):
    model = small()
    with torch.no_grad():
        model.head.weight.fill_(1e9)  # beyond the range of float16
    with pytest.raises(
        KtError, match=r"predict m on transfer: answers to 40 images are not finite in float16, the first is image 1"
    ):
        run(tmp_path, model)


def test_a_model_without_features_is_named(tmp_path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    run(tmp_path, plain)
    with pytest.raises(KtError, match="Sequential has no forward_features, so no penultimate features"):
        run(tmp_path, plain, True)


def test_large_images_come_in_small_batches_on_the_cpu(monkeypatch):
    images = np.zeros((9, 4, 4, 1), np.uint8)
    inputs = Inputs(images, np.arange(9), InputSpec(size=4, mean=(0.5,), std=(0.5,)), torch.device("cpu"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert [len(found.answer) for found in inference.batches(model, inputs)] == [9]
    monkeypatch.setattr(inference, "CPU_BYTES", 64 * 4)
    assert [len(found.answer) for found in inference.batches(model, inputs)] == [4, 4, 1]
    monkeypatch.setattr(inference, "CPU_BYTES", 1)
    assert [len(found.answer) for found in inference.batches(model, inputs, start=7)] == [1, 1]


# arrays that grow


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 40), st.binary(max_size=30))
def test_a_growing_array_keeps_what_was_appended_and_forgets_what_was_not(lengths, extra, junk):
    rows = np.arange(sum(lengths) * 3, dtype=np.float32).reshape(-1, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.part"
        growing = Growing(path, "key", np.float32, (3,), b"head")
        for i, part in enumerate(np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []):
            growing.append(part, i)
        with path.open("ab") as file:
            file.write(junk)  # the write that a kill cut short
        again = Growing(path, "key", np.float32, (3,), b"head")
        assert (again.rows, again.notes) == (len(rows), [*range(len(lengths))])
        assert path.read_bytes() == b"head" + rows.tobytes()
        other = Growing(path, "other key", np.float32, (3,), b"head")
        assert (other.rows, path.read_bytes()) == (0, b"head")
        other.remove()
        assert os.listdir(folder) == []


def test_a_growing_array_that_lost_its_end_begins_anew(tmp_path):
    growing = Growing(tmp_path / "a.part", "key", np.uint8, ())
    growing.append(np.arange(9))
    (tmp_path / "a.part").write_bytes(b"12345678")
    assert Growing(tmp_path / "a.part", "key", np.uint8, ()).rows == 0


def test_answers_have_any_shape_and_precision_and_what_is_kept_of_them_too(tmp_path):
    rng, ids = np.random.default_rng(0), np.arange(5)
    maps = predictions.Outputs(rng.normal(size=(5, 2, 3)).astype(np.float32), rng.normal(size=(5, 4)), ids)
    plain = predictions.Outputs(rng.normal(size=(5, 3)), rng.normal(size=5).astype(np.float32), ids)
    predictions.write(tmp_path / "m.safetensors", {"validation": maps, "test": plain}, "print", "data")
    predictions.verify(tmp_path / "m.safetensors")
    for split, expected in (("validation", maps), ("test", plain)):
        found = predictions.read(tmp_path / "m.safetensors", split)
        for name in ("answers", "kept", "ids"):
            assert getattr(found, name).dtype == getattr(expected, name).dtype
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        source = Files({"m": tmp_path / "m.safetensors"}, split)
        assert np.array_equal(source.kept(0, slice(1, 4)), expected.kept[1:4])
        with pytest.raises(KtError, match=f"no '{split}.top' in these predictions; delete the file and run again"):
            source.top(0, slice(0, 5))
