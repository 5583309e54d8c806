"""The answer in one paragraph: sentences that follow from the tables, for a reader who has never seen them.

A difference counts as clear where it is more than two standard errors from zero. Method names stand in backticks.
"""

from __future__ import annotations

import pandas as pd

from kt.analysis.deltas import TINY, Comparison, clear_sign, compare, on_test, records
from kt.analysis.wording import counted, listing, number, signed, with_error

FEW_MODELS = 4
"""Below this, every pair shares a model with every other, and no honest standard error can be had."""


def answer(methods: pd.DataFrame, transfers: pd.DataFrame, complementarity: pd.DataFrame, equal_within: float) -> str:
    """What was found, in plain English.

    Args:
        methods: the table ``methods``.
        transfers: the table ``transfers``.
        complementarity: the table ``complementarity``.
        equal_within: percentage points; a teacher this close to its student counts as equal.
    """
    scores = on_test(complementarity)
    sentences = [_size(methods, transfers, scores), *_complementary(scores, equal_within), *_failures(transfers)]
    best = _best(methods)
    sentences += _winner(methods, best, equal_within)
    sentences += _weaker(methods, transfers, scores, equal_within)
    sentences += _controls(methods, transfers, scores, equal_within, best)
    return " ".join(sentences)


def _size(methods: pd.DataFrame, transfers: pd.DataFrame, scores: pd.DataFrame) -> str:
    names = set(scores["teacher"]) | set(scores["student"])
    images = int(scores["n"].max()) if len(scores) else 0
    text = f"{counted(len(names), 'model')} were compared on {counted(images, 'test image')}"
    if images:
        text += f" that no model was trained on (one image is {number(100 / images, 2)} points)"
    finished = transfers[transfers["status"] == "ok"]
    if finished.empty:
        return f"{text}; no transfer finished, so nothing can be said about transfer."
    pairs = finished.groupby(["teacher", "student"]).ngroups
    seeds = int(finished["seed"].nunique())
    teaching = [f"`{name}`" for name in methods.loc[~methods["control"] & methods["trains"], "method"].unique()]
    controls = [f"`{name}`" for name in methods.loc[methods["control"], "method"].unique()]
    ways = [f"{counted(len(teaching), 'method')} ({listing(teaching)})"] if teaching else []
    ways += [f"{counted(len(controls), 'control')} without a teacher ({listing(controls)})"] if controls else []
    few = " With so few models the standard errors below are too small." if len(names) < FEW_MODELS else ""
    return (
        f"{text}. In {counted(pairs, 'ordered pair')} of a teacher and a student, each with {counted(seeds, 'seed')},"
        f" the student was trained by {' and '.join(ways)}.{few}"
    )


def _complementary(scores: pd.DataFrame, equal_within: float) -> list[str]:
    if scores.empty:
        return []
    flips = scores["pos_flips"]
    some = int((flips > TINY).sum())
    share = "every one" if some == len(flips) else f"{some:,}"
    text = (
        f"Complementary knowledge exists in {share} of the {counted(len(flips), 'scored pair')}: the teacher is right"
        f" where the student is wrong on {_range(flips)} of the images"
    )
    weaker = scores.loc[scores["acc_difference"] < -equal_within - TINY, "pos_flips"]
    if weaker.empty:
        return [f"{text}."]
    return [f"{text}, and on {_range(weaker)} where the teacher is weaker by more than {_threshold(equal_within)}."]


def _range(values: pd.Series[float]) -> str:
    if len(values) == 1:
        return f"{number(values.iloc[0])} %"
    return f"{number(values.min())}–{number(values.max())} % (median {number(values.median())} %)"


def _threshold(equal_within: float) -> str:
    return f"{equal_within:g} {'point' if equal_within == 1 else 'points'}"


def _failures(transfers: pd.DataFrame) -> list[str]:
    failed = transfers.loc[transfers["status"] != "ok", "key"].nunique()
    units = counted(transfers["key"].nunique(), "training")
    return [f"{failed:,} of {units} failed and are left out."] if failed else []


def _best(methods: pd.DataFrame) -> str | None:
    """The method with the highest mean delta among those that clearly harm no group of students."""
    teaching = methods[~methods["control"] & methods["trains"]]
    harmful = {row["method"] for row in records(teaching) if clear_sign(row["delta"], row["delta_se"]) < 0}
    candidates = teaching[(teaching["group"] == "all") & ~teaching["method"].isin(harmful)]
    return None if candidates.empty else str(candidates.sort_values("delta", kind="stable")["method"].iloc[-1])


