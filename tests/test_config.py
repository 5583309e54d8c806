"""``config.yaml`` is either right, or refused with one clear line for each thing that is wrong."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from vectors import Vectors

from kt.data.strict_yaml import Loader
from kt.errors import KtError
from kt.pairs import candidates, score_of
from kt.study import load
from kt.study.check import check, check_task
from kt.study.study import Study
from kt.zoo import members
from kt.zoo import registry as registry_of_models
from kt.zoo.members import check as check_zoo

GONE = "(the key is taken out)"
"""As a value: the key is left out."""

VALIDATOR = jsonschema.Draft202012Validator(load.json_schema())


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The shipped ``config.yaml`` as plain values."""
    text = (Path(__file__).parent.parent / "config.yaml").read_text("utf-8")
    raw: dict[str, Any] = yaml.load(text, Loader)
    return raw


def changed(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a configuration with the value at a dotted key replaced, or left out."""
    raw = copy.deepcopy(raw)
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section[parent]
    if value is GONE:
        del section[last]
    else:
        section[last] = value
    return raw


def refusal(raw: Any) -> str:
    """What a user reads: the error of loading a configuration."""
    with pytest.raises(KtError) as caught:
        check(load.parse(raw, "c.yaml"))
    return str(caught.value)


# (key, value, what the one line says); the JSON schema refuses them too
BY_SCHEMA = [
    ("titel", "x", "unknown key 'titel'; allowed: title, .*; did you mean 'title'?"),
    ("data.splits.tset", 5, "data.splits: unknown key 'tset'; allowed: zoo, .*; did you mean 'test'?"),
    ("transfer.training.learning_rate", 0.1, "transfer.training: unknown key 'learning_rate'; allowed: epochs, "),
    ("zoo.models.vit.ach", "x", "zoo.models.vit: unknown key 'ach'; .*did you mean 'arch'?"),
    ("zoo.models.vit.train.epoch", 3, "zoo.models.vit.train: unknown key 'epoch'; .*did you mean 'epochs'?"),
    ("transfer.methods.kldp", {}, "transfer.methods: unknown key 'kldp'; allowed: .*; did you mean 'kl_dp' or 'kl'?"),
    ("transfer.methods.kl", {"temprature": 2}, "transfer.methods.kl: unknown key 'temprature'; .*'temperature'?"),
    ("transfer.methods.kl", 3, "transfer.methods.kl: input should be a mapping of keys to values, not 3"),
    ("transfer.methods.kl", {"temperature": 0}, "transfer.methods.kl.temperature: .*greater than 0, not 0"),
    ("transfer.methods.xekl", {"alpha": 1.5}, "transfer.methods.xekl.alpha: .*less than or equal to 1, not 1.5"),
    ("transfer.training.epochs", "4", 'transfer.training.epochs: input should be a valid integer, not "4"'),
    ("transfer.training.epochs", True, "transfer.training.epochs: input should be a valid integer, not true"),
    ("transfer.training.epochs", 4.5, "transfer.training.epochs: input should be a valid integer, not 4.5"),
    ("transfer.training.epochs", 0, "transfer.training.epochs: input should be greater than 0, not 0"),
    ("transfer.training.epochs", GONE, "transfer.training.epochs: this key is missing"),
    ("transfer.training.lr", "fast", 'transfer.training.lr: input should be a valid number, not "fast"'),
    ("transfer.training.lr", True, "transfer.training.lr: input should be a valid number, not true"),
    ("transfer.training.batch_size", 1, "transfer.training.batch_size: .*greater than or equal to 2, not 1"),
    ("transfer.seeds", "012", 'transfer.seeds: input should be a list, not "012"'),
    ("transfer.seeds", [], r"transfer.seeds: at least 1 needed, not \[\]"),
    ("transfer.seeds", ["a"], 'transfer.seeds.0: input should be a valid integer, not "a"'),
    ("transfer.pairs_per_job", 0, "transfer.pairs_per_job: input should be greater than 0, not 0"),
    ("device", "gpu", "device: unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:0, .*; did you mean 'cpu'?"),
    ("title", 3, "title: input should be a valid string, not 3"),
    ("results", None, "results: input should be a valid string, not null"),
    ("data", None, "data: input should be a mapping of keys to values, not null"),
    ("data.source", 5, "data.source: input should be a valid string, not 5"),
    ("data.splits.test", -1, "data.splits.test.images: input should be greater than or equal to 0, not -1"),
    ("data.splits.test", 1.5, "data.splits.test.share: input should be less than 1, not 1.5"),
    ("data.size", 0, r"data.size: needs a whole number of pixels greater than 0, or \[height, width\], not 0"),
    ("data.classes", 3, "data.classes: input should be a mapping of keys to values, not 3"),
    ("data.classes", {"a": -1}, "data.classes.a: input should be greater than or equal to 0, not -1"),
    ("data.damaged", "skp", "data.damaged: unknown value 'skp'; allowed: fail, skip; did you mean 'skip'?"),
    ("data.splits.test", "val", "data.splits.test: input should be a number of images, a share, or a mapping .*'val'"),
    ("analysis.equal_within", 0, "analysis.equal_within: input should be greater than 0, not 0"),
    (
        "complementarity",
        {"measures": ["kapa"]},
        "complementarity.measures.0: unknown value 'kapa'; .*'kappa' or 'capa'?",
    ),
    ("pairs", {"select": "al"}, "pairs.select: unknown rule 'al'; allowed: all, .*adaptive; did you mean 'all'?"),
    (
        "pairs",
        {},
        "pairs: the key 'select' is missing; it names the rule: all, random, explicit, top, stratified, file or "
        "adaptive",
    ),
    ("pairs", "all", 'pairs: input should be a mapping of keys to values, not "all"'),
    ("pairs", {"select": "random"}, "pairs.n: this key is missing"),
    ("pairs", {"select": "all", "n": 3}, "pairs: unknown key 'n'; allowed: exclude, select"),
    (
        "pairs",
        {"select": "top", "k": 1, "by": "pos_flip"},
        "pairs.by: unknown value 'pos_flip'; .*did you mean 'pos_flips'",
    ),
    ("pairs", {"select": "explicit", "pairs": []}, r"pairs.pairs: at least 1 needed, not \[\]"),
    ("pairs", {"select": "explicit", "pairs": [{"teecher": "vit"}]}, "pairs.pairs.0: unknown key 'teecher'; .*teacher"),
    ("zoo.models", 3, "zoo.models: input should be a mapping of keys to values, not 3"),
    ("zoo.select", {"match": "vit_*"}, "zoo.select: input should be a list, not "),
    ("zoo.select", [{"mtach": "vit_*"}], "zoo.select.0: unknown key 'mtach'; .*did you mean 'match'?"),
    ("zoo.select", [{"kind": "cnnn"}], "zoo.select.0.kind.0: unknown value 'cnnn'; .*did you mean 'cnn'?"),
    ("zoo.select", [{"max_params": "many"}], 'zoo.select.0.max_params: input should be a valid integer, not "many"'),
    ("zoo.select", [{"input_size": 0}], "zoo.select.0.input_size.0: input should be greater than 0, not 0"),
    ("zoo.models.a b", {"arch": "resnet10t"}, "zoo.models.a b: 'a b' is no name: letters, digits, .* are allowed"),
    ("zoo.models.random", {"arch": 3}, "zoo.models.random.arch: input should be a valid string, not 3"),
    ("zoo.models.vit", None, "zoo.models.vit: input should be a mapping of keys to values, not null"),
    ("zoo.models.vit.kind", "cnnn", "zoo.models.vit.kind: unknown value 'cnnn'; allowed: cnn, .*did you mean 'cnn'?"),
    ("zoo.models.vit.train.augment", "shfit", "zoo.models.vit.train.augment: unknown value 'shfit'; .*'shift'?"),
    ("zoo.models.vit.train.thin", {"classes": [0], "keep": 1.0}, "zoo.models.vit.train.thin.keep: .*less than 1"),
    ("zoo.modules", "kt.zoo.digits", 'zoo.modules: input should be a list, not "kt.zoo.digits"'),
    ("zoo.input.mean", 0.3, "zoo.input.mean: input should be a list, not 0.3"),
    ("zoo.input.std", [0], "zoo.input.std.0: input should be greater than 0, not 0"),
    ("zoo.input.mean", [], r"zoo.input.mean: at least 1 needed, not \[\]"),
    ("zoo.input.size", GONE, "zoo.input.size: this key is missing"),
]

# what a JSON schema cannot say
BY_MODEL = [
    (
        "complementarity.class_embeddings",
        "none.npz",
        "complementarity.class_embeddings: none.npz: no such file .*/none.npz; paths are relative to the config",
    ),
    (
        "complementarity.class_embeddings",
        "README.md",
        "complementarity.class_embeddings: 'README.md': allowed: a .npz or .parquet file",
    ),
    (
        "pairs",
        {"select": "top", "k": 1, "by": "cka"},
        "pairs.by: 'cka' is not measured; add 'cka' to complementarity.measures",
    ),
    (
        "pairs",
        {"select": "stratified", "gaps": [2.0, 1.0]},
        r"pairs.gaps: must increase, but is \[2.0, 1.0\]",
    ),
    ("transfer.methods", {}, "transfer.methods: no method chosen; allowed: bikd, cd, crd, "),
    ("transfer.training.lr", float("inf"), "transfer.training.lr: input should be a finite number, not Infinity"),
    ("transfer.training.lr", float("nan"), "transfer.training.lr: input should be .*, not NaN"),
    ("transfer.training.epochs", 4.0, "transfer.training.epochs: input should be a valid integer, not 4.0"),
    ("transfer.training.batch_size", 501, r"batch_size: 501 is larger than data.splits.transfer \(500\)"),
    ("transfer.seeds", [0, 1, 0], r"transfer.seeds: seeds must be distinct .*, not \[0, 1, 0\]"),
    ("transfer.seeds", [-1], r"transfer.seeds: seeds must be .* from 0 to 4294967295, not \[-1\]"),
    ("transfer.seeds", [1 << 32], r"transfer.seeds: seeds must be .* from 0 to 4294967295, not \[4294967296\]"),
    (
        "data.source",
        "digit",
        "data.source: digit: no such data set or folder .*/digit; paths .*; allowed: digits, .*did you mean 'digits'?",
    ),
    ("data.source", "none.npz", "data.source: none.npz: no such file .*/none.npz; paths are relative .*; allowed: "),
    ("data.splits.test", 7470, "data.splits: 8520 images asked for, but 'digits' has 1797"),
    ("data.splits.zoo", 0, "zoo.models.resnet.train.images: 1 asked for, but data.splits.zoo is 0"),
    ("data.splits.test", 0, "data.splits: test: needs at least one image"),
    ("data.splits.test", {"images": 5, "share": 0.5}, "data.splits.test: give one of images, share or file, or a part"),
    ("data.splits.test", {"file": "ids.txt"}, "data.splits.test.file: ids.txt: no such file .*/ids.txt; paths are"),
    ("data.splits.test", {"part": "val"}, "data.splits.test.part: 'val': 'digits' has no official parts"),
    ("data.class_file", "c.txt", "data.class_file: c.txt: no such file .*/c.txt; paths are relative"),
    ("data.classes", ["a", "a"], "data.classes: a class is listed twice"),
    ("zoo.models.vit.arch", "resnet10", "zoo.models.vit.arch: unknown model 'resnet10'; .*did you mean 'resnet10t'"),
    ("zoo.models.vit.train", GONE, "zoo.models.vit: give one of `train`, `checkpoint` and `pretrained`, one is"),
    ("zoo.models.vit.checkpoint", "README.md", "zoo.models.vit: give one of .*, not train and checkpoint"),
    (
        "zoo.models.vit",
        {"arch": "resnet10t", "checkpoint": "w.safetensors"},
        "zoo.models.vit.checkpoint: w.safetensors: no such file .*/w.safetensors; paths are relative",
    ),
    (
        "zoo.models.vit",
        {"arch": "resnet10t", "checkpoint": "README.md"},
        "zoo.models.vit.checkpoint: '.*README.md' is no file of weights; allowed: .safetensors, .pth",
    ),
    ("zoo.models.vit.train.images", 401, "zoo.models.vit.train.images: 401 asked for, but data.splits.zoo is 400"),
    ("zoo.input.std", [0.3, 0.3], "zoo.models.resnet: input.mean and input.std need the same number of channels"),
    ("zoo.models", {}, "zoo: at least 2 models needed, not 0; give `models`, `select` or both"),
    ("zoo.select", [{"match": []}], r"zoo.select.0.match: at least 1 needed, not \[\]"),
    ("zoo.select", [{"match": "vitt_*"}], r"zoo.select.0.match: 'vitt_\*' matches none of \d+ pretrained tags"),
    ("zoo.overrides", "none.csv", "zoo.overrides: none.csv: no such file .*/none.csv; paths are relative"),
    ("data.task", "clasification", "data.task: unknown task 'clasification'; allowed: .*mean 'classification'?"),
    ("zoo.modules", ["kt.zoo.digit"], "zoo.modules: kt.zoo.digit: no such Python module on this machine"),
    ("zoo.modules", ["no.such"], r"zoo.modules: no.such: cannot be found \(No module named 'no'\)"),
    ("zoo.modules", ["sys"], "zoo.modules: sys: no such Python module on this machine"),
    ("pairs", {"select": "all", "exclude": [{}]}, "pairs: the rule 'all' selects no pair of the 8 models"),
    (
        "pairs",
        {"select": "all", "exclude": [{"teacher": "resnt"}]},
        r"pairs: \{teacher: resnt, student: \*\} matches no pair of distinct models; did you mean 'resnet'",
    ),
    (
        "pairs",
        {"select": "explicit", "pairs": [{"teacher": "vit", "student": "vit"}]},
        r"pairs: \{teacher: vit, student: vit\} matches no pair of distinct models$",
    ),
]


def test_the_shipped_configuration_is_right(root, monkeypatch):
    monkeypatch.chdir(root)
    study = load.load("config.yaml")
    assert study.names[:2] == ["resnet", "resnet_lo"]
    assert study.transfer.training.lr == 1e-3
    assert set(study.transfer.methods.chosen()) >= {"kl", "xekl", "kl_dp", "kl_dp_unsup", "self", "finetune"}
    assert study.groups is None


def test_the_shipped_configuration_fits_the_json_schema(plain):
    VALIDATOR.validate(plain)


def test_the_json_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(load.json_schema())
    assert json.loads(json.dumps(load.json_schema())) == load.json_schema()


def test_the_schema_for_editors_is_that_of_the_typed_model(root):
    assert json.loads((root / "docs" / "config.schema.json").read_text("utf-8")) == load.json_schema()


def test_the_plain_form_of_a_study_is_a_configuration_again(plain):
    study = load.parse(plain, "c.yaml")
    again = json.loads(json.dumps(study.plain()))
    VALIDATOR.validate(again)
    assert load.parse(again, "c.yaml") == study
    assert load.parse(again, "c.yaml").hash == study.hash


@pytest.mark.parametrize(("key", "value", "line"), BY_SCHEMA + BY_MODEL, ids=lambda part: str(part)[:40])
def test_a_bad_input_gives_one_line_with_key_value_and_what_is_allowed(plain, key, value, line):
    text = refusal(changed(plain, key, value))
    assert "\n" not in text
    assert re.search(line.replace("?", r"\?"), text), text


@pytest.mark.parametrize(("key", "value", "line"), BY_SCHEMA, ids=lambda part: str(part)[:40])
def test_the_json_schema_refuses_what_the_typed_model_refuses(plain, key, value, line):
    assert not VALIDATOR.is_valid(changed(plain, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transfer.methods.kl", None),
        ("transfer.methods.kl", {"temperature": 2}),
        ("transfer.training.lr", 1),
        ("transfer.seeds", [7]),
        ("transfer.seeds", [(1 << 32) - 1]),
        ("pairs", {"select": "random", "n": 5}),
        ("pairs", {"select": "top", "k": 2, "by": "kappa", "lowest": True}),
        ("pairs", {"select": "explicit", "pairs": [{"teacher": "res*"}], "exclude": [{"student": "vit"}]}),
        ("analysis", GONE),
        ("zoo.models.top", {"arch": "resnet10t", "train": {"epochs": 1}}),
        ("device", "cuda:1"),
        ("zoo.models.vit.input", {"size": 8, "mean": [0.5], "std": [0.5]}),
    ],
)
def test_schema_and_typed_model_both_take_what_is_right(plain, key, value):
    raw = changed(plain, key, value)
    VALIDATOR.validate(raw)
    check(load.parse(raw, "c.yaml"))


@given(st.data())
def test_any_leaf_of_another_type_is_refused_by_both(plain, data):
    def leaves(value: Any, key: str) -> list[tuple[str, Any]]:
        if isinstance(value, dict):
            return [leaf for name, item in value.items() for leaf in leaves(item, f"{key}.{name}")]
        return [(key[1:], value)]

    free = [leaf for leaf in leaves(plain, "") if ".args" not in leaf[0]]
    key, value = data.draw(st.sampled_from(free))
    wrong = data.draw(st.sampled_from([x for x in ("x", True, [{}]) if not isinstance(x, type(value))] + [{"a": 1}]))
    if isinstance(value, dict | list) and not value:
        return
    raw = changed(plain, key, wrong)
    assert not VALIDATOR.is_valid(raw)
    text = refusal(raw)
    assert "\n" not in text
    assert text.startswith(f"c.yaml: {key.split('.')[0]}")


def test_every_preset_is_a_configuration_that_the_schema_accepts(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "presets")  # as `load` does with the folder of a configuration
    presets = sorted((root / "presets").glob("*.yaml"))
    assert presets
    for path in presets:
        raw = yaml.load(path.read_text("utf-8"), Loader)
        VALIDATOR.validate(raw)
        if raw["data"].get("task") == "control":
            load.load_any(path)
            continue
        study = load.parse(raw, path.name)
        known = registry_of_models.load(study.zoo.modules)
        zoo = members.expand(study.zoo, known, lambda tags: registry_of_models.sizes(tags))
        check_zoo(zoo, known)


def test_two_mistakes_give_two_lines(plain):
    raw = changed(changed(plain, "title", 3), "transfer.training.epochs", "4")
    assert [line.split(": ")[1] for line in refusal(raw).splitlines()] == ["title", "transfer.training.epochs"]


def test_a_results_folder_that_cannot_be_is_refused(plain, tmp_path):
    (tmp_path / "file").write_text("")
    text = refusal(changed(plain, "results", str(tmp_path / "file" / "results")))
    assert text == f"results: {tmp_path}/file/results cannot be a folder, because {tmp_path}/file is a file"


def test_images_in_a_file_are_counted_before_anything_runs(plain, tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((30, 4, 4), np.uint8), labels=np.zeros(30, np.int64))
    raw = changed(plain, "data.source", str(tmp_path / "d.npz"))
    assert refusal(raw).startswith("data.splits: 1797 images asked for, but ")


def load_text(tmp_path: Path, text: str) -> Study:
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    return load.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    vit:", "    resnet:", r"line \d+: 'resnet' is given twice \(first in line \d+\); names must be distinct"),
        ("device: auto", "results: x\ndevice: auto", "'results' is given twice"),
        ("device: auto", "device: [auto", "not valid YAML: "),
        ("device: auto", "? [device]\n: auto", "not valid YAML: .*unhashable key"),
        ("device: auto", "devise: auto", "unknown key 'devise'; .*did you mean 'device'"),
        ("arch: resnet10t", "arch: resnet10", r"zoo.models.resnet.arch: unknown model 'resnet10'; .*'resnet10t'"),
    ],
)
def test_errors_of_a_file_are_one_line_that_begins_with_its_name(tmp_path, root, old, new, line):
    text = (root / "config.yaml").read_text("utf-8")
    assert old in text
    with pytest.raises(KtError) as caught:
        load_text(tmp_path, text.replace(old, new, 1))
    assert "\n" not in str(caught.value)
    assert re.match(rf"{re.escape(str(tmp_path / 'c.yaml'))}: .*{line}", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"), [("", "not a mapping"), ("- a", "not a mapping"), ("a: \x01", "not valid YAML")]
)
def test_what_is_no_mapping_is_refused(tmp_path, text, line):
    with pytest.raises(KtError, match=rf"c\.yaml: {line}"):
        load_text(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(KtError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        load.load(tmp_path / "none.yaml")
    with pytest.raises(KtError, match=r"cannot be read \(Is a directory\)"):
        load.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(KtError, match=r"bytes\.yaml: not valid YAML"):
        load.load(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("number", ["5e-4", "5E-4", "5.0e-4", ".5e-3", "0.0005"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, root, number):
    text = (root / "config.yaml").read_text("utf-8").replace("lr: 1e-3", f"lr: {number}")
    assert load_text(tmp_path, text).transfer.training.lr == 5e-4


def test_anchors_may_be_merged_and_overridden(tmp_path, root):
    text = (root / "config.yaml").read_text("utf-8")
    text = text.replace("train: {augment: shift, epochs: 30}", "train: &plan {augment: shift, epochs: 30}")
    text = text.replace("train: {augment: none,", "train: {<<: *plan, augment: none,")
    train = load_text(tmp_path, _moved_up(text)).zoo.models["resnet_lo"].train
    assert train is not None
    assert (train.augment, train.epochs) == ("none", 25)


def _moved_up(text: str) -> str:
    """The configuration with the model ``vit``, which defines the anchor, before the one that uses it."""
    vit = re.search(r"    vit:\n(?:      .*\n)+", text)
    assert vit is not None
    return text.replace(vit.group(), "").replace("    resnet_lo:\n", f"{vit.group()}    resnet_lo:\n")


def test_the_hash_depends_on_every_value_and_on_no_order_of_sections(plain):
    first = load.parse(plain, "c.yaml").hash
    turned = dict(reversed(list(plain.items())))
    assert load.parse(turned, "c.yaml").hash == first
    for key, value in [("title", "x"), ("transfer.seeds", [0, 1]), ("transfer.methods.kl", {"temperature": 2})]:
        assert load.parse(changed(plain, key, value), "c.yaml").hash != first


def test_a_study_cannot_be_changed(plain):
    study = load.parse(plain, "c.yaml")
    with pytest.raises(ValueError, match="frozen"):
        study.title = "other"
    assert isinstance(study.transfer.seeds, tuple)


def test_models_may_have_the_names_of_rules(plain):
    text = refusal(changed(plain, "zoo.models.top", {"arch": "resnet10t", "train": {"epochs": "1"}}))
    assert text.startswith("c.yaml: zoo.models.top.train.epochs: ")


def test_names_keep_the_order_of_the_file(plain):
    study = load.parse(plain, "c.yaml")
    assert study.names == list(plain["zoo"]["models"])
    assert len(candidates(study.names, study.pairs)) == 56


def test_planning_imports_none_of_the_large_packages(python):
    code = """
import sys
from kt import status
from kt.study import load
study = load.load("config.yaml")
status.survey(study, study.layout)
large = ("torch", "timm", "sklearn", "snakemake", "pandas", "scipy", "matplotlib")
print([name for name in large if name in sys.modules])
"""
    ended = python(code)
    assert ended.stdout == "[]\n", ended.stderr


def test_a_module_of_the_zoo_may_define_the_task(plain, tmp_path, monkeypatch):
    source = (Path(__file__).parent / "vectors.py").read_text("utf-8")
    (tmp_path / "kt_tests_task.py").write_text(source.replace('"vectors"', '"of_a_module"'), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    study = load.parse(changed(plain, "data.task", "of_a_module"), "c.yaml")
    with pytest.raises(KtError, match=r"data\.task: unknown task 'of_a_module'; allowed: classification"):
        check_task(study)
    study = load.parse(changed(study.plain(), "zoo.modules", ["kt_tests_task"]), "c.yaml")
    check_task(study)
    assert (study.task.metric.key, study.task.has_classes) == ("fit", False)


def test_the_default_task_changes_no_hash_and_another_changes_all(plain):
    study = load.parse(plain, "c.yaml")
    named = load.parse(changed(plain, "data.task", "classification"), "c.yaml")
    other = load.parse(changed(plain, "data.task", Vectors.name), "c.yaml")
    assert named.plain() == study.plain()
    assert "task" not in study.plain()["data"]
    assert study.shown("data") == named.shown("data") == "data"
    assert other.shown("data") not in ("data", study.shown("other"))
    assert load.parse(other.plain(), "c.yaml") == other


@pytest.fixture
def vectors(plain, tmp_path) -> dict[str, Any]:
    """A configuration for a task without classes."""
    np.savez(tmp_path / "v.npz", images=np.zeros((1797, 8, 8), np.uint8), truth=np.zeros((1797, 3), np.float32))
    changes = {"data.task": Vectors.name, "data.source": str(tmp_path / "v.npz"), "complementarity": {}}
    for key, value in (changes | {"transfer.methods": {"kl": {}}, "analysis": {}}).items():
        plain = changed(plain, key, value)
    for model in plain["zoo"]["models"].values():
        model["train"].pop("thin", None)
    return plain


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "complementarity",
            {"measures": ["kappa"]},
            "complementarity.measures: 'kappa' makes no sense .*allowed: cka$",
        ),
        (
            "complementarity",
            {"class_lists": True},
            "complementarity.class_lists: is about classes, which the task 'vec",
        ),
        (
            "transfer.methods",
            {"kl_dp_unsup": {}},
            "transfer.methods.kl_dp_unsup: 'kl_dp_unsup' needs confidence, which the task 'vectors' does not have",
        ),
        ("transfer.top_k", 3, "transfer.top_k: is about classes, which the task 'vectors' does not have; leave it out"),
        ("zoo.models.resnet.classes", [0, 1], "zoo.models.resnet.classes: is about classes, which the task"),
        (
            "pairs",
            {"select": "top", "k": 1, "by": "acc_difference"},
            "pairs.by: unknown value 'acc_difference'; allowed: fit_teacher, .*cka; did you mean 'fit_difference'",
        ),
        ("pairs", {"select": "top", "k": 1, "by": "kappa"}, "pairs.by: unknown value 'kappa'; allowed: fit_teacher, "),
        ("pairs", {"select": "top", "k": 1, "by": "cka"}, "pairs.by: 'cka' is not measured; add 'cka' to complement"),
    ],
)
def test_keys_about_classes_are_refused_for_a_task_without_them(vectors, key, value, line):
    text = refusal(changed(vectors, key, value))
    assert re.match(line, text.removeprefix("c.yaml: ")), text


def test_a_search_tries_no_parameter_about_classes_for_a_task_without_them(vectors):
    raw = changed(vectors, "transfer.methods", {"finetune": {}})
    searched = {"methods": {"finetune": {"label_smoothing": [0.0, 0.1]}}}
    text = refusal(changed(raw, "transfer.search", searched)).removeprefix("c.yaml: ")
    assert text.startswith("transfer.search.methods.finetune.label_smoothing: 0.1 spreads the target over classes")


def test_scores_are_named_by_the_key_of_the_metric(plain, vectors):
    rule = {"select": "top", "k": 1, "by": "fit_teacher"}
    assert "pairs.by: unknown value 'fit_teacher'; allowed: acc_teacher, " in refusal(changed(plain, "pairs", rule))
    study = check(load.parse(changed(vectors, "pairs", rule), "c.yaml"))
    assert score_of(study.pairs) == "acc_teacher"
    assert study.complementarity.taken(study.task.words) == ()


def test_defaults_in_percentage_points_follow_the_scale_of_the_metric(plain, vectors):
    rule = {"select": "stratified"}
    points, other = (
        check(load.parse(changed(changed(raw, "pairs", rule), "analysis", {}), "c.yaml")) for raw in (plain, vectors)
    )
    assert (points.analysis.equal_within, other.analysis.equal_within) == (2.0, 0.02)
    assert points.pairs.gaps == (-10, -2, 2, 10)
    assert other.pairs.gaps == pytest.approx((-0.1, -0.02, 0.02, 0.1))
    given = changed(vectors, "analysis", {"equal_within": 0.5})
    assert check(load.parse(given, "c.yaml")).analysis.equal_within == 0.5


def test_tasks_that_cannot_be_used_are_refused(python):
    code = """
import kt.tasks.task as t
for name, key in (("half", "m"), ("odd", "mean IoU"), ("classification", "m")):
    try:
        type("Mine", (t.Task,), {"name": name, "metric": t.Metric(key, "m", "", "", "")})
        t.named(name)
    except t.KtError as error:
        print(error)
"""
    half, odd, taken = python(code).stdout.splitlines()
    assert half.startswith("data.task: the task 'half' does not define answer_shape, check_truth, ")
    assert odd == "metric: the key 'mean IoU' is no name of a column; allowed: a-z, 0-9 and _"
    assert taken.startswith("zoo.modules: a module defines the task 'classification', which kt has already")
