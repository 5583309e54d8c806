"""Lists of classes: names are folders as they are written, in the configuration and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from images import save_image, spec_of

from kt.data import sources
from kt.data.classes import class_map, relabel
from kt.data.strict_yaml import Loader
from kt.errors import KtError
from kt.study import load as config

ODD = ["010", "yes", "1_000", "1:30", "1.0", "1e3", "null", "~", "2020-01-01", "0x1F", "on", "5.", "-1", "08"]
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def load(text: str):
    return yaml.load(text, Loader)


def test_the_classes_of_the_data_are_text_as_written():
    lines = "".join(f"    - {name}\n" for name in ODD)
    assert load(f"data:\n  classes:\n{lines}")["data"]["classes"] == ODD
    assert load("data: {classes: {010: 8, yes: 0x1F, ~: 3}}") == {"data": {"classes": {"010": 8, "yes": 31, "~": 3}}}
    assert load("data: {classes: null, seed: 010}") == {"data": {"classes": None, "seed": 8}}
    assert load("data: {classes: ['010', \"a\"]}") == {"data": {"classes": ["010", "a"]}}


def test_other_lists_of_classes_keep_plain_whole_numbers_as_labels():
    text = "zoo: {models: {a: {classes: [3, 010, yes, 0, 1_0, cat]}}}\nseeds: [010, 1]"
    assert load(text) == {"zoo": {"models": {"a": {"classes": [3, "010", "yes", 0, "1_0", "cat"]}}}, "seeds": [8, 1]}


def test_lists_that_are_shared_or_hold_themselves_are_read_as_yaml_reads_them():
    shared = load("seeds: &s [1, 010]\ndata: {classes: *s}")
    assert shared == {"seeds": [1, 8], "data": {"classes": ["1", "010"]}}
    assert load("data: {<<: {classes: [010]}}") == {"data": {"classes": ["010"]}}
    with pytest.raises(yaml.YAMLError):
        load("a: &a [*a]\nb: {classes: *a}\n? {c: 1}\n: &d {d: *d}")


@pytest.fixture
def odd(tmp_path) -> Path:
    for i, name in enumerate(ODD):
        save_image(tmp_path / "s" / name / "0.png", seed=i)
    return tmp_path / "s"


def test_folders_with_odd_names_are_found_from_the_configuration_and_from_files(odd, tmp_path):
    order = ODD[::-1]
    lines = "".join(f"- {name}\n" for name in order)
    files = {
        "c.yaml": lines,
        "map.yaml": "".join(f"{name}: {label}\n" for label, name in enumerate(order)),
        "c.txt": "\n".join(order),
        "windows.txt": "\ufeff" + "  \r\n".join(order) + "\r\n\r\n",
        "mac.TXT": "\r".join(order),
        "c.json": "[" + ", ".join(f'"{name}"' for name in order) + "]",
        "map.json": "{" + ", ".join(f'"{name}": {label}' for label, name in enumerate(order)) + "}",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
        spec = spec_of(odd, size=8, class_file=str(tmp_path / name))
        data = sources.read(spec)
        labels, classes = relabel(data, spec)
        assert classes == order, name
        assert [order[label] for label in labels] == [name.split("/")[0] for name in data.names]
    spec = spec_of(odd, size=8, **load("{data: {classes: [" + ", ".join(order) + "]}}")["data"])
    assert relabel(sources.read(spec), spec)[1] == order


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a\nb\na\n", "a class is listed twice: 'a'"),
        ("c.txt", "e\u0301\n\u00e9\n", "a class is listed twice: 'é'"),
        ("c.yaml", "[010, '010']", "a class is listed twice: '010'"),
        ("c.yaml", "{a: 0, a: 1}", "'a' is given twice"),
        ("c.json", '{"a": 0, "a": 1}', "a class is listed twice: 'a'"),
        ("c.json", "[true, 3]", "True is no name of a class; quote it as its folder is called"),
        ("c.json", "[null]", "None is no name of a class"),
        ("c.yaml", "[[a]]", "is no name of a class"),
        ("c.yaml", "- a\n- \n", "'' is no name of a class"),
        ("c.json", "[" * 100_000, "recursion"),
        ("c.yaml", "{a: 1000000}", "needs one class per line"),
        ("c.yaml", "{a: 1.5}", "needs one class per line"),
        ("c.json", LFS_POINTER, "c.json: a Git LFS pointer, not the file itself; run `git lfs pull`"),
    ],
)
def test_class_files_that_are_wrong_give_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(KtError) as caught:
        class_map(spec_of("digits", class_file=str(tmp_path / name)))
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.class_file: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [[True, "a"], [None], [1.0], {None: 1}, [""], ["a", "a"], {"a": 10**12}])
def test_classes_that_are_no_names_are_refused_with_the_key(given):
    raw = yaml.safe_load(Path("config.yaml").read_text("utf-8"))
    raw["data"]["classes"] = given
    with pytest.raises(KtError, match=r"c.yaml: data.classes[.:]"):
        config.parse(raw, "c.yaml")


def test_pointers_of_git_lfs_in_place_of_arrays_and_lists_are_named(tmp_path):
    for name in ("d.npz", "d.tar", "ids.txt"):
        (tmp_path / name).write_text(LFS_POINTER)
    files = {"splits": {"transfer": 1, "validation": 1, "test": {"file": str(tmp_path / "ids.txt")}}}
    for spec in (spec_of(tmp_path / "d.npz"), spec_of(tmp_path / "d.tar", size=8), spec_of("digits", **files)):
        with pytest.raises(KtError, match=r"data\..*: a Git LFS pointer, not the file itself; run `git lfs pull`"):
            sources.check_source(spec)


def test_labels_that_count_something_else_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 10**12]))
    with pytest.raises(KtError, match=r"labels are from 0 to 1000000000000; need integers ≥ 0 below 1000000"):
        sources.read(spec_of(tmp_path / "d.npz"))
