"""Pairs of a file, for the rule ``file``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from kt.errors import KtError, listed, nearest, quoted, short, unknown
from kt.pairs.rules import ROLES, Pair
from kt.spec import File

MOST_WRONG = 20
"""Mistakes of one file that are told."""


def rows(path: File) -> list[tuple[str, Pair]]:
    """The rows of a table of pairs, behind their places; what has no value is an empty text.

    Raises:
        KtError: the file is none of the two kinds, cannot be read, or lacks a column.
    """
    import pandas as pd

    at, ending = f"pairs.path: {short(path.written)}", PurePath(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise KtError(f"{at}: allowed: a .csv or .parquet file")
    try:
        if ending == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        else:
            table = pq.read_table(path).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise KtError(f"{at}: not a readable {ending[1:]} file ({short(str(error).split(chr(10))[0])})") from error
    for role in ROLES:
        if role not in table.columns:
            close = nearest(role, map(str, table.columns))
            raise KtError(f"{at}: column {role!r} is missing; there are {listed(map(str, table.columns))}{close}")
    found = table[list(ROLES)].fillna("").astype(str).itertuples(index=False, name=None)
    return [(f"pairs.path: row {i}", (teacher, student)) for i, (teacher, student) in enumerate(found, 1)]


def in_file(path: File, names: Sequence[str]) -> set[Pair]:
    """The pairs of a file; raises ``KtError`` with a line for each row that is none, or where there is no row."""
    known, found, wrong = set(names), dict[Pair, str](), list[str]()
    for at, pair in rows(path):
        lines = [unknown(role, name, names) for role, name in zip(ROLES, pair, strict=True) if name not in known]
        if not lines and pair[0] == pair[1]:
            lines = [f"{quoted(pair[0])} is its own teacher"]
        elif not lines and pair in found:
            lines = [f"the same pair as in {found[pair].removeprefix('pairs.path: ')}"]
        wrong += [f"{at}: {line}" for line in lines]
        found.setdefault(pair, at)
    if wrong:
        more = [f"pairs.path: … and {len(wrong) - MOST_WRONG} mistakes more"] if len(wrong) > MOST_WRONG else []
        raise KtError("\n".join(wrong[:MOST_WRONG] + more))
    if not found:
        raise KtError(f"pairs.path: {short(path.written)}: holds no pair")
    return set(found)
