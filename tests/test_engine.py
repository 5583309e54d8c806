"""The training loop: killed anywhere and resumed, it ends exactly as if nothing had happened."""

from __future__ import annotations

import logging
import os
import random
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from batches import all_taught, taught_by
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import Interrupted
from kt.tasks import losses
from kt.tasks.classification import Classification
from kt.transfer.batch import Batch, Examples
from kt.transfer.engine import Diverged, History, epoch_order, train
from kt.transfer.learners import Views
from kt.transfer.method import Method, registry
from kt.transfer.training import SlowWeights, Training

TASK = Classification()
CPU = torch.device("cpu")
N, CLASSES = 26, 3
TRAINING = Training(epochs=3, batch_size=6, lr=0.01, weight_decay=0.1)
STEPS = 12  # 3 epochs of 4 whole batches; two images wait for the next epoch
METHODS = [name for name, m in registry().items() if m.trains and m.run is Method.run]  # one training


class Torn(BaseException):
    """Ends a training from inside, as a signal would."""


class Saving(Checkpoint):
    """A checkpoint that is written after chosen steps, counted from 1, instead of after some seconds."""

    def __init__(self, path: Path, key: str = "key", after: Callable[[int], bool] = lambda step: True) -> None:
        super().__init__(path, key, 0)
        self.after, self.step = after, 0

    def due(self) -> bool:
        self.step += 1
        return self.after(self.step)


def student(seed: int = 0) -> nn.Module:
    """A classifier with BatchNorm and dropout."""
    torch.manual_seed(seed)
    hidden = [nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, CLASSES))


def inputs() -> Inputs:
    images = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 1), dtype=np.uint8)
    return Inputs(images, np.arange(N), InputSpec(size=4, mean=(0.5,), std=(0.5,)), CPU)


def validate(model: nn.Module) -> float:
    """Percentage of images on which the model answers with class 0; evaluated in eval mode, as accuracy is."""
    model.eval()
    with torch.no_grad():
        share = 100 * float((model(inputs()[slice(None)]).argmax(1) == 0).double().mean())
    model.train()
    return share


def run(
    method: str,
    checkpoint: Checkpoint,
    at_loss: Callable[[int], None] = lambda step: None,
    validating: Callable[[nn.Module], float] = validate,
    start: int = 0,
    seed: int = 7,
    pieces: int = 1,
) -> tuple[dict[str, Tensor], History]:
    """Train a student by a method; ``at_loss`` is called with the number of the loss, counted from 1 in this run."""
    chosen, calls, models = registry()[method](), iter(range(1, 1000)), [student(start)]
    examples = lesson(method)
    if chosen.joint:
        models.append(student(start + 1))
    torch.manual_seed(start)
    learner = chosen.learner(models, examples)

    def loss(output: Any, batch: Batch) -> Tensor:
        at_loss(next(calls))
        return chosen.loss(TASK, output, batch)

    def validate_first(learner: nn.Module) -> float:
        return validating(models[0])

    images = Views([inputs(), inputs()]) if chosen.joint else inputs()
    history = train(
        learner, images, examples, loss, validate_first, TRAINING, seed, checkpoint, chosen.slow_weights(), pieces
    )
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}, history


def lesson(method: str) -> Examples:
    """Random logits, labels and features with the targets of a method."""
    generator = torch.Generator().manual_seed(1)
    teacher, frozen = (2 * torch.randn(N, CLASSES, generator=generator) for _ in range(2))
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    features = torch.randn(N, 5, generator=generator)
    chosen = registry()[method]()
    return taught_by(chosen, teacher, frozen, labels, features)


def entropy(output: Tensor, batch: Batch) -> Tensor:
    return losses.cross_entropy(output, batch.truth)


def at(step: int, event: Callable[[], None]) -> Callable[[int], None]:
    """Let something happen at one step."""
    return lambda now: event() if now == step else None


def interrupt() -> None:
    raise Torn


