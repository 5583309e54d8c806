"""Reading ``config.yaml``: a typed and checked study, or one clear line for each thing that is wrong with it.

Loading a configuration imports neither torch nor timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kt import config_errors
from kt.check import check
from kt.errors import KtError
from kt.strict_yaml import Loader
from kt.study import Study


def load(path: str | Path) -> Study:
    """Read and check a configuration file.

    Raises:
        KtError: one line for each thing that is wrong, with the file's name.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)  # noqa: S506 (derives from SafeLoader)
        return check(parse(raw, str(path)))
    except OSError as error:
        raise KtError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KtError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except KtError as error:
        raise KtError("\n".join(_prefixed(line, str(path)) for line in str(error).splitlines())) from error


def parse(raw: Any, name: str) -> Study:
    """A configuration from plain values, not yet checked.

    Raises:
        KtError: with one line for each thing that is wrong.
    """
    if not isinstance(raw, dict):
        raise KtError(f"{name}: not a mapping of keys to values")
    try:
        return Study.model_validate(_with_tuples(raw))
    except ValidationError as error:
        raise KtError("\n".join(f"{name}: {line}" for line in config_errors.lines(error))) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``config.yaml``, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def _with_tuples(value: Any) -> Any:
    """YAML's lists as tuples: the typed sections are frozen, and strict validation tells the two apart."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _prefixed(line: str, name: str) -> str:
    return line if line.startswith(f"{name}: ") else f"{name}: {line}"
