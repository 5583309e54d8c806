"""Images below folders: each folder once, no hidden and no system folders, and a count of skipped files; and one image.

Images are recognised by their ending or content, and opened by their content.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from kt import store
from kt.data.listing import ordered, shown
from kt.errors import KtError

FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "HEIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TIFF",
    "WEBP",
)
"""Pillow's formats of pictures that it recognises by their first bytes; HEIF needs a plugin of Pillow."""

SYSTEM = frozenset(
    [
        "__macosx",
        "__pycache__",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "lost.dir",
        "network trash folder",
        "temporary items",
    ]
)
"""Folders that operating systems and network drives put beside files, in lower case."""


@cache
def formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow reads, with its plugin for HEIF where that is installed."""
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """Endings of image files, in lower case with their dot."""
    known = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


class NotReadable(Exception):
    """A file is no readable image, or the meaning of its pixels is unknown; the message gives the reason."""


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


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or put there by a system."""
    return name.startswith(".") or name.casefold() in SYSTEM


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in a folder that are neither hidden nor a system's nor lead back, in natural order.

    Raises:
        KtError: the folder cannot be read.
    """
    found = (entry for entry in entries(os.fspath(folder)) if not is_hidden(entry.name) and is_folder(entry))
    return ordered(entry.name for entry in found if not (entry.is_symlink() and leads_back(entry.path)))


def leads_back(link: str) -> bool:
    """Whether a link to a folder points to one that holds the link itself."""
    return is_below(os.path.realpath(os.path.dirname(link)), os.path.realpath(link))


def is_below(place: str, folder: str) -> bool:
    """Whether a path without links is that of a folder, or lies in it."""
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; false where the link leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a locked folder
        return False


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder, in no order.

    Raises:
        KtError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise KtError(f"data: {shown(folder)}: the folder cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Walk:
    """The images below several folders.

    Attributes:
        images: paths of each folder's images, below the folder, in no order.
        left_out: files and folders that are not read, counted by kind.
        same: two of the folders that are the same one, if any.
        folders: paths without links of all folders that are read.
    """

    images: Sequence[list[str]]
    left_out: Counter[str] = field(default_factory=Counter)
    same: tuple[int, int] | None = None
    folders: Collection[str] = ()


def walk(starts: Sequence[str]) -> Walk:
    """Find the images below folders, at any depth, each folder once.

    Links to folders are followed after all real folders, so that the target of a link is read where it lies. A link to
    a folder that holds the link, or to one that is read without it, is left out.

    Raises:
        KtError: a folder cannot be read.
    """
    real = [os.path.realpath(start) for start in starts]
    owner: dict[str, int] = {}
    for i, place in enumerate(real):
        if owner.setdefault(place, i) != i:
            return Walk([[] for _ in starts], same=(owner[place], i))
    search = _Search([[] for _ in starts], owner)
    for i, start in enumerate(starts):
        search.below(i, start, "", real[i])
    while search.links:
        search.follow(*search.links.popleft())
    return Walk(search.images, search.left_out, folders=search.seen.keys())


@dataclass
class _Search:
    images: list[list[str]]
    seen: dict[str, int]
    links: deque[tuple[int, str, str, str]] = field(default_factory=deque)
    left_out: Counter[str] = field(default_factory=Counter)

    def below(self, owner: int, start: str, inside: str, real: str) -> None:
        """Note the images below ``start/inside``, whose path without links is ``real``, and the links to folders."""
        images, left_out, known = self.images[owner], self.left_out, endings()
        waiting, links = [(inside, real)], list[tuple[str, str]]()
        while waiting:
            inside, real = waiting.pop()
            prefix = f"{inside}/" if inside else ""
            for entry in entries(os.path.join(start, inside)):
                name = entry.name
                if entry.is_file(follow_symlinks=False) and name[name.rfind(".") :].lower() in known and name[0] != ".":
                    images.append(prefix + name)  # nearly all are
                elif is_folder(entry):
                    if is_hidden(name):
                        left_out[f"folder {shown(name)}"] += 1
                    elif entry.is_symlink():
                        links.append((prefix + name, real))
                    elif (place := f"{real.rstrip('/')}/{name}") in self.seen:
                        left_out[f"folder read elsewhere: {shown(os.path.join(start, prefix + name))}"] += 1
                    else:
                        self.seen[place] = owner
                        waiting.append((prefix + name, place))
                elif name.startswith("."):
                    left_out["hidden files"] += 1
                else:
                    kind = _kind(entry)
                    if kind is None:
                        images.append(prefix + name)
                    else:
                        left_out[kind] += 1
        self.links += [(owner, start, *link) for link in sorted(links)]

    def follow(self, owner: int, start: str, inside: str, real: str) -> None:
        """Follow a link that lies in ``real``, unless it leads back."""
        target = os.path.realpath(os.path.join(start, inside))
        path = shown(os.path.join(start, inside))
        if is_below(real, target):
            self.left_out[f"link that leads back: {path}"] += 1
        elif target in self.seen:
            self.left_out[f"link to a folder read elsewhere: {path}"] += 1
        else:
            self.seen[target] = owner
            self.below(owner, start, inside, target)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Kind of a file that is no image; None for images, by content or by ending."""
    ending = os.path.splitext(entry.name)[1].lower()
    try:
        if not entry.is_file() and (not entry.is_symlink() or os.path.exists(entry.path)):
            return "neither file nor folder"  # reading a pipe would block for ever
    except OSError:
        pass  # an error is reported when it is decoded
    if ending in endings():
        return None
    return shown(ending) or (None if _is_picture(entry.path) else "files without an ending")


def _is_picture(path: str) -> bool:
    """Whether a file without an ending is an image, or stands for one."""
    try:
        Image.open(path, formats=formats()).close()
    except UnidentifiedImageError:
        return store.is_pointer(Path(path))
    except (PermissionError, Image.DecompressionBombError):
        return True  # it may be one: reported when it is decoded
    except Exception:  # plugins raise anything on files that are no images
        return False
    return True
