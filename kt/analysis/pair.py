"""One pair: every method's measured delta beside that of its control, from the table ``transfers`` alone."""

from __future__ import annotations

import math

import pandas as pd

from kt.analysis import dyadic
from kt.analysis.deltas import beside, gains, over_seeds

COLUMNS = ("method", "control", "uses_labels", "seeds", "failed", "n", "delta", "delta_se", "transfer_rate")
BESIDE = ("against", "beyond", "beyond_se", "common_seeds")


def measured(transfers: pd.DataFrame, teacher: str, student: str) -> pd.DataFrame:
    """Deltas of one pair by every method that was tried on it, the largest first, controls last.

    A method stands beside the control that it must beat (``kt.analysis.deltas.gains``), trained with the same seeds.

    Args:
        transfers: the table ``transfers``.
        teacher: a model.
        student: another one.

    Returns:
        Columns ``method``, ``control``, ``uses_labels``, ``seeds`` (finished ones), ``failed``, ``n`` (test examples),
        ``delta``, ``delta_se`` (means over seeds; the error is that over test examples), ``transfer_rate``,
        ``against`` (the control; None where there is none), ``beyond`` (mean difference to it over common seeds),
        ``beyond_se`` (its ordinary standard error over these seeds; NaN for one), ``common_seeds``. Unknown numbers
        are NaN.
    """
    mine = transfers[(transfers["teacher"] == teacher) & (transfers["student"] == student)]
    finished = mine[(mine["status"] == "ok") & mine["delta"].notna()]
    failed = mine[mine["status"] != "ok"].groupby("method").size()
    if mine.empty:
        return pd.DataFrame(columns=[*COLUMNS, *BESIDE])
    rows = over_seeds(finished, uses_labels=("uses_labels", "first"), n=("n", "first")).set_index("method")
    rows = rows.reindex(rows.index.union(failed.index))
    known = mine.groupby("method").agg(control=("control", "first"), uses_labels=("uses_labels", "first"))
    rows = rows.assign(**known.reindex(rows.index), failed=failed.reindex(rows.index).fillna(0).astype(int))
    rows["seeds"] = rows["seeds"].fillna(0).astype(int)
    against = {gain.method: gain.control for gain in gains(finished, pd.DataFrame(), 0.0)}
    compared = [_beyond(finished, str(method), against.get(str(method))) for method in rows.index]
    rows = rows.assign(**pd.DataFrame(compared, index=rows.index, columns=list(BESIDE))).reset_index(names="method")
    order = ["control", "delta", "method"]
    return rows.sort_values(order, ascending=[True, False, True], ignore_index=True)[[*COLUMNS, *BESIDE]]


def _beyond(finished: pd.DataFrame, method: str, control: str | None) -> tuple[str | None, float, float, int]:
    """The control, the mean paired difference to it, its error over seeds, and the seeds."""
    both = beside(finished, method, control, "delta") if control else finished[:0]
    if both.empty:
        return None, math.nan, math.nan, 0
    difference = (both["delta"] - both["delta_against"]).to_numpy(float)
    error = dyadic.ordinary(difference) if len(difference) > 1 else math.nan
    return control, float(difference.mean()), error, len(difference)
