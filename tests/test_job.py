"""One student's units on the workbench: every outcome is a record, and no unit touches the next."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kt.data import datasets
from kt.data.datasets import Dataset
from kt.data.spec import DataSpec, InputSpec, SplitSizes
from kt.errors import Interrupted
from kt.transfer import partition
from kt.transfer.job import Workbench
from kt.transfer.ledger import Ledger, unpack
from kt.transfer.ledger import key as ledger_key
from kt.transfer.method import registry
from kt.transfer.methods.kl import KL
from kt.transfer.spec import Training
from kt.transfer.units import Unit
from kt.zoo.inference import logits

CPU = torch.device("cpu")
TRAINING = Training(epochs=3, batch_size=10, lr=0.02)


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(12, 10)).eval()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    splits = SplitSizes(zoo=1, transfer=40, validation=30, test=50)
    datasets.write(folder, DataSpec(source="digits", seed=0, splits=splits))
    return Dataset.open(folder)


@pytest.fixture
def bench(stored, tmp_path) -> Workbench:
    return make_bench(stored, tmp_path)


def make_bench(stored: Dataset, folder: Path, every: float = 3600) -> Workbench:
    student, spec = build(0), InputSpec(size=8, mean=(0.3,), std=(0.33,))
    bench = Workbench.set_up(
        student, np.zeros((40, 10), np.float16), stored, spec, TRAINING, folder / "checkpoints", every, CPU, Event()
    )
    frozen = torch.from_numpy(logits(student, bench.inputs["transfer"])).float()
    object.__setattr__(bench, "frozen", frozen)
    return bench


def teacher_of(bench: Workbench) -> np.ndarray:
    return logits(build(1), bench.inputs["transfer"])


def unit(method: str, seed: int = 0) -> Unit:
    chosen = registry()[method]()
    return Unit(chosen, None if chosen.control else "t", seed)


def compute(bench: Workbench, method: str, seed: int = 0) -> dict[str, object]:
    """The record of a unit, without the time it took."""
    chosen = unit(method, seed)
    record = bench.compute(chosen, f"key-{method}-{seed}", teacher_of(bench) if chosen.teacher else None)
    assert record["status"] == "ok", record
    assert record.pop("seconds") > 0
    return record


@pytest.mark.parametrize("method", registry())
def test_every_method_gives_a_record_that_the_ledger_takes(bench, tmp_path, method):
    record = compute(bench, method)
    assert (record["steps"], record["device"], record["torch"]) == (12, "cpu", torch.__version__)
    assert len(record["loss"]) == len(record["validation"]) == 3
    assert record["best_epoch"] == 1 + int(np.argmax(record["validation"]))
    assert len(unpack(record["last"])) == len(unpack(record["best"])) == 50
    assert (record["teacher_share"] is None) == registry()[method].control
    assert json.loads(json.dumps(record)) == record
    Ledger(tmp_path).add({"unit": method}, record)
    assert Ledger(tmp_path).get(ledger_key({"unit": method})) == record


def test_a_record_holds_what_the_trained_student_says_of_the_test_images(bench):
    record = compute(bench, "finetune")
    assert record["best_epoch"] == 3, "the student is left with the best weights, here those of the last epoch"
    said = logits(bench.student, bench.inputs["test"]).argmax(1)
    assert unpack(record["last"]).tolist() == unpack(record["best"]).tolist() == said.tolist()
    right = logits(bench.student, bench.inputs["validation"]).argmax(1) == bench.labels["validation"]
    assert record["validation"][-1] == pytest.approx(100 * right.mean())


def test_last_and_best_are_told_apart(bench, monkeypatch):
    states, accuracies = [], iter([10.0, 30.0, 20.0])

    def validation(self: Workbench, student: nn.Module) -> float:
        states.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(Workbench, "_validation_accuracy", validation)
    record = compute(bench, "finetune")
    assert record["best_epoch"] == 2
    for name, state in (("best", states[1]), ("last", states[2])):
        bench.student.load_state_dict(state)
        said = logits(bench.student, bench.inputs["test"]).argmax(1)
        assert unpack(record[name]).tolist() == said.tolist()
    assert record["best"] != record["last"]


@pytest.mark.parametrize("method", registry())
def test_a_unit_gives_the_same_record_alone_and_after_others(bench, stored, tmp_path, method):
    for other in ("finetune", "kl_dp"):
        compute(bench, other, seed=5)
    assert compute(bench, method) == compute(make_bench(stored, tmp_path / "alone"), method)


def test_the_share_of_the_teacher_is_that_of_the_mask(bench):
    labels = torch.from_numpy(bench.labels["transfer"])
    teacher = torch.from_numpy(teacher_of(bench)).float()
    by_label = partition.by_label(teacher, bench.frozen, labels)
    assert compute(bench, "kl_dp")["teacher_share"] == pytest.approx(100 * by_label.float().mean().item())
    assert compute(bench, "kl")["teacher_share"] == 100
    assert 0 < by_label.float().mean() < 1


@pytest.mark.parametrize("method", ["kl", "kl_dp", "kl_dp_unsup"])
def test_a_teacher_equal_to_the_student_trains_as_the_control_self_does(bench, method):
    control = compute(bench, "self")
    record = bench.compute(unit(method), "key", bench.frozen.numpy().astype(np.float16))
    for name in ("last", "best", "best_epoch", "loss", "validation"):
        assert record[name] == control[name], name
    assert record["teacher_share"] == (100 if method == "kl" else 0)


class Failing(KL):
    """A method that fails in its third step."""

    def targets(self, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        CALLS.clear()
        return super().targets(teacher, frozen, labels)

    def loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        CALLS.append(1)
        return super().loss(logits, targets, labels) if len(CALLS) < 3 else self.fail(logits)

    def fail(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


CALLS: list[int] = []


class OutOfMemory(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


class Broken(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        raise IndexError("no such index\nand more")


class Silent(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        raise RuntimeError


class NotFinite(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        return logits.sum(1) * float("nan")


class FailsInBackward(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                raise torch.OutOfMemoryError("in the backward pass")

        # half of the gradients are there already when the other half fails
        return logits.sum(1) + Fails.apply(logits).sum(1)


@pytest.mark.parametrize(
    ("method", "cause", "reason"),
    [
        (NotFinite, "diverged", "diverged: the loss is not finite in epoch 1"),
        (OutOfMemory, "out_of_memory", "out_of_memory: CUDA out of memory."),
        (FailsInBackward, "out_of_memory", "out_of_memory: in the backward pass"),
        (Broken, "error", "error: IndexError: no such index"),
        (Silent, "error", "error: RuntimeError: "),
    ],
)
def test_a_failure_is_an_outcome_with_its_cause_and_leaves_no_trace(bench, stored, tmp_path, method, cause, reason):
    record = bench.compute(Unit(method(), "t", 0), "key", teacher_of(bench))
    assert record == {"status": "failed", "cause": cause, "reason": reason}
    assert compute(bench, "kl_dp") == compute(make_bench(stored, tmp_path / "alone"), "kl_dp")


def test_a_teacher_with_other_classes_is_a_failed_unit(bench):
    record = bench.compute(unit("kl"), "key", np.zeros((40, 7), np.float16))
    assert (record["status"], record["cause"]) == ("failed", "error")
    assert record["reason"].startswith("error: RuntimeError: The size of tensor a")


class Interrupting(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        raise KeyboardInterrupt


def test_an_interrupted_unit_goes_on_from_its_checkpoint_and_then_forgets_it(stored, tmp_path):
    bench = make_bench(stored, tmp_path, every=0)
    with pytest.raises(KeyboardInterrupt):
        bench.compute(Unit(Interrupting(), "t", 0), "key-kl-0", teacher_of(bench))
    assert {path.name for path in bench.checkpoints.iterdir()} == {"key-kl-0.pt", "key-kl-0.steps"}
    resumed = compute(bench, "kl")
    assert not list(bench.checkpoints.iterdir())
    assert resumed == compute(make_bench(stored, tmp_path / "alone"), "kl")


class Stopping(Failing):
    """Sets the bench's flag in its third step and trains on."""

    def loss(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        CALLS.append(1)
        if len(CALLS) == 3:
            STOP[0].set()
        return KL.loss(self, logits, targets, labels)


STOP: list[Event] = []


def test_a_unit_told_to_stop_saves_raises_and_goes_on_next_time(bench, stored, tmp_path):
    STOP[:] = [bench.stop]
    with pytest.raises(Interrupted, match="stopped by a signal"):
        bench.compute(Unit(Stopping(), "t", 0), "key-kl-0", teacher_of(bench))
    assert len(CALLS) == 3
    assert torch.load(bench.checkpoints / "key-kl-0.pt")["progress"]["step"] == 3
    bench.stop.clear()
    assert compute(bench, "kl") == compute(make_bench(stored, tmp_path / "alone"), "kl")
    assert not list(bench.checkpoints.iterdir())
