"""The ``data`` section of the configuration."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from kt.spec import Spec


class SplitSizes(Spec):
    """How many images each split gets; no image is in two splits."""

    zoo: PositiveInt = Field(description="images that train zoo members without weights")
    transfer: PositiveInt = Field(description="images that knowledge is transferred on")
    validation: PositiveInt = Field(description="images that choose epochs and pairs")
    test: PositiveInt = Field(description="images that every reported number is measured on")

    @property
    def total(self) -> int:
        """Images asked for in all."""
        return self.zoo + self.transfer + self.validation + self.test


class DataSpec(Spec):
    """Where the images come from and how they are split."""

    source: str = Field(
        description="`digits` (ships with scikit-learn), or the path of an .npz file with `images` and `labels`"
    )
    seed: int = Field(0, ge=0, description="seed of the shuffle before the split")
    splits: SplitSizes


class InputSpec(Spec):
    """What a model expects of its input image."""

    size: PositiveInt = Field(description="side of the square input, pixels")
    mean: tuple[float, ...] = Field(min_length=1, description="mean of every channel, images in [0, 1]")
    std: tuple[PositiveFloat, ...] = Field(
        min_length=1, description="standard deviation of every channel, images in [0, 1]"
    )
