"""What the analysis says and what it cannot say, as Markdown for a reader who has only the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from kt.analysis.deltas import records
from kt.analysis.effects import ALONE, GAP, GIVEN_GAP, LEAST_MODELS, MODELS_PER_PROPERTY, TOGETHER
from kt.analysis.heldout import DESERVES, best_rung
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes
from kt.analysis.predictors import TREES
from kt.analysis.properties import informative
from kt.analysis.wording import counted, listing, number, signed, with_error
from kt.errors import listed

CLEAR = 0.05
FEW_MODELS = 20
"""Below this, intervals are wider than they need be, and most properties cannot be told from chance."""

IDENTITY = (
    "Positive flips − negative flips = accuracy difference, exactly, for every pair. No regression here contains all"
    " three: given two of them the third says nothing new, and their separate coefficients would mean nothing."
    " Negative flips are left out."
)

Tables = Mapping[str, pd.DataFrame]


def summary(tables: Tables, inputs: Inputs, outcomes: list[Outcomes], bootstrap: int) -> str:
    """The summary of an analysis.

    Args:
        tables: the analysis's tables.
        inputs: what it started from.
        outcomes: the finished pairs of every method.
        bootstrap: how many bootstrap samples were drawn.
    """
    parts = [
        ("What was analysed", list(_size(inputs, outcomes))),
        ("What each method does", list(_gains(tables))),
        ("Which properties correlate with gains", list(_properties(tables, outcomes))),
        ("Can gains be predicted for models never seen", list(_prediction(tables))),
        ("What cannot be said", list(_unsaid(tables, inputs, outcomes))),
        ("How", list(_how(bootstrap, outcomes))),
    ]
    text = ["# Which model properties predict gains"]
    for heading, lines in parts:
        if lines:
            text += ["", f"## {heading}", "", *(f"- {line}" for line in lines)]
    return "\n".join(text) + "\n"


def _size(inputs: Inputs, outcomes: list[Outcomes]) -> Iterator[str]:
    rows = inputs.transfers
    failed = rows.loc[rows["delta"].isna(), "key"].nunique()
    models = len(outcomes[0].known.names) if outcomes else len(set(rows["teacher"]) | set(rows["student"]))
    methods = rows["method"].nunique()
    yield f"{counted(len(rows), 'transfer row')}, {counted(methods, 'method')}, {counted(models, 'model')}."
    if failed:
        yield f"{counted(failed, 'training')} failed and {'is' if failed == 1 else 'are'} left out."
    if not outcomes:
        yield "No transfer finished: nothing can be said about gains."


def _gains(tables: Tables) -> Iterator[str]:
    groups = tables["groups"]
    spread = {(row["method"], row["role"]): row for row in records(tables["spread"])}
    for row in records(groups[groups["grouping"] == "all"]) if len(groups) else []:
        name = f"`{row['method']}`{' (control)' if row['control'] else ''}"
        text = (
            f"{name}: {with_error(row['delta'], row['se'])} points over {counted(row['pairs'], 'pair')},"
            f" success in {number(row['success'], 0)} %"
        )
        of_students = spread[(row["method"], "student")]
        text += f" (students: median {_quartiles(of_students)} %"
        if (row["method"], "teacher") in spread:
            text += f"; teachers: median {_quartiles(spread[(row['method'], 'teacher')])} %"
        text += ")"
        weak = groups[(groups["method"] == row["method"]) & (groups["grouping"] == "teacher")]
        weaker = records(weak[weak["level"] == "weaker"])
        if weaker and not row["control"]:
            text += f"; with weaker teachers {with_error(weaker[0]['delta'], weaker[0]['se'])}"
            text += f", their best quarter {signed(weaker[0]['top_quartile'])}"
        yield f"{text}."
    for row in records(tables["variance"]):
        if not row["control"] and pd.notna(row["student"]):
            student, teacher, pair = (number(row[name], 0) for name in ("student", "teacher", "pair"))
            yield (
                f"`{row['method']}`: of the variance of delta between pairs, {student} % is due to the student,"
                f" {teacher} % to the teacher and {pair} % to neither alone{_chance(row)}."
            )
    for row in records(tables["several"]):
        text = f"`{row['method']}` with several teachers: {with_error(row['delta'], row['se'])} points"
        if pd.notna(row["single_mean"]):
            text += (
                f"; `{row['single']}` from one of the same teachers {signed(row['single_mean'])} on average,"
                f" {signed(row['single_best'])} from the best, known only afterwards"
            )
        yield f"{text}."


def _quartiles(row: dict[str, Any]) -> str:
    low, middle, high = (number(row[f"success_{name}"], 0) for name in ("quartile_1", "median", "quartile_3"))
    return f"{middle} ({low}–{high})"


def _chance(row: dict[str, Any]) -> str:
    return (
        f", of which {number(row['of_which_seeds'], 0)} is chance of the seeds"
        if pd.notna(row["of_which_seeds"])
        else ""
    )


def _properties(tables: Tables, outcomes: list[Outcomes]) -> Iterator[str]:
    effects = tables["effects"]
    if effects.empty:
        return
    for method, rows in effects.groupby("method", sort=False):
        for given, words in ((ALONE, "taken alone"), (GIVEN_GAP, "at equal accuracy difference")):
            tried = rows[rows["given"] == given]
            if tried.empty:
                continue
            clear = tried[tried["p_bh"] < CLEAR].sort_values("p_bh", kind="stable")
            texts = [f"`{r['property']}` {with_error(r['effect'], r['se'])}" for r in records(clear.head(8))]
            more = f" and {len(clear) - 8} more" if len(clear) > 8 else ""
            found = f"{listing(texts)}{more}" if texts else "none clearly"
            yield f"`{method}`, {words}, of {len(tried)} properties: {found}."
    yield "Effects are points of delta for one standard deviation more of the property (± standard error)."
    yield IDENTITY


def _prediction(tables: Tables) -> Iterator[str]:
    ladder = tables["ladder"]
    for method, scores in ladder.groupby("method", sort=False) if len(ladder) else []:
        texts = []
        for scheme, words in (
            ("students", "unseen students"),
            ("teachers", "unseen teachers"),
            ("both", "both unseen"),
        ):
            rows = scores[(scores["scheme"] == scheme) & scores["r2"].notna()]
            if len(rows):
                row = records(rows[rows["rung"] == best_rung(scores, scheme)])[0]
                texts.append(f"{words}: {row['rung']}, R² {number(row['r2'], 2)}")
        if not texts:
            continue
        text = f"`{method}`: the best predictor for {'; for '.join(texts)}."
        row = records(scores[(scores["scheme"] == "students") & (scores["rung"] == best_rung(scores))])[0]
        if pd.notna(row["tau"]):
            text += f" It ranks an unseen student's teachers with weighted τ {number(row['tau'], 2)}"
            if pd.notna(row["hours_saved_3"]):
                saved, hours, regret = (
                    number(row["hours_saved_3"], 0),
                    f"{row['hours']:.3g}",
                    number(row["regret_3"], 2),
                )
                text += (
                    f"; transferring only from its three best saves {saved} % of {hours} hours"
                    f" and misses the best teacher by {regret} points"
                )
            text += "."
        if pd.notna(row["r2_ceiling"]):
            text += f" Chance of the seeds limits any R² to {number(row['r2_ceiling'], 2)}."
        yield text
        yield from _importance(str(method), tables["importances"], scores)


def _importance(method: str, importances: pd.DataFrame, scores: pd.DataFrame) -> Iterator[str]:
    of_method = importances[importances["method"] == method] if len(importances) else importances
    if of_method.empty:
        if (scores["rung"] == TREES).any():
            yield f"`{method}`: trees explain too little (held-out R² below {DESERVES}) to ask what they use."
        return
    top = [f"{row['properties']} ({number(row['importance'], 2)})" for row in records(of_method.head(3))]
    yield f"`{method}`: shuffling these groups of properties costs the trees most R²: {'; '.join(top)}."


def _unsaid(tables: Tables, inputs: Inputs, outcomes: list[Outcomes]) -> Iterator[str]:
    if not inputs.measured:
        yield "Flips, agreement and other measures of pairs: there is no table `complementarity`."
    apart = inputs.several.loc[inputs.several["control"], "method"].unique()
    if len(apart):
        controls = listing([f"`{name}`" for name in apart])
        yield f"What {controls} would do without a teacher: the rows name no teacher, so that they belong to no pair."
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
        yield "Weaker and stronger teachers: neither `acc` in the zoo nor `acc_difference` is known."
    for found in taught[:1]:
        _, dropped = informative(found.x)
        for why in dict.fromkeys(dropped.values()):
            names = [f"`{name}`" for name, reason in dropped.items() if reason == why]
            yield f"Effects of properties that are {why}: {listed(names)}."
    if taught and (effects := tables["effects"]).size and not (effects["given"] == TOGETHER).any():
        yield (
            "Which of several related properties is the cause: one regression on all would need"
            f" {MODELS_PER_PROPERTY} models for each property."
        )
    yield "Causes: models were found, not assigned; properties of the same models go together for many reasons."


def _how(bootstrap: int, outcomes: list[Outcomes]) -> Iterator[str]:
    if not outcomes:
        return
    yield (
        "Standard errors are robust to pairs that share a model (Aronow, Samii, Assenova 2015), `boot_` intervals come"
        f" from {bootstrap:,} bootstrap samples of models, `p_permutation` from shuffling models' labels; an effect is"
        f" called clear where its p-value is below {CLEAR} after correction for all properties tried with the method"
        " (Benjamini-Hochberg)."
    )
    yield (
        "R² is measured on pairs of models that the predictor never saw in any role, against the mean of the pairs it"
        " learned from: a constant has R² 0."
    )
