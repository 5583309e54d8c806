"""Experiments: specialists in the zoo, units and their keys, what stops them before and during training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from answers import logits
from stopping import Work, again_and_again
from studies import small_zoo, stored_digits
from torch import nn

import kt.zoo.digits  # noqa: F401 (registers the small architectures)
from kt.costs import BASES, Finished, Missing, Needs, Pace, read_needs, write_needs
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec, ViewsSpec
from kt.errors import KtError
from kt.study.check import check
from kt.study.load import parse
from kt.study.study import Study
from kt.study.units import of_experiment, problem_of, student_print
from kt.tasks.classification import Classification, positions
from kt.transfer import amalgamate, memory
from kt.transfer.bench import Begun, Bench, Settings, inspect
from kt.transfer.experiments import Experiment, Problem
from kt.transfer.ledger import pack, unpack
from kt.transfer.methods.amalgamation import Amalgamation
from kt.transfer.rows import measured
from kt.transfer.rows import of_experiment as row_of
from kt.transfer.session import Left
from kt.transfer.session import compute as compute_unit
from kt.transfer.unit import Unit, by_key
from kt.zoo.spec import Member, labels_of

CPU, TASK, AT = torch.device("cpu"), Classification(), "amalgamate.two"
NET = {"arch": "resnet10t", "args": {"channels": [4, 8, 8, 8], "stem_width": 4}}
STUDY: dict[str, Any] = {
    "results": "results",
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 60, "validation": 30, "test": 50}},
    "zoo": small_zoo(
        a={**NET, "train": {"epochs": 1}},
        b={**NET, "train": {"epochs": 1}},
        low={**NET, "classes": [0, 1, 2], "train": {"epochs": 1}},
        high={"arch": "tiny_mixer", "classes": ["7", 5], "train": {"epochs": 1}},
    ),
    "pairs": {"select": "all"},
    "transfer": {"methods": {"kl": {}}, "training": {"epochs": 1, "batch_size": 20, "lr": 1e-3}},
    "amalgamate": {
        "two": {
            "teachers": ["low", "high"],
            "student": NET,
            "methods": {"cfl": {"width": 8, "blocks": 1, "stages": [-2]}, "kd": {}, "supervised": {}, "teachers": {},
                        "ensemble_logits": {}, "ensemble_softmax": {}},
            "seeds": [0, 1],
            "training": {"epochs": 2, "batch_size": 10, "lr": 1e-3},
        }
    },
}  # fmt: skip


def changed(key: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(STUDY)
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section[parent]
    section[last] = value
    return raw


def checked(raw: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(folder)
    return check(parse(raw, "c.yaml"))


# what is wrong before anything runs


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("zoo.models.low.classes", [0, 11], r"zoo\.models\.low\.classes: no class 11; the data set has 10"),
        ("zoo.models.low.classes", [0, "nine"], r"zoo\.models\.low\.classes: unknown class 'nine'; allowed: 0, 1, 2"),
        ("zoo.models.low.classes", [0, 1, "1"], r"zoo\.models\.low\.classes: the class '1' is given twice"),
        ("zoo.models.low.classes", [3], r"zoo\.models\.low\.classes: at least 2 needed, not \[3\]"),
        ("zoo.models.low.classes", [-1, 2], r"zoo\.models\.low\.classes: no class -1; the data set has 10"),
        ("zoo.models.low.classes", [0, 1.5], r"low\.classes\.1: a class is given by its number or its name, not 1\.5"),
        ("zoo.models.b.classes", [0, 1], "at least 2 models without `classes` needed, not 1"),
        (
            "pairs",
            {"select": "explicit", "pairs": [{"teacher": "low", "student": "a"}]},
            r"pairs\.pairs\.0\.teacher: 'low' is a specialist \(zoo\.models\.low\.classes\)",
        ),
        (
            "groups",
            {"choose": {"select": "explicit", "sets": [{"student": "a", "teachers": ["b", "low"]}]},
             "methods": {"parallel": {}}},
            r"groups\.choose\.sets\.0: 'low' is a specialist",
        ),
        ("amalgamate.two.teachers", ["low", "hihg"], r"amalgamate\.two\.teachers: unknown model 'hihg'.*mean 'high'"),
        ("amalgamate.two.teachers", ["low"], r"amalgamate\.two\.teachers: at least 2 needed"),
        ("amalgamate.two.teachers", ["low", "low"], r"amalgamate\.two\.teachers: .* names a teacher twice"),
        (
            "amalgamate.two.teachers",
            ["low", "a"],
            r"amalgamate\.two\.teachers: 'low' and 'a' share the classes 0, 1, 2; `overlap: mean` allows it",
        ),
        ("amalgamate.two.student", {"arch": "resnet10"}, r"amalgamate\.two\.student\.arch: unknown model 'resnet10'"),
        ("amalgamate.two.methods", {}, r"amalgamate\.two\.methods: no method chosen; allowed: cfl, kd"),
        ("amalgamate.two.methods", {"clf": {}}, r"amalgamate\.two\.methods: unknown key 'clf'.*mean 'cfl'"),
        ("amalgamate.two.methods", {"cfl": {"stages": []}}, r"amalgamate\.two\.methods\.cfl\.stages: at least 1"),
        ("amalgamate.two.training.batch_size", 80, r"amalgamate\.two\.training\.batch_size: 80 is larger than"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_runs(tmp_path, monkeypatch, key, value, line):
    with pytest.raises(KtError, match=line) as caught:
        checked(changed(key, value), tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)


def test_specialists_are_members_but_in_no_pair(tmp_path, monkeypatch):
    study = checked(STUDY, tmp_path, monkeypatch)
    assert study.names == ["a", "b"]
    assert study.members == ["a", "b", "low", "high"]


# classes


def test_outputs_of_a_specialist_stand_for_its_classes_in_the_order_given():
    member = Member.model_validate({"arch": "x", "classes": ("cat", 0)})
    assert labels_of("m", member, ["dog", "eel", "cat"]).tolist() == [2, 0]
    assert labels_of("m", Member(arch="x"), ["dog", "eel", "cat"]).tolist() == [0, 1, 2]
    assert positions(np.array([0, 1, 2, -1, 2]), np.array([2, 0])).tolist() == [1, -1, 0, -1, 0]
    assert positions(np.array([], np.int64), np.array([2, 0])).tolist() == []


# units


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return stored_digits(tmp_path_factory.mktemp("data"), transfer=60)


class Zoo:
    """Two teachers with fixed weights, without files."""

    ARCHITECTURES: ClassVar = {"low": ("test_byobnet", 3), "high": ("tiny_mixer", 2)}

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def load(self, name: str) -> nn.Module:
        torch.manual_seed(len(name))
        arch, classes = self.ARCHITECTURES[name]
        return timm.create_model(arch, num_classes=classes, in_chans=1).eval()

    def fresh(self, name: str) -> nn.Module:
        arch, classes = self.ARCHITECTURES[name]
        return timm.create_model(arch, num_classes=classes, in_chans=1)

    def architecture(self, name: str) -> tuple[str, dict[str, Any]]:
        return self.ARCHITECTURES[name][0], {}

    def input_of(self, name: str) -> InputSpec:
        return InputSpec(size=16, mean=(0.4 if name == "low" else 0.3,), std=(0.33,))

    def logits(self, name: str, split: str) -> np.ndarray:
        return logits(self.load(name), Inputs(self.data.images, self.data.rows(split), self.input_of(name), CPU))

    def predicted(self, name: str, split: str) -> np.ndarray:
        return self.logits(name, split).argmax(1)


def experiment(**changes: Any) -> tuple[Study, Amalgamation]:
    raw = copy.deepcopy(STUDY)
    raw["amalgamate"]["two"] |= changes
    study = parse(raw, "c.yaml")
    return study, study.amalgamate["two"]


def make_bench(stored: Dataset, folder: Path, **changes: Any) -> tuple[Bench, Amalgamation]:
    study, chosen = experiment(**changes)
    return bench_of(study, AT, chosen, stored, folder), chosen


def bench_of(study: Study, at: str, chosen: Experiment, stored: Dataset, folder: Path) -> Bench:
    begun = Begun(at, (chosen.student.arch, chosen.student.args), study.student_input(chosen), 1)
    settings = Settings(chosen.plan, folder / "c", 3600, CPU, Event(), images=chosen.settings.get("images"))
    return Bench(begun, Zoo(stored), TASK, stored, settings, problem_of(study, at, chosen, stored))


def units_of(chosen: Experiment, bench: Bench) -> list[Unit]:
    return chosen.units(bench.at, {"arch": chosen.student.arch}, bench.problem, "data")


def unit_of(chosen: Experiment, bench: Bench, method: str, seed: int = 0) -> Unit:
    return next(unit for unit in units_of(chosen, bench) if unit.method.name == method and unit.seed == seed)


def trained(bench: Bench, chosen: Amalgamation, method: str, seed: int = 0) -> tuple[dict[str, Any], Left | None]:
    record, left = compute_unit(bench, unit_of(chosen, bench, method, seed), "key")
    assert record["status"] == "ok", record
    assert record.pop("seconds") > 0
    return record, left


def compute(bench: Bench, chosen: Amalgamation, method: str, seed: int = 0) -> dict[str, Any]:
    return trained(bench, chosen, method, seed)[0]


def test_the_images_are_those_of_the_classes_of_all_teachers(stored, tmp_path):
    bench, _ = make_bench(stored, tmp_path)
    classes = bench.problem.classes
    assert classes.tolist() == [0, 1, 2, 7, 5]
    for split in ("transfer", "validation", "test"):
        labels = stored.labels[stored.rows(split)]
        assert len(bench.view(split)) == np.isin(labels, classes).sum()
        assert classes[bench.truth(split)].tolist() == [y for y in labels.tolist() if y in (0, 1, 2, 7, 5)]
    assert bench.student(0)(bench.view("test")[slice(0, 2)]).shape == (2, 5)


def test_views_of_the_transfer_images_are_learnt_from_one_after_another(stored, tmp_path):
    bench, _ = make_bench(stored, tmp_path)
    plain = bench.view("transfer")
    once = bench.learnt_from
    viewed, _ = make_bench(stored, tmp_path)
    viewed.settings = viewed.settings._replace(crops=ViewsSpec(n=3))
    assert viewed.learnt_from == once
    assert len(viewed.view("transfer")) == len(viewed.truth("transfer")) == 3 * once
    assert np.array_equal(viewed.truth("transfer"), np.tile(bench.truth("transfer"), 3))
    assert not torch.equal(viewed.view("transfer")[slice(0, once)], plain[slice(0, once)])
    assert torch.equal(viewed.view("test")[slice(0, 5)], bench.view("test")[slice(0, 5)])


def test_units_are_one_a_method_and_seed_and_each_teacher_alone(stored, tmp_path):
    bench, chosen = make_bench(stored, tmp_path)
    found = [(unit.method.name, unit.teachers, unit.seed) for unit in units_of(chosen, bench)]
    assert found == [(method.name, teachers, seed) for method, teachers, seed in chosen.work()]
    both = ("low", "high")
    assert found == [
        ("cfl", both, 0), ("cfl", both, 1), ("kd", both, 0), ("kd", both, 1), ("supervised", both, 0),
        ("supervised", both, 1), ("teachers", ("low",), 0), ("teachers", ("high",), 0), ("ensemble_logits", both, 0),
        ("ensemble_softmax", both, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["cfl", "kd", "supervised"])
def test_every_training_gives_a_record_and_its_rows(stored, tmp_path, method):
    bench, chosen = make_bench(stored, tmp_path)
    record, left = trained(bench, chosen, method)
    n, steps = len(bench.truth("test")), 2 * (len(bench.view("transfer")) // 10)
    assert len(unpack(record["last"])) == n
    assert record["steps"] == steps
    assert set(unpack(record["last"]).tolist()) <= set(range(5))
    assert json.loads(json.dumps(record)) == record
    assert left is not None
    assert bench.kept(left.model, "test").tolist() == unpack(record["last"]).tolist()
    unit = unit_of(chosen, bench, method)
    found = row_of(TASK, unit, "key", record, bench.problem.truth, 2)
    assert (found["student"], found["teachers"], found["epochs"]) == ("two", ["low", "high"], 2)
    right = unpack(record["last"]) == bench.problem.truth
    assert (found["n"], found["acc_after"]) == (n, pytest.approx(100 * right.mean()))
    parts = {part["part"]: part for part in chosen.details(TASK, unit, record, bench.problem)}
    assert list(parts) == ["all", "low", "high"]
    assert parts["high"]["classes"] == [7, 5]
    assert parts["low"]["n"] + parts["high"]["n"] == parts["all"]["n"] == n
    weighted = sum(parts[name]["n"] * parts[name]["acc"] for name in ("low", "high")) / n
    assert parts["all"]["acc"] == pytest.approx(weighted)
    assert ("loss_mmd" in parts["all"]) == (method == "cfl")


def answers(bench: Bench, name: str) -> torch.Tensor:
    """A teacher's cached logits on the chosen test images, float32."""
    chosen = bench.chosen["test"]
    return torch.from_numpy(bench.cached(name, "test")[np.arange(len(chosen))]).float()


