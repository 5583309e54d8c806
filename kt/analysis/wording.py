"""Results in words: numbers as text, properties by name, and the answer of a study.

The answer is one headline and three to five bullets, computed from the tables. A method's gain counts as owed to its
teachers where it is clearly larger than that of its control over the same pairs and seeds: `finetune` where the method
uses labels, `self` where it does not. Clear means more than two standard errors from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from kt.analysis.deltas import FINETUNE, SELF, TINY, Comparison, Gain, furthest, gains, mean_delta, records
from kt.analysis.effects import CLEAR, LEAST_MODELS
from kt.analysis.inputs import Inputs
from kt.tables.columns import Column
from kt.tasks.task import Words

MINUS = "−"  # a true minus sign: as wide as the plus beside it

FEW_MODELS = 20
"""Below this many models, intervals are wide, and only large effects can be told from chance."""

MOST_NAMES, MOST_PROPERTIES = 3, 3


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed decimals; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def signed(value: float | None, digits: int = 2) -> str:
    """The same with its sign, ``+`` included."""
    text = number(value, digits)
    return text if text[0] in f"{MINUS}–" else f"+{text}"


def with_error(value: float | None, error: float | None, digits: int = 2) -> str:
    """A signed number with its standard error: ``+4.02 ± 0.81``."""
    if value is None or not math.isfinite(value):
        return "–"
    known = error is not None and math.isfinite(error)
    return f"{signed(value, digits)} ± {number(error, digits) if known else 'unknown'}"


def counted(count: int, noun: str) -> str:
    """A count and its noun in the right number: ``1 seed``, ``3 seeds``, ``1,797 images``."""
    return f"{count:,} {plural(noun, count)}"


def plural(noun: str, count: int = 2) -> str:
    """A noun in the right number: ``property``, ``properties``; ``class``, ``classes``."""
    if count == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}{'es' if noun.endswith('s') else 's'}"


def counted_range(counts: Iterable[int], noun: str) -> str:
    """One count or more, and their noun: ``5 seeds``, ``3 to 5 seeds``."""
    ordered = sorted(counts)
    least, most = ordered[0], ordered[-1]
    return counted(least, noun) if least == most else f"{least:,} to {counted(most, noun)}"


def amount(value: float, task: Words) -> str:
    """A difference of the metric in its unit: ``1 percentage point``, ``2.5 percentage points``."""
    unit = task.metric.difference
    return f"{value:g} {unit.removesuffix('s') if value == 1 else unit}"


def listing(items: list[str]) -> str:
    """Items with commas and a closing ``and``."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def begun(text: str) -> str:
    """A text as the beginning of a sentence: ``Mean IoU``."""
    return text[:1].upper() + text[1:]


def examples(task: Words) -> str:
    """The noun for what the test split consists of: ``test image``."""
    return f"test {task.example}"


def over(task: Words) -> str:
    """The noun for what standard errors of one model or pair are over, in the plural: ``test images``."""
    return plural(f"test {task.cluster or task.example}")


def measured_on(n: int, task: Words, clusters: int = 0) -> str:
    """So many test examples, and how many clusters they are of, where that is known: ``40 test frames of 8 videos``."""
    return counted(n, examples(task)) + (f" of {counted(clusters, task.cluster)}" if clusters else "")


def with_unit(task: Words, comma: bool = False) -> str:
    """The metric with its unit in brackets, or behind a comma; of one without a unit its name alone."""
    name, unit = task.metric.name, task.metric.unit
    return name if not unit else f"{name}, {unit}" if comma else f"{name} ({unit})"


def lead(task: Words) -> str:
    """The label of an axis: the metric of teacher − student, with its unit where it has one."""
    unit = f" ({task.metric.difference})" if task.metric.unit else ""
    return f"{task.metric.name} of teacher − student{unit}"


def caption_words(task: Words) -> dict[str, str]:
    """Words of a task for the braces in captions of figures."""
    flips = f"the share of {plural(examples(task))} that the student gets wrong and the teacher gets right"
    rate = "the share of positive flips that the student gets right afterwards"
    if not task.metric.binary:
        flips = f"the teacher's lead on the {plural(examples(task))} where it leads, averaged over all of them"
        rate = "the share of the teacher's lead that the student has made up afterwards"
    metric = task.metric
    words = {"metric": metric.name, "difference": metric.difference, "example": task.example}
    words["gained"] = f"{metric.difference} of {metric.name}" if metric.unit else metric.name
    words["bound"] = f"A teacher that is ahead by some {metric.difference} has at least that many positive flips"
    if not metric.unit:
        words["bound"] = f"A teacher’s positive flips are at least its lead in {metric.name}"
    words |= _of_maps(task) if task.maps else OF_CLASSES
    panels = {
        "similar": "; and how similar those classes are",
        "middle": "Middle",
        "resemble": " Right: above the grey line, the classes of a teacher’s expertise resemble one another.",
        "of_pixels": "",
    }
    if task.dense:  # vectors of classes come from answers to whole examples
        panels = {"similar": "", "middle": "Right", "resemble": "", "of_pixels": " of pixels"}
    return {**words, "flips": flips, "rate": rate, "taught": taught(task), **panels}


