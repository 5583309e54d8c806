"""Units of work: which there are, what decides their keys, and the rows they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt.tables import schema
from kt.tables.of_study import SHARES
from kt.transfer import units
from kt.transfer.ledger import key as ledger_key
from kt.transfer.ledger import pack
from kt.transfer.method import registry
from kt.transfer.methods.bikd import BiKD
from kt.transfer.methods.ensemble import EnsembleMax
from kt.transfer.methods.kl import KL
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.methods.parallel import Parallel
from kt.transfer.methods.self_distillation import SelfDistillation
from kt.transfer.methods.sequential import Sequential
from kt.transfer.training import Training
from kt.transfer.units import (
    Task,
    Unit,
    describe,
    enumerate_tasks,
    enumerate_units,
    group_units,
    rows,
    tasks_of,
)

METHODS = [method() for method in registry().values() if method.takes != "group"]
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
        (unit.method.name, unit.teachers, unit.seed) for unit in enumerate_units(methods, teachers, seeds, controls)
    ]
    expected = {(m.name, (t,), s) for m in methods for t in teachers for s in seeds if not m.control and m.trains}
    expected |= {(m.name, (t,), s) for m in methods for t in teachers for s in seeds[:1] if not m.trains}
    expected |= {(m.name, (), s) for m in methods for s in seeds if m.control and controls}
    assert set(found) == expected
    assert len(found) == len(expected)
    is_control = [not teachers for _, teachers, _ in found]
    assert is_control == sorted(is_control, reverse=True)  # the controls come first


def key(
    unit: Unit, student: str = "b", prints: dict[str, str] = PRINTS, data: str = "d", training: Training = TRAINING
) -> str:
    return ledger_key(describe(unit, student, prints, data, training))


def test_the_key_depends_on_all_that_determines_the_result(monkeypatch):
    base = Unit(KLDP(), ("a",), 0)
    keys = [
        key(base),
        key(Unit(KL(), ("a",), 0)),
        key(Unit(KLDP(temperature=2.0), ("a",), 0)),
        key(Unit(KLDP(), ("c",), 0)),
        key(Unit(KLDP(), ("a",), 1)),
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
    monkeypatch.setattr(units, "EVALUATION_VERSION", units.EVALUATION_VERSION + 1)
    keys.append(key(base))
    assert len(set(keys)) == len(keys)


SUPERVISED = {"label_smoothing": 0.0}
FORMERLY = {
    "cd": {"version": 1, **SUPERVISED, "weight": 0.8, "nce_t": 0.07, "dim": 128},
    "flip_mean": {"version": 1, "temperature": 1.0},
    "flip_student": {"version": 1, "temperature": 1.0},
    "flip_teacher": {"version": 1, "temperature": 1.0},
    "xekl_mcl": {"version": 1, **SUPERVISED, "temperature": 1.0, "alpha": 0.68, "tau": 0.9999, "every": 2},
    "ensemble_max": {"version": 1},
}
UNCHANGED = {
    "kl": {"version": 1, "temperature": 1.0},
    "kl_dp": {"version": 1, "temperature": 1.0},
    "kl_dp_unsup": {"version": 1, "temperature": 1.0},
    "self": {"version": 1, "temperature": 1.0},
    "finetune": {"version": 1, **SUPERVISED},
    "xekl": {"version": 1, **SUPERVISED, "temperature": 1.0, "alpha": 0.5},
    "bikd": {"version": 1, **SUPERVISED, "temperature": 1.0, "weight": 1.0, "stop_gradient": False},
    "crd": {"version": 1, **SUPERVISED, "weight": 0.8, "nce_t": 0.07, "dim": 128, "negatives": 4096},
}


@pytest.mark.parametrize("name", [*FORMERLY, *UNCHANGED])
def test_a_ledger_of_before_serves_the_methods_that_mean_what_they_did_and_no_other(name):
    """A unit with the parameters of before has its key only where the method still does the same."""
    former = FORMERLY.get(name) or UNCHANGED[name]
    unit = describe(Unit(registry()[name](), ("a",), 0), "b", PRINTS, "d", TRAINING)
    assert (ledger_key(unit | {"method": {"name": name, **former}}) == ledger_key(unit)) == (name in UNCHANGED)


@pytest.mark.parametrize("name", FORMERLY)
def test_no_parameters_bring_back_the_key_of_a_method_that_meant_something_else(name):
    former = {key: value for key, value in FORMERLY[name].items() if key != "version"}
    now = registry()[name]
    assert now.version > 1 or set(former) < set(now().parameters())


def test_outcomes_whose_classes_came_from_rounded_logits_are_those_of_other_units():
    for unit in (Unit(KLDP(), ("a",), 0), Unit(EnsembleMax(), ("a",), 0), Unit(SelfDistillation(), (), 0)):
        description = describe(unit, "b", PRINTS, "d", TRAINING)
        before = {name: value for name, value in description.items() if name != "evaluation"}  # as version 1 wrote it
        assert description["evaluation"] == {"version": 2}
        assert ledger_key(before) != ledger_key(description)


def test_the_key_does_not_depend_on_names_or_on_other_models():
    assert key(Unit(KLDP(), ("x",), 0), "y", {"x": "A", "y": "B", "z": "Z"}) == key(Unit(KLDP(), ("a",), 0), "b")
    assert key(Unit(SelfDistillation(), (), 0), prints={"b": "B"}) == key(Unit(SelfDistillation(), (), 0))


def test_tasks_are_units_by_their_keys():
    tasks = enumerate_tasks("b", ["a", "c"], True, METHODS, [0, 1], TRAINING, PRINTS, "d")
    assert [task.unit for task in tasks.values()] == enumerate_units(METHODS, ["a", "c"], [0, 1], True)
    assert all(name == key(task.unit) == ledger_key(task.description) for name, task in tasks.items())


LABELS = np.array([0, 1, 2, 0, 1])
BEFORE = np.array([0, 0, 0, 0, 0])  # right on images 0 and 3
TEACHERS = {"a": np.array([0, 1, 2, 1, 2]), "c": BEFORE}  # a is right on images 0 to 2
OUTCOME = {
    "status": "ok",
    "last": pack(np.array([0, 1, 0, 1, 1])),  # right on images 0, 1 and 4
    "best": pack(np.array([0, 1, 2, 0, 0])),  # right on images 0 to 3
    "best_epoch": 2,
    "steps": 16,
    "loss": [1.0],
    "seconds": 0.5,
    "device": "cpu",
    "budget": 1,
    "pieces": 1,
    "teacher_share": 40.0,
}


def rows_of(unit: Unit, outcome: dict[str, object]) -> list[dict[str, object]]:
    found = rows(
        Task(unit, describe(unit, "b", PRINTS, "d", TRAINING), "B"), "k", outcome, "b", TEACHERS, BEFORE, LABELS, 4
    )
    table = schema.build("transfers", found)
    return table.to_pylist()


def test_a_finished_unit_gives_its_row():
    (row,) = rows_of(Unit(KLDP(), ("a",), 3), OUTCOME)
    assert row == {
        "teacher": "a",
        "student": "b",
        "teachers": ["a"],
        "method": "kl_dp",
        "seed": 3,
        "control": False,
        "uses_labels": True,
        "trains": True,
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
        "transfer_rate_published": 100.0,  # of class 1 two images are gained, of class 2 none
        "gain_entropy": 0.0,
        "gain_in_2": 100.0,
        "gain_in_5": 100.0,
        "gain_in_20": 100.0,
        "gain_in_50": 100.0,
        "taught_errors": 100.0,  # image 3 is now of class 1, as the teacher says
        "teacher_share": 40.0,
        "epochs": 4,
        "best_epoch": 2,
        "delta_best": 40.0,
        "steps": 16,
        "budget": 1,
        "pieces": 1,
        "seconds": 0.5,
        "device": "cpu",
        "key": "k",
    }


def test_a_control_gives_a_row_for_every_teacher_with_its_own_transfer_rate():
    first, second = rows_of(Unit(SelfDistillation(), (), 0), {**OUTCOME, "teacher_share": None})
    assert (first["teacher"], second["teacher"]) == ("a", "c")
    assert (first["transfer_rate"], second["transfer_rate"]) == (50.0, None)
    assert (first["taught_errors"], second["taught_errors"]) == (100.0, None)
    alike = {"teacher", "teachers", "transfer_rate", "transfer_rate_published", "taught_errors"}
    alike |= {f"gain_in_{share}" for share in SHARES}
    assert {k: v for k, v in first.items() if k not in alike} == {k: v for k, v in second.items() if k not in alike}
    assert first["control"] is True


@pytest.mark.parametrize(
    ("unit", "teachers"), [(Unit(KLDP(), ("a",), 0), ["a"]), (Unit(SelfDistillation(), (), 0), ["a", "c"])]
)
def test_a_failed_unit_is_a_row_with_a_reason(unit, teachers):
    found = rows_of(unit, {"status": "failed", "cause": "diverged", "reason": "diverged: in epoch 1"})
    assert [row["teacher"] for row in found] == teachers
    for row in found:
        assert (row["status"], row["reason"]) == ("failed", "diverged: in epoch 1")
        assert (row["acc_before"], row["n"], row["epochs"], row["key"]) == (40.0, 5, 4, "k")
        assert [row[name] for name in ("delta", "acc_after", "transfer_rate", "steps", "best_epoch")] == [None] * 5


def test_a_row_of_a_group_names_all_teachers_and_counts_all_their_positive_flips():
    (row,) = rows_of(Unit(Parallel(), ("a", "c"), 0), OUTCOME)
    assert (row["teacher"], row["teachers"]) == (None, ["a", "c"])
    assert row["transfer_rate"] == 50.0  # images 1 and 2 are flips of a, none of c; image 1 is right now
    both = {**TEACHERS, "c": np.array([2, 2, 0, 2, 1])}  # right on image 4
    unit = Unit(Parallel(), ("a", "c"), 0)
    task = Task(unit, describe(unit, "b", PRINTS, "d", TRAINING), "B")
    (row,) = rows(task, "k", OUTCOME, "b", both, BEFORE, LABELS, 4)
    assert row["transfer_rate"] == pytest.approx(200 / 3)  # images 1, 2 and 4; 1 and 4 are right now
    assert row["taught_errors"] == 50.0  # of images 0 and 3, which a teacher gets wrong, 3 as teacher a says


def test_models_that_train_together_share_one_key_and_each_gets_its_own_row():
    there, back = Unit(BiKD(), ("a",), 0), Unit(BiKD(), ("b",), 0)
    assert key(there, "b") == key(back, "a")
    assert key(there, "b") != key(there, "c")
    assert key(Unit(KL(), ("a",), 0), "b") != key(Unit(KL(), ("b",), 0), "a")
    assert key(Unit(BiKD(), ("a", "c"), 0), "b") == key(Unit(BiKD(), ("c", "b"), 0), "a")
    other = {"last": pack(LABELS), "best": pack(LABELS), "teacher_share": 7.0}
    shared = {name: value for name, value in OUTCOME.items() if name not in other}
    models = {"B": {name: OUTCOME[name] for name in other}, "A": other}
    (row,) = rows_of(there, {**shared, "models": models})
    assert row == rows_of(Unit(BiKD(), ("a",), 0), OUTCOME)[0]
    assert row["delta"] == 20.0


def test_the_order_of_a_groups_teachers_counts_where_one_comes_after_the_other():
    units = group_units([Sequential(), BiKD()], [("a", "c"), ("c", "a")], [0, 1])
    tasks = tasks_of(units, "b", PRINTS, "d", TRAINING)
    names = [task.unit.method.name for task in tasks.values()]
    assert (names.count("sequential"), names.count("bikd")) == (4, 2)


def test_what_a_method_changes_of_the_training_is_part_of_its_key_however_it_is_written():
    changed = KL.model_validate({"training": {"lr": 0.2}})
    assert key(Unit(changed, ("a",), 0)) == key(Unit(KL(), ("a",), 0), training=TRAINING.model_copy(update={"lr": 0.2}))
    same = KL.model_validate({"training": {"lr": TRAINING.lr}})
    assert key(Unit(same, ("a",), 0)) == key(Unit(KL(), ("a",), 0))
    assert key(Unit(changed, ("a",), 0)) != key(Unit(KL(), ("a",), 0))


def test_an_ensemble_is_one_unit_whatever_the_training():
    found = enumerate_units([EnsembleMax()], ["a", "c"], [3, 4], True)
    assert found == [Unit(EnsembleMax(), (name,), 3) for name in "ac"]
    unit = found[0]
    assert key(unit) == key(unit, training=TRAINING.model_copy(update={"lr": 0.2}))
    (row,) = rows_of(unit, {**OUTCOME, "steps": 0, "budget": 0, "best_epoch": None})
    assert (row["trains"], row["steps"], row["budget"], row["best_epoch"]) == (False, 0, 0, None)
