"""Folders of videos: layouts, official parts, and which map belongs to which frame."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kt.data.classes import chosen_parts
from kt.data.listing import DEFAULT_PART, composed, file_names, ordered, shown
from kt.data.spec import DataSpec
from kt.data.video_files import FileVideo, FramesVideo
from kt.data.videos import Video, VideoListing, listing_of
from kt.data.walk import endings, entries, is_folder, is_hidden, subfolders
from kt.errors import KtError, listed

FRAMES, MAPS, FIXATIONS = ("frames", "images"), ("maps", "map"), ("fixations", "fixation")
"""Folders of a video, in any case; of several the first one is read."""

NOTES = ("annotation", "annotations")
"""Folders that hold the maps and fixations of all videos apart from their frames, as in DHF1K."""

APART = ("frames", "images", "video", "videos")
"""Folders of videos whose maps lie apart; of several the first one is read."""

FILMS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"])
"""Endings of video files, in lower case."""

MATLAB = frozenset([".mat"])

DHF1K = {"train": range(1, 601), "val": range(601, 701)}
"""Numbers of the videos of its official parts that have maps. Source: Wang et al. 2018, CVPR."""


@dataclass(frozen=True)
class _Found:
    """The files of one video, complete paths in natural order.

    Attributes:
        name: its path below the source.
        frames: of a folder of frames; one video file; or nothing.
        maps, fixations: images, or MATLAB files.
    """

    name: str
    frames: Sequence[str]
    maps: Sequence[str]
    fixations: Sequence[str]

    @property
    def is_file(self) -> bool:
        """Whether the frames are those of a video file."""
        return len(self.frames) == 1 and _ending(self.frames[0]) in FILMS


def video_folder(spec: DataSpec) -> VideoListing:
    """A folder of videos with their maps and fixations, with or without official parts.

    Raises:
        KtError: no video has a map; a folder is not there or cannot be read; two files have one name; or maps have no
            frame, or no video, and ``spec.damaged`` is `fail`.
    """
    above, default = _parts(spec)
    found = [(part, one) for part, place in above.items() for one in _videos(spec.source, place)]
    first = _first(spec, [one for _, one in found if one.is_file and one.maps])
    videos, part_of, left_out, lone = list[Video](), list[str](), Counter[str](), list[str]()
    for part, one in found:
        maps, alone = _of_frames(one, one.maps, first)
        fixations, strays = _of_frames(one, one.fixations, first)
        left_out += Counter({"maps without a frame": len(alone), "fixations without a frame": len(strays)})
        if alone:
            lone.append(f"{len(alone)} maps without a frame in {shown(one.name)}: {_named(alone)}")
        if maps:
            videos.append(_video(one, maps, fixations, spec, first))
            part_of.append(part)
    at = f"data.source: {shown(spec.source)}"
    if lone and spec.damaged == "fail":
        raise KtError(f"{at}: {'; '.join(lone)}; mend them, or set data.damaged: skip, which leaves them out")
    bare = [shown(one.name) for _, one in found if not one.maps]
    if not videos:
        raise KtError(
            f"{at}: no video has a map of one of its frames{f'; without maps: {listed(bare)}' if bare else ''}"
        )
    if bare:
        left_out["videos without a map"] = len(bare)
        lone.append(f"{len(bare)} videos have no map and are left out: {listed(bare)}")
    file_names([video.name for video in videos])
    _check_twice(at, [one for _, one in found if one.maps and one.frames])
    parts = _by_number(videos, spec) if "" in above else part_of
    return replace(listing_of(videos, parts, None), default=default, left_out=left_out, warnings=lone)


def _check_twice(at: str, found: Sequence[_Found]) -> None:
    """Fail where a link makes two videos of one, which might be in two splits."""
    places = dict[str, str]()
    for one in found:
        place = os.path.realpath(one.frames[0] if one.is_file else os.path.dirname(one.frames[0]))
        if (other := places.setdefault(place, one.name)) != one.name:
            raise KtError(f"{at}: {shown(other)} and {shown(one.name)} are the same video by a link; remove one")


def _first(spec: DataSpec, films: Sequence[_Found]) -> int:
    """Number of the first frame of video files in the names of maps: 0 where all videos have a map 0, else 1.

    Raises:
        KtError: only some of them have one.
    """
    from_0 = [0 in map(_number, film.maps) for film in films]
    if any(from_0) and not all(from_0):
        some, others = (shown(films[from_0.index(which)].name) for which in (True, False))
        text = f"maps of {some} are numbered from 0, those of {others} are not; number the frames of all videos alike"
        raise KtError(f"data.source: {shown(spec.source)}: {text}")
    return 0 if any(from_0) else 1


def _parts(spec: DataSpec) -> tuple[dict[str, str], str]:
    """Folders of videos, below the source, by official part; and the part that splits draw from."""
    inside = subfolders(spec.source)
    if _has_videos(spec.source):
        return {"": ""}, DEFAULT_PART
    above = [name for name in inside if _has_videos(os.path.join(spec.source, name))]
    if not above:
        raise KtError(
            f"data.source: {shown(spec.source)}: needs a folder per video with its {' or '.join(MAPS)}, parts that "
            f"hold such folders, or a folder {NOTES[0]!r} beside one of {listed(APART)}; there are: "
            f"{listed(map(shown, inside)) or 'no folders'}"
        )
    parts, default = chosen_parts(spec, above)
    return {part: part for part in parts}, default


def _has_videos(place: str) -> bool:
    """Whether videos lie in a folder, or their maps apart from them."""
    return _have_maps(place) or _notes(place) is not None


def _have_maps(place: str) -> bool:
    """Whether a folder in ``place`` has a folder of maps."""
    return any(_child(os.path.join(place, name), MAPS) for name in subfolders(place))


def _notes(place: str) -> str | None:
    """The folder in ``place`` that holds the maps of videos which lie apart; None where there is none."""
    notes = _child(place, NOTES)
    return notes if notes and _have_maps(notes) else None


def _child(place: str, names: Sequence[str]) -> str | None:
    """Path of the folder in ``place`` that has the first of some names, in any case; None where there is none."""
    there = {name.casefold(): name for name in subfolders(place)}
    return next((os.path.join(place, there[name]) for name in names if name in there), None)


def _videos(root: str, place: str) -> Iterator[_Found]:
    """The videos in a folder below the source."""
    base, prefix = os.path.join(root, place), f"{place}/" if place else ""
    notes = _notes(base)
    if notes is None:
        films = _keyed(_files(base, FILMS), _stem)
        for name in subfolders(base):
            folder, beside = os.path.join(base, name), films.pop(composed(name), None)
            yield from _found(prefix + name, _own_frames(folder) or ([beside] if beside else []), folder)
        yield from (_Found(f"{prefix}{name}", [path], [], []) for name, path in films.items())
        return
    apart = next((path for name in APART if (path := _child(base, [name])) and any(entries(path))), None)
    held = _held(apart) if apart else {}
    for name in subfolders(notes):
        yield from _found(prefix + name, held.pop(_id(name), []), os.path.join(notes, name))
    yield from (_Found(f"{prefix}{name}", frames, [], []) for name, frames in held.items() if frames)


def _held(place: str) -> dict[str | int, list[str]]:
    """Frames, or the video file, of each video in a folder, by the video's name or number."""
    folders = [os.path.join(place, name) for name in subfolders(place)]
    found = _keyed([*_files(place, FILMS), *folders], _id)
    return {name: _frames_at(path) for name, path in found.items() if name is not None}


