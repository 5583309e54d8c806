"""The ``zoo`` section of the configuration: members, sources of their weights, training recipes, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, StringConstraints

from kt import store
from kt.data.seen import InputSpec
from kt.errors import KtError, quoted, unknown
from kt.spec import NAME, Arguments, File, Seed, Spec

Kind = Literal["cnn", "transformer", "mlp", "hybrid"]
Name = Annotated[str, StringConstraints(pattern=NAME)]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _class(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"a class is given by its number or its name, not {quoted(value)}")
    return value


ClassName = Annotated[int | str, BeforeValidator(_class, json_schema_input_type=int | str)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])]
Numbers = Annotated[
    tuple[PositiveInt, ...], BeforeValidator(_several, json_schema_input_type=PositiveInt | tuple[PositiveInt, ...])
]
Count = Annotated[PositiveInt, BeforeValidator(_whole, json_schema_input_type=PositiveFloat)]
"""A whole number that may be written as 100e6."""


class Thin(Spec):
    """Keep only a share of the training images of some classes: that makes a specialist for the others.

    In segmentation, where an image has many classes, all images stay, but their pixels of these classes have a truth
    only in that share of them.
    """

    classes: tuple[ClassName, ...] = Field(min_length=1, description="classes to thin out, by number or name")
    keep: float = Field(0.125, ge=0, lt=1, description="share of their images that stays")


class Recipe(Spec):
    """Training of a member on the zoo split: AdamW, one-cycle schedule, the task's own loss."""

    augment: Literal["none", "shift", "noise", "erase", "flip"] = "none"
    epochs: PositiveInt
    images: PositiveInt | None = Field(None, description="images drawn from the zoo split; all when left out")
    thin: Thin | None = None
    seed: Seed = 0
    lr: PositiveFloat = Field(4e-3, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0)
    batch_size: int = Field(32, ge=2)

    def numbered(self, at: str, known: Sequence[str]) -> Self:
        """The same with the numbers of the classes that are thinned out.

        Args:
            at: its place in the configuration.
            known: names of the data set's classes, by label.

        Raises:
            KtError: as ``labels_named``.
        """
        if self.thin is None:
            return self
        labels = tuple(labels_named(f"{at}.thin.classes", self.thin.classes, known).tolist())
        return self.model_copy(update={"thin": self.thin.model_copy(update={"classes": labels})})

    def tags(self) -> list[str]:
        """The recipe in a few words, for the zoo table."""
        thinned = [f"thinned={','.join(map(str, self.thin.classes))}"] if self.thin else []
        return ["supervised", f"augment={self.augment}", f"epochs={self.epochs}", *thinned]


class FineTune(Recipe):
    """Fitting of given weights to the study's images: a new head alone, or all weights."""

    mode: Literal["linear", "full"] = Field(description="`linear` trains the classifier alone, `full` all weights")
    lr: PositiveFloat = Field(1e-3, description="peak learning rate")

    def tags(self) -> list[str]:
        """The recipe in a few words, for the zoo table."""
        return [f"finetune={self.mode}", *super().tags()[1:]]


