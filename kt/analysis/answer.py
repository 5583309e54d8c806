"""Answer of a study: one headline and three to five bullets, computed from the tables.

A method's gain counts as owed to its teachers where it is clearly larger than that of its control over the same pairs
and seeds: `finetune` where the method uses labels, `self` where it does not. Clear means more than two standard errors
from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from kt.analysis.deltas import FINETUNE, SELF, TINY, Comparison, Gain, furthest, gains, mean_delta, records
from kt.analysis.effects import CLEAR, LEAST_MODELS
from kt.analysis.inputs import Inputs
from kt.analysis.wording import (
    amount,
    counted,
    decimals,
    examples,
    flips_unit,
    listing,
    measured_on,
    number,
    plural,
    predictor_words,
    property_words,
    rights,
    with_error,
)
from kt.tasks.task import Words

FEW_MODELS = 20
"""Below this many models, intervals are wide, and only large effects can be told from chance."""

MOST_NAMES, MOST_PROPERTIES = 3, 3


@dataclass(frozen=True)
class Answer:
    """A headline of at most 25 words, and three to five bullets; names of methods stand in backticks."""

    headline: str
    bullets: tuple[str, ...]


def answer(inputs: Inputs, tables: Mapping[str, pd.DataFrame], equal_within: float) -> Answer:
    """The answer of a study.

    Args:
        inputs: the tables that the analysis starts from.
        tables: the tables of the analysis, by name; without them, what they would say is said to be missing.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
    """
    found = gains(inputs.transfers, inputs.scores, equal_within)
    if not found:
        return Answer(_no_teacher(inputs), tuple(_little(inputs, equal_within)))
    weaker = gains(inputs.transfers, inputs.scores, equal_within, "weaker")
    method = focus(found)
    bullets = (
        _works(found, inputs.task),
        _weaker(weaker, inputs, equal_within),
        _properties(tables["effects"], method, inputs.task),
        *_prediction(tables["ladder"], method, inputs.task),
        _basis(inputs),
    )
    return Answer(_headline(found, finished_models(inputs), inputs.task), bullets)


def focus(found: list[Gain]) -> str:
    """The method whose gain is analysed: the one clearly and furthest beyond its control, else the largest gain."""
    best = furthest(found)
    return best.method if best else found[0].method


def finished_models(inputs: Inputs) -> int:
    """Models of the pairs that finished."""
    rows = inputs.transfers[inputs.transfers["status"] == "ok"]
    return len(set(rows["teacher"]) | set(rows["student"]))


def _headline(found: list[Gain], models: int, task: Words) -> str:
    compared = [gain for gain in found if gain.control]
    if models < LEAST_MODELS:
        return f"Only {counted(models, 'model')} took part, too few to tell whether teachers help."
    if not compared:
        return "Whether teachers help is open: no control finished."
    best = furthest(compared)
    if best is None:
        if all(gain.beyond.sign < 0 for gain in compared):
            return "Teaching hurts here: every method gains clearly less than its control without a teacher."
        below = ", or below it" if any(gain.beyond.sign < 0 for gain in compared) else ""
        return f"Teachers gave no clear benefit: every method is too close to its control to tell{below}."
    mean, error = (number(value, decimals(task)) for value in (best.beyond.mean, best.beyond.se))
    unit = task.metric.difference
    size = f"{mean} ± {error} {unit if len(unit.split()) <= 3 else task.metric.short}"  # a headline has 25 words
    if best.own.sign <= 0:
        end = f"still lose {task.metric.name}" if best.own.sign < 0 else "gain nothing clear"
        return f"Teachers limit losses: with `{best.method}`, students end {size} above its control, but {end}."
    others = [gain for gain in compared if gain.uses_labels != best.uses_labels]
    text = f"`{best.method}` gains {size} more than {'fine-tuning alone' if best.uses_labels else 'its control'}"
    if not others:
        return f"Teachers help: {text} ({counted(best.beyond.n, 'pair')})."
    if any(gain.beyond.sign > 0 for gain in others):
        return f"Teachers help, with labels and without: {text}."
    if best.uses_labels:
        return f"Teachers clearly help only with labels: {text}."
    return f"Teachers clearly help only without labels: {text}; with labels, none clearly beats fine-tuning."


def _works(found: list[Gain], task: Words) -> str:
    """Every method beside its control."""
    compared, alone = [gain for gain in found if gain.control], [gain for gain in found if not gain.control]
    if not compared:
        control = FINETUNE if found[0].uses_labels else SELF
        return (
            f"The largest gain is that of `{found[0].method}`: {_sized(found[0].own, task)}."
            f" Only a control, here `{control}`, can tell how much of it needs a teacher."
        )
    best = furthest(compared) or max(compared, key=lambda gain: gain.beyond.mean)
    size = f"{_sized(best.beyond, task)}."
    missing = f" No control finished for {counted(len(alone), 'other method')}." if alone else ""
    if len(compared) == 1:
        verb, _, than = _VERBS[best.beyond.sign]
        return f"`{best.method}` {verb} {than} its control `{best.control}`: the difference is {size}{missing}"
    parts: list[str] = []
    for sign, (one, many, than) in _VERBS.items():
        names = [f"`{gain.method}`" for gain in compared if gain.beyond.sign == sign]
        if names:
            shown = f" ({listing(names)})" if len(names) <= MOST_NAMES else ""
            control = "" if parts else f" {than} its control" if len(names) == 1 else f" {than} their controls"
            parts.append(f"{len(names):,}{shown} {one if len(names) == 1 else many}{control}")
    return (
        f"Of {len(compared)} methods, {listing(parts)}. The best, `{best.method}`, differs from `{best.control}` by"
        f" {size}{missing}"
    )


_VERBS = {
    1: ("gains clearly more", "gain clearly more", "than"),
    -1: ("gains clearly less", "gain clearly less", "than"),
    0: ("is too close to tell", "are too close to tell", "from"),
}
"""Verbs for one method and for several beside their control, by the sign of the difference."""


def _sized(found: Comparison, task: Words) -> str:
    """A mean with its standard error, its unit, and how many pairs it rests on."""
    return f"{with_error(found.mean, found.se, decimals(task))} {task.metric.difference} ({counted(found.n, 'pair')})"


def _weaker(found: list[Gain], inputs: Inputs, equal_within: float) -> str:
    if "acc_difference" not in inputs.scores:
        return f"Which teachers are weaker is unknown, for lack of the models' {inputs.task.metric.name}."
    who = f"weaker than the student by more than {amount(equal_within, inputs.task)}"
    if not found:
        return f"No finished pair has a teacher that is {who}."
    who = f"From teachers {who}"
    compared = [gain for gain in found if gain.control]
    if not compared:
        return f"{who}, `{found[0].method}` gains most: {_sized(found[0].own, inputs.task)}."
    best = furthest(compared)
    if best:
        return f"{who}, `{best.method}` still gains more than `{best.control}`: by {_sized(best.beyond, inputs.task)}."
    best = max(compared, key=lambda gain: gain.beyond.mean)
    return (
        f"{who}, no method clearly gains more than its control; the best, `{best.method}`, differs from"
        f" `{best.control}` by {_sized(best.beyond, inputs.task)}."
    )


def _properties(effects: pd.DataFrame, method: str, task: Words) -> str:
    tried = effects[(effects["method"] == method) & (effects["given"] == "nothing")]
    if tried.empty:
        return f"Which properties matter is unknown: that takes the analysis of at least {LEAST_MODELS} models."
    clear = tried[tried["p_bh"] < CLEAR].sort_values(["p_bh", "p"], kind="stable")
    what = f"{counted(len(tried), 'property')} of the two models"
    pairs = counted(int(tried["pairs"].max()), "pair")
    if clear.empty:
        return f"Of {what}, none clearly correlates with the gain of `{method}` ({pairs})."
    texts = [
        f"{property_words(row['property'], task)} ({with_error(row['effect'], row['se'], decimals(task))})"
        for row in records(clear.head(MOST_PROPERTIES))
    ]
    count = "1 clearly correlates" if len(clear) == 1 else f"{len(clear)} clearly correlate"
    first = ", first of all" if len(clear) > MOST_PROPERTIES else ":"
    return (
        f"Of {what}, {count} with the gain of `{method}`{first} {listing(texts)}, in {task.metric.difference} per"
        f" standard deviation ({pairs})."
    )


def _prediction(ladder: pd.DataFrame, method: str, task: Words) -> Iterator[str]:
    scores = ladder[(ladder["method"] == method) & (ladder["scheme"] == "students")]
    if scores.empty:
        return
    best = records(scores.sort_values("r2", ascending=False, kind="stable"))[0]
    rests = f"{counted(best['students'], 'student')}, {counted(best['pairs'], 'pair')}"
    if pd.isna(best["r2"]) or best["r2"] <= 0:
        yield f"For students left out of the fit, no predictor beats the average gain of `{method}` ({rests})."
        return
    tau = f"; their teachers are ranked with weighted τ {number(best['tau'], 2)}" if pd.notna(best["tau"]) else ""
    share = f"{number(100 * best['r2'], 0)} % of the variance of the gain of `{method}`"
    predictor = predictor_words(best["rung"], task)
    yield f"For students left out of the fit, {share} is predicted by {predictor}{tau} ({rests})."


def _basis(inputs: Inputs) -> str:
    rows = inputs.transfers[inputs.transfers["status"] == "ok"]
    models, task = finished_models(inputs), inputs.task
    failed = inputs.transfers.loc[inputs.transfers["status"] != "ok", "key"].nunique()
    lost = f" {counted(failed, 'training')} failed and {'is' if failed == 1 else 'are'} left out." if failed else ""
    if rows.empty:
        return f"This rests on predictions of {counted(len(inputs.zoo), 'model')}.{lost}"
    seeds, n = rows["seed"].nunique(), rows["n"].max()
    parts = [
        f"{counted(rows.groupby(['teacher', 'student']).ngroups, 'ordered pair')} of {counted(models, 'model')}",
        counted(seeds, "seed"),
        *([measured_on(int(n), task, inputs.clusters)] if pd.notna(n) else []),
    ]
    few = ""
    if models < LEAST_MODELS:
        few = " With so few models these errors are too small: take all numbers as a description."
    elif models < FEW_MODELS:
        few = " With so few models, only large effects can be told from chance."
    once = " With one seed, its chance is part of every number." if seeds == 1 else ""
    return f"This rests on {listing(parts)}.{few}{once}{lost} ± is one standard error; clear means more than two."


def _no_teacher(inputs: Inputs) -> str:
    if (inputs.transfers["status"] == "ok").any():
        return "Only controls finished: what teachers add is still open."
    return "No transfer has finished: what teachers add is still open."


def _little(inputs: Inputs, equal_within: float) -> Iterator[str]:
    """Bullets of a study in which no teaching method finished."""
    yield knowledge(inputs, equal_within)
    rows = inputs.transfers[inputs.transfers["control"] & (inputs.transfers["status"] == "ok")]
    means = {str(name): mean_delta(of_method) for name, of_method in rows.groupby("method")}
    if means:
        texts = [f"`{name}` {_sized(own, inputs.task)}" for name, own in means.items()]
        yield f"Gains without a teacher: {listing(texts)}."
    else:
        yield "What transfer does is shown here once trainings finish."
    yield _basis(inputs)


def knowledge(inputs: Inputs, equal_within: float) -> str:
    """Complementary knowledge before any transfer, in one sentence."""
    scores, task = inputs.scores, inputs.task
    if "pos_flips" not in scores or scores.empty:
        return "Complementary knowledge was not measured."
    flips, digits = scores["pos_flips"].astype(float), decimals(task, 1)
    pixels = scores["pixel_flips"].dropna().astype(float) if task.dense and "pixel_flips" in scores else flips[:0]
    text = f"In {int((flips > TINY).sum()):,} of {counted(len(flips), 'ordered pair')} " + (
        "the teacher is right where the student is wrong: on"
        if task.metric.binary
        else f"the teacher does better than the student on some {plural(examples(task))}: by"
    )
    text += f" a median of {number(flips.median(), digits)} {flips_unit(task)}"
    if len(pixels):
        first = f"The teacher is right where the student is wrong on a median of {number(pixels.median(), 1)} %"
        text = f"{first} of {rights(task)} ({counted(len(pixels), 'ordered pair')}). {text}"
    weak = flips[scores["acc_difference"] < -equal_within - TINY] if "acc_difference" in scores else flips[:0]
    if weak.empty:
        return f"{text}."
    unit = "%" if task.metric.binary else task.metric.difference
    who = f"where the teacher is weaker by more than {amount(equal_within, task)}"
    return f"{text}, and {number(weak.median(), digits)} {unit} {who} ({counted(len(weak), 'pair')})."
