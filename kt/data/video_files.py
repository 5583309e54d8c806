"""Files of videos: folders of frames, video files that PyAV reads, maps, and fixations."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kt import store
from kt.data.decode import attempt
from kt.data.fit import PHOTOMETRIC, SIDEWAYS, fit, turn_of
from kt.data.listing import Framed, Picture, shown
from kt.data.spec import DataSpec
from kt.data.videos import Indices, Looks, Video
from kt.data.walk import NotReadable, open_picture
from kt.errors import KtError, listed
from kt.tasks.task import Array

if TYPE_CHECKING:
    from av.container import InputContainer

Sides = tuple[int, int]

MOST_LOOKED = 0.1
"""Share of a frame's pixels beyond which a file of fixations holds something else."""

COLOURED = 8
"""Difference of two colours of a pixel from which on an image is not grey."""


@dataclass(frozen=True)
class _Files(Video):
    """A video in files; paths are complete.

    Attributes:
        maps: file of the map of each frame that has one.
        fixations: file of the fixations of each frame that has one.
    """

    maps: Mapping[int, str]
    fixations: Mapping[int, str]

    def looks(self, targets: Indices) -> Iterator[Looks]:
        """Fixations of some frames; none where a frame has no file of them."""
        for k in targets.tolist():
            path = self.fixations.get(k)
            try:
                sides = self.sides(k)
                yield Looks(np.zeros((0, 2), np.int64) if path is None else points_in(path, sides), sides)
            except NotReadable as error:
                raise NotReadable(f"{self.called(k)}: {error}") from error

    @abstractmethod
    def sides(self, frame: int) -> Sides:
        """Height and width of a target, without decoding it.

        Raises:
            NotReadable: the file is no image.
        """

    def map_of(self, frame: int, targets: Indices, sides: Sides) -> NDArray[np.uint8] | None:
        """The map of a target of some height and width; None of another frame."""
        return map_in(self.maps[frame], sides) if frame in targets else None


@dataclass(frozen=True)
class FramesVideo(_Files):
    """A folder of frames.

    Attributes:
        files: of the frames, in time.
    """

    files: tuple[str, ...]

    def count(self) -> int:
        """Number of frames."""
        return len(self.files)

    def frames(self, first: int, targets: Indices) -> Iterator[Callable[[], Framed]]:
        """One call for each frame from ``first`` to the last; the first one of the video has the size of all."""
        sides = attempt(partial(_sides, self.files[0]))
        return (partial(self._frame, k, targets, sides) for k in range(first, len(self.files)))

    def sides(self, frame: int) -> Sides:
        """Height and width of the first frame, which are those of all."""
        return _sides(self.files[0])

    def called(self, frame: int) -> str:
        """Name of a frame: that of its file."""
        return shown(os.path.basename(self.files[frame]))

    def _frame(self, k: int, targets: Indices, sides: Sides | str) -> Framed:
        if isinstance(sides, str):
            raise NotReadable(f"the first frame: {sides}")
        picture = open_picture(self.files[k])
        picture.load()
        found = _upright_sides(picture)
        if found != sides:
            raise NotReadable(f"{_size(found)} pixels, but the first frame of its video has {_size(sides)}")
        return Framed(picture, self.map_of(k, targets, sides))


@dataclass(frozen=True)
class FileVideo(_Files):
    """A video file; its frames are decoded one after another, and resized at once.

    Attributes:
        file: its path.
        spec: size and channels of stored frames.
        first: number of the first frame in the names of maps.
    """

    file: str
    spec: DataSpec
    first: int

    def count(self) -> int:
        """Number of frames."""
        return self._count

    @cached_property
    def _count(self) -> int:
        """Number of frames, by the packets of the file: the headers of some files have none, or a wrong one."""
        with _opened(self.file) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))

    def frames(self, first: int, targets: Indices) -> Iterator[Callable[[], Framed]]:
        """One call for each frame from ``first`` to the last.

        Where fewer frames can be decoded than the file has packets, the last one stands for the missing ones, as it
        does in clips that reach beyond the end; none of them may be a target.
        """
        pictures, sides = self._decoded(), (0, 0)
        image: Picture | str = "no frame can be decoded"
        for k in range(self.count()):
            found = attempt(partial(next, pictures, None))
            if isinstance(found, np.ndarray):
                sides = found.shape[:2]
                image = fit(Image.fromarray(found), self.spec.size, self.spec.channels, self.spec.fit == "contain")
            elif found is not None:
                image = found
            elif k in targets:
                image = f"only {k} frames can be decoded"
            if k >= first:
                yield partial(self._frame, k, targets, image, sides)

    def sides(self, frame: int) -> Sides:
        """Height and width of a target: those of its map, which must be those of the frame."""
        return _sides(self.maps[frame])

    def called(self, frame: int) -> str:
        """Name of a frame: its number in the names of maps."""
        return str(frame + self.first)

    def _decoded(self) -> Iterator[NDArray[np.uint8]]:
        """Frames uint8 [H, W, 3], upright."""
        size = None
        with _opened(self.file) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                size = size or picture.shape
                if picture.shape != size:
                    raise NotReadable(f"{_size(picture.shape)} pixels, but the first frame has {_size(size)}")
                yield np.ascontiguousarray(picture)

    def _frame(self, k: int, targets: Indices, image: Picture | str, sides: Sides) -> Framed:
        if isinstance(image, str):
            raise NotReadable(image)
        return Framed(image, self.map_of(k, targets, sides))