OF_CLASSES = {
    "seen": "the classes of teacher and student before and after transfer, and the part that the teacher teaches",
    "why": "what only the teacher got right",
    "marked": "Dark pixels in the last column are those that the method would let the teacher teach",
}


def _of_maps(task: Words) -> dict[str, str]:
    """Words on pictures of maps; ``OF_CLASSES`` has those of classes."""
    return {
        "seen": "the maps of teacher and student before and after transfer, and whether the teacher teaches",
        "why": "how much better the teacher’s map was",
        "marked": f"An orange frame marks each {task.example} that the method would let the teacher teach",
    }


def rights(task: Words) -> str:
    """The noun for what is right or wrong, in the plural: ``test images``, ``test pixels``."""
    return "test pixels" if task.dense else plural(examples(task))


COUNTED = ("agreement", "double_fault", "q_statistic")
"""Measures of a pair that count images, or pixels where these are right or wrong."""


def told(column: Column, task: Words) -> tuple[str, str]:
    """Unit and meaning of a measure of a pair, in the words of a task."""
    if task.maps and column.name == "agreement":
        return "−1 to 1", "mean correlation of both models' maps"
    counted = {"images": "pixels" if task.dense and column.name in COUNTED else plural(task.example)}
    unit = task.metric.difference if column.unit == "percentage points" else column.unit
    meaning = column.meaning
    for noun, own in counted.items():
        unit, meaning = unit.replace(noun, own), meaning.replace(noun, own)
    return unit, meaning


def taught(task: Words) -> str:
    """The noun for what is divided between teacher and student, in the plural: ``images``, ``images or pixels``."""
    return f"{plural(task.example)} or pixels" if task.dense else plural(task.example)


def decimals(task: Words, of_percent: int = 2) -> int:
    """Decimals that show a value of the metric as finely as so many decimals show a percentage."""
    return max(0, of_percent + 2 - round(math.log10(task.metric.scale)))


def flips_unit(task: Words) -> str:
    """The unit of positive flips: a share of examples, or of a real-valued metric its difference; never of pixels."""
    if task.dense:
        return f"{task.metric.difference} of {task.metric.name}"
    return f"% of {plural(examples(task))}" if task.metric.binary else task.metric.difference


PROPERTIES = {
    "pos_flips": "positive flips",
    "pos_flips_top5": "top-five positive flips",
    "pixel_flips": "positive flips of pixels",
    "class_entropy": "class entropy of positive flips",
    "neg_class_entropy": "class entropy of negative flips",
    "js_divergence": "Jensen-Shannon divergence",
    "q_statistic": "the Q statistic",
    "ece": "calibration error",
    "log_ratio": "ratio of first to second probability",
    "entropy": "entropy of its probabilities",
    "capa": "CAPA",
    "cka": "CKA",
    "leep": "LEEP",
    "log10_params": "size",
    "params": "size",
}


def property_words(name: str, task: Words) -> str:
    """A property in words: ``student_train_images`` is the student's training images."""
    for role in ("student", "teacher"):
        if name.startswith(f"{role}_"):
            return f"the {role}'s {property_words(name.removeprefix(f'{role}_'), task)}"
    own = {
        "acc": task.metric.name,
        "acc_difference": f"the {task.metric.name} difference",
        "train_images": f"training {plural(task.example)}",
    }
    return (PROPERTIES | own).get(name, name.replace("_", " "))


def predictor_words(rung: str, task: Words) -> str:
    """A predictor of the ladder in words."""
    own = {
        f"{task.metric.name} gap": f"the {task.metric.name} difference",
        "all, linear": "a linear model of all properties",
        "all, boosted trees": "boosted trees on all properties",
        f"teacher {task.metric.name}": f"the teacher's {task.metric.name}",
        "teacher size": "the teacher's size",
    }
    gap = f"the {task.metric.name} difference"
    parts = [gap if part == "gap" else property_words(part, task) for part in rung.split(" + ")]
    return own.get(rung) or (listing(parts) if rung.startswith("gap + ") else rung)


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
