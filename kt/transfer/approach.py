"""What everything that trains a student has in common: a name, a version, parameters, and changes of the training."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from kt.spec import Spec
from kt.transfer.training import Changes, Training


class Approach(Spec):
    """A way to make a student, or to do without one: its fields are its parameters.

    Attributes:
        name: the approach's name in ``config.yaml``.
        version: raise it when its results change: finished units of older versions are not reused.
        uses_labels: true where the labels of the training images have a say; where parameters decide: ``labelled``.
        trains: false where no student is trained.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    uses_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    training: Changes | None = Field(None, description="what this method trains with instead of the common `training`")

    @property
    def labelled(self) -> bool:
        """Whether the labels of the training images have a say with these parameters."""
        return self.uses_labels

    def parameters(self) -> dict[str, Any]:
        """Its own parameters as plain JSON values, without what it changes of the training."""
        return {name: value for name, value in self.plain().items() if name != "training"}

    def settings(self) -> dict[str, Any]:
        """All that its results depend on, as plain JSON values: a table made with other settings is out of date."""
        return {"version": self.version, **self.plain()}

    def trained(self, training: Training) -> Training:
        """How it trains, given the common section ``training``."""
        return self.training.of(training) if self.training else training
