"""Transfer deltas of pairs: averaged over seeds, grouped by how good the teacher is, and compared between methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kt.analysis import dyadic
from kt.errors import KtError
from kt.tables.schema import arrow_schema

PAIR = ["teacher", "student"]
WITHIN = "equal_within"
"""Key of a file's metadata: a teacher this close to its student, in units of the metric, counted as equal."""

GROUPS = ("all", "weaker", "equal", "stronger")

TINY = 1e-9
"""In units of the metric: a mean over seeds that is zero in exact arithmetic may come out as 1e-17."""


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, for code that goes through a few of them one by one."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def of_pairs(transfers: pd.DataFrame) -> pd.DataFrame:
    """The rows with one teacher; those of groups of teachers are left out."""
    return transfers[transfers["teacher"].notna()].reset_index(drop=True)


def on_test(complementarity: pd.DataFrame) -> pd.DataFrame:
    """The rows measured on the test split, where the table says on which split."""
    if "split" not in complementarity:
        return complementarity
    test = complementarity["split"] == "test"
    return complementarity[test] if test.any() else complementarity


def with_scores(transfers: pd.DataFrame, complementarity: pd.DataFrame) -> pd.DataFrame:
    """Transfer rows with their pair's ``acc_difference`` and ``pos_flips`` beside them.

    Raises:
        KtError: a pair was transferred but not scored, or scored twice.
    """
    scores = on_test(complementarity)[[*PAIR, "acc_difference", "pos_flips"]]
    if scores.duplicated(PAIR).any():
        raise KtError("table complementarity: a pair has several rows for one split")
    merged = transfers.merge(scores, how="left", on=PAIR)
    unscored = merged.loc[merged["acc_difference"].isna(), PAIR]
    if len(unscored):
        teacher, student = unscored.iloc[0]
        raise KtError(f"table complementarity: no row for teacher {teacher!r} and student {student!r}")
    return merged


def pair_deltas(transfers: pd.DataFrame, complementarity: pd.DataFrame) -> pd.DataFrame:
    """One row per method and pair, averaged over the seeds that finished; pairs without any are left out.

    Returns:
        Columns ``method``, ``control``, ``uses_labels``, ``trains``, ``teacher``, ``student``, ``seeds`` (finished
        ones), ``delta``, ``delta_se`` (mean over seeds of the error over test examples), ``transfer_rate``,
        ``transfer_rate_published``, ``taught_errors``, ``acc_difference``, ``pos_flips``.
    """
    finished = with_scores(transfers[transfers["status"] == "ok"], complementarity)
    return over_seeds(
        finished,
        uses_labels=("uses_labels", "first"),
        trains=("trains", "first"),
        transfer_rate_published=("transfer_rate_published", "mean"),
        taught_errors=("taught_errors", "mean"),
        acc_difference=("acc_difference", "first"),
        pos_flips=("pos_flips", "first"),
    )


def over_seeds(finished: pd.DataFrame, **more: tuple[str, str]) -> pd.DataFrame:
    """Rows of finished transfers averaged over seeds: one per method and pair, and ``more`` as pandas aggregates it."""
    return finished.groupby(["method", *PAIR], sort=False, as_index=False, observed=True).agg(
        control=("control", "first"),
        seeds=("seed", "nunique"),
        delta=("delta", "mean"),
        delta_se=("delta_se", "mean"),
        transfer_rate=("transfer_rate", "mean"),
        **more,
    )


def group_of(acc_difference: pd.Series[float], equal_within: float) -> pd.Series[str]:
    """``weaker``, ``equal`` or ``stronger``, from teacher − student and a threshold in units of the metric."""
    names = pd.Series("equal", index=acc_difference.index, dtype=object)
    names[acc_difference < -equal_within - TINY] = "weaker"
    names[acc_difference > equal_within + TINY] = "stronger"
    return names


@dataclass(frozen=True)
class Comparison:
    """Mean paired difference of two methods over the pairs that both finished, or a mean over pairs.

    Attributes:
        mean: mean difference, of transfer deltas for example, in units of the metric; NaN without common pairs.
        se: its standard error, robust to pairs that share a model.
        n: common pairs.
    """

    mean: float
    se: float
    n: int

    @classmethod
    def of_none(cls) -> Comparison:
        """Over no pair."""
        return cls(math.nan, math.inf, 0)

    @property
    def sign(self) -> int:
        """1 or −1 where the difference is more than two standard errors from zero, else 0."""
        return clear_sign(self.mean, self.se)


def clear_sign(mean: float, se: float) -> int:
    """The sign of a mean that is more than two standard errors from zero, else 0."""
    return (1 if mean > 0 else -1) if abs(mean) > max(2 * se, TINY) else 0


def compare(
    transfers: pd.DataFrame, scores: pd.DataFrame, equal_within: float, method: str, against: str, group: str = "all"
) -> Comparison:
    """Paired difference ``method`` − ``against`` over the same pairs and seeds.

    Args:
        transfers: the table ``transfers``.
        scores: pairs with their ``acc_difference``; not needed for all pairs.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
        method: the method.
        against: the method or control that it is compared with.
        group: ``all`` pairs, or those with a ``weaker``, ``equal`` or ``stronger`` teacher.
    """
    return difference(in_group(beside(transfers, method, against, "delta"), scores, equal_within, group), "delta")


