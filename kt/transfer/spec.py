"""The ``transfer`` section of the configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, create_model, field_validator

from kt.spec import Options, Spec
from kt.transfer.approach import Approach
from kt.transfer.method import Method, registry
from kt.transfer.training import Seeds, Training


class MethodsBase(Options):
    """The methods to run, with their parameters."""

    def chosen(self) -> dict[str, Method]:
        """The methods that the configuration names, in alphabetical order."""
        return self.options()


def option(method: type[Approach]) -> Any:
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
    seeds: Seeds = Field((0, 1, 2), description="one training a seed; distinct, 0 to 4294967295")
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

    @field_validator("methods")
    @classmethod
    def _not_empty(cls, methods: MethodsBase) -> MethodsBase:
        if not methods.chosen():
            raise ValueError(f"no method chosen; allowed: {', '.join(Methods.model_fields)}")
        return methods
