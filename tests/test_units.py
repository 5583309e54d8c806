"""Units: their enumeration, what decides their keys, and the rows they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt.tables import schema
from kt.tables.columns import SHARES
from kt.tasks.task import named
from kt.transfer import rows, unit
from kt.transfer.ledger import key as ledger_key
from kt.transfer.ledger import pack
from kt.transfer.method import registry
from kt.transfer.methods.bikd import BiKD
from kt.transfer.methods.ensemble import EnsembleMax
from kt.transfer.methods.kl import KL, SelfDistillation
from kt.transfer.methods.kl_dp import KLDP
from kt.transfer.methods.parallel import Parallel
from kt.transfer.methods.sequential import Sequential
from kt.transfer.training import Training
from kt.transfer.unit import Plan, Plans, Unit, by_key, of_groups, of_pairs

METHODS = [method() for method in registry().values() if method.takes != "group"]
TRAINING = Training(epochs=4, batch_size=8, lr=0.1)
PRINTS = {"a": "A", "b": "B", "c": "C"}
TASK = named("classification")


def unit_of(method, teachers, seed=0, student="b", data="d", training=TRAINING, split="test") -> Unit:
    """A unit with its plan."""
    return Unit(method, Plans(data, training).of(method, seed, split), student, teachers, seed, split)


def key(unit: Unit, prints: dict[str, str] = PRINTS) -> str:
    """Its key, which is the digest of its description."""
    found = unit.key(prints)
    assert found == ledger_key(unit.describe(prints))
    return found


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
        (unit.method.name, unit.teachers, unit.seed)
        for unit in of_pairs(methods, "s", teachers, seeds, Plans("d", TRAINING), controls=controls)
    ]
    expected = {(m.name, (t,), s) for m in methods for t in teachers for s in seeds if not m.control and m.trains}
    expected |= {(m.name, (t,), s) for m in methods for t in teachers for s in seeds[:1] if not m.trains}
    expected |= {(m.name, (), s) for m in methods for s in seeds if m.control and controls}
    assert set(found) == expected
    assert len(found) == len(expected)
    is_control = [not teachers for _, teachers, _ in found]
    assert is_control == sorted(is_control, reverse=True)  # the controls come first


def test_the_key_depends_on_all_that_determines_the_result(monkeypatch):
    def base(**changes):
        return unit_of(**{"method": KLDP(), "teachers": ("a",), **changes})

    keys = [
        key(base()),
        key(base(method=KL())),
        key(base(method=KLDP(temperature=2.0))),
        key(base(teachers=("c",))),
        key(base(seed=1)),
        key(base(student="c")),
        key(base(split="validation")),
        key(base(), {**PRINTS, "a": "A2"}),
        key(base(), {**PRINTS, "b": "B2"}),
        key(base(data="d2")),
        *(
            key(base(training=TRAINING.model_copy(update=change)))
            for change in ({"epochs": 5}, {"lr": 0.2}, {"batch_size": 9})
        ),
        key(base(training=TRAINING.model_copy(update={"weight_decay": 0.1}))),
    ]
    monkeypatch.setattr(unit, "ENGINE_VERSION", unit.ENGINE_VERSION + 1)
    keys.append(key(base()))
    monkeypatch.setattr(KLDP, "version", KLDP.version + 1)
    keys.append(key(base()))
    monkeypatch.setattr(unit, "EVALUATION_VERSION", unit.EVALUATION_VERSION + 1)
    keys.append(key(base()))
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
    now = unit_of(registry()[name](), ("a",)).describe(PRINTS)
    assert (ledger_key(now | {"method": {"name": name, **former}}) == ledger_key(now)) == (name in UNCHANGED)


@pytest.mark.parametrize("name", FORMERLY)
def test_no_parameters_bring_back_the_key_of_a_method_that_meant_something_else(name):
    former = {key: value for key, value in FORMERLY[name].items() if key != "version"}
    now = registry()[name]
    assert now.version > 1 or set(former) < set(now().parameters())


def test_outcomes_whose_classes_came_from_rounded_logits_are_those_of_other_units():
    for method, teachers in ((KLDP(), ("a",)), (EnsembleMax(), ("a",)), (SelfDistillation(), ())):
        description = unit_of(method, teachers).describe(PRINTS)
        before = {name: value for name, value in description.items() if name != "evaluation"}  # as version 1 wrote it
        assert description["evaluation"] == {"version": 2}
        assert ledger_key(before) != ledger_key(description)


def test_the_key_does_not_depend_on_names_or_on_other_models():
    other = key(unit_of(KLDP(), ("x",), student="y"), {"x": "A", "y": "B", "z": "Z"})
    assert other == key(unit_of(KLDP(), ("a",)))
    assert key(unit_of(SelfDistillation(), ()), {"b": "B"}) == key(unit_of(SelfDistillation(), ()))


@given(
    st.dictionaries(st.sampled_from(["data", "seed", "split", "training", "zzz"]), st.text() | st.integers()),
    st.text(),
    st.lists(st.text(), max_size=3),
    st.booleans(),
)
def test_the_quick_key_is_the_digest_of_the_description(facts, student, teachers, listed):
    plan = Plan(facts, listed)
    for _ in range(2):  # the second time from the plan's own text
        assert plan.key(student, teachers) == ledger_key(plan.describe(student, teachers))


def test_units_by_their_keys():
    units = of_pairs(METHODS, "b", ["a", "c"], [0, 1], Plans("d", TRAINING), controls=True)
    assert by_key(units, PRINTS) == {key(unit): unit for unit in units}


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


def rows_of(unit: Unit, outcome: dict[str, object], teachers=TEACHERS) -> list[dict[str, object]]:
    found = rows.of_pair(TASK, unit, "k", outcome, "B", teachers, BEFORE, LABELS, 4)
    return schema.build("transfers", found).to_pylist()


def test_a_finished_unit_gives_its_row():
    (row,) = rows_of(unit_of(KLDP(), ("a",), 3), OUTCOME)
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
    first, second = rows_of(unit_of(SelfDistillation(), (), 0), {**OUTCOME, "teacher_share": None})
    assert (first["teacher"], second["teacher"]) == ("a", "c")
    assert (first["transfer_rate"], second["transfer_rate"]) == (50.0, None)
    assert (first["taught_errors"], second["taught_errors"]) == (100.0, None)
    alike = {"teacher", "teachers", "transfer_rate", "transfer_rate_published", "taught_errors"}
    alike |= {f"gain_in_{share}" for share in SHARES}
    assert {k: v for k, v in first.items() if k not in alike} == {k: v for k, v in second.items() if k not in alike}
    assert first["control"] is True


@pytest.mark.parametrize(
    ("unit", "teachers"), [(unit_of(KLDP(), ("a",), 0), ["a"]), (unit_of(SelfDistillation(), (), 0), ["a", "c"])]
)
def test_a_failed_unit_is_a_row_with_a_reason(unit, teachers):
    found = rows_of(unit, {"status": "failed", "cause": "diverged", "reason": "diverged: in epoch 1"})
    assert [row["teacher"] for row in found] == teachers
    for row in found:
        assert (row["status"], row["reason"]) == ("failed", "diverged: in epoch 1")
        assert (row["acc_before"], row["n"], row["epochs"], row["key"]) == (40.0, 5, 4, "k")
        assert [row[name] for name in ("delta", "acc_after", "transfer_rate", "steps", "best_epoch")] == [None] * 5


def test_a_row_of_a_group_names_all_teachers_and_counts_all_their_positive_flips():
    (row,) = rows_of(unit_of(Parallel(), ("a", "c"), 0), OUTCOME)
    assert (row["teacher"], row["teachers"]) == (None, ["a", "c"])
    assert row["transfer_rate"] == 50.0  # images 1 and 2 are flips of a, none of c; image 1 is right now
    both = {**TEACHERS, "c": np.array([2, 2, 0, 2, 1])}  # right on image 4
    (row,) = rows_of(unit_of(Parallel(), ("a", "c")), OUTCOME, both)
    assert row["transfer_rate"] == pytest.approx(200 / 3)  # images 1, 2 and 4; 1 and 4 are right now
    assert row["taught_errors"] == 50.0  # of images 0 and 3, which a teacher gets wrong, 3 as teacher a says


def test_models_that_train_together_share_one_key_and_each_gets_its_own_row():
    there, back = unit_of(BiKD(), ("a",)), unit_of(BiKD(), ("b",), student="a")
    assert key(there) == key(back)
    assert key(there) != key(unit_of(BiKD(), ("a",), student="c"))
    assert key(unit_of(KL(), ("a",))) != key(unit_of(KL(), ("b",), student="a"))
    assert key(unit_of(BiKD(), ("a", "c"))) == key(unit_of(BiKD(), ("c", "b"), student="a"))
    other = {"last": pack(LABELS), "best": pack(LABELS), "teacher_share": 7.0}
    shared = {name: value for name, value in OUTCOME.items() if name not in other}
    models = {"B": {name: OUTCOME[name] for name in other}, "A": other}
    (row,) = rows_of(there, {**shared, "models": models})
    assert row == rows_of(unit_of(BiKD(), ("a",)), OUTCOME)[0]
    assert row["delta"] == 20.0


def test_the_order_of_a_groups_teachers_counts_where_one_comes_after_the_other():
    units = of_groups([Sequential(), BiKD()], "b", [("a", "c"), ("c", "a")], [0, 1], Plans("d", TRAINING))
    names = [unit.method.name for unit in by_key(units, PRINTS).values()]
    assert (names.count("sequential"), names.count("bikd")) == (4, 2)


def test_what_a_method_changes_of_the_training_is_part_of_its_key_however_it_is_written():
    changed = KL.model_validate({"training": {"lr": 0.2}})
    faster = TRAINING.model_copy(update={"lr": 0.2})
    assert key(unit_of(changed, ("a",))) == key(unit_of(KL(), ("a",), training=faster))
    same = KL.model_validate({"training": {"lr": TRAINING.lr}})
    assert key(unit_of(same, ("a",))) == key(unit_of(KL(), ("a",)))
    assert key(unit_of(changed, ("a",))) != key(unit_of(KL(), ("a",)))


def test_an_ensemble_is_one_unit_whatever_the_training():
    found = of_pairs([EnsembleMax()], "b", ["a", "c"], [3, 4], Plans("d", TRAINING), controls=True)
    assert found == [unit_of(EnsembleMax(), (name,), 3) for name in "ac"]
    first = found[0]
    assert key(first) == key(unit_of(EnsembleMax(), ("a",), 3, training=TRAINING.model_copy(update={"lr": 0.2})))
    (row,) = rows_of(first, {**OUTCOME, "steps": 0, "budget": 0, "best_epoch": None})
    assert (row["trains"], row["steps"], row["budget"], row["best_epoch"]) == (False, 0, 0, None)
