"""Small data sets and their parts that the tests on images share."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kt.data import datasets, decode, sources
from kt.data.folders import folder
from kt.data.listing import Listing
from kt.data.seen import InputSpec
from kt.data.spec import DataSpec, SplitSizes
from kt.errors import KtError


def sizes(zoo: int, transfer: int, validation: int, test: int) -> SplitSizes:
    return SplitSizes(zoo=zoo, transfer=transfer, validation=validation, test=test)


def images_of(n: int = 5, side: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def split_sizes(**takes: object) -> SplitSizes:
    return SplitSizes.model_validate({"transfer": 1, "validation": 1, "test": 1} | takes)


def counts(frame: pd.DataFrame) -> dict[str, int]:
    return frame["split"].value_counts(sort=False).to_dict()


def spec_of(source: object, **keys: object) -> DataSpec:
    splits = {"transfer": 1, "validation": 1, "test": 1}
    return DataSpec.model_validate({"source": str(source), "splits": splits} | keys)


def all_images(listing: Listing) -> list[np.ndarray]:
    return [np.asarray(call()) for call in listing.stream(np.arange(len(listing.labels)))]


def save_image(path: Path, size: tuple[int, int] = (30, 40), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def damage(folder: Path) -> list[str]:
    """Break two of the pictures, and name them."""
    whole = (folder / "train/class2/1.jpg").read_bytes()
    (folder / "train/class2/1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "val/class1/0.png").write_bytes(b"no picture")
    return ["train/class2/1.jpg", "val/class1/0.png"]


TAKE_ALL = {"transfer": 14, "validation": 5, "test": {"part": "val"}}


def input_of(size: object, **keys: object) -> InputSpec:
    return InputSpec.model_validate({"size": size, "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)} | keys)


VAL = {"splits": {"transfer": 1, "validation": 1, "test": {"part": "val", "images": 1}}}


def fill(root: Path, *folders: str, images: int = 2) -> Path:
    """Folders with images that are all different."""
    for name in folders:
        for i in range(images):
            save_image(root / name / f"{i}.png", seed=zlib.crc32(os.fsencode(f"{name}/{i}")))
    return root


def by_class(root: Path, **keys: Any) -> dict[str, list[str]]:
    """Names of the images by class."""
    data = folder(spec_of(root, size=8, **keys))
    found: dict[str, list[str]] = {name: [] for name in data.classes}
    for name, label in zip(data.names, data.labels, strict=True):
        found[data.classes[label]].append(name)
    return found


def refusal(root: Path, **keys: Any) -> str:
    with pytest.raises(KtError) as caught:
        sources.read(spec_of(root, size=8, **keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def torn_decoding(
    spec: DataSpec, folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int
) -> dict[str, Any]:
    """The facts of a data set, whose decoding was torn after some rows and then gave the same as if it had not been.

    Args:
        chunk: bytes that are decoded at once.
        rows: stored when it is torn.
    """
    monkeypatch.setattr(decode, "CHUNK_BYTES", chunk)
    whole = datasets.write(folder / "whole", spec)
    real = decode.Growing.append

    def killed(self: Any, *args: Any) -> None:
        real(self, *args)
        if self.rows == rows:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode.Growing, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            datasets.write(folder / "torn", spec)
    assert datasets.write(folder / "torn", spec) == whole
    assert (folder / "torn/images.npy").read_bytes() == (folder / "whole/images.npy").read_bytes()
    return whole
