"""Reader of ``config.yaml``: a typed and checked study, or one clear line for each thing that is wrong with it.

Loading a configuration imports neither torch nor timm.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails

from kt.control import study as control
from kt.control.study import ControlStudy
from kt.data import strict_yaml
from kt.data.spec import DEFAULT_TASK
from kt.errors import KtError, quoted, short, unknown
from kt.spec import DEVICE, NAME
from kt.study.check import check, check_images
from kt.study.study import Study
from kt.tasks import task as tasks


def load(path: str | Path) -> Study:
    """Read and check the configuration file of a study on images or videos.

    Paths in it, and modules of the zoo, are looked for in its folder.

    Raises:
        KtError: one line for each thing that is wrong, with the file's name; or the study is about policies.
    """
    study = load_any(path)
    if isinstance(study, ControlStudy):
        raise KtError(f"{path}: a study of policies (data.task: control) has no such command; it is about images")
    return study


def load_any(path: str | Path) -> Study | ControlStudy:
    """The same of any study."""
    folder = os.path.realpath(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        raw = strict_yaml.read(_text(Path(path)))
        if _plays(raw):
            return control.check(_validated(ControlStudy, raw, str(path), folder))
        return check(parse(raw, str(path), folder))
    except KtError as error:
        raise KtError("\n".join(_prefixed(line, str(path)) for line in str(error).split("\n"))) from error


Root = TypeVar("Root", Study, ControlStudy)


def check_more(study: Study | ControlStudy) -> list[str]:
    """Fail where a folder has fewer images than a study asks for, which lists them; the study's methods by name."""
    if isinstance(study, ControlStudy):
        return list(dict.fromkeys(name for chosen in study.flow.values() for name in chosen.chosen()))
    check_images(study)
    return list(study.transfer.methods.chosen())


def _plays(raw: Any) -> bool:
    """Whether a configuration is of a study of policies.

    Raises:
        KtError: it names a task that is none, and no module that might define it: what else is wrong depends on that.
    """
    data, zoo = (raw.get(section) if isinstance(raw, dict) else None for section in ("data", "zoo"))
    task = data.get("task", DEFAULT_TASK) if isinstance(data, dict) else DEFAULT_TASK
    known = [*tasks.registry(), ControlStudy.task.name]
    if isinstance(task, str) and task not in known and not (isinstance(zoo, dict) and zoo.get("modules")):
        raise KtError(f"data.task: {unknown('task', task, known)}")
    return task == ControlStudy.task.name


def parse(raw: Any, name: str, folder: str = "") -> Study:
    """A configuration from plain values, not yet checked.

    Args:
        raw: the values.
        name: begins every line of an error.
        folder: what paths are relative to; by default the current folder.

    Raises:
        KtError: with one line for each thing that is wrong.
    """
    return _validated(Study, raw, name, folder)


def _validated(root: type[Root], raw: Any, name: str, folder: str) -> Root:
    if not isinstance(raw, dict):
        found = "empty" if raw is None else f"a {type(raw).__name__}"
        raise KtError(f"{name}: not a mapping of keys to values, but {found}")
    try:
        return root.model_validate(strict_yaml.plain(raw), context={"folder": folder})
    except ValidationError as error:
        raise KtError("\n".join(f"{name}: {line}" for line in _lines(error))) from error
    except KtError as error:
        raise KtError("\n".join(f"{name}: {line}" for line in str(error).split("\n"))) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``config.yaml``, for editors."""
    draft, name = {"$schema": "https://json-schema.org/draft/2020-12/schema"}, ControlStudy.task.name
    places, found = models_json_schema([(Study, "validation"), (ControlStudy, "validation")])
    of_policies = {"properties": {"data": {"properties": {"task": {"const": name}}, "required": ["task"]}}}
    branches = {"if": of_policies, "then": places[ControlStudy, "validation"], "else": places[Study, "validation"]}
    return {**draft, **branches, **found}


def _text(path: Path) -> str:
    """The text of a file of reasonable size."""
    try:
        with path.open("rb") as file:
            content = file.read(strict_yaml.MAX_BYTES + 1)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise KtError(f"cannot be read ({getattr(error, 'strerror', None) or short(error)})") from error
    if len(content) > strict_yaml.MAX_BYTES:
        most = strict_yaml.MAX_BYTES >> 20
        raise KtError(f"{size / (1 << 20):.1f} MiB are too many for a configuration; at most {most} are allowed")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise KtError(f"not valid YAML: line {line}: not UTF-8 text (byte {content[error.start]:#04x})") from error


def _prefixed(line: str, name: str) -> str:
    return line if line.startswith(f"{name}: ") else f"{name}: {line}"


RULES: dict[tuple[int | str, ...], str] = {
    ("pairs",): "all, random, explicit, top, stratified, file or adaptive",
    ("groups", "choose"): "explicit, random or ranked",
}
"""Rules by the section whose key `select` names one; pydantic puts it into the location of an error."""

MOST = 20
"""Lines for one configuration."""


def _lines(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong: where, what is wrong, what was given, what is allowed."""
    found = list(dict.fromkeys(_line(detail) for detail in _causes(error.errors())))
    return found[:MOST] + ([f"… and {len(found) - MOST} mistakes more"] if len(found) > MOST else [])


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """The errors, without those of lists that are too short only because their wrong items were left out."""
    inside = {detail["loc"][:-1] for detail in details}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inside]


def _line(error: ErrorDetails) -> str:
    kind, location, context = error["type"], _location(error), error.get("ctx") or {}
    text = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    text = re.sub(r"valid dictionary( or .*)?$", "mapping of keys to values", text)
    if kind == "literal_error":
        return f"{location}: {unknown('value', str(error['input']), _quoted(context.get('expected')))}"
    if kind == "string_pattern_mismatch":
        return f"{location}: {_form(str(error['input']), context.get('pattern'))}"
    if kind == "union_tag_invalid":
        return f"{location}.select: {unknown('rule', str(context.get('tag')), _quoted(context.get('expected_tags')))}"
    if kind == "union_tag_not_found":
        return f"{location}: the key 'select' is missing; it names the rule: {RULES[error['loc']]}"
    if kind == "too_short":
        return f"{location}: at least {context.get('min_length')} needed, not {_given(error)}"
    if kind == "missing":
        return f"{location}: this key is missing"
    if kind in ("unknown_key", "value_error"):
        return f"{location}: {text}" if location else text
    return f"{location}: {text[0].lower()}{text[1:]}, not {_given(error)}"


def _form(value: str, pattern: str | None) -> str:
    """The form that a text must have, in words."""
    if pattern == DEVICE:
        return unknown("device", value, ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "…"])
    assert pattern == NAME, "every pattern of a configuration has its words here"
    return f"{quoted(value)} is no name: letters, digits, '_', '.' and '-' are allowed, a letter or digit first"


def _given(error: ErrorDetails) -> str:
    return short(json.dumps(error["input"], default=str, ensure_ascii=False))


def _location(error: ErrorDetails) -> str:
    """The dotted key, without what pydantic adds to it: a rule, and a mark where the key itself is wrong."""
    at = error["loc"]
    rule = next((len(section) for section in RULES if at[: len(section)] == section), len(at))
    return short(".".join(str(part) for part in at[:rule] + at[rule + 1 :] if part != "[key]"))


def _quoted(text: object) -> list[str]:
    """The names that stand in single quotes."""
    return re.findall(r"'([^']*)'", str(text))
