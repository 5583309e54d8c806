"""One image as it is stored: upright, of eight bits, resized and cropped, with its mask, its map or its fixations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt.data.listing import Framed, Masked, Picture
from kt.data.seen import height_and_width
from kt.data.walk import NotReadable
from kt.tasks.segmentation import IGNORED

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

SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]
"""Turns that exchange height and width."""


_BITS, PHOTOMETRIC = 258, 262  # tags of TIFF


def fit(
    picture: Picture | Masked | Framed, size: int | tuple[int, int] | None, channels: int, contain: bool = False
) -> NDArray[np.uint8]:
    """One image as it is stored, uint8 [H, W, C]: resized until it just covers the size, and its centre kept.

    The resizing is bicubic and antialiased. Its sizes are rounded as torchvision's ``Resize`` and ``CenterCrop`` do,
    those of oblong images as timm's ``ResizeKeepRatio`` does. Arrays keep their size and channels where ``size`` is
    None. Of PIL images the first frame is taken, upright by its EXIF orientation; 16 bits per pixel lose the lower
    eight, and transparency is dropped: what lies behind it shows.

    A mask becomes one more channel, in the same geometry, each pixel that of the nearest one; so does the map of a
    frame, bilinear and antialiased, 0 where the frame has none.

    Args:
        picture: a PIL image, or uint8 [H, W, C]; alone, or with a mask or a map.
        size: side, or height and width, in pixels; None keeps an array as it is.
        channels: 1 or 3, for PIL images.
        contain: whether the whole image is kept; what lies beside it is black, without a class.

    Raises:
        NotReadable: pixels of 32 bits, whose range is unknown, or a mask of another size or without any class.
    """
    if isinstance(picture, Masked):
        return _with_mask(picture, size, channels, contain)
    if isinstance(picture, Framed):
        return _with_map(picture, size, channels, contain)
    if isinstance(picture, np.ndarray) and (size is None or picture.shape[:2] == height_and_width(size)):
        return picture
    assert size is not None  # sources of PIL images need it
    return _stored(_upright(picture, channels), size, Image.Resampling.BICUBIC, contain)


def _with_mask(masked: Masked, size: int | tuple[int, int] | None, channels: int, contain: bool) -> NDArray[np.uint8]:
    """An image and its mask as they are stored, uint8 [H, W, C + 1]."""
    picture, mask = masked
    if isinstance(picture, np.ndarray):
        raw = sides = picture.shape[:2]
        turn = None
    else:
        picture.load()
        turn = turn_of(picture)
        raw = picture.height, picture.width
        sides = raw[::-1] if turn in SIDEWAYS else raw
    if mask.shape != sides:
        if mask.shape != raw:
            raise NotReadable(f"its mask has {mask.shape[0]}×{mask.shape[1]} pixels, the image {sides[0]}×{sides[1]}")
        assert turn is not None
        mask = np.asarray(Image.fromarray(mask).transpose(turn))
    image = fit(picture, size, channels, contain)
    if size is not None:
        mask = _stored(Image.fromarray(mask), size, Image.Resampling.NEAREST, contain, IGNORED)[..., 0]
    if (mask == IGNORED).all():
        raise NotReadable("no pixel of its mask has a class")
    return np.concatenate([image, mask[..., None]], 2)


def _with_map(framed: Framed, size: int | tuple[int, int] | None, channels: int, contain: bool) -> NDArray[np.uint8]:
    """A frame and its map as they are stored, uint8 [H, W, C + 1]."""
    image = fit(framed.image, size, channels, contain)
    if framed.map is None:
        shown = np.zeros((*image.shape[:2], 1), np.uint8)
    elif size is None:
        shown = framed.map[..., None]
    else:
        shown = _stored(Image.fromarray(framed.map), size, Image.Resampling.BILINEAR, contain)
    return np.concatenate([image, shown], 2)


def _upright(picture: Picture, channels: int) -> Image.Image:
    """An image in grey or in colour, upright; an array keeps its channels."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    picture.load()
    turn = turn_of(picture)
    picture = _eight_bits(picture)
    picture = picture if turn is None else picture.transpose(turn)
    return picture.convert("L" if channels == 1 else "RGB")