def test_without_training_the_teachers_answer_from_their_logits(stored, tmp_path):
    bench, chosen = make_bench(stored, tmp_path)
    z = {name: answers(bench, name) for name in ("low", "high")}
    said = unpack(compute(bench, chosen, "ensemble_logits")["last"])
    assert said.tolist() == torch.cat([z["low"], z["high"]], 1).argmax(1).tolist()
    said = unpack(compute(bench, chosen, "ensemble_softmax")["last"])
    assert said.tolist() == torch.cat([z["low"].softmax(1), z["high"].softmax(1)], 1).argmax(1).tolist()
    record = compute(bench, chosen, "teachers")
    assert unpack(record["last"]).tolist() == z["low"].argmax(1).tolist()
    (part,) = chosen.details(TASK, unit_of(chosen, bench, "teachers"), record, bench.problem)
    own = np.isin(bench.problem.truth, [0, 1, 2])
    right = z["low"].argmax(1).numpy()[own] == bench.problem.truth[own]
    assert (part["part"], part["n"], part["acc"]) == ("low", own.sum(), pytest.approx(100 * right.mean()))


def test_without_common_features_the_method_is_plain_distillation(stored, tmp_path):
    """With both weights at nothing the student sees soft targets alone, from the same first weights."""
    none = {"cfl": {"width": 8, "blocks": 1, "mmd_weight": 0.0, "reconstruction_weight": 0.0}, "kd": {}}
    bench, chosen = make_bench(stored, tmp_path, methods=none)
    common, plain = compute(bench, chosen, "cfl"), compute(bench, chosen, "kd")
    assert common["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert np.mean(unpack(common["last"]) == unpack(plain["last"])) > 0.9


def test_features_kept_and_computed_batch_by_batch_train_the_same_student(stored, tmp_path, monkeypatch):
    # through the narrowest kernels even the rounding of another batch size would show
    wide = {"methods": {"cfl": {"width": 8, "blocks": 1, "stages": [-2], "sigmas": [1.0, 2.0]}}}
    kept = compute(*make_bench(stored, tmp_path, **wide), "cfl")
    monkeypatch.setattr(amalgamate, "IN_MEMORY", 0)
    again = compute(*make_bench(stored, tmp_path, **wide), "cfl")
    assert again["loss"] == pytest.approx(kept["loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["cfl", "kd"])
def test_a_unit_stopped_again_and_again_ends_bit_identical(stored, tmp_path, monkeypatch, method):
    undisturbed = compute(*make_bench(stored, tmp_path / "alone"), method)
    ended, (bench, _), stops = again_and_again(
        monkeypatch, method, 3, lambda: Work(*make_bench(stored, tmp_path)), lambda work: compute(*work, method)
    )
    assert stops >= 1
    assert ended == undisturbed
    assert not list(bench.settings.checkpoints.iterdir())


def test_overlapping_classes_are_taught_by_the_mean_where_that_is_allowed(stored, tmp_path, monkeypatch):
    monkeypatch.setitem(Zoo.ARCHITECTURES, "a", ("test_byobnet", 10))
    bench, chosen = make_bench(stored, tmp_path, teachers=("low", "a"), overlap="mean")
    assert bench.problem.classes.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    said = unpack(compute(bench, chosen, "ensemble_logits")["last"])
    low, every = answers(bench, "low"), answers(bench, "a")
    every[:, :3] = (every[:, :3] + low) / 2
    assert said.tolist() == every.argmax(1).tolist()


def test_a_unit_that_fails_is_a_record_with_its_reason(stored, tmp_path):
    bench, chosen = make_bench(stored, tmp_path, training={"epochs": 1, "batch_size": 10, "lr": 1e30})
    record, _ = compute_unit(bench, unit_of(chosen, bench, "kd"), "key")
    assert record["status"] == "failed"
    assert record["cause"] == "diverged"


# batches in pieces


def only(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let students in training take so many images at once."""
    make = Bench.student

    def refuse(model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if model.training and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def student(bench: Bench, seed: int) -> nn.Module:
        model = make(bench, seed)
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs: refuse(model, inputs))
        return model

    monkeypatch.setattr(Bench, "student", student)


ALIKE = {
    "student": {"arch": "tiny_mixer"},  # no BatchNorm, which would see other images in a piece
    "methods": {"cfl": {"width": 8, "variant": "vector", "sigmas": [1.0, 2.0]}, "kd": {}, "supervised": {}},
    # Adam's first steps are as long for a gradient of rounding errors as for any other
    "training": {"epochs": 2, "batch_size": 10, "lr": 1e-4, "optimiser": "sgd"},
}


@pytest.mark.parametrize("method", ["cfl", "kd", "supervised"])
def test_a_batch_that_does_not_fit_is_cut_and_trains_the_same_student(stored, tmp_path, monkeypatch, caplog, method):
    whole = compute(*make_bench(stored, tmp_path, **ALIKE), method)
    only(monkeypatch, 4)
    found = compute(*make_bench(stored, tmp_path, **ALIKE), method)
    assert (whole["pieces"], found["pieces"]) == (1, 4)  # of 10 images: 5 and 5 do not fit, 3, 3, 2 and 2 do
    assert "goes on with 4 pieces a batch" in caplog.text
    assert found["steps"] == whole["steps"]
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert found.get("losses", {}) == pytest.approx(whole.get("losses", {}), rel=1e-3)


def test_pieces_are_in_the_row_and_a_student_that_takes_not_even_two_images_fails(stored, tmp_path, monkeypatch):
    only(monkeypatch, 4)
    bench, chosen = make_bench(stored, tmp_path)
    record = compute(bench, chosen, "cfl")
    unit = unit_of(chosen, bench, "cfl")
    assert row_of(TASK, unit, "key", record, bench.problem.truth, 2)["pieces"] == 4
    only(monkeypatch, 1)
    assert compute_unit(bench, unit, "key")[0]["cause"] == "out_of_memory"


def test_teachers_see_fewer_images_at_once_where_batches_are_cut(stored, tmp_path, monkeypatch):
    seen, features = [], amalgamate.Images._features

    def watched(images: amalgamate.Images, positions: np.ndarray) -> Any:
        seen.append(len(positions))
        return features(images, positions)

    monkeypatch.setattr(amalgamate.Images, "_features", watched)
    monkeypatch.setattr("kt.transfer.bench.EVALUATED", 16)
    only(monkeypatch, 4)
    bench, chosen = make_bench(stored, tmp_path)
    n = len(bench.view("transfer"))
    compute(bench, chosen, "cfl")
    assert seen == [min(size, n - i) for size in (16, 8, 4) for i in range(0, n, size)]


@pytest.mark.parametrize("method", ["cfl", "kd"])
def test_a_unit_in_pieces_goes_on_from_its_checkpoint(stored, tmp_path, monkeypatch, method):
    only(monkeypatch, 4)
    undisturbed = compute(*make_bench(stored, tmp_path / "alone"), method)
    ended, _, stops = again_and_again(
        monkeypatch, method, 3, lambda: Work(*make_bench(stored, tmp_path)), lambda work: compute(*work, method)
    )
    assert stops >= 1
    assert ended == undisturbed


# keys

PRINTS = {"low": "l", "high": "h", AT: "x"}
PROBLEM = Problem(np.array([0, 1]), {"low": np.array([0]), "high": np.array([1])}, np.array([0]))


def keys(fingerprints: dict[str, str] | None = None, data: str = "data", **changes: Any) -> set[str]:
    study, chosen = experiment(**changes)
    prints = {**(fingerprints or PRINTS), AT: student_print(study, chosen)}
    return set(by_key(of_experiment(study, AT, chosen, PROBLEM, data), prints))


def test_keys_change_with_what_determines_a_result_and_with_nothing_else():
    assert len(keys()) == 10
    assert keys(overlap="mean") == keys(), "only what it makes of the classes counts"
    assert not keys() & keys(data="other")
    assert not keys() & keys({"low": "l2", "high": "h2"})
    assert len(keys() & keys({"low": "l2", "high": "h"})) == 1, "the other teacher alone"
    methods = copy.deepcopy(STUDY["amalgamate"]["two"]["methods"])
    assert len(keys() & keys(methods=methods | {"cfl": {"width": 16}})) == 8
    assert len(keys() & keys(methods=methods | {"cfl": {**methods["cfl"], "block_lr": 1}})) == 8
    assert len(keys() & keys(methods=methods | {"kd": {"classifier_lr": 1}})) == 8
    assert len(keys() & keys(training={**STUDY["amalgamate"]["two"]["training"], "schedule": "cosine"})) == 4
    assert len(keys() & keys(seeds=[0, 5])) == 7
    assert not keys() & keys(student={"arch": "tiny_mixer"})


def test_keys_of_finished_units_stay():
    assert min(keys()) == "2f9e0cfe5743e1bc837889efa84901d56f22b2a67d70b7c0cdf0b7ef672c776a"


def test_finished_units_of_the_earlier_block_are_not_taken_for_those_of_the_published_one():
    """The earlier block had the same parameters, but BatchNorm, and no learning rates by part."""
    _, chosen = experiment()
    units = chosen.units(AT, {"arch": "x"}, PROBLEM, "data")
    described = {unit.method.name: unit.describe(PRINTS) for unit in units if unit.method.trains}
    assert described["cfl"]["method"]["version"] == 2
    assert described["cfl"]["method"]["block_lr"] == 5.0
    assert all(unit["method"]["classifier_lr"] == 10.0 for unit in described.values())
    assert described["cfl"]["training"]["step_epochs"] == 15


def test_a_description_is_plain_json():
    _, chosen = experiment()
    unit = chosen.units(AT, {"arch": "x"}, PROBLEM, "data")[0].describe(PRINTS)
    assert json.loads(json.dumps(unit)) == unit
    assert unit["evaluation"] == {"version": 2}  # of version 1, which took classes from rounded logits, nothing is kept


def test_accuracy_against_hand_computed_numbers():
    found = measured(TASK, np.array([3, 0, 1, 2]), np.array([3, 0, 1, 1]))
    assert found == {"n": 4, "acc": 75.0, "acc_se": pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)}
    assert unpack(pack(np.array([3, 0]))).tolist() == [3, 0]


# what trainings take


def test_needs_are_kept_for_their_plan_alone(tmp_path):
    found = {"kd": Needs({"training": 100, "images": 20}, 3, 10, 7)}
    assert found["kd"].total(10) == 150
    write_needs(tmp_path / "n.json", "plan", found)
    assert read_needs(tmp_path / "n.json", "plan") == found
    assert read_needs(tmp_path / "n.json", "other") == read_needs(tmp_path / "none.json", "plan") == {}


def test_the_pace_of_an_experiment_weighs_its_methods_by_hand():
    _, chosen = experiment()
    known = {"cfl": Needs({}, 0, 10, 300), "kd": Needs({}, 0, 10, 100), "supervised": Needs({}, 0, 10, 100)}
    epochs, before = chosen.plan.epochs, Pace(per_mac=0.5)
    cfl, kd = Missing("cfl", epochs, 20.0), Missing("kd", epochs, 60.0)
    done = [Finished("kd", epochs, 30, 12.0)]

    def pace(needs: dict[str, Needs], done: list[Finished], left: list[Missing], validation: int = 0) -> Pace:
        return before.of_experiment(AT, needs, validation, done, left)

    found = pace(known, [], [cfl, kd])
    assert found.of(AT) == (0.5 * (20 * 300 + 60 * 100) / 80, BASES[1])
    # two epochs end with 15 images each, which cost as much as 10 to learn from
    found = pace(known, [], [cfl, kd], validation=15)
    assert found.of(AT) == (0.5 * (30 * 300 + 70 * 100) / 80, BASES[1])
    # 12 s for 30 images of 100 MACs: 1.2 s for an image of 300
    found = pace(known, done, [cfl])
    assert found.of(AT) == (pytest.approx(1.2), BASES[0])
    assert pace({}, done, [cfl]).of(AT) == (pytest.approx(0.4), BASES[0])
    alone = chosen.chosen()["teachers"]
    assert pace(known, done, [Missing("teachers", epochs, chosen.seen(alone, 60))]) == before


def test_on_a_gpu_memory_must_do_for_the_smallest_pieces_and_elsewhere_for_a_batch(monkeypatch):
    found, gpu = Needs({"training": 100}, 10, 12, 1), torch.device("cuda")
    monkeypatch.setattr(memory, "available", lambda device: 150)
    memory.check("x", found, gpu)  # 12 images in 4 pieces of 3: 130
    with pytest.raises(KtError, match=r"^x: needs about .* 12 images at once .*; lower training\.batch_size \(12\)"):
        memory.check("x", found, CPU)
    monkeypatch.setattr(memory, "available", lambda device: 120)
    with pytest.raises(KtError, match=r"^x: needs about .* GB of memory for 3 images at once .*; take smaller models"):
        memory.check("x", found, gpu)


# what is found when everything is built once, before the first training


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"methods": {"cfl": {"stages": [7]}}}, r"two\.methods\.cfl\.stages: .*no feature stage 7; allowed: 0 to 4"),
        ({"methods": {"cfl": {"stages": [-4]}}}, r"two\.methods\.cfl\.stages: teacher 'high': MlpMixer has no feature"),
        ({"student": {"arch": "resnet10t", "args": {"chanels": [4]}}}, r"two\.student: resnet10t cannot be built with"),
        ({"student": {"arch": "vit_tiny_patch16_224"}}, r"two\.student: vit_tiny_patch16_224 does not take an image"),
        ({"student": {**NET, "args": {**NET["args"], "num_classes": 3}}}, r"two\.student: resnet10t cannot be built"),
        ({"training": {"batch_size": 50}}, r"two\.training\.batch_size: 50, but there are \d+ transfer images of the"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_training(stored, tmp_path, changes, line):
    bench, chosen = make_bench(stored, tmp_path, **changes)
    with pytest.raises(KtError, match=line) as caught:
        inspect(bench, chosen)
    assert "\n" not in str(caught.value)


class Stubborn(nn.Module):
    """A model that has three outputs whatever it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def test_a_student_of_the_wrong_width_is_refused(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("kt.transfer.bench.build", lambda *_: Stubborn())
    bench, chosen = make_bench(stored, tmp_path)
    with pytest.raises(KtError, match=r"two\.student: resnet10t has 3 outputs, but there are 5 classes"):
        inspect(bench, chosen)


def test_memory_is_said_and_too_little_of_it_is_an_error(stored, tmp_path, monkeypatch, caplog):
    bench, chosen = make_bench(stored, tmp_path)
    with caplog.at_level("INFO"):
        found = inspect(bench, chosen)
    assert list(found) == ["cfl", "kd", "supervised"]
    assert "GB of memory (training" in caplog.text
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(
        KtError, match=r"two\.methods\.cfl: needs about .* GB of memory .* lower training\.batch_size \(10\)"
    ):
        inspect(bench, chosen)


def test_the_common_space_counts_with_gradients_moments_and_the_copies_of_its_weights(stored, tmp_path):
    bench, chosen = make_bench(stored, tmp_path, methods={"cfl": {"width": 16}, "kd": {}})
    found = inspect(bench, chosen)
    teachers = {name: bench.teacher(name) for name in chosen.teachers}
    learner = amalgamate.learner_of(bench, chosen.chosen()["cfl"], bench.student(0), teachers, 0)
    weights = 4 * sum(parameter.numel() for parameter in learner.spaces.parameters())
    assert found["cfl"].held["training"] - found["kd"].held["training"] == 6 * weights
