"""Paths in a configuration are relative to its folder, wherever it is called from and wherever it lies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from studies import small_zoo

from kt import spec
from kt.cli import main
from kt.data import scenes
from kt.data.spec import BUILTIN, DataSpec
from kt.errors import KtError
from kt.spec import File, Folder, Place, shown
from kt.study import load
from kt.study.study import Study

KEYS = {
    "results": "out",
    "data.root": "root",
    "data.class_file": "classes.txt",
    "data.splits.test.file": "test.txt",
    "data.splits.transfer.folder": "photos",
    "zoo.models.given.checkpoint": "given.safetensors",
    "zoo.overrides": "overrides.csv",
    "zoo.published": "published.csv",
    "complementarity.class_embeddings": "vectors.npz",
    "pairs.path": "pairs.csv",
}
"""Keys whose values are paths, and paths; `data.source` is one where it is no name."""

STUDY: dict[str, Any] = {
    "data": {"source": "images.npz", "splits": {"zoo": 4, "transfer": 8, "validation": 4, "test": 8}},
    "zoo": small_zoo(
        a={"arch": "tiny_mixer", "train": {"epochs": 1, "batch_size": 4}},
        b={"arch": "test_byobnet", "train": {"epochs": 1, "batch_size": 4}},
    ),
    "transfer": {"methods": {"kl": {}}, "training": {"epochs": 1, "batch_size": 4, "lr": 1e-3}},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's file in a folder of its own, beside its images."""
    folder = tmp_path / "a study"
    folder.mkdir()
    np.savez(folder / "images.npz", images=np.zeros((40, 4, 4), np.uint8), labels=np.arange(40) % 2)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder / "study.yaml"


def with_keys(values: dict[str, str]) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(STUDY))
    for split in ("test", "transfer"):
        if any(key.startswith(f"data.splits.{split}.") for key in values):
            raw["data"]["splits"][split] = {}
    raw["zoo"]["models"]["given"] = {"arch": "tiny_mixer"}
    if "pairs.path" in values:
        raw["pairs"] = {"select": "file"}
    for key, value in values.items():
        *sections, last = key.split(".")
        at = raw
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return raw


def fields_of(model: Any, seen: set[Any]) -> set[tuple[str, str]]:
    """Every class and field of a configuration that holds a path."""
    if model in seen:
        return set()
    seen.add(model)
    found = set()
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            if any(isinstance(kind, type) and issubclass(kind, Place) for kind in kinds) or name == "source":
                found.add((model.__name__, name))
            found |= fields_of(field.annotation, seen)
    for part in get_args(model):
        found |= fields_of(part, seen)
    return found


def test_the_keys_below_are_all_that_hold_paths():
    assert {name for _, name in fields_of(Study, set())} == {key.rpartition(".")[2] for key in KEYS} | {"source"}


def test_texts_that_name_files_are_paths():
    """A key that is described as a file or a folder is one; so nobody forgets a new one."""
    texts = {"part", "match"}
    for where, schema in [("", load.json_schema()), *load.json_schema()["$defs"].items()]:
        for name, of in schema.get("properties", {}).items():
            if re.search(r"\b(file|folder)\b", of.get("description", "")) and "string" in json.dumps(of):
                assert name in {key.rpartition(".")[2] for key in KEYS} | {"source", "modules"} | texts, (where, name)


def test_every_path_is_resolved_from_the_configurations_folder_and_kept_as_written(tmp_path):
    study = load.parse(with_keys(KEYS), "s.yaml", str(tmp_path))
    found = dict(spec.of(study))
    assert found.pop("data.source") == str(tmp_path / "images.npz")
    assert found == {key: str(tmp_path / path) for key, path in KEYS.items()}
    assert {key: place.written for key, place in found.items()} == KEYS
    kinds = {key for key, place in found.items() if isinstance(place, Folder)}
    assert kinds == {"results", "data.root", "data.splits.transfer.folder"}
    assert all(isinstance(found[key], File) for key in found.keys() - kinds)


def test_a_study_has_one_hash_and_one_plain_form_wherever_it_lies(tmp_path):
    here, there = (load.parse(with_keys(KEYS), "s.yaml", str(tmp_path / name)) for name in ("a", "b"))
    assert here.results != there.results
    assert here.plain() == there.plain()
    assert here.hash == there.hash
    assert here.plain()["results"] == "out"
    assert here.plain()["data"]["source"] == "images.npz"
    assert here.plain()["zoo"]["models"]["given"]["checkpoint"] == "given.safetensors"
    assert str(tmp_path) not in json.dumps(here.plain())


@pytest.mark.parametrize("key", KEYS)
def test_a_path_that_leads_nowhere_is_named_with_what_was_tried_and_the_nearest(key, tmp_path):
    name = KEYS[key]
    for other in KEYS.values():
        (tmp_path / other).mkdir() if "." not in other else (tmp_path / other).touch()
    if key == "results":
        return  # it is made
    wrong = f"{name[:-1]}_"
    study = load.parse(with_keys({**KEYS, key: wrong}), "s.yaml", str(tmp_path))
    with pytest.raises(KtError) as caught:
        spec.check_all(study, {"results", "data.source"})
    kind = "folder" if "." not in name else "file"
    rule = "paths are relative to the configuration's folder"
    assert str(caught.value).startswith(f"{key}: {wrong}: no such {kind} ({tmp_path / wrong}; {rule}); did you mean ")
    assert f"'{name}'" in str(caught.value)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    (tmp_path / "photos").touch()
    (tmp_path / "overrides.csv").mkdir()
    values = {key: KEYS[key] for key in ("zoo.overrides", "data.splits.transfer.folder")}
    with pytest.raises(KtError) as caught:
        spec.check_all(load.parse(with_keys(values), "s.yaml", str(tmp_path)), {"results", "data.source"})
    assert sorted(str(caught.value).splitlines()) == [
        f"data.splits.transfer.folder: photos: is a file, and a folder is needed ({tmp_path}/photos)",
        f"zoo.overrides: overrides.csv: is a folder, and a file is needed ({tmp_path}/overrides.csv)",
    ]