class Place(NamedTuple):
    """An image resized to ``height`` and ``width``, of which the stored one shows what begins at ``top`` and ``left``.

    These are negative where the stored image shows more than the resized one.
    """

    height: int
    width: int
    top: int
    left: int


def place_of(sides: tuple[int, int], size: int | tuple[int, int], contain: bool) -> Place:
    """Geometry of images of some height and width; it is the same for an image, its mask, map and fixations."""
    tall, wide = height_and_width(size)
    if contain:
        ratio = max(sides[1] / wide, sides[0] / tall)
        height, width = (max(1, round(side / ratio)) for side in sides)
        return Place(height, width, -((tall - height) // 2), -((wide - width) // 2))
    width, height = _covering(sides[1], sides[0], wide, tall)
    return Place(height, width, round((height - tall) / 2), round((width - wide) / 2))


def _stored(
    picture: Image.Image, size: int | tuple[int, int], how: Image.Resampling, contain: bool, beside: int = 0
) -> NDArray[np.uint8]:
    """An image, a mask or a map resized, and cropped or padded to the stored size, uint8 [H, W, C]."""
    tall, wide = height_and_width(size)
    height, width, top, left = place_of((picture.height, picture.width), size, contain)
    if contain:
        canvas = Image.new(picture.mode, (wide, tall), beside if picture.mode == "L" else (beside,) * 3)
        canvas.paste(picture.resize((width, height), how), (-left, -top))
        return np.asarray(canvas).reshape(tall, wide, -1)
    if width * height > LARGEST:
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, (left + wide) * across, (top + tall) * down)
        picture = picture.resize((wide, tall), how, box=box)
        left = top = 0
    elif picture.size != (width, height):
        picture = picture.resize((width, height), how)
    return np.asarray(picture.crop((left, top, left + wide, top + tall))).reshape(tall, wide, -1)


def placed(
    points: NDArray[np.int64], sides: tuple[int, int], size: int | tuple[int, int] | None, contain: bool
) -> NDArray[np.int64]:
    """Pixels of the stored image that show some pixels of the original one; those beyond its edges are left out.

    Args:
        points: y and x, int64 [n, 2].
        sides: height and width of the original image.
        size: that of the stored image; None where it is the original.
        contain: whether the stored image shows all of the original one.

    Returns:
        y and x, int64 [m, 2].
    """
    if size is None:
        return points
    place = place_of(sides, size, contain)
    moved = (2 * points + 1) * (place.height, place.width) // (2 * np.array(sides)) - (place.top, place.left)
    inside: NDArray[np.int64] = moved[((moved >= 0) & (moved < height_and_width(size))).all(1)]
    return inside


def _covering(width: int, height: int, wide: int, tall: int) -> tuple[int, int]:
    """Width and height of an image resized until it just covers another size."""
    if wide == tall:
        short = min(width, height)
        width, height = (wide if side == short else int(wide * side / short) for side in (width, height))
        return width, height
    ratio = min(width / wide, height / tall)
    return round(width / ratio), round(height / ratio)


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """The turn that makes a loaded picture upright by its EXIF orientation; None where its EXIF is damaged."""
    try:
        return TURNS.get(int(picture.getexif().get(ORIENTATION, 1)))
    except Exception:  # parsers of damaged EXIF raise anything, and the pixels are whole
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A loaded picture with eight bits per channel.

    Raises:
        NotReadable: pixels of 32 bits, whose range is unknown.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        bits = max(tags.get(_BITS, (16,)))
        values = np.asarray(picture).astype(np.int64) >> (bits - 8)
        inverted = tags.get(PHOTOMETRIC) == 0  # white is zero, which Pillow handles up to eight bits
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = "whole numbers" if picture.mode == "I" else "floating-point numbers"
        raise NotReadable(f"pixels are {kind} of 32 bits, whose black and white are unknown; convert to 8 or 16 bits")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        return picture.convert("RGBA")  # straight to RGB, Pillow warns for every file
    return picture
