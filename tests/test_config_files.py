"""Files that are no configuration, and configurations with anything in them: one line a mistake, no traceback."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kt.cli import main
from kt.data import strict_yaml
from kt.errors import KtError
from kt.pairs import OF_METRIC
from kt.study import load

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (ROOT / "config.yaml").read_text("utf-8")

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a mapping of keys to values, but empty"),
    "comments": (b"# nothing\n", "not a mapping of keys to values, but empty"),
    "a list": (b"- a\n- b\n", "not a mapping of keys to values, but a list"),
    "a text": (b"hello", "not a mapping of keys to values, but a str"),
    "tabs": (b"data:\n\tsource: digits\n", r"not valid YAML: line 2, column 1: .*'\\t' that cannot start any token"),
    "a null byte": (b"title: a\0b\n", "not valid YAML: line 1: the character 0x00 is not allowed"),
    "UTF-16": ("title: x\n".encode("utf-16"), r"not valid YAML: line 1: not UTF-8 text \(byte 0xff\)"),
    "a key twice": (b"title: a\ntitle: b\n", r"line 2: 'title' is given twice \(first in line 1\)"),
    "an unknown anchor": (b"title: *a\n", "not valid YAML: line 1, column 8: found undefined alias 'a'"),
    "a tag": (b"title: !!python/object:os.system x\n", "not valid YAML: line 1, column 8: could not determine a"),
    "an include": (b"data: !include data.yaml\n", "not valid YAML: line 1, column 7: could not determine a"),
    "two documents": (b"title: a\n---\ntitle: b\n", "not valid YAML: line 2, column 1: expected a single document"),
    "an open bracket": (b"title: [a\n", "not valid YAML: line 2, column 1: while parsing a flow sequence"),
    "a month 13": (b"title: 2020-13-01\n", "not valid YAML: line 1, column 8: '2020-13-01' is no timestamp"),
    "many digits": (b"title: " + b"9" * 5000, r"not valid YAML: line 1, column 8: '9+ … .* is no int \(Exceeds the"),
    "a date": (b"title: 2020-12-01\n", "title: input should be text, a number, .*, not a date"),
    "binary data": (b"title: !!binary aGk=\n", "title: input should be text, .*, not binary data"),
    "a set": (b"title: !!set {a}\n", "title: input should be text, .*, not a set"),
    "a number as a key": (b"zoo: {models: {1: {}}}\n", "zoo.models.1: a key is text, not a number; .* quotes: '1'"),
    "no as a key": (b"zoo: {models: {no: {}}}\n", "zoo.models.False: a key is text, not a truth value"),
    "a list as a key": (b"? [a]\n: b\n", "not valid YAML: line 1, column 3: .*unhashable key"),
    "deep nesting": (b"title: " + b"[" * 5000, "not valid YAML: nested too deeply"),
    "aliases of aliases": (
        b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10))
                                                   for c in b"bcdefghijk"),
        "more than 1,000,000 values once its aliases are written out",
    ),
    "an alias of itself": (b"a: &a [*a]\n", "more than 1,000,000 values"),
    "ten megabytes": (b"#" * (10 << 20), r"10\.0 MiB are too many for a configuration; at most 2 are allowed"),
    "an archive": (b"PK\x03\x04" + bytes(range(256)) * 9, "not valid YAML: line"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_one_line_with_its_name(name, tmp_path, capsys):
    content, said = FILES[name]
    (tmp_path / "s.yaml").write_bytes(content)
    assert main(["config", "check", "--config", str(tmp_path / "s.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"{re.escape(str(tmp_path))}/s\.yaml: {said}", line), line
    assert len(line) < 1000


def test_a_folder_is_no_configuration(tmp_path, capsys):
    assert main(["config", "check", "--config", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path}: cannot be read (Is a directory)\n"


@pytest.mark.parametrize(
    "change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: f"---\n{t}..."]
)
def test_a_mark_of_byte_order_and_line_ends_of_windows_change_nothing(change, tmp_path):
    (tmp_path / "s.yaml").write_bytes(change(SHIPPED).encode())
    assert load.load(tmp_path / "s.yaml").plain() == load.load(ROOT / "config.yaml").plain()


def test_pairs_left_out_are_all(tmp_path):
    (tmp_path / "s.yaml").write_text(re.sub(r"\npairs:.*\n.*\n", "\n", SHIPPED))
    assert "pairs:" not in (tmp_path / "s.yaml").read_text()
    assert load.load(tmp_path / "s.yaml").hash == load.load(ROOT / "config.yaml").hash


def test_every_pattern_of_the_schema_is_said_in_words():
    def patterns(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["pattern"]} if isinstance(value.get("pattern"), str) else set()
            return own.union(value.get("patternProperties", {}), *map(patterns, value.values()))
        return set().union(*map(patterns, value)) if isinstance(value, list) else set()

    found = patterns(load.json_schema()) - {f"({'|'.join(OF_METRIC)})$"}  # a score, whose own check has its words
    assert len(found) == 2
    for pattern in found:
        assert not set(load._form("a b", pattern)) & set("^$*+[]()\\")


def everything() -> dict[str, Any]:
    """A study that has nearly every key."""
    parts = [yaml.load((ROOT / f"presets/{name}.yaml").read_text(), strict_yaml.Loader)
             for name in ("digits-more", "fantastic-gains", "digits-all")]  # fmt: skip
    study: dict[str, Any] = load.parse({**parts[0], **parts[2], "zoo": parts[0]["zoo"]}, "s").plain()
    study["zoo"]["select"] = [{"match": ["vit_*"], "kind": ["cnn"], "max_params": 5}]
    study["zoo"] |= {"overrides": "o.csv", "published": "p.csv"}
    study["data"] |= {"root": "r", "class_file": "c", "classes": {"a": 1}}
    study["transfer"]["views"] = {"n": 2}
    return study


EVERYTHING = everything()
SMALL: dict[str, Any] = yaml.load(SHIPPED, strict_yaml.Loader)


def keys_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(key for name, item in items for key in keys_of(item, (*at, name)))] if at else [
        key for name, item in items for key in keys_of(item, (name,))
    ]  # fmt: skip


HUGE = {
    "one word": "x" * 5000,
    "words": "xy " * 2000,
    "digits": "9" * 5000,
    "quotes": "'" * 3000,
    "quoted words": '"xy" ' * 1000,
    "lines": "x\n" * 3000,
    "odd characters": "\x85\u2028\u202e\U0001f600" * 1000,
    "a number": 10**4000,
    "a list": ["x" * 5000] * 300,
    "a mapping": {"x" * 5000: "y" * 5000},
    "a deep list": [[[["x" * 5000]]]],
    "many keys": {f"k{i}": i for i in range(3000)},
}


def put(study: dict[str, Any], key: tuple[Any, ...], value: Any) -> dict[str, Any]:
    study = copy.deepcopy(study)
    at: Any = study
    for part in key[:-1]:
        at = at[part]
    at[key[-1]] = value
    return study


def lines_of(study: Any, folder: Path) -> list[str]:
    """What a user reads of a study; nothing where it is right."""
    (folder / "s.yaml").write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), "utf-8")
    try:
        load.load(folder / "s.yaml")
    except KtError as error:
        return str(error).split("\n")
    return []


@given(st.booleans(), st.data())
def test_no_value_is_quoted_at_length(tmp_path_factory, whole, data):
    """At every key: of a study that has nearly all, and of the shipped one, which is also checked for what it names."""
    study = EVERYTHING if whole else SMALL
    key, kind = data.draw(st.sampled_from(keys_of(study))), data.draw(st.sampled_from(list(HUGE)))
    lines = lines_of(put(study, key, HUGE[kind]), tmp_path_factory.getbasetemp())
    assert len(lines) <= 21
    for line in lines:
        assert "s.yaml: " in line
        assert len(line) < 1200, line
        assert line.isprintable()
        for piece in ("x" * 201, "xy " * 67, "9" * 201, "'" * 201, '"xy" ' * 41):
            assert piece not in line


STRANGE = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=20), st.just(10**30), st.just(-(2**62)),
    st.sampled_from([{}, [], "", " ", "~", "$x", "../..", "/", ".", "é", "\u200b", "nan", "1e999", [[]], {"": None}]),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
    st.lists(st.none() | st.integers() | st.text(max_size=5), max_size=3),
)  # fmt: skip


@given(st.data())
def test_any_change_of_a_configuration_is_right_or_named_by_file_and_key(tmp_path_factory, data):
    study, folder = copy.deepcopy(SMALL), tmp_path_factory.getbasetemp()
    for _ in range(data.draw(st.integers(1, 3))):
        *sections, last = data.draw(st.sampled_from(keys_of(study)))
        at: Any = study
        for section in sections:
            at = at[section]
        what = data.draw(st.sampled_from(["value", "new key", "gone", "renamed"]))
        if what == "gone":
            del at[last]
        elif what == "value":
            at[last] = data.draw(STRANGE)
        elif isinstance(at, dict):
            name = data.draw(st.text(max_size=8) | st.integers() | st.booleans() | st.floats() | st.none())
            at[name] = at.pop(last) if what == "renamed" else data.draw(STRANGE)
    for line in lines_of(study, folder):
        name, _, said = line.partition("s.yaml: ")
        assert name == f"{folder}/", line
        assert said.startswith((*SMALL, *map(str, study), "unknown key ", "…")), line
