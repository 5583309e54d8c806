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

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from kt import store
from kt.data.listing import Listing, Picture, shown
from kt.data.spec import DataSpec, height_and_width
from kt.data.walk import formats
from kt.errors import KtError, listed
from kt.progress import Progress
from kt.store import Growing

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 25
"""Approximate bytes of decoded images that are held at once."""

LARGEST = 1 << 24
"""Pixels of a resized picture beyond which it is cropped first, as extremely oblong ones are."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Turns that make an image upright, by its EXIF orientation."""


class NotReadable(Exception):
    """A file is no readable image, or the meaning of its pixels is unknown; the message gives the reason."""


_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


def open_picture(source: str | io.BytesIO) -> Image.Image:
    """Open an image file, or the content of one.

    Raises:
        KtError: the file is a Git LFS pointer.
        NotReadable: it is no image, or larger than Pillow reads.
    """
    try:
        return Image.open(source, formats=formats())
    except UnidentifiedImageError as error:
        if isinstance(source, str) and store.is_pointer(Path(source)):
            store.refuse("data.source", Path(shown(source)))
        raise NotReadable(_no_image(source)) from error
    except FileNotFoundError as error:
        raise NotReadable("a link to a file that is not there (of git-annex: run `git annex get`)") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise NotReadable(f"more than the {limit:,} pixels that Pillow reads; store a smaller copy of it") from error


def _no_image(source: str | io.BytesIO) -> str:
    content = source.getvalue()[:16] if isinstance(source, io.BytesIO) else _head(source)
    if not content:
        return "an empty file"
    if content.startswith(b"/annex/objects/"):
        return "a pointer of git-annex, not the file itself; run `git annex get`"
    return "no image that Pillow reads"


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def fit(picture: Picture, size: int | tuple[int, int] | None, channels: int) -> NDArray[np.uint8]:
    """One image as it is stored, uint8 [H, W, C]: resized until it just covers the size, and its centre kept.

    The resizing is bicubic and antialiased. Its sizes are rounded as torchvision's ``Resize`` and ``CenterCrop`` do,
    those of oblong images as timm's ``ResizeKeepRatio`` does. Arrays keep their size and channels where ``size`` is
    None. Of PIL images the first frame is taken, upright by its EXIF orientation; 16 bits per pixel lose the lower
    eight, and transparency is dropped: what lies behind it shows.

    Args:
        picture: a PIL image, or uint8 [H, W, C].
        size: side, or height and width, in pixels; None keeps an array as it is.
        channels: 1 or 3, for PIL images.

    Raises:
        NotReadable: pixels of 32 bits, whose range is unknown.
    """
    if isinstance(picture, np.ndarray):
        if size is None or picture.shape[:2] == height_and_width(size):
            return picture
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        channels = len(picture.getbands())
    else:
        picture.load()
        turn = TURNS.get(_orientation(picture))
        picture = _eight_bits(picture)
        picture = picture if turn is None else picture.transpose(turn)
    assert size is not None  # sources of PIL images need it
    picture = picture.convert("L" if channels == 1 else "RGB")
    tall, wide = height_and_width(size)
    width, height = _covering(picture.width, picture.height, wide, tall)
    left, top = round((width - wide) / 2), round((height - tall) / 2)
    if width * height > LARGEST:
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, (left + wide) * across, (top + tall) * down)
        picture = picture.resize((wide, tall), Image.Resampling.BICUBIC, box=box)
        left = top = 0
    elif picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + wide, top + tall))).reshape(tall, wide, channels)


def _covering(width: int, height: int, wide: int, tall: int) -> tuple[int, int]:
    """Width and height of an image resized until it just covers another size."""
    if wide == tall:
        short = min(width, height)
        width, height = (wide if side == short else int(wide * side / short) for side in (width, height))
        return width, height
    ratio = min(width / wide, height / tall)
    return round(width / ratio), round(height / ratio)


def _orientation(picture: Image.Image) -> int:
    """A loaded picture's EXIF orientation; upright where its EXIF is damaged."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # parsers of damaged EXIF raise anything, and the pixels are whole
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A loaded picture with eight bits per channel.

    Raises:
        NotReadable: pixels of 32 bits, whose range is unknown.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        bits = max(tags.get(_BITS, (16,)))
        values = np.asarray(picture).astype(np.int64) >> (bits - 8)
        inverted = tags.get(_PHOTOMETRIC) == 0  # white is zero, which Pillow handles up to eight bits
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = "whole numbers" if picture.mode == "I" else "floating-point numbers"
        raise NotReadable(f"pixels are {kind} of 32 bits, whose black and white are unknown; convert to 8 or 16 bits")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        return picture.convert("RGBA")  # straight to RGB, Pillow warns for every file
    return picture


def _attempt(call: Callable[[], Picture], size: int | tuple[int, int] | None, channels: int) -> NDArray[np.uint8] | str:
    """The stored image, or the reason why there is none."""
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