def in_group(rows: pd.DataFrame, scores: pd.DataFrame, equal_within: float, group: str) -> pd.DataFrame:
    """The rows whose teacher is of a group; of ``all`` every row, of another none whose models are not measured."""
    if group == "all":
        return rows
    if "acc_difference" not in scores:
        return rows[:0]
    gap = rows[PAIR].merge(on_test(scores)[[*PAIR, "acc_difference"]], how="left", on=PAIR)["acc_difference"]
    return rows[(gap.notna() & (group_of(gap, equal_within) == group)).to_numpy()]


def beside(transfers: pd.DataFrame, method: str, against: str, column: str) -> pd.DataFrame:
    """Pair, seed, ``column`` and ``column_against`` of what both methods finished and have a value of."""
    finished, keys = transfers[(transfers["status"] == "ok") & transfers[column].notna()], [*PAIR, "seed"]
    ours, theirs = (finished.loc[finished["method"] == name, [*keys, column]] for name in (method, against))
    return ours.merge(theirs, on=keys, suffixes=("", "_against"))


def difference(both: pd.DataFrame, column: str) -> Comparison:
    """Mean difference over pairs, each first averaged over its seeds, from the rows that ``beside`` gives."""
    of_pair = (both[column] - both[f"{column}_against"]).groupby([both[name] for name in PAIR]).mean()
    names = (of_pair.index.get_level_values(name).tolist() for name in PAIR)
    mean, se = dyadic.mean(of_pair.to_numpy(np.float64), *names)
    return Comparison(mean, se, len(of_pair))


FINETUNE, SELF = "finetune", "self"
"""The controls: training on the labels alone, and the student as its own teacher, without labels."""


@dataclass(frozen=True)
class Gain:
    """Gain of a teaching method over the pairs of one group, and its part beyond the control.

    Attributes:
        method: the method.
        control: the control that it must beat; None where that finished nothing.
        uses_labels: whether it learns from labels too.
        own: mean transfer delta.
        beyond: mean paired difference to the control; of no pair where there is no control.
    """

    method: str
    control: str | None
    uses_labels: bool
    own: Comparison
    beyond: Comparison


def gains(transfers: pd.DataFrame, scores: pd.DataFrame, equal_within: float, group: str = "all") -> list[Gain]:
    """Every teaching method over the pairs of one group, the largest mean delta first.

    The control of methods with labels is ``finetune``, that of the others ``self``. Where the table does not say which
    methods use labels, it is the control that gained most.

    Args:
        transfers: the table ``transfers``, rows with one teacher.
        scores: pairs with their ``acc_difference``; not needed for all pairs.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
        group: ``all`` pairs, or those with a ``weaker``, ``equal`` or ``stronger`` teacher.
    """
    finished = in_group(transfers[transfers["status"] == "ok"], scores, equal_within, group)
    controls = finished[finished["control"]].groupby("method")["delta"].mean().sort_values()
    found = []
    for method, rows in finished[~finished["control"] & finished["trains"]].groupby("method", sort=True):
        labels = rows["uses_labels"].iloc[0]
        name = (controls.index[-1] if len(controls) else None) if pd.isna(labels) else FINETUNE if labels else SELF
        control = str(name) if name in controls.index else None
        beyond = compare(finished, scores, equal_within, str(method), control) if control else Comparison.of_none()
        found.append(Gain(str(method), control, not pd.isna(labels) and bool(labels), mean_delta(rows), beyond))
    return sorted(found, key=lambda gain: -gain.own.mean)


def mean_delta(rows: pd.DataFrame) -> Comparison:
    """Mean transfer delta over the pairs of finished rows of one method, each first averaged over its seeds."""
    of_pair = over_seeds(rows)
    mean, se = dyadic.mean(of_pair["delta"].to_numpy(np.float64), *(of_pair[name].tolist() for name in PAIR))
    return Comparison(mean, se, len(of_pair))


def furthest(found: list[Gain]) -> Gain | None:
    """The method clearly and furthest beyond its control, those first that clearly gain at all; None without any."""
    ahead = [gain for gain in found if gain.beyond.sign > 0]
    return max(ahead, key=lambda gain: (gain.own.sign > 0, gain.beyond.mean)) if ahead else None


def summarise(transfers: pd.DataFrame, complementarity: pd.DataFrame, equal_within: float) -> pd.DataFrame:
    """The table ``methods``: one row per method and group of pairs, the best mean delta first, controls last.

    A pair's delta is averaged over its finished seeds first. A control is one training per student and seed, repeated
    for each of the student's pairs: ``delta_se`` allows for that, because those pairs share the student.
    ``delta_se_iid`` does not.

    Args:
        transfers: the table ``transfers``.
        complementarity: the table ``complementarity``; its test split decides which teachers are weaker.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.

    Returns:
        The columns of ``methods`` in ``kt/tables/of_transfers.py``, parameters unknown; groups without a finished pair
        are left out. Errors are infinite where a group holds one pair.
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
    """Taught errors beyond those that the control `self` has by itself, over some pairs."""
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