def same(first: Any, second: Any) -> bool:
    """Whether two nested structures are equal to the last bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    return bool(first == second)


def same_end(first: tuple[dict[str, Tensor], History], second: tuple[dict[str, Tensor], History]) -> bool:
    return same(first[0], second[0]) and same(asdict(first[1]), asdict(second[1]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, tuple[dict[str, Tensor], History]]:
    """How every method's training ends when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {method: run(method, Saving(folder / method, after=lambda step: False)) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_resumed_at_any_step_ends_bit_identical(method, undisturbed):
    @settings(max_examples=12)
    @given(st.integers(1, STEPS), st.sets(st.integers(1, STEPS)), st.integers(0, 100))
    @example(stop=2, saved={1}, elsewhere=0)
    @example(stop=5, saved={4}, elsewhere=0)  # saved at the very end of an epoch
    @example(stop=6, saved={5}, elsewhere=0)
    @example(stop=STEPS, saved={STEPS - 1}, elsewhere=0)
    @example(stop=7, saved=set(), elsewhere=0)
    def check(stop, saved, elsewhere):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c.pt"
            with pytest.raises(Torn):
                run(method, Saving(path, after=saved.__contains__), at(stop, interrupt))
            assert path.exists() == any(step < stop for step in saved)
            torch.manual_seed(elsewhere)
            start = elsewhere if path.exists() else 0  # with a checkpoint, the weights to start from do not matter
            assert same_end(run(method, Saving(path), start=start), undisturbed[method])

    check()


def test_a_training_interrupted_again_and_again_ends_bit_identical(tmp_path, undisturbed):
    random.seed(0)
    path, stops = tmp_path / "c.pt", 0
    while True:
        try:
            ended = run("kl", Saving(path, after=lambda step: step % 2 == 0), at(random.randint(2, 5), interrupt))
        except Torn:
            stops += 1
            continue
        break
    assert stops >= 3
    assert same_end(ended, undisturbed["kl"])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_interrupted_in_validation_ends_bit_identical(tmp_path, undisturbed, epoch):
    calls = iter(range(1, 1000))

    def interrupted(model: nn.Module) -> float:
        if next(calls) == epoch:
            raise Torn
        return validate(model)

    with pytest.raises(Torn):
        run("kl_dp", Saving(tmp_path / "c.pt"), validating=interrupted)
    assert same_end(run("kl_dp", Saving(tmp_path / "c.pt")), undisturbed["kl_dp"])


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLS = {
    "in a step": "at_loss = at(7, kill)",
    "while a checkpoint is written": "save = torch.save; torch.save = lambda state, path: ("
    "path.write_bytes(b'PK half a file'), kill() if state['progress']['step'] == 3 else save(state, path))",
    "before a checkpoint is moved": "move, calls = os.replace, iter(range(99)); "
    "os.replace = lambda *args: kill() if next(calls) == 5 else move(*args)",
}


@pytest.mark.parametrize("when", KILLS)
def test_a_process_killed_in_training_is_continued_bit_identical_by_another(tmp_path, python, undisturbed, when):
    code = """
import sys
sys.path.insert(0, "tests")
from test_engine import *
torch.set_num_threads(1)
at_loss = lambda step: None
exec(sys.argv[2])
run("xekl", Saving(Path(sys.argv[1])), at_loss)
"""
    killed = python(code, tmp_path / "c.pt", KILLS[when])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps: list[int] = []
    assert same_end(run("xekl", Saving(tmp_path / "c.pt"), steps.append, start=5), undisturbed["xekl"])
    assert 0 < len(steps) < STEPS  # it went on, and did not begin again


def test_no_checkpoint_is_written_before_the_time_has_come(tmp_path, undisturbed):
    assert same_end(run("kl", Checkpoint(tmp_path / "c.pt", "key", every=3600)), undisturbed["kl"])
    assert not (tmp_path / "c.pt").exists()
    run("kl", Checkpoint(tmp_path / "c.pt", "key", every=0))
    assert (tmp_path / "c.pt").exists()


@pytest.mark.parametrize("step", [1, 4, 7, STEPS])
def test_a_training_told_to_stop_ends_after_its_step_and_goes_on_bit_identical(tmp_path, caplog, undisturbed, step):
    stop, done = Event(), []

    def at_loss(now: int) -> None:
        done.append(now)
        if len(done) == step:
            stop.set()

    with pytest.raises(Interrupted, match=rf"stopped by a signal after step {step}; .*c\.pt holds the progress"):
        run("kl", Checkpoint(tmp_path / "c.pt", "key", 3600, stop), at_loss)
    assert len(done) == step
    stop.clear()
    caplog.set_level("INFO")
    assert same_end(run("kl", Checkpoint(tmp_path / "c.pt", "key", 3600, stop), at_loss), undisturbed["kl"])
    assert len(done) == STEPS
    assert f"goes on from its checkpoint after step {step}: 0 steps are done twice" in caplog.text


