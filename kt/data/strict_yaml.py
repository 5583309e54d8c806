"""Strict YAML for configurations: distinct keys, numbers that are numbers, classes by name, only plain values."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from kt.errors import KtError, quoted, short

MAX_BYTES = 2 << 20
MAX_VALUES = 1_000_000
"""Most values of a configuration with its aliases written out."""

_PLAIN = (str, bool, int, float, type(None))

TEXT = "tag:yaml.org,2002:str"


class Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error, ``5e-4`` is a number, and a class ``010`` or ``yes`` is its folder.

    The classes below the key ``data`` are text as written. Other lists of ``classes`` may hold labels, too: there
    whole numbers in plain decimal digits stay numbers.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The document, with its names of classes as text."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _name_classes(root, labels=True, seen=set())
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; raises ``ConstructorError`` with its place where it does not match its form or tag."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # a month 13, ten thousand digits
            kind = node.tag.rpartition(":")[2]
            problem = f"{quoted(node.value)} is no {kind} ({short(error)})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises ``KtError`` where a key is given twice."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # keys merged from an anchor may be overridden
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                break  # refused below
            if key in seen:
                raise KtError(
                    f"line {line}: {quoted(key)} is given twice (first in line {seen[key]}); names must be distinct"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_names(text: str) -> Any:
    """A document that lists classes, or maps them to labels, with their names as written.

    Raises:
        yaml.YAMLError: the text is no YAML.
        KtError: a class is given twice.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(_as_text(node, labels=False))
    finally:
        loader.dispose()


def _name_classes(node: yaml.Node, labels: bool, seen: set[int]) -> None:
    """Take the values of all keys ``classes`` below a node as names."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _name_classes(item, labels, seen)
        return
    for i, (key, value) in enumerate(node.value):
        if key.value == "classes":
            node.value[i] = (key, _as_text(value, labels))
        else:
            _name_classes(value, labels and key.value != "data", seen)


def _as_text(node: yaml.Node, labels: bool) -> yaml.Node:
    """A list, or a mapping, whose items or keys are text as written; with ``labels`` but for plain whole numbers."""
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_text(item, labels) for item in node.value], node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return yaml.MappingNode(node.tag, [(_text(key, labels), value) for key, value in node.value], node.start_mark)
    return node


def _text(node: yaml.Node, labels: bool) -> yaml.Node:
    merges = node.tag == "tag:yaml.org,2002:merge"
    if not isinstance(node, yaml.ScalarNode) or merges or (labels and re.fullmatch(r"[-+]?(0|[1-9]\d*)", node.value)):
        return node
    return yaml.ScalarNode(TEXT, node.value, node.start_mark)


def read(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        KtError: one line that says where it is not valid, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506 (derives from SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ", ".join(filter(None, [error.context, error.problem]))
        raise KtError(f"not valid YAML: {where}{_one_line(problem)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise KtError(f"not valid YAML: line {line}: the character {error.character:#04x} is not allowed") from error
    except yaml.YAMLError as error:
        raise KtError(f"not valid YAML: {_one_line(str(error))}") from error
    except RecursionError as error:
        raise KtError("not valid YAML: nested too deeply") from error


def plain(value: Any) -> Any:
    """The same value with tuples for lists: typed sections are frozen, and strict validation distinguishes the two.

    Raises:
        KtError: a line for each value that no JSON has, and each key that is no text.
    """
    if _count(value, {}) > MAX_VALUES:
        raise KtError(f"more than {MAX_VALUES:,} values once its aliases are written out")
    if wrong := list(_strange(value, "")):
        raise KtError("\n".join(wrong[:20] + ([f"… and {len(wrong) - 20} more"] if len(wrong) > 20 else [])))
    return _with_tuples(value)


def _strange(value: Any, at: str) -> Iterator[str]:
    """Errors of a value and those below it, behind their dotted keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{at}.{key}" if at else str(key)
            if not isinstance(key, str):
                yield f"{short(here)}: a key is text, not {_kind(key)}; put it in quotes: '{short(key)}'"
            yield from _strange(item, here)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _strange(item, f"{at}.{i}")
    elif not isinstance(value, _PLAIN):
        yield f"{short(at)}: input should be text, a number, true, false, a list or a mapping, not {_kind(value)}"
    elif isinstance(value, int) and value.bit_length() > 63:
        yield f"{short(at)}: a whole number of {value.bit_length()} bits; at most 63 are allowed"
    elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        yield f"{short(at)}: {quoted(value)} is not valid Unicode text"


def _kind(value: object) -> str:
    names = {"date": "a date", "datetime": "a time", "bytes": "binary data", "int": "a number", "float": "a number"}
    names |= {"bool": "a truth value (yes, no, on and off are such)", "NoneType": "null", "set": "a set"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _count(value: Any, known: dict[int, int]) -> int:
    """Number of values with each alias written out, counted without writing them out."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1  # a value that refers to itself has no end
        known[id(value)] = 1 + sum(
            _count(item, known) for item in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _one_line(text: str) -> str:
    return short(" ".join(text.split()), 400)
