"""Numbers of images that splits take from the official parts, which are known before the images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kt.data.spec import SplitSizes, Take
from kt.errors import KtError, listed, nearest


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


def counts(takes: Mapping[str, Take], images: int, part: str | None) -> dict[str, int]:
    """Images of each split that draws from a part.

    Args:
        takes: what each of them takes.
        images: number of images of the part.
        part: its name.

    Raises:
        KtError: the splits ask for more images than there are.
    """
    of_part = f" of the part {part!r}" if part else ""
    wanted = {split: round(take.share * images) if take.share else take.images for split, take in takes.items()}
    greedy = [split for split, asked in wanted.items() if asked is None]
    if len(greedy) > 1:
        raise KtError(f"data.splits: {' and '.join(greedy)} both take the rest{of_part}; give one a number or a share")
    total = sum(asked or 0 for asked in wanted.values())
    if total > images or (greedy and total == images):
        asked = " + ".join(f"{split} {'the rest' if n is None else n}" for split, n in wanted.items())
        raise KtError(f"data.splits: {total} images asked for ({asked}), but the data set has {images}{of_part}")
    return {split: images - total if asked is None else asked for split, asked in wanted.items()}
