"""Data sets that ``timm.data.create_dataset`` reads: torchvision's, Hugging Face's, TFDS, webdataset and tar files."""

from __future__ import annotations

import importlib
import io
import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt.data.classes import like_parts
from kt.data.listing import Listing, Picture, checked_labels, named_parts, numbered, ordered, shown
from kt.data.spec import DataSpec
from kt.data.walk import endings, is_hidden, open_picture
from kt.errors import KtError, listed, nearest


@dataclass(frozen=True)
class _Part:
    """An official part: timm's data set, which of its images are read, int64 [n], and their labels, int64 [n]."""

    data: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def read_timm(spec: DataSpec) -> Listing:
    """List a data set of timm's, official part after official part.

    The labels of data sets that are streams, or that keep no list of labels, are read in a pass of its own.

    Raises:
        KtError: timm cannot open it, a label is not an integer ≥ 0, or two parts are the same images.
    """
    names = ["train"] if spec.source.endswith(".tar") else named_parts(spec)
    left_out = Counter[str]()
    parts = {name: _part(spec, name, left_out) for name in names}
    for (one, first), (two, second) in itertools.combinations(parts.items(), 2):
        if _same_images(first, second):
            raise KtError(
                f"data.splits: the parts {one!r} and {two!r} of {spec.source} are the same images; draw from one of "
                "them, with numbers or shares"
            )
    labels = np.concatenate([part.labels for part in parts.values()])
    labels, classes = _in_order(labels, _classes(next(iter(parts.values())).data, labels), spec)
    if _is_torch_folder(spec) and like_parts(classes) and not (spec.classes or spec.class_file):
        raise KtError(
            f"data.source: {spec.source}: its folders are called like official parts: {listed(classes)}; give the "
            "folder itself as the source, or, if they are classes, name them in data.classes"
        )
    sizes = [len(part.rows) for part in parts.values()]
    ends = np.cumsum(sizes)

    def stream(rows: NDArray[np.int64]) -> Iterator[Callable[[], Picture]]:
        starts = [0, *ends[:-1]]
        inside = [rows[(rows >= start) & (rows < end)] - start for start, end in zip(starts, ends, strict=True)]
        return itertools.chain.from_iterable(
            _pictures(part.data, part.rows[here]) for part, here in zip(parts.values(), inside, strict=True)
        )

    return Listing(
        labels,
        classes,
        np.repeat(names, sizes),
        [f"{name}/{row}" for name, part in parts.items() for row in part.rows.tolist()],
        stream,
        left_out=left_out,
    )


def _part(spec: DataSpec, name: str, left_out: Counter[str]) -> _Part:
    data = _create(spec, name)
    labels = _labels(data, spec, name)
    rows = np.arange(len(labels))
    if paths := _paths(data, spec):
        why = [f"below {shown(part)}" if (part := _hidden_part(path)) else "" for path in paths]
        if spec.source.endswith(".tar"):
            folders = _tar_folders(data)
            why = [
                text or ("" if inside else "images beside the folders")
                for text, inside in zip(why, folders, strict=True)
            ]
            _check_tar_classes(spec, {inside for text, inside in zip(why, folders, strict=True) if not text})
        left_out.update(filter(None, why))
        rows = rows[[not text for text in why]]
    return _Part(data, rows, labels[rows])


def _same_images(one: _Part, two: _Part) -> bool:
    """Whether two parts have the same labels and begin with the same pictures; streams are not compared."""
    if _is_stream(one.data) or not np.array_equal(one.labels, two.labels):
        return False
    try:
        pairs = list(zip(*(_pictures(part.data, part.rows[:3]) for part in (one, two)), strict=True))
        return all(np.array_equal(np.asarray(first()), np.asarray(second())) for first, second in pairs)
    except Exception:  # a damaged image, which is reported when it is decoded
        return False


def _tar_folders(data: Any) -> list[str]:
    """The folder of each image of a tar file; of a tar file inside it its name comes first."""
    paths = [
        posixpath.join(inner.name.removesuffix(".tar") if inner else "", member.path)
        for member, _, inner in data.reader.samples
    ]
    return [posixpath.normpath(posixpath.dirname(path)).lstrip("./") for path in paths]


def _check_tar_classes(spec: DataSpec, folders: Collection[str]) -> None:
    """Fail where timm would read a tar file differently than a folder: it takes the innermost folders as classes.

    Raises:
        KtError: naming two folders, of one class or one inside the other.
    """
    by_class: dict[str, str] = {}
    for folder in sorted(folders):
        other = by_class.setdefault(posixpath.basename(folder), folder)
        if other == folder:
            other = next((above for above in _above(folder) if above in folders), folder)
        if other != folder:
            raise KtError(
                f"data.source: {spec.source}: images lie in {shown(other)!r} and in {shown(folder)!r}, but classes of "
                "a tar file are its innermost folders; unpack it and give the folder"
            )


def _above(folder: str) -> list[str]:
    words = folder.split("/")
    return ["/".join(words[:i]) for i in range(1, len(words))]


def _hidden_part(path: str) -> str | None:
    return next((part for part in path.split("/") if part not in (".", "..") and is_hidden(part)), None)