class Member(Spec):
    """One model: a timm architecture and its weights: trained here, from a checkpoint, or published with timm."""

    arch: str = Field(
        description="a timm model name, with its pretrained tag or without, or one registered by `zoo.modules`"
    )
    args: Arguments = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")
    input: InputSpec | None = Field(
        None, description="what the model sees; default: that of its pretrained tag, else `zoo.input`"
    )
    train: Recipe | None = Field(None, description="train it from random weights on the zoo split")
    checkpoint: File | None = Field(
        None,
        description="file with the model's weights: .safetensors, or .pth, .pt, .th, .bin, .pth.tar, .ckpt, .pkl; as "
        "all paths relative to this file's folder",
    )
    pretrained: bool = Field(False, description="take the weights that timm publishes, from cache or hub")
    finetune: FineTune | None = Field(None, description="fit `checkpoint` or `pretrained` weights to the zoo split")
    classes: tuple[ClassName, ...] | None = Field(
        None,
        min_length=2,
        description="a specialist: the only classes it distinguishes, by number or name, in the order of its outputs; "
        "it has no part in `pairs` and `groups` and can teach in `amalgamate`",
    )
    pretraining: str | None = Field(None, description="what the weights were trained on, for the zoo table")
    kind: Kind | None = Field(None, description="overrides what is known of the architecture")
    family: str | None = Field(None, description="overrides what is known of the architecture")
    licence: str | None = Field(None, description="licence of the weights (SPDX)")
    published_acc: float | None = Field(
        None, ge=0, le=100, description="published top-1 accuracy on the test split, percent, to compare with"
    )

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Its trainings by their keys."""
        return {key: recipe for key in ("train", "finetune") if (recipe := getattr(self, key))}

    def published(self, known: Mapping[str, float]) -> float | None:
        """Published accuracy in percent of the weights as they are; ``known`` has it by pretrained tag."""
        as_published = self.pretrained and not self.finetune
        return self.published_acc if self.published_acc is not None or not as_published else known.get(self.arch)


class Select(Spec):
    """Members by filter: every pretrained tag that passes all of the given filters, named by its tag."""

    match: Texts = Field(
        ("*",), min_length=1, description="globs over pretrained tags, e.g. `vit_*` or `*.in21k_ft_in1k`"
    )
    exclude: Texts = Field((), description="globs of tags to leave out")
    pretrain: Texts = Field((), description="first data set that the tag names, e.g. in1k, in21k, laion2b")
    input_size: Numbers = Field((), description="side of the input, pixels")
    max_input_size: PositiveInt | None = Field(None, description="largest side of the input, pixels")
    classes: Numbers = Field((), description="outputs of the head, e.g. 1000")
    kind: Annotated[tuple[Kind, ...], BeforeValidator(_several, json_schema_input_type=Kind | tuple[Kind, ...])] = (
        Field((), description="kinds of architecture")
    )
    family: Texts = Field((), description="families, which are timm's modules, e.g. resnet")
    licence: Texts = Field((), description="licences of the weights, e.g. apache-2.0")
    min_params: Count | None = Field(None, description="fewest parameters; 10e6 is ten million")
    max_params: Count | None = Field(None, description="most parameters")
    max_macs: Count | None = Field(None, description="most multiply-accumulate operations of one image")
    finetune: FineTune | None = Field(None, description="fit all of these models to the zoo split")


class ZooSpec(Spec):
    """The zoo: its members by name or by filter, and their common settings."""

    modules: tuple[str, ...] = Field(
        (),
        description="Python modules that register models with timm's `register_model`: installed ones, or those that "
        "lie in this file's folder",
    )
    input: InputSpec | None = Field(None, description="input of members that have none of their own")
    models: dict[Name, Member] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    select: tuple[Select, ...] = Field((), description="members by filter, beside `models`")
    overrides: File | None = Field(
        None, description="CSV file with a column `name` that corrects properties of models or adds columns"
    )
    published: File | None = Field(
        None,
        description="CSV file of published accuracies with columns `model` and `top1`, as timm's results-imagenet.csv, "
        "for members with their published weights",
    )

    @property
    def generalists(self) -> list[str]:
        """Names of the members that know all classes, in the order of the file."""
        return [name for name, member in self.models.items() if member.classes is None]

    def input_of(self, name: str) -> InputSpec:
        """The input that a member expects; every member has one once the study is loaded."""
        spec = self.models[name].input or self.input
        assert spec is not None, "kt.zoo.members.expand fills this in"
        return spec


def labels_of(name: str, member: Member, known: Sequence[str]) -> NDArray[np.int64]:
    """The data set's label behind each of a member's outputs, int64 [K]; all labels where it is no specialist.

    Args:
        name: the member's.
        member: its section of the configuration.
        known: names of the data set's classes, by label.

    Raises:
        KtError: as ``labels_named``.
    """
    if member.classes is None:
        return np.arange(len(known))
    return labels_named(f"zoo.models.{name}.classes", member.classes, known)


def labels_named(at: str, classes: Sequence[int | str], known: Sequence[str]) -> NDArray[np.int64]:
    """The data set's labels of classes that are given by number or name, int64 [K].

    Args:
        at: their place in the configuration.
        classes: numbers or names.
        known: names of the data set's classes, by label.

    Raises:
        KtError: a class is not in the data set, or is given twice, by number and by name.
    """
    found = list[int]()
    for given in classes:
        if isinstance(given, int) and not 0 <= given < len(known):
            raise KtError(f"{at}: no class {given}; the data set has {len(known)}, counted from 0")
        if isinstance(given, str) and given not in known:
            raise KtError(f"{at}: {unknown('class', given, known)}")
        found.append(given if isinstance(given, int) else list(known).index(given))
        if found[-1] in found[:-1]:
            raise KtError(f"{at}: the class {given!r} is given twice")
    return np.array(found, np.int64)


def fingerprint(arch: str, args: dict[str, Any], spec: dict[str, Any], weights: str) -> str:
    """The hash that identifies a member: its architecture, its input and the hash of its weights file."""
    return store.digest({"arch": arch, "args": args, "input": spec, "weights": weights})
