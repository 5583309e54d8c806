"""Training of a student: the options of the engine, and the changes that a single method may make."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo

from kt.errors import quoted
from kt.spec import Spec


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 1 << 32:
        raise ValueError(f"seeds must be distinct and from 0 to {(1 << 32) - 1}, not {quoted(list(seeds))}")
    return seeds


Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]


def _items(rates: Any) -> Any:
    """A mapping as the pairs that are kept of it."""
    return tuple(rates.items()) if isinstance(rates, dict) else rates


Factors = dict[str, PositiveFloat]

PARAMETERS = {"step": ("step_epochs", "step_factor"), "poly": ("power",)}
"""Parameters of schedules."""


class Training(Spec):
    """Training of a student: one step per batch; images that do not fill a batch wait for the next epoch."""

    epochs: PositiveInt
    batch_size: int = Field(64, ge=2)
    lr: PositiveFloat = Field(description="highest learning rate: that of the first step, or the one after the warm-up")
    weight_decay: float = Field(0.0, ge=0)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="of `sgd`")
    schedule: Literal["cosine", "linear", "poly", "constant", "step"] = Field(
        "cosine",
        description="of the learning rate: towards zero after the last step (`poly` as the share of the steps that is "
        "left, to the `power`), `constant`, or `step`, which multiplies it by `step_factor` every `step_epochs` epochs",
    )
    power: PositiveFloat = Field(0.9, description="of `poly`")
    step_epochs: PositiveInt = Field(15, description="of `step`")
    step_factor: float = Field(0.1, gt=0, le=1, description="of `step`")
    warm_up: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    clip: PositiveFloat | None = Field(None, description="largest norm of the gradient; longer ones are shortened")
    freeze: tuple[str, ...] = Field(
        (), description="patterns of parameters that stay as they are, e.g. `stem.*`; their BatchNorm does too"
    )

    rates: Annotated[tuple[tuple[str, PositiveFloat], ...], BeforeValidator(_items, json_schema_input_type=Factors)] = (
        Field(
            (),
            description="patterns of parameters that learn faster or slower than the rest, with a factor on `lr`, e.g. "
            "`{encoder.*: 0.1}`; of several that match, the first counts",
        )
    )

    @model_serializer(mode="wrap")
    def _of_its_schedule(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the parameters of other schedules, and without rates where there are none: keys stay as they were."""
        plain: dict[str, Any] = dump(self)
        idle = {name for of, names in PARAMETERS.items() if of != self.schedule for name in names}
        idle |= set() if self.rates else {"rates"}
        return {name: value for name, value in plain.items() if name not in idle}


def constrained(field: FieldInfo) -> Any:
    """The type of a section's field, with its constraints."""
    kind: Any = field.annotation
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    return kind


def optional(field: FieldInfo) -> Any:
    """The same as a field that may be left out."""
    return (constrained(field) | None, Field(None, description=field.description))


class ChangesBase(Spec):
    """Options of one method in place of those of the section `training`."""

    def of(self, training: Training) -> Training:
        """The training with these changes."""
        changes = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        return training.model_copy(update=changes)


Changes: type[ChangesBase] = create_model(
    "Changes",
    __base__=ChangesBase,
    __doc__=ChangesBase.__doc__,
    **{name: optional(field) for name, field in Training.model_fields.items()},
)


class SlowWeights(NamedTuple):
    """Weights that follow those in training: at each update, slow ← tau · slow + (1 − tau) · fast.

    Attributes:
        tau: share of the slow weights that stays.
        every: steps between two updates.
        each_epoch: count the steps of each epoch anew and update after its first, then after every ``every`` more; if
            false, steps are counted through all epochs and the first update follows ``every`` of them.
        shared: the slow weights are the fast ones until the first update has passed; if false, they start as a copy
            of the weights before the first step.
        overwrites: the fast weights go on from the slow ones after each validation; if false, from where they were.
    """

    tau: float
    every: int
    each_epoch: bool = False
    shared: bool = False
    overwrites: bool = False

    def stays(self, done: int, step: int) -> float | None:
        """Share of the slow weights that stays after a step; None where they are not updated.

        Args:
            done: steps of the training before this one.
            step: steps of its epoch before this one.
        """
        first = 0 if self.each_epoch else self.every - 1
        if self.shared and done <= first:
            return 0.0
        due = step % self.every == 0 if self.each_epoch else (done + 1) % self.every == 0
        return self.tau if due else None
