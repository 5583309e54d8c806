"""The ``zoo`` section of the configuration: members, where their weights come from, and how to train them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StringConstraints

from kt.data.spec import InputSpec
from kt.spec import Spec

Kind = Literal["cnn", "transformer", "mlp", "hybrid"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Thin(Spec):
    """Keep only a share of the training images of some classes: that makes a specialist for the others."""

    classes: tuple[int, ...] = Field(min_length=1, description="classes to thin out")
    keep: float = Field(0.125, ge=0, lt=1, description="share of their images that stays")


class Recipe(Spec):
    """How the pipeline trains a member on the zoo split: AdamW, one-cycle schedule, cross-entropy."""

    augment: Literal["none", "shift", "noise", "erase"] = "none"
    epochs: PositiveInt
    images: PositiveInt | None = Field(None, description="images drawn from the zoo split; all when left out")
    thin: Thin | None = None
    seed: int = Field(0, ge=0)
    lr: PositiveFloat = Field(4e-3, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0)
    batch_size: int = Field(32, ge=2)

    def tags(self) -> list[str]:
        """The recipe in a few words, for the zoo table."""
        thinned = [f"thinned={','.join(map(str, self.thin.classes))}"] if self.thin else []
        return ["supervised", f"augment={self.augment}", f"epochs={self.epochs}", *thinned]


class Member(Spec):
    """One model: a timm architecture and either a training recipe or a checkpoint of weights."""

    arch: str = Field(description="a timm model name, or one registered by a module in `zoo.modules`")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")
    input: InputSpec | None = Field(None, description="input size, mean and std; default: `zoo.input`")
    train: Recipe | None = None
    checkpoint: str | None = Field(None, description="path of a .safetensors file with the model's weights")
    pretraining: str | None = Field(None, description="what the checkpoint was trained on, for the zoo table")
    kind: Kind | None = Field(None, description="overrides what is known of the architecture")
    family: str | None = Field(None, description="overrides what is known of the architecture")
    licence: str | None = Field(None, description="licence of the weights (SPDX)")


class ZooSpec(Spec):
    """The zoo: its members by name, and what they share."""

    modules: tuple[str, ...] = Field((), description="Python modules that register models with timm's `register_model`")
    input: InputSpec = Field(description="input of members that do not give their own")
    models: dict[Name, Member] = Field(min_length=2, json_schema_extra={"additionalProperties": False})

    def input_of(self, name: str) -> InputSpec:
        """The input that a member expects."""
        return self.models[name].input or self.input
