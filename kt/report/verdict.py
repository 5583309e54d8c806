"""The report's first paragraph: what transfers, from whom, by which method, and what predicts it; from tables alone.

A method carries knowledge of its teachers where it gains clearly more than its control over the same pairs and seeds:
`finetune` where it uses labels, `self` where it does not. Clear is more than two standard errors. What the control
gains, teachers did not give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from kt.analysis.analyse import CLEAR
from kt.analysis.answer import FEW_MODELS
from kt.analysis.deltas import Comparison, clear_sign, compare, records
from kt.analysis.prediction import CONSTANT, best_rung
from kt.analysis.wording import counted, in_points, listing, number, with_error
from kt.figures.tables import Tables

MOST_PROPERTIES = 4
CONTROL = {True: "finetune", False: "self"}


class Held(NamedTuple):
    """A method against its control, over the pairs of one group, and what it gains itself."""

    method: str
    control: str
    group: str
    against: Comparison
    delta: float
    delta_se: float


def held(tables: Tables, equal_within: float) -> list[Held]:
    """Every method that teaches a student against its control, for all pairs and for those with weaker teachers."""
    rows = tables.methods
    controls = set(rows.loc[rows["control"], "method"])
    return [
        Held(
            row["method"],
            control,
            row["group"],
            compare(tables.transfers, tables.complementarity, equal_within, row["method"], control, row["group"]),
            row["delta"],
            row["delta_se"],
        )
        for row in records(rows[~rows["control"] & rows["trains"] & rows["group"].isin(["all", "weaker"])])
        if (control := CONTROL[bool(row["uses_labels"])]) in controls
    ]


def verdict(tables: Tables, equal_within: float) -> str:
    """The answer in one paragraph; method names stand in backticks.

    Args:
        tables: the tables, with those of the analysis where there are any.
        equal_within: percentage points; a teacher this close to its student counts as equal.
    """
    ok = tables.transfers[tables.transfers["status"] == "ok"]
    taught = tables.methods[~tables.methods["control"] & tables.methods["trains"]]
    if ok.empty:
        return "No transfer finished, so nothing can be said about transfer."
    if taught.empty:
        return "Only controls finished, so nothing can be said about teachers."
    compared = held(tables, equal_within)
    sentences = [*_transfers(compared, taught), *_weaker(compared, taught, equal_within)]
    method = focus(tables, compared)
    sentences += [*_properties(tables, method), *_prediction(tables, method), _basis(tables, ok)]
    return " ".join(sentences)


def focus(tables: Tables, compared: list[Held]) -> str:
    """The method that the answer asks for properties: the one furthest above its control, else with the highest delta.

    It must teach; there is one wherever any teaching method finished.
    """
    ahead = [h for h in compared if h.group == "all" and h.against.sign > 0]
    if ahead:
        return max(ahead, key=lambda h: h.against.mean).method
    return tables.chosen(len(tables.methods))[0]


def _transfers(compared: list[Held], taught: pd.DataFrame) -> Iterator[str]:
    everyone = [h for h in compared if h.group == "all"]
    if not everyone:
        best = taught[taught["group"] == "all"].sort_values("delta").iloc[-1]
        yield (
            "Whether teachers' knowledge transfers cannot be told: no control finished. The largest gain, be it"
            f" theirs or not, is that of `{best['method']}`: {with_error(best['delta'], best['delta_se'])} points."
        )
        return
    ahead = [h for h in everyone if h.against.sign > 0]
    rest = [h for h in everyone if h.against.sign <= 0]
    if ahead:
        gains = listing([_beats(h) for h in ahead])
        yield f"Knowledge transfers: beyond what training gives without a teacher, {gains}."
    else:
        yield "No transfer of knowledge is shown: no method clearly gains more than its control without a teacher."
    if rest:
        what = "No clear gain over the control" if ahead else "Differences from the controls"
        yield f"{what}: {listing([_fails(h) for h in rest])}."
    harmful = [h for h in everyone if clear_sign(h.delta, h.delta_se) < 0]
    if harmful:
        yield f"On average {listing([f'`{h.method}`' for h in harmful])} even clearly lowers accuracy."


def _beats(h: Held) -> str:
    return f"`{h.method}` gains {with_error(h.against.mean, h.against.se)} points more than `{h.control}`{_own(h)}"


def _own(h: Held) -> str:
    """A word of warning where a method beats its control and still raises no accuracy clearly."""
    clear = clear_sign(h.delta, h.delta_se) > 0
    return "" if clear else f" (though its own gain, {with_error(h.delta, h.delta_se)}, is not clear)"


def _fails(h: Held) -> str:
    how = "clearly less than" if h.against.sign < 0 else "not clearly different from"
    return f"`{h.method}` ({with_error(h.against.mean, h.against.se)}: {how} `{h.control}`)"


def _weaker(compared: list[Held], taught: pd.DataFrame, equal_within: float) -> Iterator[str]:
    who = f"teachers weaker than their student by over {in_points(equal_within)}"
    if not (taught["group"] == "weaker").any():
        yield f"No finished pair had a teacher weaker by over {in_points(equal_within)}."
        return
    of_weaker = [h for h in compared if h.group == "weaker"]
    ahead = [h for h in of_weaker if h.against.sign > 0]
    if ahead:
        yield f"From {who} too, over {counted(ahead[0].against.n, 'pair')}: {listing([_beats(h) for h in ahead])}."
    elif of_weaker:
        best = max(of_weaker, key=lambda h: h.against.mean)
        yield (
            f"From {who} no method clearly gains more than its control (the best, `{best.method}` against"
            f" `{best.control}`: {with_error(best.against.mean, best.against.se)} over"
            f" {counted(best.against.n, 'pair')})."
        )


def _properties(tables: Tables, method: str) -> Iterator[str]:
    effects = tables.analysis["effects"]
    tried = effects[(effects["method"] == method) & (effects["given"] == "nothing")]
    if tried.empty:
        yield f"Which properties predict the gain of `{method}` cannot be said: too few models, or no analysis."
        return
    clear = tried[tried["p_bh"] < CLEAR].sort_values(["p_bh", "p"], kind="stable")
    what = counted(len(tried), "property") if len(tried) == 1 else f"{len(tried)} properties"
    if clear.empty:
        yield f"Of {what} of the two models none clearly correlates with the gain of `{method}`."
    else:
        first = [f"{words(r['property'])} ({with_error(r['effect'], r['se'])})" for r in records(clear)]
        more = f" and {len(first) - MOST_PROPERTIES} more" if len(first) > MOST_PROPERTIES else ""
        named = ", ".join(first[:MOST_PROPERTIES]) + more if more else listing(first)
        yield (
            f"The gain of `{method}` correlates with {named}, in points per standard deviation (of {what} tried,"
            " corrected for that)."
        )
    variance = tables.analysis["variance"]
    for row in records(variance[(variance["method"] == method) & variance["student"].notna()]):
        yield (
            f"Of the variance between pairs {number(row['student'], 0)} % is due to the student and"
            f" {number(row['teacher'], 0)} % to the teacher."
        )


def _prediction(tables: Tables, method: str) -> Iterator[str]:
    scores = tables.analysis["ladder"]
    scores = scores[scores["method"] == method]
    if scores.empty:
        return
    rung = best_rung(scores)
    row = records(scores[(scores["scheme"] == "students") & (scores["rung"] == rung)])
    if not row or rung == CONSTANT or pd.isna(row[0]["r2"]):
        yield "For students never seen, nothing known beforehand predicts it better than the mean."
        return
    yield f"For students never seen, “{rung}” predicts it with R² {number(row[0]['r2'], 2)}{_limits(row[0])}."


def _limits(row: dict[str, Any]) -> str:
    ceiling = f" (at most {number(row['r2_ceiling'], 2)} could be)" if pd.notna(row["r2_ceiling"]) else ""
    tau = f" and ranks their teachers with weighted τ {number(row['tau'], 2)}" if pd.notna(row["tau"]) else ""
    return f"{ceiling}{tau}"


def _basis(tables: Tables, ok: pd.DataFrame) -> str:
    models = len(set(ok["teacher"]) | set(ok["student"]))
    pairs = ok.groupby(["teacher", "student"]).ngroups
    few = " With so few models these errors are too small: take all this for a description." * (models < FEW_MODELS)
    failed = tables.transfers.loc[tables.transfers["status"] != "ok", "key"].nunique()
    lost = f"; {counted(failed, 'failed training')} left out" if failed else ""
    return (
        f"This rests on {counted(pairs, 'ordered pair')} of {counted(models, 'model')} with"
        f" {counted(ok['seed'].nunique(), 'seed')} and {counted(int(ok['n'].max()), 'test image')}{lost}; ± is one"
        f" standard error over pairs, robust to pairs that share a model; clear is more than two.{few}"
    )


BASE = {
    "acc": "accuracy",
    "acc_difference": "the accuracy gap",
    "pos_flips": "positive flips",
    "q_statistic": "Q statistic",
    "ece": "calibration error",
    "log_ratio": "ratio of first to second probability",
    "entropy": "entropy of its probabilities",
    "capa": "CAPA",
    "log10_params": "size",
    "params": "size",
    "train_images": "training images",
}


def words(name: str) -> str:
    """A property in words: ``student_train_images`` is the student's training images."""
    for role in ("student", "teacher"):
        if name.startswith(f"{role}_"):
            return f"the {role}'s {words(name.removeprefix(f'{role}_'))}"
    return BASE.get(name, name.replace("_", " "))
