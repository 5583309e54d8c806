"""Knowledge flow between policies: what is A2C, what reaches whom, and units that are torn and go on."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping import Saving, Torn
from test_control_a2c import policy, same
from torch import Tensor, nn
from toys import Facts, Toy, toy

from kt.control import a2c, learn, policies
from kt.control.attached import PolicyFlow
from kt.control.methods import ControlMethods, Distilled, FineTuned, KnowledgeFlow, Played, Scratch, UntrainedFlow
from kt.control.session import Arena, Session, Teacher, compute
from kt.control.spec import A2C
from kt.errors import KtError
from kt.transfer import method as methods
from kt.transfer.knowledge_flow import inlets
from kt.transfer.ledger import unpack
from kt.transfer.session import Trained
from kt.transfer.unit import Plan, Unit
from kt.zoo import weights
from kt.zoo.stages import find

PLAN = A2C(steps=160, envs=4, rollout=3, evaluations=4, episodes=5, lr=1e-2)  # 13 updates: 3, 3, 3 and 4
X = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def build(facts: Facts, width: int = 16) -> nn.Module:
    return policies.build("policy_tiny", {"width": width}, facts, "here")  # type: ignore[arg-type]


def loaded(seed: int, actions: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(Facts(actions=actions), 8)


def teacher(seed: int, **facts: Any) -> Teacher:
    own = Facts(id=f"toy{seed}", **facts)
    return Teacher(own, partial(loaded, seed, own.actions), lambda: build(own, 8))  # type: ignore[arg-type]


def arena(folder: Path, **teachers: Teacher) -> Arena:
    facts = Facts()
    found = teachers or {"first": teacher(8, actions=2), "second": teacher(9)}
    make = toy(length=2, cuts=True)
    student = partial(build, facts)
    return Arena("flow.x", facts, make, student, found, PLAN, 10, folder, 1e9, torch.device("cpu"), Event())  # type: ignore[arg-type]


class Watched(Session):
    """A session with a given checkpoint that keeps what it trains."""

    def fit(self, learner: nn.Module, student: nn.Module, *args: Any, **options: Any) -> Trained:
        self.learner = learner
        self.trained = super().fit(learner, student, *args, **options)
        return self.trained


def run(folder: Path, method: Played, teachers: tuple[str, ...] = ("first", "second"), **options: Any) -> Any:
    """Session and record of a unit."""
    session = Watched(arena(folder, **options), Unit(method, Plan({}, listed=True), "flow.x", teachers, 5), "key")
    return session, method.run(session, teachers, 5)  # type: ignore[arg-type]


def network(until: float = 0.7, stability: float = 0.5, most: float = 0.0, refresh: int = 3) -> PolicyFlow:
    student, teachers = policy(0), [loaded(8, 2), loaded(9, 3)]
    gives = [find(one, X[:1], (), "teacher") for one in teachers]
    torch.manual_seed(3)
    flow = PolicyFlow(
        student,
        teachers,
        inlets(find(student, X[:1], (), "x"), gives, False),
        4,
        10,
        until,
        1.0,
        most,
        stability,
        refresh,
    )
    return flow.eval()  # type: ignore[no-any-return]


def moved(flow: PolicyFlow) -> float:
    with torch.no_grad():
        return float(flow.moved(X, flow(X)))


def test_without_candidates_and_terms_it_is_a2c_to_the_bit(tmp_path: Path) -> None:
    method = KnowledgeFlow(dependency=0, stability=0)
    flow, record = run(tmp_path / "flow", method, ())
    alone, scratch = run(tmp_path / "scratch", Scratch(), ())
    inside = {name.removeprefix("student."): t for name, t in flow.trained.last.items() if name.startswith("student.")}
    assert same(inside, alone.trained.last)
    for key in ("loss", "validation", "last", "best", "best_epoch", "steps", "curve"):
        assert record[key] == scratch[key]
    assert record["attached"] == record["validation"]


def test_the_exported_student_is_the_trained_one_and_a_plain_net(tmp_path: Path) -> None:
    session, record = run(tmp_path, KnowledgeFlow())
    weights.save(session.left, tmp_path / "student.safetensors")
    shape = {"num_classes": 4, "in_chans": 3, "img_size": 2, "width": 16}
    fresh = timm.create_model("policy_tiny", **shape)
    alone = timm.create_model("policy_tiny", checkpoint_path=tmp_path / "student.safetensors", **shape)
    assert {n: t.shape for n, t in alone.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}
    assert same(alone.state_dict(), session.learner.student.state_dict())
    returns = a2c.play(alone, session.arena.make, 10, a2c.seed_for("test"))
    assert unpack(record["last"]).tolist() == returns.tolist()
    with torch.no_grad():
        assert torch.equal(alone(X), session.learner(X))  # the teachers are gone


def test_teachers_stay_as_they_are_and_get_no_gradient(tmp_path: Path) -> None:
    session, _ = run(tmp_path, KnowledgeFlow(alone=0.0))
    for found, seed, actions in zip(session.learner.teachers, (8, 9), (2, 3), strict=True):
        assert same(found.state_dict(), loaded(seed, actions).state_dict())
        assert all(parameter.grad is None for parameter in found.parameters())
    assert not any("teacher" in name for name in session.learner.state_dict())


def test_gradients_reach_student_transforms_and_scalars() -> None:
    flow = network(most=1.0, refresh=1)
    flow.updated()
    with torch.no_grad():
        flow.student.head.weight.add_(0.1)  # type: ignore[union-attr, operator]
    outputs = flow(X)
    torch.autograd.backward(flow.extra(X, outputs, 0.0) + outputs.square().mean())  # type: ignore[arg-type]
    learnt = [*flow.student.parameters(), *flow.transforms.parameters(), flow.scalars]
    assert all(parameter.grad is not None for parameter in learnt)
    assert all(parameter.grad is None for parameter in flow.earlier)


def test_stability_is_zero_after_each_copy_and_the_kl_by_hand_later() -> None:
    flow = network(until=1.0)
    assert moved(flow) == 0.0
    head: Any = flow.student.head
    for update in range(1, 7):
        with torch.no_grad():
            before = flow(X)[:, :-1].softmax(1) if update % 3 == 1 else before  # noqa: F821
            head.weight.add_(torch.linspace(-1, 1, head.weight.numel()).reshape(head.weight.shape))
        after = flow(X).detach()
        by_hand = 0.0
        for p, q in zip(before.double(), after[:, :-1].double().softmax(1), strict=True):
            by_hand += sum(float(a * math.log(a / b)) for a, b in zip(p, q, strict=True)) / len(X)
        assert moved(flow) == pytest.approx(by_hand, rel=1e-3)
        assert by_hand > 1e-3
        flow.updated()
        assert (moved(flow) == 0.0) == (update % 3 == 0)


def test_the_copy_gets_no_gradient_and_sees_the_teachers_too() -> None:
    flow = network(until=1.0, refresh=100)
    with torch.no_grad():
        flow.scalars[:, 0] = 5.0  # now the student trusts itself, as the copy does not
    assert moved(flow) > 0


def test_the_copy_asks_the_teachers_no_second_time() -> None:
    flow, asked = network(until=1.0), list[int]()
    for one in flow.teachers:
        one.register_forward_hook(lambda *_: asked.append(1))
    flow.extra(X, flow(X), 0.0)
    assert len(asked) == len(flow.teachers)
    flow(X.clone())
    assert len(asked) == 2 * len(flow.teachers)


def test_extra_is_both_terms_as_they_have_grown() -> None:
    flow = network(until=0.5, most=2.0, stability=0.0)
    assert float(torch.as_tensor(flow.extra(X, flow(X), 0.0)).detach()) == 0.0
    flow.seen += 2  # of 10 updates, 5 with teachers
    assert float(torch.as_tensor(flow.extra(X, flow(X), 0.0)).detach()) == pytest.approx(2.0 * 2 / 5 * 3 * math.log(3))
    flow.seen += 3
    assert flow.extra(X, flow(X), 0.0) == 0.0


def test_once_alone_no_teacher_is_asked_and_the_copy_is_alone_too() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a teacher was asked")

    flow = network(until=0.4, refresh=3)
    for _ in range(4):
        flow.updated()
    assert not flow.open
    flow.teachers = (Never(), Never())
    assert torch.equal(flow(X), flow.student(X))
    assert moved(flow) == 0.0


def test_a_record_tells_weights_and_returns_over_time(tmp_path: Path) -> None:
    session, record = run(tmp_path, KnowledgeFlow(alone=0.25))
    assert (np.array(record["weights"]).shape, len(record["attached"])) == ((4, 3, 3), 4)
    assert record["weights"][-1] == [[1.0, 0.0, 0.0]] * 3
    assert record["attached"][-1] == record["validation"][-1]
    assert record["inlets"][0] == ("hidden.conv1", [(0, "hidden.conv1"), (1, "hidden.conv1")])
    assert record["curve"] == [36, 72, 108, 156]
    assert record["steps"] == 13
    assert unpack(record["last"]).shape == unpack(record["best"]).shape == (10,)
    assert session.left is session.learner.student


@pytest.fixture(scope="module")
def whole() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), KnowledgeFlow(refresh=4))


@settings(max_examples=8)
@given(saved=st.sets(st.integers(1, 13), max_size=4), torn=st.integers(1, 13))
def test_torn_at_any_update_and_resumed_it_ends_bit_identical(whole: Any, saved: set[int], torn: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        found = Path(folder) / "key.pt"
        patch.setattr("kt.control.session.Checkpoint", lambda *_: Saving(found, lambda step: step in saved, torn))
        with pytest.raises(Torn):
            run(Path(folder), KnowledgeFlow(refresh=4))
        patch.setattr("kt.control.session.Checkpoint", lambda *_: Saving(found))
        torch.manual_seed(99)
        session, record = run(Path(folder), KnowledgeFlow(refresh=4))
    assert record == whole[1]
    assert same(session.trained.last, whole[0].trained.last)
    assert same(session.trained.best, whole[0].trained.best)


def test_untrained_teachers_are_others_than_the_student_and_each_other(tmp_path: Path) -> None:
    one = teacher(9)
    session, _ = run(tmp_path, UntrainedFlow(), ("a", "b"), a=one, b=one)
    first, second = (found.state_dict() for found in session.learner.teachers)
    assert not same(first, second)
    assert not same(first, loaded(9, 3).state_dict())


def test_fine_tuning_begins_with_the_teacher_and_a_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Tensor]] = []

    def first(learner: nn.Module, *args: Any) -> Any:
        begun.append({name: tensor.clone() for name, tensor in learner.state_dict().items()})
        return train(learner, *args)

    train = a2c.train
    monkeypatch.setattr(a2c, "train", first)
    session, record = run(tmp_path, FineTuned(), ("first",))
    hidden = {name: tensor for name, tensor in begun[0].items() if name.startswith("hidden.")}
    assert same(hidden, {n: t for n, t in loaded(8, 2).state_dict().items() if n.startswith("hidden.")})
    assert begun[0]["head.weight"].shape == (4, 8)
    assert not same(begun[0], session.left.state_dict())
    assert record["status"] == "ok"


def test_distillation_pulls_the_student_to_the_teachers_with_its_actions(tmp_path: Path) -> None:
    def strong() -> nn.Module:
        model = loaded(9, 3)
        model.head.bias.data += torch.tensor([4.0, 0.0, 0.0, 0.0])  # type: ignore[union-attr, operator]
        return model

    some = {"first": teacher(8, actions=2), "second": teacher(9)._replace(load=strong)}
    pulled, _ = run(tmp_path / "a", Distilled(weight=50.0), **some)
    alone, _ = run(tmp_path / "b", Scratch(), (), **some)
    with torch.no_grad():
        target, found, without = (m(X)[:, :-1].softmax(1) for m in (strong(), pulled.left, alone.left))
    assert (found - target).abs().mean() < 0.5 * (without - target).abs().mean()


@pytest.mark.parametrize(
    ("own", "theirs", "able"),
    [
        ({}, {}, True),
        ({"meanings": ("UP", "DOWN", "STAY")}, {}, True),  # their game tells none
        ({"meanings": ("UP", "DOWN", "STAY")}, {"meanings": ("UP", "DOWN", "STAY")}, True),
        ({"meanings": ("UP", "DOWN", "STAY")}, {"meanings": ("STAY", "UP", "DOWN")}, False),
        ({}, {"actions": 4}, False),
        ({}, {"shape": (3, 4, 4)}, False),
    ],
)
def test_distillation_is_from_teachers_with_equal_actions(own: Any, theirs: Any, able: bool) -> None:
    facts = {"cousin": Facts(id="kin", **theirs), "other": Facts(id="far", actions=9)}
    if able:
        assert learn.with_actions("flow.x", Facts(**own), facts) == ["cousin"]  # type: ignore[arg-type]
        return
    with pytest.raises(
        KtError, match=r"flow\.x\.methods\.distil: no teacher has the student's actions, toy "
    ) as caught:
        learn.with_actions("flow.x", Facts(**own), facts)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "cousin kin (" in str(caught.value)


@pytest.mark.parametrize("method", [KnowledgeFlow(), UntrainedFlow(), FineTuned()])
def test_teachers_that_see_something_else_are_one_clear_line(tmp_path: Path, method: Played) -> None:
    with pytest.raises(KtError) as caught:
        run(tmp_path, method, ("odd",), odd=teacher(3, shape=(3, 5, 5)))
    told = "flow.x.teachers: odd sees [3, 5, 5] of toy3, but the student [3, 2, 2] of toy; they must be equal"
    assert str(caught.value) == told


def test_layers_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(KtError, match=r"flow\.x\.methods\.flow\.stages: .*no module 'hidden\.conv9'.*hidden\.conv1"):
        run(tmp_path, KnowledgeFlow(stages=("hidden.conv9",)))
    with pytest.raises(KtError, match=r"flow\.x\.methods\.flow\.teacher_stages\.first: .* has 3 stages, but not 7"):
        run(tmp_path, KnowledgeFlow(teacher_stages={"first": (7,)}))


def test_a_unit_that_fails_is_an_outcome_and_its_checkpoint_goes(tmp_path: Path) -> None:
    class Wild(Toy):
        def step(self, actions: np.ndarray) -> Any:
            return super().step(actions)._replace(rewards=np.full(self.n, np.nan))

    unit = Unit(Scratch(), Plan({}, listed=True), "flow.x", (), 5)
    record, left = compute(arena(tmp_path)._replace(make=lambda n, seed: Wild(n, seed)), unit, "key")
    assert (record["status"], record["cause"]) == ("failed", "diverged")
    assert left is None
    record, left = compute(arena(tmp_path), unit, "key")
    assert (record["status"], record["pieces"], record["budget"], record["device"]) == ("ok", 1, 1, "cpu")
    assert left is not None
    assert list(tmp_path.iterdir()) == []


def test_methods_of_policies_are_no_methods_of_pairs() -> None:
    assert not any(issubclass(found, Played) for found in methods.registry().values())
    assert list(ControlMethods.model_fields) == ["flow", "flow_untrained", "distil", "finetune_teacher", "scratch"]