def _frames_at(path: str) -> list[str]:
    """A video file, or the frames of a video in its folder, or in one inside."""
    return (_own_frames(path) or _files(path, endings())) if os.path.isdir(path) else [path]


def _own_frames(folder: str) -> list[str]:
    """Frames in the folder of a video, or the one video file in it."""
    if frames := _child(folder, FRAMES):
        return _files(frames, endings())
    films = _files(folder, FILMS)
    if len(films) > 1:
        raise KtError(f"data.source: {shown(folder)}: {len(films)} video files: {_named(films)}; keep one")
    return films


def _found(name: str, frames: Sequence[str], notes: str) -> Iterator[_Found]:
    """A video whose maps and fixations lie in ``notes``; nothing where there are neither frames nor maps."""
    folder, looks = _child(notes, MAPS), _child(notes, FIXATIONS)
    maps = _files(folder, endings()) if folder else []
    places = [looks, *filter(None, [_child(looks, MAPS)])] if looks else []
    held = (_files(place, wanted) for wanted in (endings(), MATLAB) for place in places)
    if frames or maps:
        yield _Found(name, frames, maps, next(filter(None, held), []))


def _files(place: str, wanted: Collection[str]) -> list[str]:
    """Complete paths of a folder's files with some endings, in natural order."""
    found = (entry for entry in entries(place) if not (is_hidden(entry.name) or is_folder(entry)))
    return [os.path.join(place, name) for name in ordered(entry.name for entry in found) if _ending(name) in wanted]


