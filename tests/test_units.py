"""Units of work: which there are, what decides their keys, and the rows they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt import schema
from kt.transfer import units
from kt.transfer.ledger import key as ledger_key
from kt.transfer.ledger import pack
from kt.transfer.method import registry
from kt.transfer.methods.kl import KL
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.methods.self_distillation import SelfDistillation
from kt.transfer.spec import Training
from kt.transfer.units import Task, Unit, describe, enumerate_tasks, enumerate_units, rows

METHODS = [method() for method in registry().values()]
TRAINING = Training(epochs=4, batch_size=8, lr=0.1)
PRINTS = {"a": "A", "b": "B", "c": "C"}


@given(
    st.lists(st.sampled_from(METHODS), unique_by=lambda m: m.name),
    st.lists(st.sampled_from("abc"), unique=True),
    st.lists(st.integers(0, 9), unique=True),
    st.booleans(),
)
def test_there_is_a_unit_for_each_method_teacher_and_seed_and_one_control_for_all_teachers(
    methods, teachers, seeds, controls
):
    found = [
        (unit.method.name, unit.teacher, unit.seed) for unit in enumerate_units(methods, teachers, seeds, controls)
    ]
    expected = {(m.name, t, s) for m in methods for t in teachers for s in seeds if not m.control}
    expected |= {(m.name, None, s) for m in methods for s in seeds if m.control and controls}
    assert set(found) == expected
    assert len(found) == len(expected)
    is_control = [teacher is None for _, teacher, _ in found]
    assert is_control == sorted(is_control, reverse=True)  # the controls come first


def key(
    unit: Unit, student: str = "b", prints: dict[str, str] = PRINTS, data: str = "d", training: Training = TRAINING
) -> str:
    return ledger_key(describe(unit, student, prints, data, training))


def test_the_key_depends_on_all_that_determines_the_result(monkeypatch):
    base = Unit(KLDP(), "a", 0)
    keys = [
        key(base),
        key(Unit(KL(), "a", 0)),
        key(Unit(KLDP(temperature=2.0), "a", 0)),
        key(Unit(KLDP(), "c", 0)),
        key(Unit(KLDP(), "a", 1)),
        key(base, student="c"),
        key(base, prints={**PRINTS, "a": "A2"}),
        key(base, prints={**PRINTS, "b": "B2"}),
        key(base, data="d2"),
        *(
            key(base, training=TRAINING.model_copy(update=change))
            for change in ({"epochs": 5}, {"lr": 0.2}, {"batch_size": 9})
        ),
        key(base, training=TRAINING.model_copy(update={"weight_decay": 0.1})),
    ]
    monkeypatch.setattr(units, "ENGINE_VERSION", units.ENGINE_VERSION + 1)
    keys.append(key(base))
    monkeypatch.setattr(KLDP, "version", KLDP.version + 1)
    keys.append(key(base))
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_depend_on_names_or_on_other_models():
    assert key(Unit(KLDP(), "x", 0), "y", {"x": "A", "y": "B", "z": "Z"}) == key(Unit(KLDP(), "a", 0), "b")
    assert key(Unit(SelfDistillation(), None, 0), prints={"b": "B"}) == key(Unit(SelfDistillation(), None, 0))


def test_tasks_are_units_by_their_keys():
    tasks = enumerate_tasks("b", ["a", "c"], True, METHODS, [0, 1], TRAINING, PRINTS, "d")
    assert [task.unit for task in tasks.values()] == enumerate_units(METHODS, ["a", "c"], [0, 1], True)
    assert all(name == key(task.unit) == ledger_key(task.description) for name, task in tasks.items())


LABELS = np.array([0, 1, 2, 0, 1])
BEFORE = np.array([True, False, False, True, False])
TEACHERS = {"a": np.array([True, True, True, False, False]), "c": BEFORE}
OUTCOME = {
    "status": "ok",
    "last": pack(np.array([0, 1, 0, 1, 1])),  # right on images 0, 1 and 4
    "best": pack(np.array([0, 1, 2, 0, 0])),  # right on images 0 to 3
    "best_epoch": 2,
    "steps": 16,
    "loss": [1.0],
    "seconds": 0.5,
    "device": "cpu",
    "teacher_share": 40.0,
}


def rows_of(unit: Unit, outcome: dict[str, object]) -> list[dict[str, object]]:
    found = rows(Task(unit, describe(unit, "b", PRINTS, "d", TRAINING)), "k", outcome, "b", TEACHERS, BEFORE, LABELS, 4)
    table = schema.build("transfers", found)
    return table.to_pylist()


def test_a_finished_unit_gives_its_row():
    (row,) = rows_of(Unit(KLDP(), "a", 3), OUTCOME)
    assert row == {
        "teacher": "a",
        "student": "b",
        "method": "kl_dp",
        "seed": 3,
        "control": False,
        "uses_labels": True,
        "status": "ok",
        "reason": None,
        "n": 5,
        "acc_before": 40.0,
        "acc_after": 60.0,
        "delta": 20.0,
        "delta_se": pytest.approx(100 * np.std([0, 1, 0, -1, 1]) / np.sqrt(5)),
        "knowledge_gain": 40.0,
        "knowledge_loss": 20.0,
        "transfer_rate": 50.0,
        "teacher_share": 40.0,
        "epochs": 4,
        "best_epoch": 2,
        "delta_best": 40.0,
        "steps": 16,
        "seconds": 0.5,
        "device": "cpu",
        "key": "k",
    }


def test_a_control_gives_a_row_for_every_teacher_with_its_own_transfer_rate():
    first, second = rows_of(Unit(SelfDistillation(), None, 0), {**OUTCOME, "teacher_share": None})
    assert (first["teacher"], second["teacher"]) == ("a", "c")
    assert (first["transfer_rate"], second["transfer_rate"]) == (50.0, None)
    alike = {"teacher", "transfer_rate"}
    assert {k: v for k, v in first.items() if k not in alike} == {k: v for k, v in second.items() if k not in alike}
    assert first["control"] is True


@pytest.mark.parametrize(
    ("unit", "teachers"), [(Unit(KLDP(), "a", 0), ["a"]), (Unit(SelfDistillation(), None, 0), ["a", "c"])]
)
def test_a_failed_unit_is_a_row_with_a_reason(unit, teachers):
    found = rows_of(unit, {"status": "failed", "cause": "diverged", "reason": "diverged: in epoch 1"})
    assert [row["teacher"] for row in found] == teachers
    for row in found:
        assert (row["status"], row["reason"]) == ("failed", "diverged: in epoch 1")
        assert (row["acc_before"], row["n"], row["epochs"], row["key"]) == (40.0, 5, 4, "k")
        assert [row[name] for name in ("delta", "acc_after", "transfer_rate", "steps", "best_epoch")] == [None] * 5
