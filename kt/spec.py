"""The base of every typed section of ``config.yaml``: frozen, strict, unknown keys are errors.

Each stage keeps its section beside its code; ``kt.study`` composes them. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from kt.errors import unknown

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Patterns of texts, for editors; ``kt.config_errors`` says in words what they mean."""


class Spec(BaseModel):
    """A frozen section of the configuration that refuses unknown keys and silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    message = unknown("key", str(key), cls.model_fields)
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
