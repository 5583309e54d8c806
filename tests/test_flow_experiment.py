"""Experiments with knowledge flow: what is drawn, what each method does, what is refused, and the whole workflow."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stopping import Work, again_and_again
from studies import stored_digits
from test_experiments import NET, STUDY, TASK, bench_of, checked, only, units_of
from test_pipeline import Checkout

from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.study.load import parse
from kt.study.units import of_experiment, problem_of, student_print
from kt.transfer import memory
from kt.transfer.bench import Bench, inspect
from kt.transfer.flow import draw, restricted
from kt.transfer.ledger import unpack
from kt.transfer.methods.flow import FlowExperiment
from kt.transfer.session import Left
from kt.transfer.session import compute as compute_unit
from kt.transfer.unit import Unit, by_key

METHODS = ("flow", "flow_untrained", "distil", "finetune_teacher", "scratch")
FLOW = {
    "teachers": ["low", "high"],
    "student": NET,
    "images": 20,
    "methods": {name: {} for name in METHODS},
    "seeds": [0, 1],
    "training": {"epochs": 3, "batch_size": 10, "lr": 1e-2},
}


def study_with(**changes: Any) -> dict[str, Any]:
    raw = copy.deepcopy(STUDY)
    del raw["amalgamate"]
    raw["flow"] = {"two": {**copy.deepcopy(FLOW), **changes}}
    return raw


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return stored_digits(tmp_path_factory.mktemp("data"), transfer=60)


def make_bench(stored: Dataset, folder: Path, **changes: Any) -> tuple[Bench, FlowExperiment]:
    study = parse(study_with(**changes), "c.yaml")
    chosen = study.flow["two"]
    return bench_of(study, "flow.two", chosen, stored, folder), chosen


def unit_of(chosen: FlowExperiment, bench: Bench, method: str, teachers: tuple[str, ...] | None = None) -> Unit:
    units = units_of(chosen, bench)
    return next(unit for unit in units if unit.method.name == method and teachers in (None, unit.teachers))


def trained(bench: Bench, unit: Unit) -> tuple[dict[str, Any], Left | None]:
    record, left = compute_unit(bench, unit, "key")
    assert record["status"] == "ok", record
    assert record.pop("seconds") > 0
    return record, left


def compute(bench: Bench, unit: Unit) -> dict[str, Any]:
    return trained(bench, unit)[0]


# images


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1)
)
def test_drawn_images_are_balanced_nested_and_those_of_the_seed(labels: list[int], share: float, seed: int) -> None:
    y, n = np.array(labels), max(1, round(share * len(labels)))
    found = draw(y, n, seed)
    assert len(found) == n == len(set(found.tolist()))
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, draw(y, n, seed))
    assert set(found.tolist()) <= set(draw(y, min(n + 3, len(y)), seed).tolist())
    taken, there = np.bincount(y[found], minlength=4), np.bincount(y, minlength=4)
    for c in range(4):  # a class has fewer than another one only where it has no more
        assert taken[c] == there[c] or taken[c] >= taken.max() - 1
    assert np.array_equal(draw(y, None, seed), np.arange(len(y)))


# distillation


def test_distillation_from_a_specialist_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]))
    teacher = torch.log(torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.1, 0.4]]))  # its second class is not the student's
    columns = torch.tensor([2, -1, 0])
    found = restricted(logits, torch.tensor([0, 1]), teacher, columns, 1.0)
    p, q = (5 / 9, 4 / 9), (5 / 7, 2 / 7)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


# units


def test_units_are_one_a_method_and_seed_and_one_a_teacher_where_it_takes_the_students_place(
    stored: Dataset, tmp_path: Path
) -> None:
    bench, chosen = make_bench(stored, tmp_path, seeds=[0])
    both = ("low", "high")
    assert [(unit.method.name, unit.teachers) for unit in units_of(chosen, bench)] == [
        ("flow", both), ("flow_untrained", both), ("distil", both), ("finetune_teacher", ("low",)),
        ("finetune_teacher", ("high",)), ("scratch", ()),
    ]  # fmt: skip


def test_every_method_gives_a_record_and_its_rows(stored: Dataset, tmp_path: Path) -> None:
    bench, chosen = make_bench(stored, tmp_path)
    for unit in units_of(chosen, bench)[::2]:
        record = compute(bench, unit)
        assert record["steps"] == 6
        assert json.loads(json.dumps(record)) == json.loads(json.dumps(record))
        rows = chosen.details(TASK, unit, json.loads(json.dumps(record)), bench.problem)
        right = unpack(record["last"]) == bench.problem.truth
        assert all(row["acc"] == pytest.approx(100 * right.mean()) and row["images"] == 20 for row in rows)
        if not unit.method.name.startswith("flow"):
            assert len(rows) == 1
            continue
        frame = pd.DataFrame(rows)
        assert set(frame["source"]) == {"self", "low", "high"}
        assert len(frame) == 3 * 5 * 3  # epochs, stages of the student, sources
        assert frame.groupby(["epoch", "stage"])["weight"].sum().to_numpy() == pytest.approx(1.0)
        last = frame[frame["epoch"] == 3]
        assert (last["weight"] == (last["source"] == "self")).all()
        assert (last["attached"] == last["detached"]).all()
        assert record["attached"][-1] == record["validation"][-1]


def test_methods_of_one_seed_see_the_same_images_and_begin_with_the_same_student(
    stored: Dataset, tmp_path: Path
) -> None:
    """Where teachers have no weight from the start, knowledge flow is training from scratch."""
    bench, chosen = make_bench(stored, tmp_path, methods={"flow": {"alone": 0.999, "stability": 0.0}, "scratch": {}})
    flow = compute(bench, unit_of(chosen, bench, "flow"))
    scratch = compute(bench, unit_of(chosen, bench, "scratch"))
    assert flow["loss"][1:] != scratch["loss"][1:]  # the first step still had teachers
    bench.settings = bench.settings._replace(images=10)
    assert compute(bench, unit_of(chosen, bench, "scratch"))["steps"] == 3


def test_a_fine_tuned_teacher_is_of_its_own_architecture_and_stays_what_it_was_for_others(
    stored: Dataset, tmp_path: Path
) -> None:
    bench, chosen = make_bench(stored, tmp_path)
    _, left = trained(bench, unit_of(chosen, bench, "finetune_teacher", ("high",)))
    assert left is not None
    assert (left.architecture[0], bench.begun.architecture[0]) == ("tiny_mixer", NET["arch"])
    assert left.model.num_classes == 10


def test_untrained_teachers_are_drawn_by_the_seed_and_are_not_the_trained_ones(stored: Dataset, tmp_path: Path) -> None:
    bench, chosen = make_bench(stored, tmp_path)
    one, again, other = (
        compute(bench, unit_of(chosen, bench, name)) for name in ("flow_untrained", "flow_untrained", "flow")
    )
    assert one == again
    assert one["loss"] != other["loss"]


@pytest.mark.parametrize("method", ["flow", "distil"])
def test_a_unit_stopped_again_and_again_ends_bit_identical(
    stored: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bench, chosen = make_bench(stored, tmp_path / "alone")
    unit = unit_of(chosen, bench, method)
    undisturbed = compute(bench, unit)
    ended, _, stops = again_and_again(
        monkeypatch, method, 3, lambda: Work(*make_bench(stored, tmp_path)), lambda work: compute(work.bench, unit)
    )
    assert stops >= 1
    assert ended == undisturbed


@pytest.mark.parametrize("method", ["flow", "distil", "scratch"])
def test_a_batch_that_does_not_fit_is_cut_and_trains_the_same_student(
    stored: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # no BatchNorm, which would see other images in a piece; the teachers leave within an epoch
    alike: dict[str, Any] = {
        "student": {"arch": "tiny_mixer"},
        "methods": {"flow": {"alone": 0.5}, "distil": {}, "scratch": {}},
    }
    bench, chosen = make_bench(stored, tmp_path, **alike)
    whole = compute(bench, unit_of(chosen, bench, method))
    only(monkeypatch, 4)
    found = compute(bench, unit_of(chosen, bench, method))
    assert (whole["pieces"], found["pieces"], found["steps"]) == (1, 4, whole["steps"])
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert np.array(found.get("weights", [])) == pytest.approx(np.array(whole.get("weights", [])), rel=1e-4)


def test_keys_change_with_images_and_with_the_methods_parameters() -> None:
    def keys(**changes: Any) -> set[str]:
        study = parse(study_with(**changes), "c.yaml")
        chosen = study.flow["two"]
        problem = problem_of(study, "flow.two", chosen, names)
        prints = {"low": "l", "high": "h", "flow.two": student_print(study, chosen)}
        return set(by_key(of_experiment(study, "flow.two", chosen, problem, "data"), prints))

    class Names:
        class_names = [str(i) for i in range(10)]
        labels = np.arange(10)

        def rows(self, split: str) -> np.ndarray:
            return np.arange(10)

    names: Any = Names()
    assert len(keys()) == 12
    assert not keys() & keys(images=30)
    assert not keys() & keys(task=[0, 1, 2])
    assert len(keys() & keys(methods={name: {} for name in METHODS} | {"flow": {"dependency": 2.0}})) == 10


def test_the_example_of_the_guide_is_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/flow.md").read_text("utf-8"), re.DOTALL)
    raw = study_with() | yaml.safe_load(example)
    raw["flow"]["digits"]["training"] = {"epochs": 60}
    raw["data"]["splits"]["transfer"] = 100
    study = checked(raw, tmp_path, monkeypatch)
    assert study.flow["digits"].plan.batch_size == 25


# what is refused before anything is trained


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"teachers": ["low", "hihg"]}, r"flow\.two\.teachers: unknown model 'hihg'.*mean 'high'"),
        ({"teachers": []}, r"flow\.two\.teachers: at least 1 needed"),
        ({"methods": {"flwo": {}}}, r"flow\.two\.methods: unknown key 'flwo'.*mean 'flow'"),
        (
            {"methods": {"flow": {"teacher_stages": {"hi": [0]}}}},
            r"flow\.two\.methods\.flow\.teacher_stages: unknown teacher 'hi'; allowed: low, high",
        ),
        ({"methods": {"flow": {"alone": 1.0}}}, r"flow\.two\.methods\.flow\.alone: .* less than 1"),
        ({"task": [0, 12]}, r"flow\.two\.task: no class 12; the data set has 10"),
        ({"task": ["0", 0]}, r"flow\.two\.task: the class 0 is given twice"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(KtError, match=line) as caught:
        checked(study_with(**changes), tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"methods": {"flow": {"stages": [7]}}},
            r"two\.methods\.flow\.stages: ResNet has 5 stages, but not 7; allowed",
        ),
        (
            {"methods": {"flow": {"teacher_stages": {"high": ["block.0"]}}}},
            r"flow\.teacher_stages\.high: MlpMixer has no module 'block\.0'; its stages: .* mean 'blocks\.0'",
        ),
        ({"images": 61}, r"flow\.two\.images: 61 asked for, but 60 transfer images have its classes"),
        ({"images": 5}, r"flow\.two\.training\.batch_size: 10 is larger than images \(5\)"),
        ({"task": [3, 4, 8, 9], "images": None}, r"flow\.two\.methods\.distil: no teacher knows a class"),
        ({"student": {"arch": "vit_tiny_patch16_224"}}, r"two\.student: vit_tiny_patch16_224 does not take an image"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_training(
    stored: Dataset, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    bench, chosen = make_bench(stored, tmp_path, **changes)
    with pytest.raises(KtError, match=line) as caught:
        inspect(bench, chosen)
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_an_error(stored: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, chosen = make_bench(stored, tmp_path)
    inspect(bench, chosen)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(
        KtError, match=r"flow\.two\.methods\.finetune_teacher: needs about .* lower training\.batch_size \(10\)"
    ):
        inspect(bench, chosen)


# the whole workflow


def test_through_the_workflow(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    checkout.study["zoo"]["models"] |= {
        "low": {**NET, "classes": [0, 1, 2, 3, 4], "train": {"epochs": 2}},
        "high": {"arch": "tiny_mixer", "kind": "mlp", "classes": [5, 6, 7, 8, 9], "train": {"epochs": 2}},
    }
    checkout.study["transfer"] |= {"methods": {"kl": {}}, "seeds": [0], "export": "all"}
    checkout.study["pairs"] = {"select": "explicit", "pairs": [{"teacher": "mixer", "student": "byob"}]}
    methods = {"flow": {}, "finetune_teacher": {}}
    checkout.study["flow"] = {"digits": {**FLOW, "methods": methods, "seeds": [0]}}
    checkout.succeed("--until", "tables")
    transfers, details = checkout.table("transfers"), checkout.table("flow")
    rows = transfers[transfers["student"] == "digits"].set_index("key")
    assert sorted(rows["method"]) == ["finetune_teacher", "finetune_teacher", "flow"]
    accuracy = details.drop_duplicates("key").set_index("key")["acc"]
    assert accuracy.to_dict() == pytest.approx(rows["acc_after"].to_dict())
    key = rows.index[rows["method"] == "flow"][0]
    (kept,) = (checkout.folder / "results/students").glob("flow.digits.*.flow.seed0")
    assert json.loads((kept / "config.json").read_text())["kt"]["key"] == key
    model = timm.create_model(f"local-dir:{kept}", pretrained=True)
    assert model.eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
