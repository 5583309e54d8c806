"""Words for results: numbers as text, nouns of the task, and properties by name."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kt.tables.columns import Column
from kt.tasks.task import Words

MINUS = "−"  # a true minus sign: as wide as the plus beside it


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
    return _with(signed(value, digits), value, error, digits)


def value_with_error(value: float | None, error: float | None, digits: int) -> str:
    """The same without a sign: ``4.02 ± 0.81``."""
    return _with(number(value, digits), value, error, digits)


def _with(text: str, value: float | None, error: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    known = error is not None and math.isfinite(error)
    return f"{text} ± {number(error, digits) if known else 'unknown'}"


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
    flow = {
        "above": f"The {metric.name} of each method with its standard error, by experiment. Below: ",
        "beside": f"Compare `flow` with `scratch`, which learnt from the same {plural(task.example)} without teachers, "
        "and with `flow_untrained`, whose teachers know nothing. Below: ",
    }
    if task.plays:  # another figure has their returns
        flow = {"above": "", "beside": ""}
    return {**words, "flips": flips, "rate": rate, "taught": taught(task), **panels, **flow}


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
    if task.plays:  # returns are no shares of anything
        return of_percent
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