def _winner(methods: pd.DataFrame, best: str | None, equal_within: float) -> list[str]:
    if methods.empty or not (~methods["control"] & methods["trains"]).any():
        return []
    if best is None:
        return ["Every method clearly lowers accuracy on average, be it with weaker, equal or stronger teachers."]
    row = _row(methods, best)
    assert row is not None
    if clear_sign(row["delta"], row["delta_se"]) <= 0:
        return [
            f"No harmless method raises accuracy clearly: the best of them, `{best}`, changes it by"
            f" {with_error(row['delta'], row['delta_se'])} points (mean ± standard error)."
        ]
    gain = f"{with_error(row['delta'], row['delta_se'])} points of accuracy (mean ± standard error)"
    return [
        f"Of the methods that on average do no clear harm, whether the teacher is weaker, equal (within"
        f" {_threshold(equal_within)}) or stronger, `{best}` gains most: {gain}, with success in"
        f" {number(row['success'], 0)} % of pairs and {signed(row['worst'])} in the worst."
    ]


def _weaker(methods: pd.DataFrame, transfers: pd.DataFrame, scores: pd.DataFrame, equal_within: float) -> list[str]:
    """What plain distillation does to students of weaker teachers, and what partitioning does instead."""
    kl = _row(methods, "kl", "weaker")
    if kl is None:
        return []
    effect = {-1: "makes students worse", 0: "has no clear effect on students", 1: "makes students better"}
    sentences = [
        f"Learning from a weaker teacher by plain distillation (`kl`) {effect[clear_sign(kl['delta'], kl['delta_se'])]}"
        f" ({with_error(kl['delta'], kl['delta_se'])} points in {counted(int(kl['pairs']), 'pair')})"
    ]
    for name, how in (("kl_dp", "with the labels"), ("kl_dp_unsup", "by confidence alone")):
        row = _row(methods, name, "weaker")
        if row is None:
            continue
        against = compare(transfers, scores, equal_within, name, "kl", "weaker")
        verdict = {-1: "does worse than `kl`", 0: "is not clearly different", 1: "does better than `kl`"}[against.sign]
        difference = with_error(against.mean, against.se)
        sentences.append(
            f"choosing for each image {how} who teaches it (`{name}`) gives"
            f" {with_error(row['delta'], row['delta_se'])} and {verdict} (paired difference {difference})"
        )
    return ["; ".join(sentences) + "."]


def _controls(
    methods: pd.DataFrame, transfers: pd.DataFrame, scores: pd.DataFrame, equal_within: float, best: str | None
) -> list[str]:
    """What the controls gain, and therefore what may be claimed for the methods."""
    sentences = []
    present = [(name, row) for name in ("self", "finetune") if (row := _row(methods, name)) is not None]
    meaning = {"self": "the student as its own teacher", "finetune": "training on the labels alone"}
    if present:
        gains = [f"{meaning[name]} (`{name}`) {with_error(row['delta'], row['delta_se'])}" for name, row in present]
        sentences.append(f"Without any teacher, points gained are: {listing(gains)}.")
    for name in dict.fromkeys([*([best] if best else []), "kl_dp", "kl_dp_unsup"]):
        row = _row(methods, name)
        if row is None:
            continue
        uses_labels = bool(row["uses_labels"])
        control = "finetune" if uses_labels else "self"
        if control in (found for found, _ in present):
            sentences.append(_claim(name, uses_labels, compare(transfers, scores, equal_within, name, control)))
        else:
            sentences.append(f"What `{name}` owes to its teachers cannot be told without the control `{control}`.")
    return sentences


def _claim(name: str, uses_labels: bool, against: Comparison) -> str:
    """What may be said for a method, given its paired difference from the control that it must beat."""
    difference = f"{with_error(against.mean, against.se)} points"
    if uses_labels:
        if against.sign > 0:
            return (
                f"`{name}` gains {difference} more than fine-tuning on the same labels: that much may be called"
                " knowledge of the teachers."
            )
        how = "less" if against.sign < 0 else "no more"
        return (
            f"`{name}` gains {how} than fine-tuning on the same labels (difference {difference}), so its gain cannot be"
            " called knowledge of the teachers here."
        )
    if against.sign > 0:
        return f"`{name}` uses no label and beats `self` by {difference}: that gain comes from the teachers."
    how = "falls behind" if against.sign < 0 else "does not clearly beat"
    return f"`{name}` {how} `self` (difference {difference}), so no gain from the teachers is shown."


def _row(methods: pd.DataFrame, method: str, group: str = "all") -> pd.Series[float] | None:
    rows = methods[(methods["method"] == method) & (methods["group"] == group)]
    return None if rows.empty else rows.iloc[0]
