"""Training with knowledge flow: it ends without its teachers, and a killed one ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kt.zoo.digits  # noqa: F401 (registers small architectures)
from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.spec import InputSpec
from kt.data.views import Inputs
from kt.transfer.knowledge_flow import Flow
from kt.zoo.stages import find
from kt.flow.train import attach, train
from kt.transfer.engine import History
from kt.transfer.training import Training
from kt.zoo import weights

N, CLASSES, STEPS = 14, 3, 12  # 4 epochs of 3 batches; two images wait for the next epoch
TRAINING = Training(epochs=4, batch_size=4, lr=3e-3)
STUDENT = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "drop_rate": 0.3}
TEACHER = {"channels": [4, 4, 8, 8], "stem_width": 4}
CPU = torch.device("cpu")


class Torn(BaseException):
    """Ends a training from inside, as a signal would."""


class Saving(Checkpoint):
    """A checkpoint after chosen steps, counted from 1; the training is torn at one of them."""

    def __init__(self, path: Path, after: Callable[[int], bool] = lambda step: False, torn: int = 0) -> None:
        super().__init__(path, "key", 0)
        self.after, self.torn, self.step = after, torn, 0

    def due(self) -> bool:
        self.step += 1
        if self.step == self.torn:
            raise Torn
        return self.after(self.step)


def views() -> list[Inputs]:
    """The same images as a student of 8 and a teacher of 16 pixels sees them."""
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8)
    return [Inputs(images, np.arange(N), InputSpec(size=s, mean=(0.5,), std=(0.5,)), CPU) for s in (8, 16)]


def network(alone: float = 0.25) -> Flow:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet10t", num_classes=2, in_chans=1, **TEACHER)
    student = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, in_chans=1, **STUDENT)
    small, large = (view[slice(0, 1)] for view in views())
    takes, gives = find(student, small, (), "student"), find(teacher, large, (), "teacher")
    return attach(student, [teacher], takes, [gives], CLASSES, N, TRAINING, False, alone, 30.0)


def run(checkpoint: Checkpoint, flow: Flow, dependency: float = 1.0, stability: float = 0.1) -> History:
    labels = np.arange(N) % CLASSES

    def validate(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            said = model(views()[0][slice(None)]).argmax(1)
        model.train()
        return 100 * float((said == torch.from_numpy(labels)).double().mean())

    return train(flow, views(), labels, validate, lambda: 50.0, TRAINING, 5, checkpoint, dependency, stability)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_its_teachers_the_student_answers_the_same_and_is_timms_model(tmp_path: Path) -> None:
    flow = network()
    frozen = {name: tensor.clone() for name, tensor in flow.teachers[0].state_dict().items()}
    run(Saving(tmp_path / "none.pt"), flow)
    assert same(flow.teachers[0].state_dict(), frozen)
    x = [view[slice(None)] for view in views()]
    flow.eval()
    with torch.no_grad():
        attached = flow(x)
        weights.save(flow.student, tmp_path / "student.safetensors")
        alone = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=CLASSES,
            in_chans=1,
            checkpoint_path=tmp_path / "student.safetensors",
            **STUDENT,
        )
        assert torch.equal(alone.eval()(x[0]), attached)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, in_chans=1, **STUDENT)
    assert {n: t.shape for n, t in alone.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}


def test_a_student_that_trusts_itself_needs_no_last_part_on_its_own(tmp_path: Path) -> None:
    """With a large λ1 the weights themselves end where the teachers add nothing that float32 shows."""
    flow = network(alone=0.0)
    flow.rate = 1000.0
    run(Saving(tmp_path / "none.pt"), flow, dependency=10.0, stability=0.0)
    flow.eval()
    assert flow.open
    x = [view[slice(None)] for view in views()]
    with torch.no_grad():
        assert torch.allclose(flow(x), flow.student(x[0]), atol=1e-6)


def test_weights_over_time_start_equal_grow_for_the_student_and_end_with_it_alone(tmp_path: Path) -> None:
    flow = network()
    run(Saving(tmp_path / "none.pt"), flow, dependency=3.0)
    own = flow.trace[:, :, 0]
    assert torch.allclose(flow.trace.sum(2), torch.ones(4, 2))
    assert (own[:-1].diff(dim=0) > 0).all()
    assert (own[-1] == 1).all()


def test_without_dependency_the_weights_are_not_driven_to_the_student(tmp_path: Path) -> None:
    driven, free = network(0.0), network(0.0)
    run(Saving(tmp_path / "a.pt"), driven, dependency=3.0)
    run(Saving(tmp_path / "b.pt"), free, dependency=0.0)
    assert (driven.trace[-1, :, 0] > free.trace[-1, :, 0]).all()


@pytest.fixture(scope="module")
def whole() -> tuple[Flow, History]:
    flow = network()
    with tempfile.TemporaryDirectory() as folder:
        return flow, run(Saving(Path(folder) / "none.pt"), flow)


@settings(max_examples=12)
@given(saved=st.sets(st.integers(1, STEPS), max_size=4), torn=st.integers(1, STEPS))
def test_torn_at_any_step_and_resumed_it_ends_bit_identical(
    whole: tuple[Flow, History], saved: set[int], torn: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unit.pt"
        with pytest.raises(Torn):
            run(Saving(path, lambda step: step in saved, torn), network())
        flow = network()
        torch.manual_seed(99)
        history = run(Saving(path), flow)
    assert same(flow.state_dict(), whole[0].state_dict())
    assert same(history.best, whole[1].best)
    assert (history.loss, history.validation) == (whole[1].loss, whole[1].validation)


CODE = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_flow_train import network, run
from kt.checkpoint import Checkpoint
torch.set_num_threads(1)
flow = network()
print("ready", flush=True)
run(Checkpoint(Path(sys.argv[2]), "key", 0), flow)
torch.save(flow.state_dict(), sys.argv[3])
"""


def test_killed_processes_leave_what_a_whole_one_leaves(whole: tuple[Flow, History], tmp_path: Path) -> None:
    place, checkpoint, out = Path(__file__).parent, tmp_path / "unit.pt", tmp_path / "out.pt"
    rng = random.Random(1)
    for kill in (True, True, False):
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(place), str(checkpoint), str(out)],
            stdout=subprocess.PIPE,
            cwd=place.parent,
        )
        assert process.stdout is not None
        process.stdout.readline()
        if kill:
            time.sleep(rng.uniform(0.05, 0.3))
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    assert same(torch.load(out), whole[0].state_dict())