def _create(spec: DataSpec, part: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    tar = spec.source.endswith(".tar")
    name, root = ("", spec.source) if tar else (spec.source, spec.root)
    options: dict[str, Any] = {"download": True} if spec.download else {}
    options |= {key: value for key, value in (("input_key", spec.image_key), ("target_key", spec.label_key)) if value}
    if spec.source.lower().startswith(("hfids/", "wds/")):
        options["input_img_mode"] = ""  # as they are: timm's conversion to colour cuts 16 bits off at 255
    if tar:
        options["cache_tarinfo"] = False  # its cache is a pickle beside the file
    try:
        with _all_endings():
            return create_dataset(name, root=root, split=part, search_split=False, **options)
    except Exception as error:  # timm and the libraries behind it raise anything, assertions too
        _refuse_columns(spec, part)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if tar:
            advice = "a compressed one has to be decompressed first"
            raise KtError(f"data.source: {spec.source}: not a tar file of images ({reason}); {advice}") from error
        raise KtError(
            f"data.source: {spec.source}: timm cannot open the part {part!r} with data.root {spec.root!r}: {reason}"
        ) from error


@contextmanager
def _all_endings() -> Iterator[None]:
    """Let timm search tar files for the endings that folders are searched for."""
    readers: Any = importlib.import_module("timm.data.readers")
    before = readers.get_img_extensions()
    readers.set_img_extensions(sorted(endings()))
    try:
        yield
    finally:
        readers.set_img_extensions(before)


def _refuse_columns(spec: DataSpec, part: str) -> None:
    """Fail where a column of a Hugging Face data set is not among those that it has.

    Raises:
        KtError: with the columns there are; nothing where these cannot be known.
    """
    kind, _, name = spec.source.partition("/")
    try:
        datasets: Any = importlib.import_module("datasets")
        if kind.lower() == "hfds":
            known = list(datasets.load_dataset(name, split=part, cache_dir=spec.root).column_names)
        else:
            known = list(datasets.load_dataset_builder(name, cache_dir=spec.root).info.features or ())
    except Exception:  # an error of the data set itself is reported by the error that led here
        return
    for key, default in (("image_key", "image"), ("label_key", "label")):
        column = getattr(spec, key) or default
        if known and column not in known:
            raise KtError(
                f"data.{key}: no column {column!r} in {spec.source}; it has: {listed(known)}{nearest(column, known)}"
            )


def _is_stream(data: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(data, IterableDataset)


def _labels(data: Any, spec: DataSpec, part: str) -> NDArray[np.int64]:
    at = f"data.source: {spec.source}: part {part!r}: labels"
    try:
        found = np.array([-1 if label is None else label for label in _targets(data)])
    except Exception as error:  # readers raise anything; labels of several numbers make no array
        _refuse_columns(spec, part)
        raise KtError(f"{at} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error
    return checked_labels(found, at)


def _targets(data: Any) -> Iterable[Any]:
    reader = getattr(data, "reader", data)
    if hasattr(reader, "targets"):
        return reader.targets  # type: ignore[no-any-return]
    if hasattr(reader, "iter_targets"):
        return reader.iter_targets()  # type: ignore[no-any-return]
    if _is_stream(data):
        return (label for _, label in data)
    return (data[i][1] for i in range(len(data)))


def _paths(data: Any, spec: DataSpec) -> Sequence[str]:
    """Paths of a tar file's members and of torchvision's image folder, below it; of other data sets none."""
    if spec.source.endswith(".tar"):
        return [member.path for member, _, _ in data.reader.samples]
    if _is_torch_folder(spec):
        return [path.removeprefix(f"{spec.root}") for path, _ in data.samples]
    return ()


def _classes(data: Any, labels: NDArray[np.int64]) -> list[str]:
    """The classes' names where the data set knows them all, else their labels as text."""
    reader = getattr(data, "reader", data)
    by_name = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    names = {int(label): str(name) for name, label in by_name.items()}
    return [names.get(label, default) for label, default in enumerate(numbered(labels))]


def _in_order(labels: NDArray[np.int64], classes: list[str], spec: DataSpec) -> tuple[NDArray[np.int64], list[str]]:
    """Labels and classes without those that only hidden and system folders have.

    Classes of a tar file are in the order of folders, since timm's is random where names tie; others keep theirs.
    """
    tar = spec.source.endswith(".tar")
    if not (tar or _is_torch_folder(spec)):
        return labels, classes
    right = [classes[label] for label in np.unique(labels)]
    right = ordered(right) if tar else right
    new = {name: label for label, name in enumerate(right)}
    return np.array([new.get(name, -1) for name in classes], np.int64)[labels], right


def _is_torch_folder(spec: DataSpec) -> bool:
    return spec.source.lower() in ("torch/folder", "torch/image_folder")


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
    """An image read past timm's dataset, which would replace one that cannot be decoded by the next one."""
    with lock:  # readers of tar files share one file
        content = reader[row][0].read()
    return open_picture(io.BytesIO(content))


def _from_dataset(data: Any, row: int) -> Picture:
    if hasattr(data, "samples"):  # files, which torchvision would bring to eight bits by cutting off
        return open_picture(str(data.samples[row][0]))
    picture: Picture = data[row][0]
    return picture
