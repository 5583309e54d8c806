"""Students of experiments that begin with given weights: what is checked, what they begin with, and their keys."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from test_experiments import NET, STUDY, checked
from torch import nn

import kt.zoo.digits  # noqa: F401 (registers the small architectures)
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.errors import KtError
from kt.stages.common import FreshZoo
from kt.stages.jobs import inspected
from kt.study.study import Study
from kt.study.units import of_experiment, problem_of, student_print
from kt.tasks.classification import Classification
from kt.transfer.bench import Bench
from kt.transfer.export import About, card
from kt.transfer.unit import by_key
from kt.zoo import weights


def study_with(**student: Any) -> dict[str, Any]:
    raw = copy.deepcopy(STUDY)
    raw["amalgamate"]["two"]["student"] = {**NET, **student}
    return raw


def net(classes: int, seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(NET["arch"], num_classes=classes, in_chans=1, **NET["args"])


def bench_of(study: Study) -> Bench:
    layout, chosen = study.layout, study.amalgamate["two"]
    if not layout.data.exists():
        datasets.write(layout.data, study.data)
    dataset = Dataset.open(layout.data)
    problem = problem_of(study, "amalgamate.two", chosen, dataset)
    return inspected(study, layout, "amalgamate.two", chosen, problem, FreshZoo(study, layout, dataset), 1)


def keys(study: Study) -> set[str]:
    chosen = study.amalgamate["two"]
    problem = problem_of(study, "amalgamate.two", chosen, Dataset.open(study.layout.data))
    prints = {"low": "l", "high": "h", "amalgamate.two": student_print(study, chosen)}
    return set(by_key(of_experiment(study, "amalgamate.two", chosen, problem, "data"), prints))


@pytest.mark.parametrize(
    ("student", "line"),
    [
        ({"pretraind": True}, r"amalgamate\.two\.student: unknown key 'pretraind'.*mean 'pretrained'"),
        ({"pretrained": "yes"}, r"amalgamate\.two\.student\.pretrained: input should be a valid boolean, not \"yes\""),
        ({"arch": "tiny_mixer", "pretrained": True}, r"^amalgamate\.two\.student\.arch: no pretrained weights 'tiny_m"),
        ({"arch": "resnet10t.c4", "pretrained": True}, r"^amalgamate\.two\.student\.arch: no pretrained .*c3_in1k"),
        ({"arch": "resnet10", "checkpoint": "w.pth"}, r"^amalgamate\.two\.student\.arch: unknown model 'resnet10'"),
        ({"checkpoint": "w.safetensors"}, r"^amalgamate\.two\.student\.checkpoint: w\.safetensors: no such file"),
        ({"checkpoint": "w.zip"}, r"^amalgamate\.two\.student\.checkpoint: .*w\.zip' is no file of weights; allowed"),
        ({"checkpoint": "w.pth", "pretrained": True}, r"^amalgamate\.two\.student: give one of `checkpoint` and `pre"),
        ({"input": {"size": 16, "mean": [0.3], "std": [0.3, 0.3]}}, r"^amalgamate\.two\.student: input\.mean and inpu"),
    ],
)
def test_a_student_is_checked_as_a_member_is(tmp_path, monkeypatch, student, line):
    for name in ("w.pth", "w.zip"):
        torch.save(net(5).state_dict(), tmp_path / name)
    with pytest.raises(KtError, match=line.replace("^", "^c.yaml: " if "unknown key" in line else "^")) as caught:
        checked(study_with(**student), tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_weights_is_found_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(KtError, match=r"^amalgamate\.two\.student\.checkpoint: .*w\.pth' is not weights"):
        checked(study_with(checkpoint="w.pth"), tmp_path, monkeypatch)


def test_weights_of_another_architecture_are_found_before_anything_runs(tmp_path, monkeypatch):
    weights.save(nn.Linear(2, 2), tmp_path / "w.safetensors")
    with pytest.raises(
        KtError, match=r"^amalgamate\.two\.student\.checkpoint: .*w\.safetensors: not this model's weights"
    ):
        checked(study_with(checkpoint="w.safetensors"), tmp_path, monkeypatch)


def test_published_weights_bring_their_tag_and_input(tmp_path, monkeypatch):
    student = checked(study_with(pretrained=True), tmp_path, monkeypatch).amalgamate["two"].student
    assert student.arch == "resnet10t.c3_in1k"
    assert student.input is not None
    assert (student.input.size, len(student.input.mean)) == (176, 3)
    own = {"size": 16, "mean": [0.3], "std": [0.33]}
    student = checked(study_with(pretrained=True, input=own), tmp_path, monkeypatch).amalgamate["two"].student
    assert student.input is not None
    assert student.input.size == 16


def test_a_student_begins_with_a_checkpoint_and_a_fresh_head_of_its_seed(tmp_path, monkeypatch):
    given = net(7)
    weights.save(given, tmp_path / "w.safetensors")
    bench = bench_of(checked(study_with(checkpoint="w.safetensors"), tmp_path, monkeypatch))
    first, again, other = (bench.student(seed).state_dict() for seed in (0, 0, 1))
    for name, tensor in given.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(first[name], tensor), name
    assert first["fc.weight"].shape == (5, 8)
    assert torch.equal(first["fc.weight"], again["fc.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert bench.instead("high").student(0).num_classes == 5, "in its place a teacher's architecture has fresh weights"


def test_a_head_of_the_same_class_count_is_kept(tmp_path, monkeypatch):
    given = net(5)
    weights.save(given, tmp_path / "w.safetensors")
    student = bench_of(checked(study_with(checkpoint="w.safetensors"), tmp_path, monkeypatch)).student(0)
    assert all(torch.equal(t, student.state_dict()[name]) for name, t in given.state_dict().items())


def test_published_weights_get_a_head_of_the_students_classes(tmp_path, monkeypatch):
    asked = []

    def published(tag: str, args: dict[str, Any], channels: int, classes: int) -> nn.Module:
        asked.append((tag, channels, classes))
        return net(classes)

    monkeypatch.setattr(weights, "pretrained", published)
    own = {"size": 16, "mean": [0.3], "std": [0.33]}
    bench = bench_of(checked(study_with(pretrained=True, input=own), tmp_path, monkeypatch))
    asked.clear()
    student = bench.student(0)
    assert asked == [("resnet10t.c3_in1k", 1, 1000)]
    assert student(bench.view("test")[slice(0, 2)]).shape == (2, 5)
    assert torch.equal(student.state_dict()["conv1.0.weight"], net(1000).state_dict()["conv1.0.weight"])


def test_keys_follow_the_weights_that_a_student_begins_with_and_not_their_place(tmp_path, monkeypatch):
    for name, seed in (("a", 1), ("b", 2)):
        weights.save(net(5, seed), tmp_path / f"{name}.safetensors")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    study = checked(study_with(), tmp_path, monkeypatch)
    datasets.write(study.layout.data, study.data)
    fresh = keys(study)
    a, b, c = (keys(checked(study_with(checkpoint=f"{n}.safetensors"), tmp_path, monkeypatch)) for n in "abc")
    published = keys(checked(study_with(pretrained=True), tmp_path, monkeypatch))
    assert a == c
    assert not a & (b | fresh)
    assert not published & (a | fresh)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    assert keys(checked(study_with(checkpoint="a.safetensors"), tmp_path, monkeypatch)) == b


def test_a_student_with_fresh_weights_is_described_as_ever(tmp_path, monkeypatch):
    study = checked(study_with(), tmp_path, monkeypatch)
    chosen = study.amalgamate["two"]
    assert chosen.student.plain() == {**NET, "input": None}
    spec = study.student_input(chosen)
    assert chosen.student.described(spec) == {**NET, "input": spec.plain()}


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"pretrained": True}, "| first weights | those that timm publishes under this name |"),
        ({"checkpoint": "ab12"}, "| first weights | a checkpoint with SHA-256 `ab12` |"),
        ({}, None),
    ],
)
def test_a_card_says_what_its_student_began_with(student, said):
    row = {"student": "two", "method": "kd", "teachers": ["a", "b"], "control": False, "acc_after": 1.0, "n": 9}
    unit = {"architecture": student, "method": {}, "training": {}, "seed": 0, "data": ""}
    about = About(Classification().words, "d", [], 2, (None, 2.0), [], {})
    shown = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5], "crop_pct": 1, "crop_mode": "", "interpolation": ""}
    config = {"architecture": "x", "num_classes": 2, "pretrained_cfg": shown, "kt": {}}
    text = card({**row, "budget": 1, "key": "k"}, unit, config, about, "timm.create_model('x')")
    assert said in text if said else "first weights" not in text
