"""Data sets that ``timm.data.create_dataset`` reads: torchvision's, Hugging Face's, TFDS, webdataset and tar files."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.listing import Listing, Picture, named_parts, numbered
from kt.data.spec import DataSpec
from kt.errors import KtError


def read_timm(spec: DataSpec) -> Listing:
    """List a data set of timm's, official part after official part.

    The labels of data sets that are streams, or that keep no list of labels, are read in a pass of its own.

    Raises:
        KtError: timm cannot open it, or a label is not an integer ≥ 0.
    """
    parts = ["train"] if spec.source.endswith(".tar") else named_parts(spec)
    sets = {part: _create(spec, part) for part in parts}
    labels = {part: _labels(data, f"data.source: {spec.source}: part {part!r}") for part, data in sets.items()}
    every = np.concatenate(list(labels.values()))
    ends = np.cumsum([len(of_part) for of_part in labels.values()])

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
        starts = [0, *ends[:-1]]
        inside = [rows[(rows >= start) & (rows < end)] - start for start, end in zip(starts, ends, strict=True)]
        return itertools.chain.from_iterable(map(_pictures, sets.values(), inside))

    return Listing(
        every,
        _classes(next(iter(sets.values())), every),
        np.repeat(parts, [len(of_part) for of_part in labels.values()]),
        [f"{part}/{i}" for part, of_part in labels.items() for i in range(len(of_part))],
        stream,
    )


def _create(spec: DataSpec, part: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    tar = spec.source.endswith(".tar")
    name, root = ("", spec.source) if tar else (spec.source, spec.root)
    options: dict[str, Any] = {"download": True} if spec.download else {}
    if tar:
        options["cache_tarinfo"] = False  # its cache is a pickle beside the file
    try:
        return create_dataset(name, root=root, split=part, search_split=False, **options)
    except Exception as error:  # timm and the libraries behind it raise anything, assertions too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KtError(
            f"data.source: {spec.source}: timm cannot open the part {part!r} with data.root {spec.root!r}: {reason}"
        ) from error


def _is_stream(data: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(data, IterableDataset)


def _labels(data: Any, at: str) -> NDArray[np.int64]:
    found: Iterable[Any]
    reader = getattr(data, "reader", data)
    if hasattr(reader, "targets"):
        found = reader.targets
    elif hasattr(reader, "iter_targets"):
        found = reader.iter_targets()
    elif _is_stream(data):
        found = (label for _, label in data)
    else:
        found = (data[i][1] for i in range(len(data)))
    labels = np.array([-1 if label is None else label for label in found])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise KtError(f"{at}: labels are {labels.dtype} {list(labels.shape)}; need one integer ≥ 0 an image")
    return labels.astype(np.int64)


def _classes(data: Any, labels: NDArray[np.int64]) -> list[str]:
    """The classes' names where the data set knows them all, else their labels as text."""
    reader = getattr(data, "reader", data)
    by_name = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    names = {int(label): str(name) for name, label in by_name.items()}
    return [names.get(label, default) for label, default in enumerate(numbered(labels))]


def _pictures(data: Any, rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
    if _is_stream(data):
        wanted = set(rows.tolist())
        return (partial(_same, picture) for row, (picture, _) in enumerate(data) if row in wanted)
    if hasattr(data, "reader"):
        lock = Lock()
        return (partial(_from_reader, data.reader, int(row), lock) for row in rows)
    return (partial(_from_dataset, data, int(row)) for row in rows)


def _same(picture: Picture) -> Picture:
    return picture


def _from_reader(reader: Any, row: int, lock: Lock) -> Picture:
    """An image past timm's dataset, which would put the next one in the place of one that cannot be decoded."""
    with lock:  # readers of tar files share one file
        content = reader[row][0].read()
    return Image.open(io.BytesIO(content))


def _from_dataset(data: Any, row: int) -> Picture:
    picture: Picture = data[row][0]
    return picture
