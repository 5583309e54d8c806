"""The class of an image is the one that the model predicted in float32, wherever a class is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from answers import classes, logits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from tables import said
from torch import nn

from kt import compression, predictions
from kt.complementarity.sources import Files
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.tables import gather
from kt.tasks import partition
from kt.tasks.classification import Classification, rounded
from kt.transfer import flow
from kt.transfer.batch import Examples
from kt.transfer.bench import Bench
from kt.transfer.methods.ensemble import EnsembleMax, EnsembleMean
from kt.transfer.session import Session
from kt.transfer.unit import Plan, Unit
from kt.zoo.inference import predict

CPU, SPEC = torch.device("cpu"), InputSpec(size=8, mean=(0.5,), std=(0.5,))


class Close(nn.Module):
    """Two classes whose logits are 40 and 40.001: the brightness of the first pixel says which is larger."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = (x[:, 0, 0, 0] > 0).float()
        return 40 + 0.001 * torch.stack([first, 1 - first], 1)


def images(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


def truth(pictures: np.ndarray) -> np.ndarray:
    return np.where(pictures[:, 0, 0, 0] > 127, 0, 1)


def run(model: nn.Module, folder: Path, pictures: np.ndarray, top: int | None = None) -> Path:
    """The predictions file of a model; all splits are the same images."""
    rows = np.arange(len(pictures))
    inputs = {split: Inputs(pictures, rows, SPEC, CPU, keep=False) for split in predictions.SPLITS}
    path = folder / "m.safetensors"
    ids = dict.fromkeys(inputs, rows)
    predict(model.eval(), inputs, ids, ids, path, ("print", "data"), Classification(), False, top)
    return path


def accuracy(path: Path, labels: np.ndarray) -> float:
    """Of the table of models."""
    member = {
        "name": "m",
        "arch": "a",
        "params": 1,
        "macs": 1,
        "input_size": 8,
        "feature_width": 1,
        "pretraining": "x",
        "recipe": [],
        "fingerprint": "print",
    }
    made = gather.zoo([member], {"m": path}, {}, dict.fromkeys(("validation", "test"), labels), {}, {})
    assert made["acc"] == made["acc_validation"]
    return made["acc"][0].as_py()


def test_a_model_that_is_always_right_by_a_thousandth_at_logits_of_40_is_always_right(tmp_path):
    pictures = images()
    labels = truth(pictures)
    assert 0 < labels.mean() < 1
    path = run(Close(), tmp_path, pictures)
    assert accuracy(path, labels) == 100
    found = predictions.read(path, "test")
    assert np.array_equal(found.kept, labels)
    assert np.array_equal(found.answers.argmax(1), labels)  # also what is rounded says so
    np.testing.assert_allclose(found.answers, 40, atol=0.04)
    source = Files({"m": path}, "test")
    assert np.array_equal(source.kept(0, slice(0, 60)), labels)
    assert np.array_equal(classes(Close(), Inputs(pictures, np.arange(60), SPEC, CPU)), labels)


def crowded() -> nn.Module:
    """A timm model of 300 classes whose logits are large and lie close together."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=300, in_chans=1).eval()
    with torch.no_grad():
        model.get_classifier().bias.add_(30)
    return model


def test_accuracy_is_that_of_a_plain_timm_loop(tmp_path):
    pictures, model = images(400), crowded()
    view = Inputs(pictures, np.arange(400), SPEC, CPU)
    with torch.inference_mode():
        exact = torch.cat([model(view[slice(i, i + 100)]) for i in range(0, 400, 100)])
    labels = exact.argmax(1).numpy()
    assert (exact.half().argmax(1).numpy() != labels).sum() > 5  # rounding would have changed classes
    labels[::3] = (labels[::3] + 1) % 300
    right = int((exact.argmax(1).numpy() == labels).sum())
    assert accuracy(run(model, tmp_path, pictures), labels) == 100 * right / 400


FLOATS = st.floats(-60_000, 60_000, width=32)
CLOSE = st.sampled_from([40.0, 40.001, 39.999, -3.0, 0.0, -0.0, 1e-6, 1.00001e-6, -1e-6])


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=FLOATS | CLOSE))
def test_the_largest_rounded_logit_is_that_of_the_class_and_lies_within_two_steps(exact):
    task, answers = Classification(), torch.from_numpy(exact)
    cached, likeliest = task.cached(answers), task.likeliest(answers)
    expected = [row.index(max(row)) for row in exact.tolist()]  # of equals the lowest class
    assert likeliest[:, 0].tolist() == cached.argmax(1).tolist() == task.kept(answers, answers).tolist() == expected
    assert [row.tolist() for row in likeliest] == [
        sorted(range(len(row)), key=lambda c, row=row: -row[c])[:5] for row in exact.tolist()
    ]
    plain = exact.astype(np.float16)
    below = np.nextafter(plain, np.float16(-np.inf))
    assert ((cached.numpy() == plain) | (cached.numpy() == below)).all()


def test_rounding_leaves_alone_what_makes_no_tie():
    exact = torch.randn(500, 10) * 5
    predicted = exact.argmax(1, keepdim=True)
    clear = exact.half().argmax(1, keepdim=True) == predicted
    assert torch.equal(rounded(exact, predicted)[clear[:, 0]], exact.half()[clear[:, 0]])


@pytest.mark.parametrize("top", [1, 2])
def test_the_largest_logits_begin_with_the_class_and_say_it_when_expanded(tmp_path, top):
    class Three(Close):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            two = super().forward(x)
            return torch.cat([two[:, :1] - 0.0005, two], 1)

    pictures = images()
    path = run(Three(), tmp_path, pictures, top)
    found = predictions.read(path, "transfer")
    assert np.array_equal(found.kept, truth(pictures) + 1)
    assert np.array_equal(found.answers[:].argmax(1), found.kept)
    kept = compression.largest(predictions.read(path, "test").answers, top)
    assert np.array_equal(kept.classes[:, 0], found.kept)


def test_flips_are_those_of_what_the_models_said():
    pictures = images()
    view, labels = Inputs(pictures, np.arange(60), SPEC, CPU), truth(pictures)

    class Wrong(Close):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).flip(1)

    right, wrong = (torch.from_numpy(logits(model, view)).float() for model in (Close(), Wrong()))
    positive, negative = partition.flips(right, wrong, torch.from_numpy(labels))
    assert positive.all()
    assert not negative.any()


class OfOne:
    """A session on which every name is the same model."""

    task = Classification()

    student, split = "s", "test"

    def __init__(self, exact: torch.Tensor) -> None:
        self.exact = exact

    def answered(self, names: Sequence[str]) -> Examples:
        rows = Classification().cached(self.exact).numpy()
        return Examples(torch.device("cpu"), np.zeros(len(rows), np.int64), [rows for _ in names])

    def predicted(self, name: str, split: str) -> torch.Tensor:
        return Classification().kept(self.exact, self.exact)

    def untrained(self, found: torch.Tensor) -> torch.Tensor:
        return found


@pytest.mark.parametrize("method", [EnsembleMax(), EnsembleMean()])
@given(exact=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 5)), elements=FLOATS | CLOSE))
def test_an_ensemble_of_a_model_with_itself_is_the_model(method, exact):
    session: Any = OfOne(torch.from_numpy(exact))
    assert method.run(session, ["t"], 0).tolist() == [row.index(max(row)) for row in exact.tolist()]


class Attached(nn.Module):
    """A student with one teacher attached: it answers as the teacher does."""

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        return Close()(views[1])


def test_students_after_transfer_experiments_and_knowledge_flow_say_what_they_said():
    pictures = images()
    view, labels = Inputs(pictures, np.arange(60), SPEC, CPU), truth(pictures)
    bench: Any = SimpleNamespace(
        view=lambda *of: view,
        truth=lambda split: labels,
        at_once=lambda pieces: 7,
        device=CPU,
        task=Classification(),
        zoo=SimpleNamespace(input_of=lambda name: SPEC),
        kept=lambda *of: Bench.kept(bench, *of),
    )
    assert np.array_equal(Bench.kept(bench, Close(), "test"), labels)
    assert np.array_equal(Bench.kept(bench, Close(), "test", SPEC), labels)
    assert Bench.value(bench, Close(), "validation") == 100
    session: Any = SimpleNamespace(bench=bench, pieces=1)
    network: Any = Attached()
    assert flow._value_attached(session, network, ["t"]) == 100


def test_teachers_are_ordered_and_answer_alone_by_what_they_said():
    said_by = {"good": np.array([2, 1, 0]), "bad": np.array([2, 0, 1])}
    zoo: Any = SimpleNamespace(predicted=lambda name, split: said_by[name])  # no logits: none may be asked for
    bench: Any = SimpleNamespace(zoo=zoo, at="s", task=Classification(), truth=lambda split: np.array([2, 1, 0]))
    session = Session(bench, Unit(EnsembleMax(), Plan({}), "s", ("good", "bad"), 0), "key")
    assert session.ordered(["good", "bad"], "ascending", 0) == ["bad", "good"]
    assert session.ordered(["bad", "good"], "descending", 0) == ["good", "bad"]
    own, chosen = {"good": np.array([5, 3, 4])}, {"test": np.array([0, 2])}
    place: Any = SimpleNamespace(zoo=zoo, chosen=chosen, positions=own.get, problem="of an experiment")
    assert Bench.predicted(place, "good", "test").tolist() == [4, 5]
    place.problem = None
    assert Bench.predicted(place, "good", "test").tolist() == [2, 0]


# what an older version wrote


def older(path: Path) -> None:
    """Make a file what version 1 wrote: no version, no likeliest classes."""
    tensors = {name: array for name, array in load_file(path).items() if not name.endswith(".top")}
    save_file(tensors, path, {"fingerprint": "print", "data": "data", "content": "0"})


def test_predictions_of_an_older_version_are_refused_in_one_line(tmp_path):
    path = tmp_path / "resnet.safetensors"
    predictions.write(path, {"test": said(np.eye(3, dtype=np.float16), np.arange(3))}, "print", "data")
    assert predictions.current(path)
    older(path)
    assert not predictions.current(path)
    for call in (predictions.verify, lambda p: predictions.read(p, "test"), lambda p: Files({"resnet": p}, "test")):
        with pytest.raises(KtError) as error:
            call(path)
        assert str(error.value) == (
            f"{path}: predictions of an older version, which took classes from rounded logits; "
            "make them again: kt predictions --model resnet"
        )


def test_damaged_and_absent_predictions_are_not_current(tmp_path):
    assert not predictions.current(tmp_path / "none.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"no predictions")
    assert not predictions.current(tmp_path / "m.safetensors")
