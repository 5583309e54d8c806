"""Splits by image id, none shared by zoo, transfer, validation and test; and copies of one picture in two splits."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kt.data.listing import DEFAULT_PART, composed
from kt.data.spec import SPLITS, SplitSizes, Take
from kt.errors import KtError, listed, nearest

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]


def check_parts(sizes: SplitSizes, have: Sequence[str]) -> None:
    """Fail where a split draws from a part that is not among those that the data set has."""
    for split, take in sizes.takes().items():
        if take.part is not None and take.part not in have:
            what = f"unknown part {take.part!r}; allowed: {listed(have)}{nearest(take.part, have)}"
            raise KtError(f"data.splits.{split}.part: {what if have else 'the data set has no official parts'}")


def pools(sizes: SplitSizes, default: str | None) -> dict[str | None, dict[str, Take]]:
    """The splits that draw from each part, or from all images where ``default`` is None; not those listed in files."""
    found: dict[str | None, dict[str, Take]] = {}
    for split, take in sizes.takes().items():
        if not take.file:
            part = take.folder or (None if default is None else take.part or default)
            found.setdefault(part, {})[split] = take
    return found


def split_counts(takes: Mapping[str, Take], images: int, part: str | None, what: str = "images") -> dict[str, int]:
    """Images of each split that draws from a part.

    Args:
        takes: what each of them takes.
        images: number of images of the part.
        part: its name.
        what: is counted.

    Raises:
        KtError: the splits request more images than there are.
    """
    of_part = f" of the part {part!r}" if part else ""
    wanted = {split: round(take.share * images) if take.share else take.images for split, take in takes.items()}
    greedy = [split for split, asked in wanted.items() if asked is None]
    if len(greedy) > 1:
        raise KtError(f"data.splits: {' and '.join(greedy)} both take the rest{of_part}; give one a number or a share")
    total = sum(asked or 0 for asked in wanted.values())
    if total > images or (greedy and total == images):
        asked = " + ".join(f"{split} {'the rest' if n is None else n}" for split, n in wanted.items())
        raise KtError(f"data.splits: {total} {what} asked for ({asked}), but the data set has {images}{of_part}")
    return {split: images - total if asked is None else asked for split, asked in wanted.items()}


log = logging.getLogger(__name__)


def assign(
    labels: NDArray[np.int64],
    sizes: SplitSizes,
    seed: int,
    parts: NDArray[np.str_] | None = None,
    names: Sequence[str] | None = None,
    default: str = DEFAULT_PART,
    what: str = "images",
) -> pd.DataFrame:
    """Give every split its images; images that no split takes are left out.

    Splits that list their images in a file come first. What is left of an official part (of the whole data set where
    it has none) is shuffled and cut into the splits that draw from it, in the order of ``SPLITS``, each stratified by
    class: a class's shuffled images are spread evenly over the whole order, so every cut of it holds all classes in
    proportion, up to rounding. A split that takes all the rest of its part gets what the others leave.

    Args:
        labels: classes, int64 [N]; −1 for images that are not to be used, but by a split that takes their folder.
        sizes: what each split takes.
        seed: seed of the shuffle.
        parts: official part of each image.
        names: the images' names; by default their positions.
        default: the part that splits draw from unless they name another.
        what: is split.

    Returns:
        The table ``splits`` as a data frame; ``row`` and ``image_id`` are positions in the source.

    Raises:
        KtError: the splits request more images than there are, or an image twice.
    """
    import pandas as pd

    check_parts(sizes, [] if parts is None else np.unique(parts).tolist())
    taken: dict[str, Rows] = {}
    free = labels >= 0
    for take in sizes.takes().values():
        if take.folder and parts is not None:
            free |= parts == take.folder
    for split, take in sizes.takes().items():
        if take.file:
            taken[split] = _listed_in_file(take.file, f"data.splits.{split}.file", names, labels, free, what)
            free[taken[split]] = False
    for part, takes in pools(sizes, None if parts is None else default).items():
        rows = np.flatnonzero(free if part is None else free & (parts == part))
        taken |= _cut(rows, labels, takes, seed, part, what)
    rows = np.concatenate([taken[split] for split in SPLITS])
    return pd.DataFrame(
        {
            "image_id": rows,
            "row": rows,
            "name": [names[row] if names is not None else str(row) for row in rows.tolist()],
            "label": labels[rows],
            "split": np.repeat(SPLITS, [len(taken[split]) for split in SPLITS]),
        }
    )


def counts(splits: pd.DataFrame, what: str = "image") -> dict[str, int]:
    """Images of each split, or what else is counted.

    Raises:
        KtError: a split that needs images has none.
    """
    found = {split: int((splits["split"] == split).sum()) for split in SPLITS}
    for split in SPLITS[1:]:
        if not found[split]:
            raise KtError(f"data.splits.{split}: no {what} is left for it")
    return found


def spread(labels: NDArray[np.int64], generator: np.random.Generator) -> Rows:
    """A random order of images, int64 [n], in which every stretch holds all classes in proportion."""
    place = np.empty(len(labels))
    for c in np.unique(labels):
        of_class = generator.permutation(np.flatnonzero(labels == c))
        place[of_class] = (np.arange(len(of_class)) + generator.random(len(of_class))) / len(of_class)
    return np.argsort(place, kind="stable")


def _cut(
    rows: Rows, labels: NDArray[np.int64], takes: Mapping[str, Take], seed: int, part: str | None, what: str
) -> dict[str, Rows]:
    """The rows of one part, cut into the splits that draw from it."""
    order = rows[spread(labels[rows], np.random.default_rng(seed))]
    sizes = split_counts(takes, len(rows), part, what)
    return dict(zip(sizes, np.split(order, np.cumsum(list(sizes.values())))[:-1], strict=True))


def _listed_in_file(
    file: str, at: str, names: Sequence[str] | None, labels: NDArray[np.int64], free: NDArray[np.bool_], what: str
) -> Rows:
    """The positions of the images that a text file lists, in its order."""
    try:
        lines = re.split(r"\r\n|\r|\n", Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise KtError(f"{at}: {file}: cannot be read ({error})") from error
    known = {name: row for row, name in enumerate(names if names is not None else map(str, range(len(labels))))}
    by_letters = {composed(name): name for name in known if not name.isascii()}
    wanted = [_as_known(line, known, by_letters) for line in lines if line.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        close = nearest(unknown[0], known) if len(known) <= 10_000 else ""
        raise KtError(f"{at}: {len(unknown)} of its {what} are not in the data set: {listed(unknown)}{close}")
    rows = np.array([known[name] for name in wanted], np.int64)
    if len(rows) == 0:
        raise KtError(f"{at}: {file} lists no {what.removesuffix('s')}")
    if len(np.unique(rows)) < len(rows) or not free[rows].all():
        again = next(name for i, name in enumerate(wanted) if not free[rows[i]] or rows[i] in rows[:i])
        also = ", or its class is not taken" if (labels < 0).any() else ""
        raise KtError(f"{at}: the {what.removesuffix('s')} {again!r} is listed twice{also}")
    return rows


def _as_known(line: str, known: Mapping[str, int], by_letters: Mapping[str, str]) -> str:
    """A line as the data set writes this name; the line may have spaces around it, and accents of two characters."""
    name = line if line in known else line.strip()
    return name if name in known else by_letters.get(composed(name), name)


def warn_repeated(splits: pd.DataFrame, digests: NDArray[np.uint64]) -> dict[str, int]:
    """Warn of pictures that are in two splits, or under two classes.

    Two images are the same where their stored pixels are, so that no model can distinguish them, whatever their files,
    names, formats or metadata. Copies that were compressed again are not found.

    Args:
        splits: the table ``splits``, ``row`` counting in ``digests``.
        digests: a hash of each image's stored pixels, uint64 [n].

    Returns:
        Numbers of images: in another split, too (``splits``), and under another class, too (``classes``).
    """
    frame = splits.assign(digest=digests[splits["row"].to_numpy()])
    frame = frame[frame.duplicated("digest", keep=False)]
    by_content = frame.groupby("digest")
    labelled = frame[frame["label"] >= 0].groupby("digest")["label"].nunique()
    found = {
        "splits": frame[frame["digest"].map(by_content["split"].nunique()) > 1],
        "classes": frame[frame["digest"].map(labelled).fillna(0) > 1],
    }
    for what, same in found.items():
        if len(same):
            groups = same.sort_values(["digest", "row"]).groupby("digest", sort=False)["name"].head(4)
            names = groups.groupby(same["digest"]).agg(lambda alike: " = ".join(alike[:3]) + " = …" * (len(alike) > 3))
            between = "in two splits" if what == "splits" else "under two classes"
            log.warning("data: %d images are %s, pixel by pixel the same: %s", len(same), between, listed(names))
    return {what: len(same) for what, same in found.items()}
