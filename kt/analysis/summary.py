"""Summary of an analysis in words: the answer, the numbers behind it, and what limits them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from kt.analysis.answer import FEW_MODELS, answer, knowledge
from kt.analysis.deltas import records
from kt.analysis.effects import (
    ALONE,
    CLEAR,
    DESERVES,
    GAP,
    GIVEN_GAP,
    LEAST_MODELS,
    MODELS_PER_PROPERTY,
    TOGETHER,
)
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, informative
from kt.analysis.prediction import TREES, best_rung
from kt.analysis.wording import counted, decimals, listing, number, predictor_words, signed, with_error
from kt.errors import listed
from kt.tables.columns import with_metric
from kt.tasks.task import Words

Tables = Mapping[str, pd.DataFrame]


def identity(task: Words) -> str:
    """The reason why negative flips are left out of all regressions."""
    return (
        f"Positive flips − negative flips = {task.metric.name} difference, exactly, for every pair. No regression"
        " contains all three: given two of them, the third adds nothing, and their separate coefficients would mean"
        " nothing. Negative flips are left out."
    )


def summary(tables: Tables, inputs: Inputs, outcomes: list[Outcomes], equal_within: float, bootstrap: int) -> str:
    """The summary of an analysis, as Markdown: the answer, then the numbers method by method, limits, and methods used.

    Args:
        tables: the analysis's tables.
        inputs: what it started from.
        outcomes: the finished pairs of every method.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
        bootstrap: how many bootstrap samples were drawn.
    """
    found = answer(inputs, tables, equal_within)
    parts = [
        ("Complementary knowledge", [knowledge(inputs, equal_within)]),
        ("Gains by method", list(_gains(tables, inputs.task))),
        ("Properties that correlate with gains", list(_properties(tables, inputs.task))),
        ("Prediction for models left out of the fit", list(_prediction(tables, inputs.task))),
        ("Limits", limits(tables, inputs, outcomes)),
        ("How it is computed", list(_how(bootstrap, outcomes))),
    ]
    text = ["# The answer", "", f"**{found.headline}**", "", *(f"- {line}" for line in found.bullets)]
    for heading, lines in parts:
        if lines:
            text += ["", f"## {heading}", "", *(f"- {line}" for line in lines)]
    return "\n".join(text) + "\n"


def _gains(tables: Tables, task: Words) -> Iterator[str]:
    groups, unit, digits = tables["groups"], task.metric.difference, decimals(task)
    spread = {(row["method"], row["role"]): row for row in records(tables["spread"])}
    for row in records(groups[groups["grouping"] == "all"]) if len(groups) else []:
        name = f"`{row['method']}`{' (control)' if row['control'] else ''}"
        text = (
            f"{name}: {with_error(row['delta'], row['se'], digits)} {unit} over {counted(row['pairs'], 'pair')},"
            f" success in {number(row['success'], 0)} %"
        )
        text += f" (median over students {_quartiles(spread[(row['method'], 'student')])} %"
        if (row["method"], "teacher") in spread:
            text += f", over teachers {_quartiles(spread[(row['method'], 'teacher')])} %"
        text += ")"
        weak = groups[(groups["method"] == row["method"]) & (groups["grouping"] == "teacher")]
        weaker = records(weak[weak["level"] == "weaker"])
        if weaker and not row["control"]:
            taught = weaker[0]
            text += (
                f"; with weaker teachers {with_error(taught['delta'], taught['se'], digits)} over"
                f" {counted(taught['pairs'], 'pair')}, and {signed(taught['top_quartile'], digits)} in the quarter"
                " of these pairs that gains most"
            )
        yield f"{text}."
    for row in records(tables["variance"]):
        if not row["control"] and pd.notna(row["student"]):
            student, teacher, pair = (number(row[name], 0) for name in ("student", "teacher", "pair"))
            yield (
                f"`{row['method']}`: of the variance of delta between pairs, {student} % is due to the student,"
                f" {teacher} % to the teacher and {pair} % to the single pair{_chance(row)}."
            )
    for row in records(tables["several"]):
        text = f"`{row['method']}` with several teachers: {with_error(row['delta'], row['se'], digits)} {unit}"
        if pd.notna(row["single_mean"]):
            text += (
                f"; `{row['single']}` from one of the same teachers {signed(row['single_mean'], digits)} on average,"
                f" and {signed(row['single_best'], digits)} from the best of them, known only afterwards"
            )
        yield f"{text}."


def _quartiles(row: dict[str, Any]) -> str:
    low, middle, high = (number(row[f"success_{name}"], 0) for name in ("quartile_1", "median", "quartile_3"))
    return f"{middle} (quartiles {low} to {high})"


def _chance(row: dict[str, Any]) -> str:
    return f", of which {number(row['of_which_seeds'], 0)} % to its seeds" if pd.notna(row["of_which_seeds"]) else ""


def _properties(tables: Tables, task: Words) -> Iterator[str]:
    effects = tables["effects"]
    if effects.empty:
        return
    for method, rows in effects.groupby("method", sort=False):
        for given, words in ((ALONE, "taken alone"), (GIVEN_GAP, f"at equal {task.metric.name} difference")):
            tried = rows[rows["given"] == given]
            if tried.empty:
                continue
            clear = tried[tried["p_bh"] < CLEAR].sort_values("p_bh", kind="stable")
            texts = [
                f"`{with_metric(r['property'], task.metric.key)}` {with_error(r['effect'], r['se'], decimals(task))}"
                for r in records(clear.head(8))
            ]
            more = f" and {len(clear) - 8} more" if len(clear) > 8 else ""
            found = f"{listing(texts)}{more}" if texts else "none clearly"
            yield f"`{method}`, {words}, of {counted(len(tried), 'property')}: {found}."
    yield f"Effects are {task.metric.difference} of delta per standard deviation of the property, ± standard error."
    yield identity(task)


def _prediction(tables: Tables, task: Words) -> Iterator[str]:
    ladder = tables["ladder"]
    for method, scores in ladder.groupby("method", sort=False) if len(ladder) else []:
        texts = []
        for scheme, words in (("students", "new students"), ("teachers", "new teachers"), ("both", "pairs of both")):
            rows = scores[(scores["scheme"] == scheme) & scores["r2"].notna()]
            if len(rows):
                row = records(rows[rows["rung"] == best_rung(scores, scheme)])[0]
                texts.append(f"{words}: {predictor_words(row['rung'], task)}, R² {number(row['r2'], 2)}")
        if not texts:
            continue
        text = f"`{method}`: the best predictor for {'; for '.join(texts)}."
        row = records(scores[(scores["scheme"] == "students") & (scores["rung"] == best_rung(scores))])[0]
        if pd.notna(row["tau"]) and row["r2"] > 0:
            text += f" It ranks the teachers of a new student with weighted τ {number(row['tau'], 2)}"
            if pd.notna(row["hours_saved_3"]):
                saved, regret = number(row["hours_saved_3"], 0), number(row["regret_3"], decimals(task))
                text += (
                    f"; transferring only from the three ranked first saves {saved} % of {row['hours']:.3g} hours and"
                    f" gains {regret} {task.metric.difference} less than the best teacher"
                )
            text += "."
        if pd.notna(row["r2_ceiling"]):
            text += f" Chance of the seeds limits any R² to {number(row['r2_ceiling'], 2)}."
        yield text
        yield from _importance(str(method), tables["importances"], scores, task)


def _importance(method: str, importances: pd.DataFrame, scores: pd.DataFrame, task: Words) -> Iterator[str]:
    of_method = importances[importances["method"] == method] if len(importances) else importances
    if of_method.empty:
        if (scores["rung"] == TREES).any():
            yield f"`{method}`: trees predict too little (R² below {DESERVES}) to ask which properties they use."
        return
    top = [
        f"{with_metric(row['properties'], task.metric.key)} ({number(row['importance'], 2)})"
        for row in records(of_method.head(3))
    ]
    yield f"`{method}`: shuffling these groups of properties costs the trees most R²: {'; '.join(top)}."


def limits(tables: Tables, inputs: Inputs, outcomes: list[Outcomes]) -> list[str]:
    """Lines on what these tables cannot show, and why."""
    return list(_limits(tables, inputs, outcomes))


def _limits(tables: Tables, inputs: Inputs, outcomes: list[Outcomes]) -> Iterator[str]:
    if inputs.left_out:
        yield (
            f"The average pair, from the {counted(inputs.left_out, 'pair')} that results of earlier ones chose:"
            " the answer, means, tests and predictors of the analysis leave these out, and rest on the pairs that were"
            " drawn at random. Figures and the table `methods` show all that were transferred."
        )
    if not inputs.measured:
        yield "Flips, agreement and other measures of pairs: there is no table `complementarity`."
    apart = inputs.several.loc[inputs.several["control"], "method"].unique()
    if len(apart):
        controls = listing([f"`{name}`" for name in apart])
        yield f"Gains of {controls} without a teacher: their rows name no teacher, so they belong to no pair."
    if not outcomes:
        return
    taught = [found for found in outcomes if not found.control]
    models = max((found.models for found in taught), default=0)
    if not taught:
        yield "Anything about teachers: only controls finished."
    elif models < LEAST_MODELS:
        yield f"Which properties matter: with {counted(models, 'model')} every pair shares a model with every other."
    elif models < FEW_MODELS:
        yield f"Small effects: {counted(models, 'model')} are few, and only large effects can be told from chance."
    if len(taught) == 1:
        yield "Which method is better: there is only one."
    if taught and not any(found.control for found in outcomes):
        yield "What is owed to teachers rather than to more training: no control (`self`, `finetune`) finished."
    if taught and max(int(found.seeds.max()) for found in taught) == 1:
        yield "How much is chance of the seeds: every pair has one seed only."
    if taught and GAP not in taught[0].x:
        key = inputs.task.metric.key
        yield f"Weaker and stronger teachers: neither `{key}` in the zoo nor `{key}_difference` is known."
    for found in taught[:1]:
        _, dropped = informative(found.x)
        for why in dict.fromkeys(dropped.values()):
            names = [
                f"`{with_metric(name, inputs.task.metric.key)}`" for name, reason in dropped.items() if reason == why
            ]
            yield f"Effects of properties that are {why}: {listed(names)}."
    if taught and (effects := tables["effects"]).size and not (effects["given"] == TOGETHER).any():
        yield (
            "Which of several related properties is the cause: one regression on all would need"
            f" {MODELS_PER_PROPERTY} models for each property."
        )
    yield "Causes: models were found, not assigned, and their properties are correlated for many reasons."


def _how(bootstrap: int, outcomes: list[Outcomes]) -> Iterator[str]:
    if not outcomes:
        return
    yield (
        "Standard errors are robust to pairs that share a model (Aronow, Samii, Assenova 2015), `boot_` intervals come"
        f" from {bootstrap:,} bootstrap samples of models, `p_permutation` from shuffling models' labels; an effect is"
        f" clear where its p-value is below {CLEAR} after correction for all properties tried with the method"
        " (Benjamini-Hochberg)."
    )
    yield (
        "R² is measured on pairs of models that the predictor was not fitted on in any role, against the mean of the"
        " pairs that it was fitted on: a constant has R² 0."
    )
