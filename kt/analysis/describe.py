"""What the tables say: a row a method, differences between methods, and the answer in words. Knows no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kt.analysis import dyadic
from kt.analysis.answer import answer
from kt.analysis.deltas import (
    GROUPS,
    PAIR,
    TINY,
    Comparison,
    beside,
    compare,
    difference,
    group_of,
    pair_deltas,
    with_scores,
)
from kt.tables.schema import arrow_schema

SELF = "self"
"""The control that has no teacher and no labels."""

__all__ = ["Comparison", "answer", "compare", "pair_deltas", "summarise"]


def summarise(transfers: pd.DataFrame, complementarity: pd.DataFrame, equal_within: float) -> pd.DataFrame:
    """The table ``methods``: a row a method and group of pairs: the best mean delta first, controls last.

    A pair's delta is averaged over its finished seeds first. A control is one training a student and seed, repeated
    for each of the student's pairs: ``delta_se`` allows for that, because those pairs share the student.
    ``delta_se_iid`` does not.

    Args:
        transfers: the table ``transfers``.
        complementarity: the table ``complementarity``; its test split decides who is weaker.
        equal_within: percentage points; a teacher this close to its student counts as equal.

    Returns:
        The columns of ``methods`` in ``kt/tables/of_study.py``, parameters unknown; groups without a finished pair are
        left out. Errors are infinite where a group holds one pair.
    """
    pairs = pair_deltas(transfers, complementarity)
    pairs["group"] = group_of(pairs["acc_difference"], equal_within)
    failed = with_scores(transfers[transfers["status"] != "ok"], complementarity)
    failed["group"] = group_of(failed["acc_difference"], equal_within)
    means = pairs.groupby("method", as_index=False).agg(control=("control", "first"), delta=("delta", "mean"))
    names = means.sort_values(["control", "delta", "method"], ascending=[True, False, True])["method"].tolist()
    rows = []
    for method in names:
        taught = beside(transfers, method, SELF, "taught_errors")
        for group in GROUPS:
            if len(of_group := _in_group(pairs[pairs["method"] == method], group)):
                left_out = _in_group(failed[failed["method"] == method], group)["key"].nunique()
                rows.append(_row(method, group, of_group, left_out) | _beyond(taught, of_group))
    table = pd.DataFrame(rows, columns=arrow_schema("methods").names).assign(parameters=None)
    return table.astype({"control": bool, "uses_labels": bool, "trains": bool})  # also where there is no row


def _in_group(rows: pd.DataFrame, group: str) -> pd.DataFrame:
    return rows if group == "all" else rows[rows["group"] == group]


def _beyond(taught: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, float | None]:
    """How many errors were taught beyond those that the control `self` has by itself, over some pairs."""
    found = difference(taught.merge(pairs[PAIR], on=PAIR), "taught_errors")
    known = {"taught_errors_beyond": found.mean, "taught_errors_beyond_se": found.se}
    return {name: value if found.n else None for name, value in known.items()}


def _row(method: str, group: str, pairs: pd.DataFrame, failed: int) -> dict[str, Any]:
    delta = pairs["delta"].to_numpy(np.float64)
    mean, error = dyadic.mean(delta, pairs["teacher"].tolist(), pairs["student"].tolist())
    return {
        "method": method,
        "control": bool(pairs["control"].iloc[0]),
        "uses_labels": bool(pairs["uses_labels"].iloc[0]),
        "trains": bool(pairs["trains"].iloc[0]),
        "group": group,
        "pairs": len(pairs),
        "students": pairs["student"].nunique(),
        "seeds": int(pairs["seeds"].max()),
        "failed": failed,
        "delta": mean,
        "delta_se": error,
        "delta_se_iid": dyadic.ordinary(delta),
        "median": float(np.median(delta)),
        "worst": float(delta.min()),
        "success": 100 * float((delta > TINY).mean()),
        "transfer_rate": pairs["transfer_rate"].mean(),
        "transfer_rate_published": pairs["transfer_rate_published"].mean(),
        "taught_errors": pairs["taught_errors"].mean(),
    }
