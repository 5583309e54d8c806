"""One student's units on the bench: every outcome is a record, and no unit touches the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import ClassVar

import numpy as np
import pytest
import torch
from answers import logits
from batches import Given
from stopping import again_and_again
from studies import stored_digits
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import Interrupted
from kt.tasks import partition
from kt.tasks.classification import Classification
from kt.tasks.task import Task, named
from kt.transfer import engine, session
from kt.transfer.batch import Batch, Examples
from kt.transfer.bench import Begun, Bench, Settings
from kt.transfer.ledger import Ledger, unpack
from kt.transfer.ledger import key as ledger_key
from kt.transfer.method import Method, registry
from kt.transfer.methods.bikd import BiKD
from kt.transfer.methods.kl import KL
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.session import Session
from kt.transfer.training import Training
from kt.transfer.unit import Plans, Unit
from kt.zoo.features import Featured

TASK = Classification()
CPU = torch.device("cpu")
TRAINING = Training(epochs=3, batch_size=10, lr=0.02)


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(12, 10)).eval()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Dataset:
    return stored_digits(tmp_path_factory.mktemp("data"), transfer=40)


class Zoo:
    """Models by their names, without files: the student, and two teachers, one with its own input."""

    SEEDS: ClassVar = {"s": 0, "t": 1, "u": 2}

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.given: dict[str, np.ndarray] = {}

    def fingerprint(self, name: str) -> str:
        return f"print of {name}"

    def load(self, name: str) -> nn.Module:
        return build(self.SEEDS[name])

    def input_of(self, name: str) -> InputSpec:
        return InputSpec(size=8, mean=(0.4 if name == "u" else 0.3,), std=(0.33,))

    def logits(self, name: str, split: str) -> np.ndarray:
        if name in self.given:
            return self.given[name]
        return logits(self.load(name), Inputs(self.data.images, self.data.rows(split), self.input_of(name), CPU))

    def predicted(self, name: str, split: str) -> np.ndarray:
        return self.logits(name, split).argmax(1)

    def features(self, name: str, split: str) -> np.ndarray:
        view = Inputs(self.data.images, self.data.rows(split), self.input_of(name), CPU)
        with torch.inference_mode():
            return Featured(self.load(name)).eval()(view[slice(0, len(view))])[1].to(torch.float16).numpy()


@pytest.fixture
def bench(stored, tmp_path) -> Bench:
    return make_bench(stored, tmp_path)


def make_bench(stored: Dataset, folder: Path, every: float = 3600, name: str = "s") -> Bench:
    zoo, settings = Zoo(stored), Settings(TRAINING, folder / "checkpoints", every, CPU, Event())
    begun = Begun(name, ("tiny", {}), zoo.input_of(name), 1, member=True)
    return Bench(begun, zoo, named("classification"), stored, settings)


def student_of(bench: Bench) -> nn.Module:
    """The student with the weights that it has now."""
    return bench._member[0]


def unit(method: str, seed: int = 0, **parameters: object) -> Unit:
    chosen = registry()[method].model_validate(parameters)
    teachers = () if chosen.control else ("t", "u") if chosen.takes == "group" else ("t",)
    return unit_of(chosen, teachers, seed)


def unit_of(method: Method, teachers: tuple[str, ...], seed: int = 0, student: str = "s") -> Unit:
    return Unit(method, Plans("data", TRAINING).of(method, seed), student, teachers, seed)


def compute(bench: Bench, method: str | Unit, seed: int = 0, key: str = "key") -> dict[str, object]:
    """The record of a unit, without the time it took."""
    record, _ = session.compute(bench, unit(method, seed) if isinstance(method, str) else method, key)
    assert record["status"] == "ok", record
    assert record.pop("seconds") > 0
    return record


def own(record: dict[str, object], name: str = "s") -> dict[str, object]:
    """A record as the student's rows see it."""
    return {**record, **record.get("models", {}).get(f"print of {name}", {})}


@pytest.mark.parametrize("method", registry())
def test_every_method_gives_a_record_that_the_ledger_takes(bench, tmp_path, method):
    chosen = unit(method)
    record = compute(bench, chosen)
    trainings = {"sequential": 2, "soup": 2, "ensemble_max": 0, "ensemble_mean": 0}.get(method, 1)
    assert (record["steps"], record["device"], record["torch"]) == (12 * trainings, "cpu", torch.__version__)
    assert len(record["loss"]) == len(record["validation"]) == 3 * trainings
    if trainings == 0 or method == "soup":
        assert record["best_epoch"] is None
    else:
        assert record["best_epoch"] == 1 + int(np.argmax(record["validation"]))
    assert record["budget"] == (2 if method == "bikd" else trainings)
    assert len(unpack(own(record)["last"])) == len(unpack(own(record)["best"])) == 50
    assert (own(record)["teacher_share"] is None) == (chosen.method.control or not chosen.method.trains)
    assert json.loads(json.dumps(record)) == record
    assert not list(bench.settings.checkpoints.glob("*"))
    Ledger(tmp_path).add({"unit": method}, record)
    assert Ledger(tmp_path).get(ledger_key({"unit": method})) == record


