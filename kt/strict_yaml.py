"""YAML as configurations are written: keys are distinct, and numbers are numbers."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from kt.errors import KtError


class Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error and ``5e-4`` is a number."""

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