def _video(found: _Found, maps: Mapping[int, str], fixations: Mapping[int, str], spec: DataSpec, first: int) -> Video:
    """A video whose maps and fixations are known by frame."""
    name, mapped = shown(found.name), np.array(sorted(maps), np.int64)
    if found.is_file:
        return FileVideo(name, mapped, maps, fixations, found.frames[0], spec, first)
    return FramesVideo(name, mapped, maps, fixations, tuple(found.frames))


def _of_frames(found: _Found, others: Sequence[str], first: int) -> tuple[dict[int, str], list[str]]:
    """Maps, or fixations, by the frame that they belong to, and those that belong to none.

    They belong to the frame of the same name, or to that of the same last number, where this finds more of them. Frames
    of a video file are numbered from ``first``.

    Raises:
        KtError: two files have one name or number, or those of all frames begin with another number than the frames.
    """
    if found.is_file:
        numbered = _keyed(others, _number)
        belongs = {n - first: path for n, path in numbered.items() if isinstance(n, int) and n >= first}
    else:
        alike = {key: len(set(map(key, found.frames)) & set(map(key, others))) for key in (_stem, _number)}
        key = _stem if alike[_stem] >= alike[_number] else _number
        places = {name: k for k, name in enumerate(_keyed(found.frames, key)) if name is not None}
        belongs = {places[name]: path for name, path in _keyed(others, key).items() if name in places}
        if key is _number and others and len(others) == len(found.frames) > len(belongs):
            pair = _named([found.frames[0], others[0]])
            text = "frames and maps begin with different numbers"
            raise KtError(f"data.source: {shown(os.path.dirname(others[0]))}: {text}: {pair}; give them the same names")
    return belongs, [path for path in others if path not in set(belongs.values())]


def _keyed(paths: Sequence[str], key: Callable[[str], str | int | None]) -> dict[str | int | None, str]:
    """Paths by their name or number.

    Raises:
        KtError: two have the same.
    """
    found = dict[str | int | None, str]()
    for path in paths:
        if (other := found.setdefault(key(path), path)) != path and key(path) is not None:
            what = f"two of one {'name' if key is _stem else 'number'}"
            raise KtError(f"data.source: {shown(os.path.dirname(path))}: {what}: {_named([other, path])}; keep one")
    return found


def _named(paths: Sequence[str]) -> str:
    """Names of files, of many the first ones."""
    return listed(shown(os.path.basename(path)) for path in paths)


def _by_number(videos: Sequence[Video], spec: DataSpec) -> list[str] | None:
    """Official parts of DHF1K's videos, which are numbers, where a split names a part; None of other videos."""
    numbers = [_id(video.name) for video in videos]
    if not any(take.part for take in spec.splits.takes().values()) or any(isinstance(n, str) for n in numbers):
        return None
    return [next((part for part, numbers in DHF1K.items() if number in numbers), "test") for number in numbers]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    """A file's name without its ending."""
    return composed(os.path.splitext(os.path.basename(path))[0])


def _number(path: str) -> int | None:
    """The last number in a file's name; None where there is none."""
    digits = re.findall(r"[0-9]+", _stem(path))
    return int(digits[-1]) if digits else None


def _id(path: str) -> str | int:
    """A video's name, or the number that it is: the video 001.AVI has the maps of 0001."""
    name = _stem(path) if _ending(path) in FILMS else composed(os.path.basename(path))
    return int(name) if re.fullmatch("[0-9]+", name) else name
