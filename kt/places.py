"""Paths in a configuration: relative to the folder of its file, wherever it is called from.

A path is resolved once, as the configuration is read. From then on it is an absolute path; what is hashed, recorded and
given to Snakemake as a parameter is the text of the configuration, so that a study that is moved stays the same study.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from kt.errors import KtError, nearest, quoted, short
from kt.spec import Spec

RULE = "paths are relative to the configuration's folder"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line breaks and the like: no path that a person writes has them."""


class Place(str):
    """An absolute path, and as ``written`` the text of the configuration."""

    kind: ClassVar[str] = "file or folder"
    written: str

    def __new__(cls, path: str, written: str | None = None) -> Self:
        """Of an absolute path."""
        place = super().__new__(cls, path)
        place.written = path if written is None else written
        return place

    @classmethod
    def read(cls, text: str, info: ValidationInfo) -> Self:
        """Resolve a path as it is written; the validation's context has the configuration's ``folder``.

        `~` is the home folder. Other variables of the shell are not expanded: a study would be another elsewhere.
        """
        if not text or _CONTROL.search(text):
            raise PydanticCustomError("value_error", "needs the path of a {kind}, not {given}", _facts(cls, text))
        path = _resolved(os.path.join((info.context or {}).get("folder", ""), os.path.expanduser(text)))
        if re.search(r"\$\{?\w", text) and not os.path.lexists(path):
            said = "{given}: variables are not expanded in paths, but for ~; write the path out"
            raise PydanticCustomError("value_error", said, _facts(cls, text))
        return cls(path, text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def resolve(value: Any, inner: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Place:
            return value if isinstance(value, Place) else cls.read(inner(value), info)

        text = core_schema.str_schema(strict=True)
        dump = core_schema.plain_serializer_function_ser_schema(as_written, return_schema=core_schema.str_schema())
        return core_schema.with_info_wrap_validator_function(resolve, text, serialization=dump)


class File(Place):
    """The same of a file."""

    kind = "file"


class Folder(Place):
    """The same of a folder."""

    kind = "folder"


def as_written(text: str) -> str:
    """A path as the configuration has it; any other text as it is."""
    return text.written if isinstance(text, Place) else text


def shown(path: str | os.PathLike[str]) -> Path:
    """A path as it is best read from here: relative to the current folder where it lies below, else absolute."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def of(spec: Spec, at: str = "") -> Iterator[tuple[str, Place]]:
    """Every path in a section of the configuration, behind its dotted key."""
    yield from _below({name: getattr(spec, name) for name in type(spec).model_fields}, at)


def beside(place: Place) -> list[str]:
    """What else lies in a path's folder, as the configuration would write it."""
    try:
        names = sorted(os.listdir(os.path.dirname(place)))
    except OSError:
        return []
    return [os.path.join(os.path.dirname(place.written), name) for name in names if not name.startswith(".")]


def check_all(spec: Spec, others: Collection[str] = (), at: str = "") -> None:
    """Fail where paths in a section do not lead to what they should, but for some keys.

    Raises:
        KtError: a line for each of them.
    """
    wrong = []
    for key, place in of(spec, at):
        try:
            if key not in others:
                check(key, place)
        except KtError as error:
            wrong.append(str(error))
    if wrong:
        raise KtError("\n".join(wrong))


def check(at: str, place: Place) -> None:
    """Fail where a path does not lead to what it should.

    Raises:
        KtError: nothing is there, or something of another kind; with the path that was tried.
    """
    try:
        os.stat(place)
    except OSError as error:
        close = nearest(place.written, beside(place))
        raise KtError(
            f"{at}: {short(place.written)}: {_reason(error, place)} ({short(place)}; {RULE}){close}"
        ) from error
    if (place.kind, os.path.isdir(place)) in (("file", True), ("folder", False)):
        other = "file" if place.kind == "folder" else "folder"
        raise KtError(f"{at}: {short(place.written)}: is a {other}, and a {place.kind} is needed ({short(place)})")


def _reason(error: OSError, place: Place) -> str:
    return f"no such {place.kind}" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _below(value: Any, at: str) -> Iterator[tuple[str, Place]]:
    if isinstance(value, Place):
        yield at, value
    elif isinstance(value, Spec):
        yield from of(value, at)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _below(item, f"{at}.{name}" if at else str(name))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _below(item, f"{at}.{i}")


def _resolved(path: str) -> str:
    """An absolute path without `..`; a folder before one may be a link, and is followed as the system does."""
    if ".." not in Path(path).parts:
        return os.path.abspath(path)
    folder, name = os.path.split(path.rstrip("/"))
    return os.path.realpath(path) if name in ("..", ".") else os.path.join(os.path.realpath(folder), name)


def _facts(cls: type[Place], text: str) -> dict[str, Any]:
    return {"kind": cls.kind, "given": quoted(text)}
