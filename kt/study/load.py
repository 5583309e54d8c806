"""Reader of ``config.yaml``: a typed and checked study, or one clear line for each thing that is wrong with it.

Loading a configuration imports neither torch nor timm.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kt.data import strict_yaml
from kt.errors import KtError, short
from kt.study import explain
from kt.study.check import check
from kt.study.study import Study


def load(path: str | Path) -> Study:
    """Read and check a configuration file.

    Paths in it, and modules of the zoo, are looked for in its folder.

    Raises:
        KtError: one line for each thing that is wrong, with the file's name.
    """
    folder = os.path.realpath(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return check(parse(strict_yaml.read(_text(Path(path))), str(path), folder))
    except KtError as error:
        raise KtError("\n".join(_prefixed(line, str(path)) for line in str(error).split("\n"))) from error


def parse(raw: Any, name: str, folder: str = "") -> Study:
    """A configuration from plain values, not yet checked.

    Args:
        raw: the values.
        name: begins every line of an error.
        folder: what paths are relative to; by default the current folder.

    Raises:
        KtError: with one line for each thing that is wrong.
    """
    if not isinstance(raw, dict):
        found = "empty" if raw is None else f"a {type(raw).__name__}"
        raise KtError(f"{name}: not a mapping of keys to values, but {found}")
    try:
        return Study.model_validate(strict_yaml.plain(raw), context={"folder": folder})
    except ValidationError as error:
        raise KtError("\n".join(f"{name}: {line}" for line in explain.lines(error))) from error
    except KtError as error:
        raise KtError("\n".join(f"{name}: {line}" for line in str(error).split("\n"))) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``config.yaml``, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


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
