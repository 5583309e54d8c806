"""The ``transfer`` section of the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from kt.spec import Spec
from kt.transfer.method import Method, registry
from kt.transfer.training import Training


class MethodsBase(Spec):
    """The methods to run, with their parameters."""

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {} if params is None else params for name, params in value.items()}
        return value

    @model_serializer(mode="wrap")
    def _only_chosen(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: params for name, params in dump(self).items() if params is not None}

    def chosen(self) -> dict[str, Method]:
        """The methods that the configuration names, in alphabetical order."""
        return {name: method for name in type(self).model_fields if (method := getattr(self, name)) is not None}


def option(method: type[Method]) -> Any:
    """A method as a field of the configuration."""
    return (method | None, Field(None, description=(method.__doc__ or "").splitlines()[0]))


Methods: type[MethodsBase] = create_model(
    "Methods",
    __base__=MethodsBase,
    __doc__=MethodsBase.__doc__,
    **{name: option(method) for name, method in registry().items() if method.takes != "group"},
)


class TransferSpec(Spec):
    """Which methods run on the chosen pairs, how often, and how the work is cut into jobs."""

    methods: Methods
    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, description="one training a seed; distinct, 0 to 4294967295"
    )
    training: Training
    pairs_per_job: PositiveInt = Field(
        16, description="teachers that one job of a student takes; does not change results"
    )
    export: Literal["none", "improved", "all"] = Field(
        "none",
        description="students to keep after transfer, as weights and card in `results/students`: those whose delta is "
        "positive, or all; finished trainings whose students were not kept run again",
    )
    checkpoint_seconds: float = Field(600, ge=0, description="seconds between two checkpoints inside a training")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 1 << 32:
            raise ValueError(f"seeds must be distinct and from 0 to {(1 << 32) - 1}, not {list(seeds)}")
        return seeds

    @field_validator("methods")
    @classmethod
    def _not_empty(cls, methods: MethodsBase) -> MethodsBase:
        if not methods.chosen():
            raise ValueError(f"no method chosen; allowed: {', '.join(Methods.model_fields)}")
        return methods