class SavingAfter(Checkpoint):
    """Counts steps, but is written after one chosen step only."""

    def __init__(self, path: Path, saved: int) -> None:
        super().__init__(path, "key", 3600)
        self.saved, self.step = saved, 0

    def due(self) -> bool:
        self.step += 1
        return super().due() or self.step == self.saved


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (3, "goes on from its checkpoint after step 3: 4 steps are done twice"),
        (0, "begins again after step 0: 7 steps are done twice"),
    ],
)
def test_steps_that_a_killed_training_had_done_are_counted_when_they_are_done_twice(tmp_path, caplog, saved, said):
    caplog.set_level("INFO")
    with pytest.raises(Torn):
        run("kl", SavingAfter(tmp_path / "c.pt", saved), at(8, interrupt))
    assert "done twice" not in caplog.text, "nothing had been done before"
    run("kl", SavingAfter(tmp_path / "c.pt", 0))
    assert said in caplog.text


# checkpoints


def interrupted_file(path: Path) -> bytes:
    """The bytes of a checkpoint in the middle of a training."""
    with pytest.raises(Torn):
        run("kl", Saving(path), at(8, interrupt))
    return path.read_bytes()


@given(st.data())
def test_a_damaged_checkpoint_is_never_trusted(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.pt"
        Checkpoint(path, "key", 0).save({"weights": torch.arange(200.0), "step": 3})
        whole = path.read_bytes()
        position, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        flipped = whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :]
        path.write_bytes(data.draw(st.sampled_from([flipped, whole[:position]])))
        state = Checkpoint(path, "key", 0).load(CPU)
        if state is not None:  # a byte that means nothing, such as padding
            assert (state["key"], state["step"]) == ("key", 3)
            assert torch.equal(state["weights"], torch.arange(200.0))


def test_a_flipped_bit_in_the_weights_is_found(tmp_path, caplog):
    path = tmp_path / "c.pt"
    Checkpoint(path, "key", 0).save({"weights": torch.arange(200.0)})
    whole = bytearray(path.read_bytes())
    whole[whole.index(torch.arange(200.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(whole)
    assert Checkpoint(path, "key", 0).load(CPU) is None
    assert "cannot be read and is ignored" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "half", "text", "another torch file"])
def test_a_training_with_a_damaged_checkpoint_begins_again_with_a_warning(tmp_path, caplog, undisturbed, damage):
    path = tmp_path / "c.pt"
    whole = interrupted_file(path)
    if damage == "another torch file":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}[damage])
    steps: list[int] = []
    assert same_end(run("kl", Saving(path, after=lambda step: False), steps.append), undisturbed["kl"])
    assert len(steps) == STEPS
    assert f"checkpoint {path} cannot be read and is ignored" in caplog.text


def test_a_checkpoint_of_another_key_is_ignored_without_a_warning(tmp_path, caplog, undisturbed):
    interrupted_file(tmp_path / "c.pt")
    assert Checkpoint(tmp_path / "c.pt", "other", 0).load(CPU) is None
    assert same_end(run("kl", Saving(tmp_path / "c.pt", key="other")), undisturbed["kl"])
    assert caplog.text == ""


def test_a_missing_checkpoint_is_none_and_may_be_removed(tmp_path, caplog):
    checkpoint = Checkpoint(tmp_path / "c.pt", "key", 0)
    assert checkpoint.load(CPU) is None
    checkpoint.remove()
    checkpoint.save({"x": 1})
    assert checkpoint.load(CPU) == {"x": 1, "key": "key"}
    checkpoint.remove()
    assert checkpoint.load(CPU) is None
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert not list(tmp_path.iterdir())


# order and learning rate


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == [*range(n)]
    torch.manual_seed(epoch)
    torch.rand(3)
    assert torch.equal(epoch_order(n, seed, epoch), order)


def test_epoch_order_differs_between_seeds_and_epochs():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1, 2, 2**32 - 1) for epoch in range(5)}
    assert len(orders) == 20


# what training does


