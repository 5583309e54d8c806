"""Decoding: files opened whatever their kind, resized in parallel, and written to one uint8 array on disk.

A chunk of images is decoded at a time; a killed run continues at its chunk.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from kt import store
from kt.data.fit import fit
from kt.data.listing import Framed, Listing, Masked, Picture
from kt.data.seen import height_and_width
from kt.data.spec import DataSpec
from kt.data.splits import counts
from kt.data.walk import NotReadable
from kt.errors import KtError, listed
from kt.progress import Progress
from kt.store import Growing
from kt.tasks.task import named

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Found = TypeVar("Found")

CHUNK_BYTES = 1 << 25
"""Approximate bytes of decoded images that are held at once."""


def _attempt(call: Callable[[], Picture | Masked | Framed], spec: DataSpec, channels: int) -> NDArray[np.uint8] | str:
    """The stored image, or the reason why there is none."""
    return attempt(lambda: fit(call(), spec.size, channels, spec.fit == "contain"))


def attempt(call: Callable[[], Found]) -> Found | str:
    """What a call gives, or the reason why a file cannot be read."""
    try:
        return call()
    except KtError:
        raise
    except NotReadable as error:
        return str(error)
    except Exception as error:  # decoders of broken files raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def stored_shape(listing: Listing, spec: DataSpec) -> tuple[int, int, int]:
    """[H, W, C] of the stored images, without masks.

    Raises:
        KtError: arrays of neither one nor three channels are to be resized.
    """
    if listing.shape is None:
        assert spec.size is not None  # checked with the source
        return *height_and_width(spec.size), spec.channels
    height, width, channels = listing.shape
    if spec.size is None:
        return height, width, channels
    if channels not in (1, 3):
        raise KtError(f"data.size: images of {channels} channels cannot be resized; allowed: 1 or 3 channels")
    return *height_and_width(spec.size), channels


@dataclass(frozen=True)
class Decoded:
    """Result of decoding.

    Attributes:
        content: a hash of all of them.
        digests: a hash of each image's stored pixels, uint64 [n]; equal for images that no model can distinguish.
        damaged: reason why an image cannot be decoded, by its index.
        pixels: pixels of each class in the masks, int64 [256]; the last ones have no class.
        mapped: images whose map is not the same everywhere, int64 [m].
    """

    content: str
    digests: NDArray[np.uint64]
    damaged: dict[int, str]
    pixels: NDArray[np.int64]
    mapped: NDArray[np.int64]

    def hash(self, truth: NDArray[Any] | None, splits: pd.DataFrame, videos: list[dict[str, Any]] | None = None) -> str:
        """Hash of the images, of truths that are no part of them, of the table ``splits``, and of facts on videos."""
        content = hashlib.sha256((self.content if videos is None else store.digest([self.content, videos])).encode())
        if truth is not None:
            if truth.ndim > 1 or truth.dtype != np.int64:  # labels are hashed as they always were
                content.update(store.canonical([str(truth.dtype), list(truth.shape)]))
            content.update(truth.tobytes())
        for column in ("image_id", "row", "label"):
            content.update(splits[column].to_numpy(np.int64).tobytes())
        content.update(store.canonical(counts(splits)))
        return content.hexdigest()


def decode(listing: Listing, rows: NDArray[np.int64], spec: DataSpec, path: Path, threads: int) -> Decoded:
    """Write the images at ``rows`` as one .npy file; images that cannot be decoded are black.

    The last channel is the mask or the map, where the task has one.

    Args:
        listing: the source.
        rows: which of its images, int64 [n], increasing.
        spec: size, channels, and what to do with damaged images.
        path: the .npy file, uint8 [n, H, W, C], or [n, H, W, C + 1] with masks or maps.
        threads: images decoded at once.

    Raises:
        KtError: an image is damaged and ``spec.damaged`` is `fail`, too many are, or one is a Git LFS pointer.
    """
    height, width, channels = stored_shape(listing, spec)
    task = named(spec.task)
    shape = (height, width, channels + task.spatial)
    names = None if listing.names is None else hashlib.sha256("\n".join(listing.names).encode()).hexdigest()
    key: list[Any] = [spec.plain() | {"splits": None}, names, hashlib.sha256(rows.tobytes()).hexdigest()]
    key += [list(listing.classes), spec.class_file and store.digest_file(spec.class_file)] if task.dense else []
    key += [hashlib.sha256(listing.labels.tobytes()).hexdigest()] if task.clips else []
    header = _header(rows, shape)
    growing = Growing(path.with_name(f".{path.name}.part"), store.digest(key), np.uint8, shape, header)
    chunk = max(1, CHUNK_BYTES // growing.row_bytes)
    damaged = {int(i): reason for note in growing.notes for i, reason in note["damaged"]}
    digests = np.empty(len(rows), np.uint64)
    if growing.rows:
        log.info("decode: %d of %d images were decoded before", growing.rows, len(rows))
        before = np.memmap(growing.path, np.uint8, "r", len(header), (growing.rows, *shape))
        digests[: growing.rows] = [_digest(image[..., :channels]) for image in before]
    calls = listing.stream(rows[growing.rows :])
    progress = Progress("decode", -(-(len(rows) - growing.rows) // chunk))
    with whole_files(), ThreadPoolExecutor(threads) as pool:
        while part := list(islice(calls, chunk)):
            found = list(pool.map(lambda call: _attempt(call, spec, channels), part))
            bad = {growing.rows + i: reason for i, reason in enumerate(found) if isinstance(reason, str)}
            damaged |= bad
            check_damage(listing, rows, damaged, spec)
            images = np.stack([np.zeros(shape, np.uint8) if isinstance(image, str) else image for image in found])
            digests[growing.rows : growing.rows + len(images)] = list(pool.map(_digest, images[..., :channels]))
            note: dict[str, Any] = {"sha256": hashlib.sha256(images.data).hexdigest(), "damaged": list(bad.items())}
            if task.clips:
                maps = images[..., -1].reshape(len(images), -1)
                note["mapped"] = (growing.rows + np.flatnonzero(maps.min(1) < maps.max(1))).tolist()
            if task.dense:
                note["pixels"] = np.sum(list(pool.map(_counted, found)), 0).tolist()
            growing.append(images, note)
            progress.step(f"{growing.rows} of {len(rows)} images")
    if growing.rows != len(rows):
        raise KtError(f"data.source: {spec.source}: it gave {growing.rows} images, but listed {len(rows)}")
    content = store.digest([list(shape), [note["sha256"] for note in growing.notes]])
    with store.atomic(path) as temporary:
        growing.path.replace(temporary)
    growing.remove()
    pixels = np.array([note["pixels"] for note in growing.notes if task.dense], np.int64).reshape(-1, 256).sum(0)
    mapped = np.array([i for note in growing.notes for i in note.get("mapped", ())], np.int64)
    return Decoded(content, digests, damaged, pixels, mapped)


def _counted(image: NDArray[np.uint8] | str) -> NDArray[np.int64]:
    """Pixels of each class in the last channel of an image, int64 [256]; none of one that cannot be decoded."""
    return np.bincount(image[..., -1].ravel() if isinstance(image, np.ndarray) else [], minlength=256)


def _digest(image: NDArray[np.uint8]) -> int:
    content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
    return int.from_bytes(content, "little")


@contextmanager
def whole_files() -> Iterator[None]:
    """Treat truncated images as damaged, whatever other modules have told Pillow."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _header(rows: NDArray[np.int64], shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def check_damage(listing: Listing, rows: NDArray[np.int64], damaged: dict[int, str], spec: DataSpec) -> None:
    """Fail where something is damaged, or too much is; a video is where one of its frames is.

    Args:
        listing: the source.
        rows: those of its images that are decoded, int64 [n].
        damaged: reason why an image cannot be decoded, by its place in ``rows``.
        spec: how much may be damaged.

    Raises:
        KtError: naming all that is damaged.
    """
    of = rows if listing.video is None else listing.video[rows]
    number = len(listing.lost) + len(np.unique(of[list(damaged)]))
    total, what = len(listing.lost) + len(np.unique(of)), "images" if listing.video is None else "videos"
    if number == 0 or (spec.damaged == "skip" and number <= spec.max_damaged * total):
        return
    reasons = dict(listing.lost) | {name_of(listing, int(rows[i])): reason for i, reason in damaged.items()}
    names = [f"{name} ({reason})" for name, reason in reasons.items()]
    allowed = f"more than data.max_damaged ({spec.max_damaged:g}) allows" if spec.damaged == "skip" else ""
    advice = allowed or "mend them, or set data.damaged: skip"
    raise KtError(f"data.source: damaged {what}: {number} of {total}, {advice}: {listed(names)}")


def name_of(listing: Listing, row: int) -> str:
    """The name of an image in its source."""
    return listing.names[row] if listing.names is not None else str(row)