@pytest.fixture(scope="module")
def undisturbed(stored, tmp_path_factory) -> dict[str, dict[str, object]]:
    """The record of every method's unit, each alone on its bench."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: compute(make_bench(stored, folder / name), name) for name in registry()}


@pytest.mark.parametrize("method", [name for name, m in registry().items() if m.trains])
def test_a_unit_of_any_method_stopped_again_and_again_ends_bit_identical(
    stored, tmp_path, monkeypatch, undisturbed, method
):
    ended, bench, stops = again_and_again(
        monkeypatch, method, 9, lambda: make_bench(stored, tmp_path, every=3600), lambda bench: compute(bench, method)
    )
    assert stops >= 1
    assert ended == undisturbed[method]
    assert not list(bench.settings.checkpoints.iterdir())


HABITS = {
    "flips": "running",
    "mean": "taught",
    "top": 3,
    "updates": "each_epoch",
    "start": "shared",
    "evaluation": "overwrites",
    "tau": 0.8,
}


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("flip_mean", {"student": "running"}), ("flip_teacher", {"student": "running"}), ("xekl_mcl", HABITS)],
)
def test_a_unit_with_published_habits_stopped_again_and_again_ends_bit_identical(
    stored, tmp_path, monkeypatch, undisturbed, method, parameters
):
    chosen = unit(method, **parameters)
    alone = compute(make_bench(stored, tmp_path / "alone"), chosen)
    assert alone["loss"] != undisturbed[method]["loss"]
    assert alone["teacher_share"] == undisturbed[method]["teacher_share"]  # that at the start
    ended, _, stops = again_and_again(
        monkeypatch, method, 9, lambda: make_bench(stored, tmp_path, every=3600), lambda bench: compute(bench, chosen)
    )
    assert stops >= 1
    assert ended == alone


def test_a_record_holds_what_the_trained_student_says_of_the_test_images(bench):
    record = compute(bench, "finetune")
    said = logits(student_of(bench), bench.view("test")).argmax(1)
    assert unpack(record["last"]).tolist() == said.tolist()
    right = logits(student_of(bench), bench.view("validation")).argmax(1) == bench.truth("validation")
    assert record["validation"][-1] == pytest.approx(100 * right.mean())


def test_last_and_best_are_told_apart(bench, monkeypatch):
    states, accuracies = [], iter([10.0, 30.0, 20.0])

    def validation(self: Session, student: nn.Module) -> float:
        states.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(Session, "_value", validation)
    record = compute(bench, "finetune")
    assert record["best_epoch"] == 2
    for name, state in (("best", states[1]), ("last", states[2])):
        student_of(bench).load_state_dict(state)
        said = logits(student_of(bench), bench.view("test")).argmax(1)
        assert unpack(record[name]).tolist() == said.tolist()
    assert record["best"] != record["last"]


@pytest.mark.parametrize("method", registry())
def test_a_unit_gives_the_same_record_alone_and_after_others(bench, undisturbed, method):
    for other in ("finetune", "bikd"):
        compute(bench, other, seed=5)
    assert compute(bench, method) == undisturbed[method]


def test_the_share_of_the_teacher_is_that_of_the_mask(bench):
    labels = torch.from_numpy(bench.truth("transfer"))
    teacher, frozen = (torch.from_numpy(bench.zoo.logits(name, "transfer")).float() for name in "ts")
    by_label = partition.by_fit(TASK, teacher, frozen, labels)
    assert compute(bench, "kl_dp")["teacher_share"] == pytest.approx(100 * by_label.float().mean().item())
    assert compute(bench, "kl")["teacher_share"] == 100
    assert 0 < by_label.float().mean() < 1


@pytest.mark.parametrize("method", ["kl", "kl_dp", "kl_dp_unsup", "flip_student"])
def test_a_teacher_equal_to_the_student_trains_as_the_control_self_does(bench, method):
    control = compute(bench, "self")
    bench.zoo.given["t"] = bench.zoo.logits("s", "transfer")
    record = compute(bench, method)
    for name in ("last", "best", "best_epoch", "loss", "validation"):
        assert record[name] == control[name], name
    assert record["teacher_share"] == (100 if method == "kl" else 0)


# several teachers


@pytest.mark.parametrize("method", ["sequential", "soup", "parallel"])
def test_one_teacher_alone_is_kl_dp_exactly(bench, undisturbed, method):
    assert compute(bench, unit_of(registry()[method](), ("t",))) == undisturbed["kl_dp"]


def test_sequential_is_one_transfer_after_another_from_where_the_last_one_ended(bench, undisturbed):
    record = compute(bench, unit("sequential", order="given"))
    dp = undisturbed["kl_dp"]
    assert record["loss"][:3] == dp["loss"]
    # by hand: train from t, make that the frozen student, train from u with a fresh optimiser
    first = Session(bench, unit("kl_dp"), "by-hand").train(KLDP(), ["t"], 0)
    student_of(bench).load_state_dict(first.last)
    middle = logits(student_of(bench), bench.view("transfer"))
    labels = torch.from_numpy(bench.truth("transfer"))
    frozen, teacher = (torch.from_numpy(z).float() for z in (middle, bench.zoo.logits("u", "transfer")))
    targets, taught = KLDP().targets(TASK, teacher, frozen, labels)
    history = engine.train(
        student_of(bench),
        bench.view("transfer"),
        Given(targets, labels, taught, torch.arange(40)),
        partial(KLDP().loss, TASK),
        lambda m: 0.0,
        TRAINING,
        0,
        Checkpoint(bench.settings.checkpoints / "x", "x", 3600),
    )
    assert record["loss"][3:] == history.loss
    said = logits(student_of(bench), bench.view("test")).argmax(1)
    assert unpack(record["last"]).tolist() == said.tolist()


def test_orders_of_sequential_go_by_validation_accuracy_seed_or_the_group(bench):
    session = Session(bench, unit("sequential"), "key")
    right = {
        name: (bench.zoo.logits(name, "validation").argmax(1) == bench.truth("validation")).mean() for name in "tu"
    }
    assert right["t"] != right["u"]
    up = sorted(right, key=lambda name: right[name])
    assert session.ordered(["t", "u"], "ascending", 0) == session.ordered(["u", "t"], "ascending", 0) == up
    assert session.ordered(["t", "u"], "descending", 0) == up[::-1]
    assert session.ordered(["u", "t"], "given", 0) == ["u", "t"]
    drawn = {tuple(session.ordered(["s", "t", "u"], "random", seed)) for seed in range(40)}
    assert len(drawn) == 6
    assert session.ordered(["s", "t", "u"], "random", 7) == session.ordered(["s", "t", "u"], "random", 7)


def test_a_soup_has_the_mean_weights_of_the_students_of_each_teacher(bench):
    record = compute(bench, "soup")
    said = {}
    for which in ("last", "best"):
        states = [getattr(Session(bench, unit("kl_dp"), f"alone-{t}").train(KLDP(), [t], 0), which) for t in "tu"]
        mean = {name: (states[0][name].double() + states[1][name].double()) / 2 for name in states[0]}
        student_of(bench).load_state_dict(mean)
        said[which] = logits(student_of(bench), bench.view("test")).argmax(1).tolist()
    assert {which: unpack(record[which]).tolist() for which in said} == said


def test_models_that_train_together_give_the_same_record_from_either_side(stored, tmp_path, undisturbed):
    other = make_bench(stored, tmp_path / "other", name="t")
    assert compute(other, unit_of(BiKD(), ("s",), student="t")) == undisturbed["bikd"]
    shares = [own(undisturbed["bikd"], name)["teacher_share"] for name in "st"]
    assert sum(shares) == pytest.approx(100)
    assert own(undisturbed["bikd"], "s")["last"] != own(undisturbed["bikd"], "t")["last"]


def test_three_models_train_together_each_on_its_own_input(bench):
    record = compute(bench, unit_of(BiKD(), ("t", "u")))
    assert set(record["models"]) == {"print of s", "print of t", "print of u"}
    assert record["budget"] == 3
    seen = {name: bench.view("transfer", bench.zoo.input_of(name)) for name in "stu"}
    assert seen["u"] is not seen["s"] is seen["t"]


def test_an_ensemble_answers_from_the_cached_test_logits(bench):
    teacher, student = (torch.from_numpy(bench.zoo.logits(name, "test")).float() for name in "ts")
    mean = teacher.softmax(1) + student.softmax(1)
    assert unpack(compute(bench, "ensemble_mean")["last"]).tolist() == mean.argmax(1).tolist()
    surer = teacher.softmax(1).amax(1) > student.softmax(1).amax(1)
    chosen = torch.where(surer, teacher.argmax(1), student.argmax(1))
    assert unpack(compute(bench, "ensemble_max")["last"]).tolist() == chosen.tolist()


def test_the_teachers_features_are_the_cached_ones(bench, monkeypatch, undisturbed):
    cached = bench.zoo.features("t", "transfer")
    assert cached.shape == (40, 12)
    monkeypatch.setattr(Zoo, "features", lambda self, name, split: -cached)
    assert compute(bench, "crd") != undisturbed["crd"]


class Failing(KL):
    """A method that fails in its third step."""

    def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
        CALLS.clear()
        return super().learner(students, examples)

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        CALLS.append(1)
        return super().loss(task, output, batch) if len(CALLS) < 3 else self.fail(output)

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
    record, _ = session.compute(bench, unit_of(method(), ("t",)), "key")
    assert record == {"status": "failed", "cause": cause, "reason": reason}
    assert compute(bench, "kl_dp") == compute(make_bench(stored, tmp_path / "alone"), "kl_dp")


def test_a_teacher_with_other_classes_is_a_failed_unit(bench):
    bench.zoo.given["t"] = np.zeros((40, 7), np.float16)
    record, _ = session.compute(bench, unit("kl"), "key")
    assert (record["status"], record["cause"]) == ("failed", "error")
    assert record["reason"].startswith("error: RuntimeError: The size of tensor a")


class FitsInPieces(KL):
    """Runs out of memory with more than four images at once, or with more than `most`."""

    most: int = 4

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        if len(output) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().loss(task, output, batch)


def test_a_batch_that_does_not_fit_is_cut_until_it_does(bench, caplog):
    record = compute(bench, unit_of(FitsInPieces(), ("t",)))
    assert record["pieces"] == 4  # of 10 images: 5 and 5 do not fit, 3, 3, 2 and 2 do
    assert record["steps"] == 12
    assert "goes on with 2 pieces a batch" in caplog.text
    assert "goes on with 4 pieces a batch" in caplog.text


def test_a_batch_is_not_cut_below_two_images(bench):
    assert session.compute(bench, unit_of(FitsInPieces(most=1), ("t",)), "key")[0]["cause"] == "out_of_memory"


def test_samples_that_are_compared_meet_all_others_though_their_batch_is_cut(bench):
    seen: set[int] = set()

    class Comparing(KL):
        whole_batch: ClassVar[bool] = True

        def learner(self, students: Sequence[nn.Module], examples: Examples) -> nn.Module:
            return Narrow(students[0])

        def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
            seen.add(len(output))
            return super().loss(task, output, batch)

    assert compute(bench, unit_of(Comparing(), ("t",)))["pieces"] == 4
    assert seen == {10}


class Narrow(nn.Module):
    """A model that takes four images at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(x)


