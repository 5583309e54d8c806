"""The ledger: every finished unit of work under the hash of all that determines its result.

A record is one JSON file, ``<folder>/<first two digits>/<key>.json``: what was done (``unit``), what came of it
(``outcome``) and the hash of both. Records are written atomically and never changed; one whose hash does not fit is
set aside under ``<folder>/damaged`` and computed again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt import store

log = logging.getLogger(__name__)

Record = dict[str, Any]


def key(unit: Record) -> str:
    """The key of a unit of work: the hash of its description."""
    return store.digest(unit)


def pack(kept: NDArray[Any]) -> str:
    """Compressed text for a record, from what was kept of the answers to n examples, [n, …].

    Whole numbers are kept in 16 bits where they fit, else in 64, real ones as they are. All but the first of these, in
    one dimension, have dtype and shape in front of the text.
    """
    if kept.dtype.kind in "iu":
        dtype = "<u2" if not kept.size or (kept.min() >= 0 and kept.max() < 1 << 16) else "<i8"
    else:
        dtype = "<f4" if kept.dtype.itemsize <= 4 else "<f8"
    text = base64.b64encode(zlib.compress(np.ascontiguousarray(kept, dtype).tobytes(), 9)).decode()
    plain = dtype == "<u2" and kept.ndim == 1
    return text if plain else f"{dtype}:{'x'.join(map(str, kept.shape))}:{text}"


def unpack(text: str) -> NDArray[Any]:
    """Inverse of ``pack``, int64 or float64 [n, …]."""
    *described, text = text.split(":")
    dtype, shape = described or ("<u2", "-1")
    array = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
    return array.reshape([int(side) for side in shape.split("x")]).astype(np.float64 if "f" in dtype else np.int64)


class Ledger:
    """The records in a folder, made on the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the record of a key lies, whether it exists or not."""
        return self.folder / key[:2] / f"{key}.json"

    def add(self, unit: Record, outcome: Record) -> None:
        """Write the record of a unit."""
        text = json.dumps({"unit": unit, "outcome": outcome, "hash": store.digest([unit, outcome])}, sort_keys=True)
        store.write_text(self.path(key(unit)), text + "\n")

    def get(self, key: str) -> Record | None:
        """The outcome under a key, or None where there is none; a damaged record is set aside and counts as none."""
        try:
            return self.read(key)[1]
        except FileNotFoundError:
            return None
        except ValueError:
            self.set_aside(key)
            return None

    def remove(self, key: str) -> None:
        """Forget a record."""
        self.path(key).unlink(missing_ok=True)

    def set_aside(self, key: str) -> None:
        """Move a damaged record out of the way, and say so."""
        target = self.folder / "damaged" / self.path(key).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another job may have met the same record
            self.path(key).replace(target)
        log.warning("ledger: record %s is damaged; set aside as %s and computed again", key[:12], target)

    def read(self, key: str) -> tuple[Record, Record]:
        """A record's unit and outcome.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        record = json.loads(self.path(key).read_bytes())
        try:
            unit, outcome, content = record["unit"], record["outcome"], record["hash"]
        except (KeyError, TypeError) as error:
            raise ValueError("not a record") from error
        if content != store.digest([unit, outcome]) or store.digest(unit) != key:
            raise ValueError("content and hash differ")
        return unit, outcome
