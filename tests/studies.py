"""What small studies on the digits have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kt.data import datasets
from kt.data.datasets import Dataset
from kt.data.spec import DataSpec, SplitSizes


def small_zoo(**models: dict[str, Any]) -> dict[str, Any]:
    """The section ``zoo``: architectures that train in seconds, on images of 16 x 16 pixels."""
    return {"modules": ["kt.zoo.digits"], "input": {"size": 16, "mean": [0.3], "std": [0.33]}, "models": models}


def stored_digits(folder: Path, transfer: int) -> Dataset:
    """A data set of ``transfer`` images to transfer on, 30 to validate and 50 to test."""
    splits = SplitSizes(zoo=1, transfer=transfer, validation=30, test=50)
    datasets.write(folder, DataSpec(source="digits", seed=0, splits=splits))
    return Dataset.open(folder)
