"""What models see: size and normalisation of their input, clips of videos, and fixed views to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kt.errors import quoted
from kt.spec import Spec


def _sides(value: Any) -> Any:
    """A number of pixels as it is, two different ones as (height, width), two equal ones as one."""
    sides = tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else (value, value)
    if not all(type(side) is int and side > 0 for side in sides):
        text = f"needs a whole number of pixels greater than 0, or [height, width], not {quoted(value)}"
        raise PydanticCustomError("value_error", "{text}", {"text": text})
    return sides[0] if sides[0] == sides[1] else sides


Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
Size = Annotated[int | tuple[int, int], BeforeValidator(_sides, json_schema_input_type=Sides)]
"""Size of an image, pixels: the side of a square one, else height and width."""


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides of an image of some size."""
    return size if isinstance(size, tuple) else (size, size)


def in_pixels(sides: Sequence[int]) -> str:
    """Height and width as text: `224`, or `256×192`."""
    return "×".join(map(str, dict.fromkeys(sides)))


Range = tuple[PositiveFloat, PositiveFloat]


Strength = Annotated[float, Field(ge=0, le=1)]


class ColourSpec(Spec):
    """Random changes of a view's colours, in random order. Grey images change in brightness and contrast alone."""

    p: Strength = Field(1.0, description="share of the views that are changed")
    brightness: Strength = Field(0.0, description="largest change of the factor on all values, from 1")
    contrast: Strength = Field(0.0, description="largest change of the factor on differences from the mean, from 1")
    saturation: Strength = Field(0.0, description="largest change of the factor on differences from grey, from 1")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the hue either way; 1 is the whole circle")


class ViewsSpec(Spec):
    """Fixed augmented views of the transfer images, the same for all models: crops, flipped or not, colours changed.

    Every model's targets are computed once per view; training shows one view per epoch, one after another.
    """

    n: PositiveInt = Field(
        description="views of every image; each costs one more prediction of the transfer split per model"
    )
    crop: Literal["random", "center"] = Field(
        "random", description="`random` crops, resized; `center` shows images as evaluation does, flipped or not"
    )
    scale: Range = Field((0.08, 1.0), description="smallest and largest share of the image's area in a random crop")
    ratio: Range = Field((3 / 4, 4 / 3), description="smallest and largest ratio of a crop's width to its height")
    flip: bool = Field(True, description="whether half of the views are mirrored")
    colour: ColourSpec | None = Field(None, description="random changes of colour; none when left out")
    grey: Strength = Field(0.0, description="share of the views that are grey")

    @model_validator(mode="after")
    def _ordered(self) -> ViewsSpec:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or (name == "scale" and high > 1):
                text = f"{name}: [{low:g}, {high:g}]; the smaller comes first" + (", at most 1" * (name == "scale"))
                raise PydanticCustomError("value_error", "{text}", {"text": text})
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without defaults of later keys, so that earlier hashes stay."""
        defaults = {"crop": "random", "colour": None, "grey": 0.0}
        return {name: value for name, value in dump(self).items() if defaults.get(name, ...) != value}


class ClipSpec(Spec):
    """The frames of a video that a model sees for one of them; beyond the video's ends its first or last frame."""

    frames: PositiveInt = Field(description="number of frames T of a clip")
    stride: PositiveInt = Field(1, description="every how many frames of the video one is taken")
    reach: Literal["before", "around"] = Field(
        "before", description="`before` ends with the frame in question, `around` has it as frame T // 2 of the clip"
    )

    @property
    def offsets(self) -> range:
        """Frames of the clip, counted from the one in question."""
        first = self.frames // 2 if self.reach == "around" else self.frames - 1
        return range(-first * self.stride, (self.frames - first) * self.stride, self.stride)


class InputSpec(Spec):
    """Input that a model expects: size, normalisation and cropping; of videos the clip."""

    size: Size = Field(description="side of the square input, pixels, or [height, width]")
    mean: tuple[float, ...] = Field(min_length=1, description="mean of every channel, images in [0, 1]")
    std: tuple[PositiveFloat, ...] = Field(
        min_length=1, description="standard deviation of every channel, images in [0, 1]"
    )
    crop_pct: float = Field(
        1.0, gt=0, le=2, description="share of the resized image's side that the input keeps; beyond 1 it is padded"
    )
    crop_mode: Literal["center", "squash", "border"] = Field(
        "center", description="`center` resizes the shorter side, `border` the longer one, `squash` both"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="how images are resized")
    clip: ClipSpec | None = Field(None, description="frames of a clip, for tasks on videos")

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the default of a later key, so that earlier hashes stay."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("clip", None)}

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return height_and_width(self.size)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image before its centre is cropped, rounded as timm's evaluation transforms do."""
        tall, wide = (math.floor(side / self.crop_pct) for side in self.sides)
        if self.crop_mode == "squash":
            return tall, wide
        if self.crop_mode == "center" and tall == wide:  # torchvision's rounding
            short = min(height, width)
            height, width = (tall if side == short else int(tall * side / short) for side in (height, width))
            return height, width
        ratios = height / tall, width / wide
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def shape(self, channels: int) -> tuple[int, ...]:
        """Channels, height and width of an input, of images with so many channels; of clips [C, T, H, W]."""
        return max(len(self.mean), channels), *((self.clip.frames,) if self.clip else ()), *self.sides

    @property
    def side(self) -> int:
        """Side in pixels; of an oblong input that of the square of the same area, rounded."""
        return round(math.sqrt(math.prod(self.sides)))