def test_a_file_of_the_future_is_named_with_the_remedy(tmp_path):
    file = tmp_path / "over rides.csv"
    file.touch()
    study = load.parse(with_keys({"zoo.overrides": file.name}), "s.yaml", str(tmp_path))
    spec.check_all(study, {"results", "data.source"})
    os.utime(file, (4e9, 4e9))
    with pytest.raises(
        KtError, match=r"^zoo\.overrides: over rides\.csv: dated 2096-.*; run: touch '.*/over rides\.csv'$"
    ):
        spec.check_all(study, {"results", "data.source"})


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("digits", False),
        ("torch/cifar10", False),
        ("hfds/a/b", False),
        ("WDS/x", False),
        ("./digits", True),
        ("./torch/cifar10", True),
        ("images", True),
        ("torch/images.npz", True),
        ("torch.tar", True),
        ("/data/imagenet", True),
    ],
)
def test_a_source_is_a_name_or_a_path(source, is_path, tmp_path):
    info = {"folder": str(tmp_path)}
    splits = {"transfer": 1, "validation": 1, "test": 1}
    spec = DataSpec.model_validate({"source": source, "splits": splits}, context=info)
    assert isinstance(spec.source, Place) == is_path
    assert spec.plain()["source"] == source
    assert spec.by_timm == ((not is_path and source != "digits") or source.endswith(".tar"))


def test_names_of_built_in_data_sets_are_known_before_they_can_be_read():
    assert tuple(scenes.BUILTIN) == BUILTIN


def test_home_is_expanded_and_variables_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    study = load.parse(with_keys({"results": "~/out"}), "s.yaml", "/elsewhere")
    assert (study.results, study.plain()["results"]) == (str(tmp_path / "out"), "~/out")
    for path in ("$SCRATCH/out", "a/${USER}"):
        with pytest.raises(KtError, match=r"results: .* variables are not expanded in paths, but for ~"):
            load.parse(with_keys({"results": path}), "s.yaml")
    (tmp_path / "it's $HOME").mkdir()
    assert load.parse(with_keys({"results": "it's $HOME"}), "s.yaml", str(tmp_path)).results.endswith("it's $HOME")


@pytest.mark.parametrize("path", ["", "a\nb", "a\0b", "a\x7fb"])
def test_what_cannot_be_a_path_is_refused(path):
    with pytest.raises(KtError) as caught:
        load.parse(with_keys({"zoo.overrides": path}), "s.yaml")
    assert str(caught.value) == f"s.yaml: zoo.overrides: needs the path of a file, not {path!r}"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_a_path_that_is_too_long_is_one_short_line(name, tmp_path):
    for key in ("zoo.overrides", "data.root"):
        with pytest.raises(KtError) as caught:
            spec.check_all(load.parse(with_keys({key: name}), "s.yaml", str(tmp_path)), {"results", "data.source"})
        assert "File name too long" in str(caught.value)
        assert len(str(caught.value)) < 700


def test_parents_are_those_of_the_folder_that_a_link_leads_to(tmp_path):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    (tmp_path / "weights.pt").symlink_to("blob")
    assert load.parse(with_keys({"results": "link/../out"}), "s", str(tmp_path)).results == str(tmp_path / "far/out")
    assert load.parse(with_keys({"results": "a/./out"}), "s", str(tmp_path)).results == str(tmp_path / "a/out")
    given = load.parse(with_keys({"zoo.models.given.checkpoint": "far/../weights.pt"}), "s", str(tmp_path))
    assert given.zoo.models["given"].checkpoint == str(tmp_path / "weights.pt")


def test_paths_below_the_current_folder_are_shown_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a/b") == Path("a/b")
    assert shown("/elsewhere/a") == Path("/elsewhere/a")
    assert shown(f"{tmp_path}2/a") == Path(f"{tmp_path}2/a")


def test_a_study_is_read_from_anywhere(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for arguments in (["--config", str(study)], ["--configfile", "../a study/study.yaml"]):
        assert main(["config", "check", *arguments]) == 0
    monkeypatch.setenv("KT_CONFIG", str(study))
    assert main(["config", "check"]) == 0
    assert main(["data"]) == 0
    assert (study.parent / "results/data/meta.json").exists()
    assert json.loads((study.parent / "results/data/meta.json").read_text())["source"] == "images.npz"
    assert main(["status"]) == 0
    assert re.search(r"^data +1 +0 +1$", capsys.readouterr().out, re.MULTILINE)
    assert os.listdir() == []


def test_modules_beside_the_configuration_register_models(study, tmp_path):
    name = f"beside_{tmp_path.name}"
    code = "from timm.models import register_model\n\n@register_model\ndef beside_{0}(pretrained=False, **kwargs):\n"
    (study.parent / f"{name}.py").write_text(code.format("net") + "    raise NotImplementedError\n")
    raw = yaml.safe_load(study.read_text())
    raw["zoo"]["modules"].append(name)
    raw["zoo"]["models"]["own"] = {"arch": "beside_net", "train": {"epochs": 1, "batch_size": 4}}
    study.write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "kt", "config", "check", "--config", str(study)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
