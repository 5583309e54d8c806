"""Base class of every section of ``config.yaml``, and the type of every path in it.

Sections are frozen and strict: unknown keys are errors. Relative paths are relative to the folder of the configuration.
Each package keeps its section beside its code; ``kt.study.study`` composes them. Nothing here imports torch.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from kt.errors import KtError, nearest, quoted, short, unknown

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Patterns of texts, for editors; ``kt.study.load`` has them in words."""

Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""Seed of a generator."""


def _plain(value: Any) -> Any:
    """A value of any type that JSON has, as a hash is made of it."""
    if isinstance(value, dict):
        if odd := next((name for name in value if not isinstance(name, str)), None):
            raise ValueError(f"names of arguments are texts, not {quoted(odd)}")
        list(map(_plain, value.values()))
    elif isinstance(value, list | tuple):
        list(map(_plain, value))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"an argument is a finite number, not {value}")
    return value


Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]
"""Keyword arguments of what others wrote."""


class Spec(BaseModel):
    """A frozen section of the configuration that refuses unknown keys and silent type conversion."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, serialize_by_alias=True, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in value:
                if key not in known:
                    message = unknown("key", str(key), known)
                    raise PydanticCustomError("unknown_key", "{message}", {"message": message})
        return value

    def plain(self) -> dict[str, Any]:
        """The section as plain JSON values, for hashing and for Snakemake's ``params``."""
        return self.model_dump(mode="json")


class Options(Spec):
    """A section whose every key is one of several options, with its parameters; a key without any has the defaults."""

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {} if params is None else params for name, params in value.items()}
        return value

    @model_serializer(mode="wrap")
    def _only_chosen(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: params for name, params in dump(self).items() if params is not None}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option with its default parameters."""
        return {name: get_args(field.annotation)[0]() for name, field in cls.model_fields.items()}

    def options(self) -> dict[str, Any]:
        """The options that the configuration names, in the order of the fields."""
        return {name: option for name in type(self).model_fields if (option := getattr(self, name)) is not None}


RULE = "paths are relative to the configuration's folder"

_AHEAD_SECONDS = 60.0
"""By how much clocks of machines that share files may differ."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line breaks and other characters that no path has that a person writes."""


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
            message = "{given}: variables are not expanded in paths, but for ~; write the path out"
            raise PydanticCustomError("value_error", message, _facts(cls, text))
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
    """A path for messages: relative to the current folder where it lies below it, else absolute."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def of(spec: Spec, at: str = "") -> Iterator[tuple[str, Place]]:
    """Every path in a section of the configuration, behind its dotted key."""
    yield from _below({name: getattr(spec, name) for name in type(spec).model_fields}, at)


def beside(place: Place) -> list[str]:
    """Other files in a path's folder, as the configuration would write them."""
    try:
        names = sorted(os.listdir(os.path.dirname(place)))
    except OSError:
        return []
    return [os.path.join(os.path.dirname(place.written), name) for name in names if not name.startswith(".")]


def check_all(spec: Spec, others: Collection[str] = (), at: str = "") -> None:
    """Fail where paths in a section do not lead to what they should; ``others`` are keys that are left out.

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
        KtError: nothing is there, or something of another kind, with the path that was tried; or a file of the future.
    """
    try:
        made = os.stat(place).st_mtime
    except OSError as error:
        close = nearest(place.written, beside(place))
        raise KtError(
            f"{at}: {short(place.written)}: {_reason(error, place)} ({short(place)}; {RULE}){close}"
        ) from error
    if (place.kind, os.path.isdir(place)) in (("file", True), ("folder", False)):
        other = "file" if place.kind == "folder" else "folder"
        raise KtError(f"{at}: {short(place.written)}: is a {other}, and a {place.kind} is needed ({short(place)})")
    if made > time.time() + _AHEAD_SECONDS and not os.path.isdir(place):
        date = datetime.datetime.fromtimestamp(made).isoformat(" ", "minutes")
        raise KtError(
            f"{at}: {short(place.written)}: dated {date}, in the future: whatever is made from it looks out of date "
            f"and is made again and again; run: touch {shlex.quote(place)}"
        )


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
