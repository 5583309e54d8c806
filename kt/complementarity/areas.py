"""How positive flips spread over the classes: entropy and areas of expertise, of many pairs at once. Source: FG 3.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kt.complementarity.bits import Counts
from kt.tables.of_study import SHARES


def class_entropy(flips: Counts) -> NDArray[np.float64]:
    """Shannon entropy in nats of the distribution of flips over classes, [P] from counts [P, C]; NaN without flips."""
    values = np.arange(int(flips.max(initial=0)) + 1)
    times_log = values * np.log(np.maximum(values, 1))  # counts are small integers: look x ln x up
    total = flips.sum(-1, dtype=np.int64).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = np.log(total) - np.take(times_log, flips, mode="clip").sum(-1) / total
    return np.where(total > 0, np.maximum(entropy, 0), np.nan)


@dataclass(frozen=True)
class Areas:
    """Areas of expertise of P pairs: the fewest classes that hold 2, 5, 20 and 50 % of the positive flips.

    Classes are sorted by flips, ties by class number, so that every area begins with the smaller ones.

    Attributes:
        keys: flips and class number of every class in one integer, [P, C].
        ranked: the same, most flips first.
        bits: width of the class number in a key.
        sizes: number of classes in each area, int64 [P, 4]; 0 where a pair has no flips.

    Source: FG section 3.2; the published code returns one class more.
    """

    keys: NDArray[np.unsignedinteger]
    ranked: NDArray[np.unsignedinteger]
    bits: int
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, flips: Counts) -> Areas:
        """From flips per class, [P, C]."""
        classes = flips.shape[1]
        bits = (classes - 1).bit_length()
        dtype: np.dtype[np.unsignedinteger] = np.min_scalar_type((int(flips.max(initial=0)) + 1 << bits) - 1)
        keys = (flips.astype(dtype) << dtype.type(bits)) | np.arange(classes - 1, -1, -1, dtype=dtype)
        ranked = np.sort(keys, axis=-1)[:, ::-1]  # small integers sort an order of magnitude faster than argsort
        held = np.cumsum(ranked >> dtype.type(bits), axis=-1, dtype=np.uint32 if dtype.itemsize < 8 else np.uint64)
        total = held[:, -1:].astype(np.int64)
        needed = [-(-share * total // 100) for share in SHARES]
        below = [np.count_nonzero(held < need.astype(held.dtype), axis=-1) for need in needed]
        sizes = np.where(total > 0, np.stack(below, axis=1) + 1, 0)
        return cls(keys, ranked, bits, sizes)

    def members(self, area: int) -> NDArray[np.bool_]:
        """Which classes are in the area of ``SHARES[area]``, bool [P, C]."""
        size = self.sizes[:, area]
        last = self.ranked[np.arange(len(size)), np.maximum(size - 1, 0)]
        members: NDArray[np.bool_] = (self.keys >= last[:, None]) & (size > 0)[:, None]
        return members

    def classes(self) -> NDArray[np.int32]:
        """Classes of the largest area, most flips first, of one pair after the other."""
        classes = self.ranked.shape[1]
        kept = self.ranked[np.arange(classes) < self.sizes[:, -1:]]
        numbers: NDArray[np.int32] = classes - 1 - (kept & kept.dtype.type((1 << self.bits) - 1)).astype(np.int32)
        return numbers
