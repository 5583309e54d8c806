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
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kt import store
from kt.data.listing import Framed, Listing, Masked, Picture
from kt.data.spec import DataSpec, height_and_width
from kt.data.walk import NotReadable
from kt.errors import KtError, listed
from kt.progress import Progress
from kt.store import Growing
from kt.tasks.segmentation import IGNORED
from kt.tasks.task import named

log = logging.getLogger(__name__)

Found = TypeVar("Found")

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
    _check_damage(listing, rows, damaged, spec)
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
            _check_damage(listing, rows, damaged, spec)
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


def _check_damage(listing: Listing, rows: NDArray[np.int64], damaged: dict[int, str], spec: DataSpec) -> None:
    """Fail where something is damaged, or too much is; a video is where one of its frames is."""
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
