"""How a student is trained: the options of the engine, and what a single method may change of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, create_model
from pydantic.fields import FieldInfo

from kt.errors import quoted
from kt.spec import Spec


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 1 << 32:
        raise ValueError(f"seeds must be distinct and from 0 to {(1 << 32) - 1}, not {quoted(list(seeds))}")
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]


class Training(Spec):
    """How a student is trained: one step a batch; images that fill no whole batch wait for the next epoch."""

    epochs: PositiveInt
    batch_size: int = Field(64, ge=2)
    lr: PositiveFloat = Field(description="highest learning rate: that of the first step, or the one after the warm-up")
    weight_decay: float = Field(0.0, ge=0)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="of `sgd`")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate: towards zero after the last step, or `constant`"
    )
    warm_up: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    clip: PositiveFloat | None = Field(None, description="largest norm of the gradient; longer ones are shortened")
    freeze: tuple[str, ...] = Field(
        (), description="patterns of parameters that stay as they are, e.g. `stem.*`; their BatchNorm does too"
    )


def constrained(field: FieldInfo) -> Any:
    """The type of a section's field, with its constraints."""
    kind: Any = field.annotation
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    return kind


def _optional(field: FieldInfo) -> Any:
    return (constrained(field) | None, Field(None, description=field.description))


class ChangesBase(Spec):
    """What one method trains with instead of the section `training`."""

    def of(self, training: Training) -> Training:
        """The training with these changes."""
        changes = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        return training.model_copy(update=changes)


Changes: type[ChangesBase] = create_model(
    "Changes",
    __base__=ChangesBase,
    __doc__=ChangesBase.__doc__,
    **{name: _optional(field) for name, field in Training.model_fields.items()},
)
