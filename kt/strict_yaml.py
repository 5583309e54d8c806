"""YAML as configurations are written: keys are distinct, numbers are numbers, and names of classes are text."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from kt.errors import KtError

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
                    f"line {line}: {key!r} is given twice (first in line {seen[key]}); names must be distinct"
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
