"""The best candidate of every searched method, by its mean transfer delta on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kt.errors import KtError
from kt.tables import schema
from kt.transfer.method import Method

UNIT = ["student", "teacher"]


def summarise(trials: pd.DataFrame, candidates: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The table ``search``: a row a candidate, with the chosen one of every method marked.

    A pair's delta is averaged over its seeds first. The best mean wins, and the first in the order of the grid among
    equals; a candidate with a failed training cannot win.

    Args:
        trials: the table ``trials``.
        candidates: of every method, as texts, in the order of its grid.

    Raises:
        KtError: every candidate of a method has failed somewhere, or one has no row.
    """
    rows = []
    for method, texts in candidates.items():
        mine = trials[trials["method"] == method].fillna({"teacher": ""})
        by_pair = {text: _by_pair(mine[mine["parameters"] == text]) for text in texts}
        failed = {text: int((mine[mine["parameters"] == text]["status"] != "ok").sum()) for text in texts}
        if missing := [text for text in texts if text not in set(mine["parameters"])]:
            raise KtError(f"table trials: no row of {method} with {missing[0]}; `kt search` makes it")
        whole = [text for text in texts if not failed[text]]
        if not whole:
            reason = mine.loc[mine["status"] != "ok", "reason"].iloc[0]
            raise KtError(f"transfer.search.methods.{method}: every candidate failed; the first: {reason}")
        best = max(whole, key=lambda text: round(by_pair[text].mean(), 9))  # rounding errors win nothing
        for text in texts:
            behind = by_pair[text] - by_pair[best]
            rows.append(
                {
                    "method": method,
                    "parameters": text,
                    "pairs": len(by_pair[text]),
                    "trainings": int((mine["parameters"] == text).sum()),
                    "failed": failed[text],
                    "delta": by_pair[text].mean(),
                    "delta_se": by_pair[text].sem(),
                    "difference": behind.mean(),
                    "difference_se": behind.sem(),
                    "chosen": text == best,
                }
            )
    return pd.DataFrame(rows).astype(object).where(lambda table: table.notna(), None)


def _by_pair(trials: pd.DataFrame) -> pd.Series[float]:
    """Delta of every pair, averaged over the seeds that finished."""
    finished = trials[trials["status"] == "ok"]
    means: pd.Series[float] = finished.groupby(UNIT)["delta"].mean()
    return means


def resolve(
    methods: Mapping[str, Method], candidates: Mapping[str, Mapping[str, Method]], table: Path
) -> dict[str, Method]:
    """The methods with the parameters that the search chose.

    Args:
        methods: as the configuration has them, by name.
        candidates: of every searched method, by their values as text.
        table: the table ``search``.

    Raises:
        KtError: the search has not been done, or not with these candidates.
    """
    if not candidates:
        return dict(methods)
    chosen = {row["method"]: row["parameters"] for row in read(table) if row["chosen"]}
    for name, found in candidates.items():
        if chosen.get(name) not in found:
            raise KtError(f"{table}: the search of transfer.search.methods.{name} is not done; `kt choose` ends it")
    return {name: candidates[name][chosen[name]] if name in candidates else m for name, m in methods.items()}


def read(table: Path) -> list[dict[str, Any]]:
    """Rows of the table ``search``."""
    rows: list[dict[str, Any]] = schema.read(table, "search").to_pylist()
    return rows
