"""Data sets: decoded once into a memory-mapped uint8 store that every later stage shares.

The store is a folder: ``images.npy`` uint8 [N, H, W, C], ``labels.npy`` int64 [N], ``splits.parquet`` (table
``splits``) and, written last, ``meta.json`` with the class count and the content hash of all three.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt import schema, store
from kt.data.spec import DataSpec
from kt.data.splits import assign
from kt.errors import KtError, unknown


@dataclass(frozen=True)
class Images:
    """A decoded data set: images uint8 [N, H, W, C], labels int64 [N], one distinct int64 id an image."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Builtin:
    """A data set that needs no download; its size is known before it is loaded."""

    count: int
    load: Callable[[], Images]


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Images(images, digits.target.astype(np.int64), np.arange(len(images)))


BUILTIN: dict[str, Builtin] = {"digits": Builtin(1797, _digits)}


def _array(path: Path, name: str) -> NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive:
                raise KtError(f"data.source: {path}: no array {name!r}; it holds: {', '.join(archive)}")
            array: NDArray[np.generic] = archive[name]
            return array
    except FileNotFoundError as error:
        raise KtError(f"data.source: {path}: no such file; built-in data sets: {', '.join(BUILTIN)}") from error
    except (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise KtError(f"data.source: {path}: not a readable .npz file ({error})") from error


def _from_npz(path: Path) -> Images:
    images, labels = _array(path, "images"), _array(path, "labels")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise KtError(
            f"data.source: {path}: images are {images.dtype} {list(images.shape)}; need uint8 [N, H, W] or [N, H, W, C]"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise KtError(
            f"data.source: {path}: labels are {labels.dtype} {list(labels.shape)}; need integers ≥ 0, one an image"
        )
    images = images if images.ndim == 4 else images[..., None]
    return Images(images.astype(np.uint8, copy=False), labels.astype(np.int64), np.arange(len(images)))


def check_source(source: str) -> None:
    """Fail where ``source`` is neither a built-in data set nor an existing .npz file.

    Raises:
        KtError: naming the source, what is allowed and the nearest name.
    """
    if source not in BUILTIN and not (source.endswith(".npz") and Path(source).is_file()):
        hint = "no such .npz file" if source.endswith(".npz") else unknown("data set", source, BUILTIN)
        raise KtError(f"data.source: {source}: {hint}")


def count(source: str) -> int:
    """Number of images in a data set, without decoding them; raises as ``check_source`` does."""
    check_source(source)
    return BUILTIN[source].count if source in BUILTIN else len(_array(Path(source), "labels"))


def load(source: str) -> Images:
    """Decode a data set; raises as ``check_source`` does, or where the file's arrays have wrong shapes."""
    check_source(source)
    return BUILTIN[source].load() if source in BUILTIN else _from_npz(Path(source))


def write(folder: Path, spec: DataSpec) -> None:
    """Decode, split and store a data set in ``folder``; ``meta.json`` is written last and makes it whole."""
    data = load(spec.source)
    splits = assign(data.ids, data.labels, spec.splits, spec.seed)
    for name, array in (("images", data.images), ("labels", data.labels)):
        with store.atomic(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    schema.write(folder / "splits.parquet", "splits", schema.build("splits", splits.to_dict("list")))
    content = store.digest(
        [store.digest_file(folder / f"{name}.npy") for name in ("images", "labels")] + [splits.to_dict("list")]
    )
    store.write_json(
        folder / "meta.json", {"classes": int(data.labels.max()) + 1, "hash": content, "source": spec.source}
    )


@dataclass(frozen=True)
class Dataset:
    """A stored data set, images memory-mapped.

    Attributes:
        images: uint8 [N, H, W, C], memory-mapped.
        labels: int64 [N].
        splits: the table ``splits`` as a data frame.
        classes: number of classes C.
        hash: content hash of images, labels and splits.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    splits: pd.DataFrame
    classes: int
    hash: str

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open the store that ``write`` made.

        Raises:
            KtError: the store is missing or incomplete.
        """
        meta = store.read_json(folder / "meta.json")
        try:
            images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        except (OSError, ValueError, EOFError) as error:
            raise KtError(f"{folder}: the stored data set is incomplete ({error}); delete it and run again") from error
        return cls(
            images,
            labels,
            schema.read_frame(folder / "splits.parquet", "splits"),
            int(meta["classes"]),
            str(meta["hash"]),
        )

    @property
    def channels(self) -> int:
        """Colour channels of the images."""
        return int(self.images.shape[-1])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split in ``images`` and ``labels``, int64 [n], in the split's fixed order."""
        return self.splits.loc[self.splits["split"] == split, "row"].to_numpy()

    def ids(self, split: str) -> NDArray[np.int64]:
        """Image ids of a split, int64 [n], in the same order as ``rows``."""
        return self.splits.loc[self.splits["split"] == split, "image_id"].to_numpy()