def test_a_pattern_of_frozen_layers_that_matches_nothing_is_a_reason(bench):
    record, _ = session.compute(bench, unit("kl", training={"freeze": ("stem.*",)}), "key")
    assert record["reason"].startswith("error: transfer.training.freeze: 'stem.*' matches no parameter")


class Interrupting(Failing):
    def fail(self, logits: Tensor) -> Tensor:
        raise KeyboardInterrupt


def test_an_interrupted_unit_goes_on_from_its_checkpoint_and_then_forgets_it(stored, tmp_path):
    bench = make_bench(stored, tmp_path, every=0)
    with pytest.raises(KeyboardInterrupt):
        session.compute(bench, unit_of(Interrupting(), ("t",)), "key")
    assert {path.name for path in bench.settings.checkpoints.iterdir()} == {"key.pt", "key.steps"}
    resumed = compute(bench, "kl")
    assert not list(bench.settings.checkpoints.iterdir())
    assert resumed == compute(make_bench(stored, tmp_path / "alone"), "kl")


class Stopping(Failing):
    """Sets the bench's flag in its third step and trains on."""

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        CALLS.append(1)
        if len(CALLS) == 3:
            STOP[0].set()
        return KL.loss(self, task, output, batch)


STOP: list[Event] = []


def test_a_unit_told_to_stop_saves_raises_and_goes_on_next_time(bench, stored, tmp_path):
    STOP[:] = [bench.settings.stop]
    with pytest.raises(Interrupted, match="stopped by a signal"):
        session.compute(bench, unit_of(Stopping(), ("t",)), "key")
    assert len(CALLS) == 3
    assert torch.load(bench.settings.checkpoints / "key.pt")["progress"]["step"] == 3
    bench.settings.stop.clear()
    assert compute(bench, "kl") == compute(make_bench(stored, tmp_path / "alone"), "kl")
    assert not list(bench.settings.checkpoints.iterdir())
