"""One picture: opened, whatever its kind, and brought to the form in which it is stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kt import store
from kt.data.listing import Picture, shown
from kt.data.walk import formats

LARGEST = 1 << 24
"""Pixels of a resized picture beyond which it is cropped before it is resized: those of extremely oblong ones."""

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
"""EXIF orientations that are not upright, and what makes them so."""


class NotReadable(Exception):
    """A file is no image that can be read, or does not say what its pixels mean; its text says why."""


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


def fit(picture: Picture, size: int | None, channels: int) -> NDArray[np.uint8]:
    """One image as it is stored, uint8 [size, size, C]: shorter side resized (bicubic, antialiased), centre kept.

    The sizes are rounded as torchvision's ``Resize`` and ``CenterCrop`` do. Arrays keep their size and channels where
    ``size`` is None. Of PIL images the first frame is taken, upright by its EXIF orientation; 16 bits a pixel lose
    the lower eight, and transparency is dropped: what lies behind it shows.

    Args:
        picture: a PIL image, or uint8 [H, W, C].
        size: side in pixels; None keeps an array as it is.
        channels: 1 or 3, for PIL images.

    Raises:
        NotReadable: pixels of 32 bits, whose range is not known.
    """
    if isinstance(picture, np.ndarray):
        if size is None or picture.shape[:2] == (size, size):
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
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > LARGEST:
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
        left = top = 0
    elif picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, channels)


def _orientation(picture: Image.Image) -> int:
    """A loaded picture's EXIF orientation; upright where its EXIF is damaged."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # parsers of damaged EXIF raise anything, and the pixels are whole
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A loaded picture with eight bits a channel.

    Raises:
        NotReadable: pixels of 32 bits, whose range is not known.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        bits = max(tags.get(_BITS, (16,)))
        values = np.asarray(picture).astype(np.int64) >> (bits - 8)
        inverted = tags.get(_PHOTOMETRIC) == 0  # white is zero, which Pillow heeds up to eight bits
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = "whole numbers" if picture.mode == "I" else "floating-point numbers"
        raise NotReadable(f"pixels are {kind} of 32 bits, whose black and white are not known; convert to 8 or 16 bits")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        return picture.convert("RGBA")  # straight to RGB, Pillow warns for every file
    return picture
