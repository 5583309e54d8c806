"""Images decoded in parallel, a chunk at a time, into one uint8 array on disk; a killed run goes on at its chunk."""

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

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from kt import store
from kt.data.listing import Listing, Picture
from kt.data.pictures import NotReadable, fit
from kt.data.spec import DataSpec
from kt.errors import KtError, listed
from kt.progress import Progress
from kt.store import Growing

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 25
"""Bytes of decoded images that are held at once, about."""


def _attempt(call: Callable[[], Picture], size: int | None, channels: int) -> NDArray[np.uint8] | str:
    """The stored image, or why there is none."""
    try:
        return fit(call(), size, channels)
    except KtError:
        raise
    except NotReadable as error:
        return str(error)
    except Exception as error:  # decoders of broken files raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def stored_shape(listing: Listing, spec: DataSpec) -> tuple[int, int, int]:
    """[H, W, C] of the stored images.

    Raises:
        KtError: arrays of neither one nor three channels are to be resized.
    """
    if listing.shape is None:
        assert spec.size is not None  # checked with the source
        return spec.size, spec.size, spec.channels
    height, width, channels = listing.shape
    if spec.size is None:
        return height, width, channels
    if channels not in (1, 3):
        raise KtError(f"data.size: images of {channels} channels cannot be resized; allowed: 1 or 3 channels")
    return spec.size, spec.size, channels


@dataclass(frozen=True)
class Decoded:
    """What decoding says of the images.

    Attributes:
        content: a hash of all of them.
        digests: a hash of each image's stored pixels, uint64 [n]; equal for images that no model can tell apart.
        damaged: of every image that cannot be decoded its index and the reason.
    """

    content: str
    digests: NDArray[np.uint64]
    damaged: dict[int, str]


def decode(listing: Listing, rows: NDArray[np.int64], spec: DataSpec, path: Path, threads: int) -> Decoded:
    """Write the images at ``rows`` as one .npy file; images that cannot be decoded are black.

    Args:
        listing: the source.
        rows: which of its images, int64 [n], increasing.
        spec: size, channels, and what to do with damaged images.
        path: the .npy file, uint8 [n, H, W, C].
        threads: images decoded at once.

    Raises:
        KtError: an image is damaged and ``spec.damaged`` is `fail`, too many are, or one is a Git LFS pointer.
    """
    shape = stored_shape(listing, spec)
    names = None if listing.names is None else hashlib.sha256("\n".join(listing.names).encode()).hexdigest()
    key = [spec.plain() | {"splits": None}, names, hashlib.sha256(rows.tobytes()).hexdigest()]
    header = _header(rows, shape)
    growing = Growing(path.with_name(f".{path.name}.part"), store.digest(key), np.uint8, shape, header)
    chunk = max(1, CHUNK_BYTES // growing.row_bytes)
    damaged = {int(i): reason for note in growing.notes for i, reason in note["damaged"]}
    digests = np.empty(len(rows), np.uint64)
    if growing.rows:
        log.info("decode: %d of %d images were decoded before", growing.rows, len(rows))
        before = np.memmap(growing.path, np.uint8, "r", len(header), (growing.rows, *shape))
        digests[: growing.rows] = [_digest(image) for image in before]
    calls = listing.stream(rows[growing.rows :])
    progress = Progress("decode", -(-(len(rows) - growing.rows) // chunk))
    with _whole_files(), ThreadPoolExecutor(threads) as pool:
        while part := list(islice(calls, chunk)):
            found = list(pool.map(lambda call: _attempt(call, spec.size, shape[-1]), part))
            bad = {growing.rows + i: reason for i, reason in enumerate(found) if isinstance(reason, str)}
            damaged |= bad
            _check_damage(listing, rows, damaged, spec)
            images = np.stack([np.zeros(shape, np.uint8) if isinstance(image, str) else image for image in found])
            digests[growing.rows : growing.rows + len(images)] = list(pool.map(_digest, images))
            note = {"sha256": hashlib.sha256(images.data).hexdigest(), "damaged": list(bad.items())}
            growing.append(images, note)
            progress.step(f"{growing.rows} of {len(rows)} images")
    if growing.rows != len(rows):
        raise KtError(f"data.source: {spec.source}: it gave {growing.rows} images, but listed {len(rows)}")
    content = store.digest([list(shape), [note["sha256"] for note in growing.notes]])
    with store.atomic(path) as temporary:
        growing.path.replace(temporary)
    growing.remove()
    return Decoded(content, digests, damaged)


def _digest(image: NDArray[np.uint8]) -> int:
    content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
    return int.from_bytes(content, "little")


@contextmanager
def _whole_files() -> Iterator[None]:
    """Truncated images are damaged, whatever other modules asked of Pillow."""
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


def _check_damage(listing: Listing, rows: NDArray[np.int64], damaged: dict[int, str], spec: DataSpec) -> None:
    if not damaged or (spec.damaged == "skip" and len(damaged) <= spec.max_damaged * len(rows)):
        return
    named = [f"{name_of(listing, int(rows[i]))} ({reason})" for i, reason in damaged.items()]
    allowed = f"more than data.max_damaged ({spec.max_damaged:g}) allows" if spec.damaged == "skip" else ""
    advice = allowed or "mend them, or set data.damaged: skip"
    raise KtError(f"data.source: damaged images: {len(damaged)} of {len(rows)}, {advice}: {listed(named)}")


def name_of(listing: Listing, row: int) -> str:
    """The name of an image in its source."""
    return listing.names[row] if listing.names is not None else str(row)