@contextmanager
def _opened(path: str) -> Iterator[InputContainer]:
    """A video file.

    Raises:
        KtError: the file is a Git LFS pointer, or PyAV is not installed.
        NotReadable: there is no video in it.
    """
    try:
        import av
    except ImportError as error:
        text = "needs the package `av`; install it, or give the frames as images"
        raise KtError(f"data.source: {shown(path)}: {text}") from error
    if store.is_pointer(Path(path)):
        store.refuse("data.source", Path(shown(path)))
    with av.open(path) as container:
        if not container.streams.video:
            raise NotReadable("no video in it")
        yield container


def map_in(path: str, sides: Sides) -> NDArray[np.uint8]:
    """The map in an image file, uint8 [H, W]; values of more than eight bits are divided by the largest of them.

    Raises:
        KtError: the file is a Git LFS pointer.
        NotReadable: it is no grey image of these sides, or has values that are no densities.
    """
    picture = _read("its map", path, _grey)
    if picture.shape != sides:
        raise NotReadable(f"its map has {_size(picture.shape)} pixels, the frame {_size(sides)}")
    if picture.dtype == np.uint8:
        return picture
    values = picture.astype(np.float64)
    most = values.max(initial=0)
    if not (np.isfinite(values).all() and values.min(initial=0) >= 0):
        raise NotReadable("its map has values below 0, or such that are no numbers")
    return np.rint(values * (255 / most if most > 0 else 0)).astype(np.uint8)


def points_in(path: str, sides: Sides) -> Indices:
    """The pixels of a file of fixations that are not 0, y and x, int64 [n, 2].

    Raises:
        KtError: the file is a Git LFS pointer.
        NotReadable: it is no image or MATLAB file of fixations in a frame of these sides.
    """
    marked = _read("its fixations", path, partial(_matrix, sides=sides) if is_matlab(path) else _marks)
    if marked.shape != sides:
        raise NotReadable(f"its fixations are on {_size(marked.shape)} pixels, the frame has {_size(sides)}")
    points = np.argwhere(marked > 0)
    if len(points) > MOST_LOOKED * marked.size:
        raise NotReadable(f"its fixations are {len(points):,} of {marked.size:,} pixels; is the file a map?")
    return points


def is_matlab(path: str) -> bool:
    """Whether a file has the ending of MATLAB's."""
    return path.lower().endswith(".mat")


def _read(what: str, path: str, read: Callable[[str], Array]) -> Array:
    """What a function reads from a file; its errors name ``what``."""
    found = attempt(partial(read, path))
    if isinstance(found, str):
        raise NotReadable(f"{what}: {found}")
    return found


def _grey(path: str) -> Array:
    """Values of a grey image, [H, W]."""
    picture = open_picture(path)
    picture.load()
    if picture.mode in ("L", "I", "F") or picture.mode.startswith("I;16"):
        if picture.mode != "L" and getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:
            raise NotReadable("a TIFF file with white as zero, which Pillow does not invert; save maps as PNG")
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB")).astype(np.int16)
    if np.ptp(colours, 2).max(initial=0) >= COLOURED:
        raise NotReadable("colours, not a grey map of densities")
    return colours[..., 0].astype(np.uint8)


def _marks(path: str) -> Array:
    """Largest colour of each pixel, [H, W]."""
    picture = open_picture(path)
    picture.load()
    if picture.format in ("JPEG", "JPEG2000", "MPO"):
        raise NotReadable("a JPEG file, which has other pixels than were saved; save fixations as PNG")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    largest: Array = np.asarray(picture.convert("RGB")).max(2)
    return largest


def _matrix(path: str, sides: Sides) -> Array:
    """The one array of these sides in a MATLAB file, dense or sparse."""
    from scipy.io import loadmat
    from scipy.sparse import issparse

    if store.is_pointer(Path(path)):
        store.refuse("data.source", Path(shown(path)))
    try:
        held = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError as error:
        raise NotReadable("a MATLAB file of version 7.3; save it with -v7") from error
    fitting = [value for value in held.values() if getattr(value, "shape", ()) == sides and value.dtype.kind in "biuf"]
    if len(fitting) != 1:
        names = listed(f"{name} {list(getattr(value, 'shape', ()))}" for name, value in held.items())
        raise NotReadable(
            f"needs one array of numbers [{sides[0]}, {sides[1]}], as the frame has pixels; it holds: {names}"
        )
    return np.asarray(fitting[0].toarray() if issparse(fitting[0]) else fitting[0])


def _sides(path: str) -> Sides:
    """Height and width of an image file."""
    return _upright_sides(open_picture(path))


def _upright_sides(picture: Image.Image) -> Sides:
    """Height and width of an image, upright."""
    raw = picture.height, picture.width
    return raw[::-1] if turn_of(picture) in SIDEWAYS else raw


def _size(sides: Sequence[int]) -> str:
    return f"{sides[0]}×{sides[1]}"
