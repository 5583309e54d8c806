"""Training with knowledge flow: it ends without its teachers, and a killed one ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping import Saving, Torn
from torch import Tensor, nn

from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.tasks.classification import Classification
from kt.transfer.bench import Begun, Bench, Settings
from kt.transfer.experiments import Problem
from kt.transfer.knowledge_flow import Flow
from kt.transfer.methods.flow import KnowledgeFlow
from kt.transfer.session import Session, Trained
from kt.transfer.training import Training
from kt.transfer.unit import Plan, Unit
from kt.zoo import weights

N, CLASSES, STEPS = 14, 3, 12  # 4 epochs of 3 batches; two images wait for the next epoch
TRAINING = Training(epochs=4, batch_size=4, lr=3e-3)
STUDENT = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "drop_rate": 0.3}
TEACHER = {"channels": [4, 4, 8, 8], "stem_width": 4}
CPU = torch.device("cpu")


class Images:
    """The same images in every split."""

    channels = 1
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8)
    truth = np.arange(N) % CLASSES
    videos = None

    def rows(self, split: str) -> np.ndarray:
        return np.arange(N)


class Zoo:
    """A teacher of two classes that sees the images as 16 x 16 pixels."""

    def load(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("resnet10t", num_classes=2, in_chans=1, **TEACHER)

    def input_of(self, name: str) -> InputSpec:
        return spec(16)


def spec(size: int) -> InputSpec:
    return InputSpec(size=size, mean=(0.5,), std=(0.5,))


def views() -> list[Inputs]:
    """The images as a student of 8 and a teacher of 16 pixels sees them."""
    return [Inputs(Images.images, np.arange(N), spec(size), CPU) for size in (8, 16)]


def bench(folder: Path) -> Bench:
    problem = Problem(np.arange(CLASSES), {"teacher": np.array([0, -1])}, Images.truth)
    begun = Begun("flow.x", ("vit_tiny_patch16_224", STUDENT), spec(8), 1)
    settings = Settings(TRAINING, folder, 0, CPU, Event())
    zoo, data = cast("Any", Zoo()), cast("Any", Images())
    return Bench(begun, zoo, Classification(), data, settings, problem)


class Watched(Session):
    """A session with a given checkpoint that keeps what it trains, whatever torch's generator says when it begins."""

    def __init__(self, checkpoint: Checkpoint, unit: Unit, noise: int) -> None:
        super().__init__(bench(checkpoint.path.parent), unit, "key")
        self.given, self.noise = checkpoint, noise

    def checkpoint(self, ending: str = "", of_key: str = "", every: float | None = None) -> Checkpoint:
        torch.manual_seed(self.noise)
        return self.given

    def fit(self, learner: nn.Module, *args: Any, **options: Any) -> Trained:
        self.network = cast("Flow", learner)
        self.trained = super().fit(learner, *args, **options)
        return self.trained


def run(checkpoint: Checkpoint, noise: int = 0, **changes: float) -> tuple[Flow, Trained]:
    """Knowledge flow to the student; the network and what its training left."""
    method = KnowledgeFlow.model_validate({"alone": 0.25, **changes})
    session = Watched(checkpoint, Unit(method, Plan({}, listed=True), "flow.x", ("teacher",), 5), noise)
    record = method.run(session, ["teacher"], 5)
    assert record["weights"] == session.network.trace.tolist()
    assert len(record["attached"]) == TRAINING.epochs
    return session.network, session.trained


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_its_teachers_the_student_answers_the_same_and_is_timms_model(tmp_path: Path) -> None:
    flow, _ = run(Saving(tmp_path / "none.pt"))
    assert same(flow.teachers[0].state_dict(), Zoo().load("teacher").state_dict())
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
    flow, _ = run(Saving(tmp_path / "none.pt"), alone=0.0, rate=1000.0, dependency=10.0, stability=0.0)
    flow.eval()
    assert flow.open
    x = [view[slice(None)] for view in views()]
    with torch.no_grad():
        assert torch.allclose(flow(x), flow.student(x[0]), atol=1e-6)


def test_weights_over_time_start_equal_grow_for_the_student_and_end_with_it_alone(tmp_path: Path) -> None:
    flow, _ = run(Saving(tmp_path / "none.pt"), dependency=3.0)
    own = flow.trace[:, :, 0]
    assert torch.allclose(flow.trace.sum(2), torch.ones(4, 2))
    assert (own[:-1].diff(dim=0) > 0).all()
    assert (own[-1] == 1).all()


def test_without_dependency_the_weights_are_not_driven_to_the_student(tmp_path: Path) -> None:
    driven, _ = run(Saving(tmp_path / "a.pt"), alone=0.0, dependency=3.0)
    free, _ = run(Saving(tmp_path / "b.pt"), alone=0.0, dependency=0.0)
    assert (driven.trace[-1, :, 0] > free.trace[-1, :, 0]).all()


@pytest.fixture(scope="module")
def whole() -> tuple[Flow, Trained]:
    with tempfile.TemporaryDirectory() as folder:
        return run(Saving(Path(folder) / "none.pt"))


@settings(max_examples=12)
@given(saved=st.sets(st.integers(1, STEPS), max_size=4), torn=st.integers(1, STEPS))
def test_torn_at_any_step_and_resumed_it_ends_bit_identical(
    whole: tuple[Flow, Trained], saved: set[int], torn: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unit.pt"
        with pytest.raises(Torn):
            run(Saving(path, lambda step: step in saved, torn))
        flow, trained = run(Saving(path), noise=99)
    assert same(trained.last, whole[1].last)
    assert same(trained.best, whole[1].best)
    assert (trained.loss, trained.validation) == (whole[1].loss, whole[1].validation)
    assert torch.equal(flow.trace, whole[0].trace)


CODE = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_flow_train import run
from kt.checkpoint import Checkpoint
torch.set_num_threads(1)
print("ready", flush=True)
flow, trained = run(Checkpoint(Path(sys.argv[2]), "key", 0))
torch.save(trained.last, sys.argv[3])
"""


def test_killed_processes_leave_what_a_whole_one_leaves(whole: tuple[Flow, Trained], tmp_path: Path) -> None:
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
    assert same(torch.load(out), whole[1].last)