class Recorder(nn.Module):
    """A linear classifier that remembers which images it saw in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append((x.flatten() * 255).round().int().tolist())
        return self.linear(x.flatten(1))


def test_batches_follow_the_epochs_order_with_their_own_targets_and_labels(tmp_path):
    model, asked = Recorder().eval(), []  # as a model comes from loading
    images = Inputs(
        np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1),
        np.arange(10),
        InputSpec(size=1, mean=(0.0,), std=(1.0,)),
        CPU,
    )

    def loss(output: Tensor, batch: Batch) -> Tensor:
        asked.append((batch.targets[:, 0].int().tolist(), batch.truth.tolist()))
        assert batch.positions.tolist() == asked[-1][0]
        return output.sum(1) ** 2

    targets, labels = torch.arange(10.0)[:, None].expand(10, 2), torch.arange(10) + 100
    training = Training(epochs=2, batch_size=4, lr=0.1)
    history = train(
        model, images, all_taught(targets, labels), loss, lambda m: 0.0, training, 3, Saving(tmp_path / "c")
    )
    expected = [epoch_order(10, 3, epoch)[i : i + 4].tolist() for epoch in (0, 1) for i in (0, 4)]
    assert model.seen == expected
    assert [rows for rows, _ in asked] == expected
    assert [[y - 100 for y in ys] for _, ys in asked] == expected
    assert history.steps == 4


def test_one_step_is_adamw_at_the_scheduled_rate(tmp_path):
    images = Inputs(np.full((4, 1, 1, 1), 255, np.uint8), np.arange(4), InputSpec(size=1, mean=(0.0,), std=(1.0,)), CPU)
    model, other = Recorder(), Recorder()
    other.load_state_dict(model.state_dict())
    labels = torch.tensor([0, 0, 0, 1])
    training = Training(epochs=3, batch_size=4, lr=0.1, weight_decay=0.5)

    samples = all_taught(torch.zeros(4, 2), labels)
    history = train(model, images, samples, entropy, lambda m: 0.0, training, 0, Saving(tmp_path / "c"))
    optimiser, found = torch.optim.AdamW(other.parameters(), 0.1, weight_decay=0.5), []
    for step, rate in enumerate((0.1, 0.075, 0.025)):
        optimiser.param_groups[0]["lr"] = rate
        positions = epoch_order(4, 0, step)
        mean = nn.functional.cross_entropy(other(torch.ones(4, 1)), labels[positions])
        optimiser.zero_grad()
        mean.backward()
        optimiser.step()
        found.append(mean.item())
    assert history.loss == pytest.approx(found)
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_parts_of_the_learner_move_as_much_faster_as_they_are_asked_to(tmp_path):
    """In one step of plain gradient descent the distance is the learning rate."""
    training = Training(epochs=1, batch_size=4, lr=0.1, optimiser="sgd", momentum=0.0, schedule="constant")
    images = Inputs(np.full((4, 1, 1, 1), 255, np.uint8), np.arange(4), InputSpec(size=1, mean=(0.0,), std=(1.0,)), CPU)
    samples, moved = all_taught(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])), []
    for times in (1.0, 10.0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.Linear(3, 2))
        for i, parameter in enumerate(model.parameters()):
            nn.init.constant_(parameter, 0.1 * (i + 1))
        nn.init.eye_(model[2].weight)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(
            model,
            images,
            samples,
            entropy,
            lambda m: 0.0,
            training,
            0,
            Saving(tmp_path / f"{times}"),
            rates=[(model[2], times)],
        )
        moved.append({name: tensor - before[name] for name, tensor in model.state_dict().items()})
    slow, fast = moved
    for name in slow:
        assert slow[name].abs().max() > 1e-3
        torch.testing.assert_close(fast[name], slow[name] * (10 if name.startswith("2.") else 1))


def test_the_last_epochs_weights_stay_and_the_best_epochs_are_kept_beside(tmp_path):
    accuracies, seen = iter([50.0, 80.0, 80.0]), []

    def validating(model: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(accuracies)

    last, history = run("kl", Saving(tmp_path / "c.pt"), validating=validating)
    assert (history.best_epoch, history.validation) == (2, [50.0, 80.0, 80.0])  # the first of equals
    assert same(history.best, seen[1])
    assert same(last, seen[2])
    assert not same(seen[1], seen[2])
    assert (history.steps, len(history.loss)) == (STEPS, 3)


def test_the_seed_changes_the_training_and_nothing_else_does(tmp_path, undisturbed):
    torch.manual_seed(99)
    assert same_end(run("kl", Saving(tmp_path / "a")), undisturbed["kl"])
    assert not same_end(run("kl", Saving(tmp_path / "b"), seed=8), undisturbed["kl"])


def test_the_seed_changes_the_training_of_a_student_without_random_parts(tmp_path):
    def ended(seed: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
        labels = torch.arange(N) % CLASSES
        train(
            model,
            inputs(),
            all_taught(torch.zeros(N, CLASSES), labels),
            entropy,
            validate,
            TRAINING,
            seed,
            Saving(tmp_path / str(seed)),
        )
        return model[1].weight.detach()

    assert torch.equal(ended(0), ended(0))
    assert not torch.equal(ended(0), ended(1))


def test_gradients_left_by_another_training_play_no_part(tmp_path):
    def ended(left_over: bool) -> dict[str, Tensor]:
        model = student()
        if left_over:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 100.0)
        labels = torch.zeros(N, dtype=torch.int64)
        train(
            model,
            inputs(),
            all_taught(torch.zeros(N, CLASSES), labels),
            entropy,
            validate,
            TRAINING,
            0,
            Saving(tmp_path / str(left_over)),
        )
        return model.state_dict()

    assert same(ended(True), ended(False))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_in_its_epoch(tmp_path, value):
    def loss(output: Tensor, batch: Batch) -> Tensor:
        return entropy(output, batch) + (value if next(calls) == 6 else 0)

    calls = iter(range(1, 100))
    samples = all_taught(torch.zeros(N, CLASSES), torch.zeros(N, dtype=torch.int64))
    arguments = (samples, loss, validate, TRAINING, 0)
    with pytest.raises(Diverged, match="the loss is not finite in epoch 2"):
        train(student(), inputs(), *arguments, Saving(tmp_path / "c.pt"))


def test_self_has_zero_loss_at_step_zero_for_a_student_without_random_parts(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        frozen = model(inputs()[slice(None)])
    labels, method, seen = torch.zeros(N, dtype=torch.int64), registry()["self"](), []

    def loss(output: Tensor, batch: Batch) -> Tensor:
        seen.append(method.loss(TASK, output, batch))
        return seen[-1]

    targets, _ = method.targets(TASK, frozen, frozen, labels)
    training = TRAINING.model_copy(update={"lr": 1e-9, "weight_decay": 0.0})
    train(model, inputs(), all_taught(targets, labels), loss, validate, training, 0, Saving(tmp_path / "c.pt"))
    assert seen[0].abs().max() < 1e-6
    torch.testing.assert_close(model.state_dict(), before)


def test_a_weight_that_is_not_finite_after_the_last_step_ends_the_training(tmp_path):
    model = student()

    def validating(learner: nn.Module) -> float:
        pytest.fail("a student with a broken weight is not evaluated")

    def loss(output: Tensor, batch: Batch) -> Tensor:
        if next(calls) == 4:
            with torch.no_grad():
                model[1].weight[0, 0] = float("nan")
        return entropy(output, batch)

    calls = iter(range(1, 100))
    samples = all_taught(torch.zeros(N, CLASSES), torch.zeros(N, dtype=torch.int64))
    with pytest.raises(Diverged, match="a weight is not finite after epoch 1"):
        train(model, inputs(), samples, loss, validating, TRAINING, 0, Saving(tmp_path / "c.pt"))


# slow weights


def test_slow_weights_follow_every_few_steps_and_are_what_is_evaluated_and_kept(tmp_path):
    model, followed, samples = student(), student(), lesson("finetune")
    expected, fast = {name: tensor.clone() for name, tensor in followed.state_dict().items()}, []

    class Watching(Saving):
        def due(self) -> bool:
            fast.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return False

    evaluated: list[dict[str, Tensor]] = []

    def validating(learner: nn.Module) -> float:
        evaluated.append({name: tensor.clone() for name, tensor in learner.state_dict().items()})
        return float(len(evaluated) == 2)

    history = train(
        model, inputs(), samples, entropy, validating, TRAINING, 0, Watching(tmp_path / "c"), SlowWeights(0.75, 2)
    )
    for step in range(STEPS):
        if step % 2 == 1:
            for name, tensor in expected.items():
                if tensor.is_floating_point():
                    expected[name] = 0.75 * tensor + 0.25 * fast[step][name]
                else:
                    expected[name] = fast[step][name]
        if step % 4 == 3:
            torch.testing.assert_close(evaluated[step // 4], expected)
    torch.testing.assert_close(model.state_dict(), expected)
    assert same(history.best, evaluated[1])
    plain = student()
    train(plain, inputs(), samples, entropy, lambda m: 0.0, TRAINING, 0, Saving(tmp_path / "d"))
    assert same(plain.state_dict(), fast[-1])  # the fast weights train as if there were no slow ones


@pytest.mark.parametrize(("tau", "same_as"), [(1.0, "start"), (0.0, "fast")])
def test_slow_weights_stay_at_tau_one_and_are_the_fast_ones_at_tau_zero(tmp_path, tau, same_as):
    model = student()
    expected = student().state_dict()
    slow = SlowWeights(tau, 1)
    train(model, inputs(), lesson("kl"), entropy, lambda m: 0.0, TRAINING, 0, Saving(tmp_path / "c"), slow)
    if same_as == "fast":
        plain = student()
        train(plain, inputs(), lesson("kl"), entropy, lambda m: 0.0, TRAINING, 0, Saving(tmp_path / "d"))
        expected = plain.state_dict()
    torch.testing.assert_close(
        {k: v for k, v in model.state_dict().items() if v.is_floating_point()},
        {k: v for k, v in expected.items() if v.is_floating_point()},
    )


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        (SlowWeights(0.9, 2), [None, 0.9, None, 0.9, None, 0.9]),
        (SlowWeights(0.9, 2, each_epoch=True), [0.9, None, 0.9, 0.9, None, 0.9]),
        (SlowWeights(0.9, 2, shared=True), [0.0, 0.0, None, 0.9, None, 0.9]),
        (SlowWeights(0.9, 2, each_epoch=True, shared=True), [0.0, None, 0.9, 0.9, None, 0.9]),
        (SlowWeights(0.9, 4, shared=True), [0.0, 0.0, 0.0, 0.0, None, None]),
    ],
)
def test_what_stays_of_the_slow_weights_after_each_step_of_two_epochs_of_three(slow, expected):
    assert [slow.stays(done, done % 3) for done in range(6)] == expected


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 9])
def test_a_training_with_every_habit_of_slow_weights_resumes_bit_identical(tmp_path, stop):
    slow = SlowWeights(0.75, 3, each_epoch=True, shared=True, overwrites=True)

    def ended(checkpoint: Checkpoint, at_step: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
        model, steps = student(), iter(range(1, 1000))

        def loss(output: Tensor, batch: Batch) -> Tensor:
            at_step(next(steps))
            return entropy(output, batch)

        history = train(model, inputs(), lesson("finetune"), loss, validate, TRAINING, 0, checkpoint, slow)
        return {"weights": model.state_dict(), "best": history.best, "loss": history.loss}

    whole = ended(Saving(tmp_path / "a", after=lambda step: False))
    with pytest.raises(Torn):
        ended(Saving(tmp_path / "b"), at(stop + 1, interrupt))
    assert same(ended(Saving(tmp_path / "b")), whole)


# batches in pieces


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole_where_samples_do_not_meet(tmp_path):
    def ended(pieces: int) -> tuple[dict[str, Tensor], History]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))
        training = Training(epochs=2, batch_size=5, lr=0.01, optimiser="sgd", clip=0.5)
        history = train(
            model,
            inputs(),
            lesson("finetune"),
            entropy,
            validate,
            training,
            0,
            Saving(tmp_path / str(pieces)),
            pieces=pieces,
        )
        return model.state_dict(), history

    whole, history = ended(1)
    for pieces in (2, 4):  # of 5 images: 3 and 2; 2, 1, 1 and 1
        found, cut = ended(pieces)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
        assert cut.loss == pytest.approx(history.loss, rel=1e-5)
        assert (cut.steps, cut.pieces) == (history.steps, pieces)


def test_a_checkpoint_in_pieces_goes_on_in_pieces_and_one_of_larger_pieces_is_not_used(tmp_path):
    whole = run("kl", Saving(tmp_path / "a", after=lambda step: False))
    cut = run("kl", Saving(tmp_path / "b", after=lambda step: False), pieces=2)
    assert not same(whole[0], cut[0])
    with pytest.raises(Torn):
        run("kl", Saving(tmp_path / "c"), at(9, interrupt), pieces=2)
    assert same_end(run("kl", Saving(tmp_path / "c"), start=5), cut)
    with pytest.raises(Torn):
        run("kl", Saving(tmp_path / "d"), at(5, interrupt))
    assert same_end(run("kl", Saving(tmp_path / "d"), pieces=2), cut)
