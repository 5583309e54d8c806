"""The whole analysis: from tables to tables, and a summary in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from kt import store
from kt.analysis import breakdown, prediction
from kt.analysis.deltas import records
from kt.analysis.effects import ALONE, GAP, GIVEN_GAP, LEAST_MODELS, MODELS_PER_PROPERTY, TOGETHER, effects
from kt.analysis.inputs import Inputs
from kt.analysis.outcomes import Outcomes, gather, informative
from kt.analysis.prediction import DESERVES, TREES, HeldOut, best_rung
from kt.analysis.wording import counted, listing, number, signed, with_error
from kt.errors import listed
from kt.progress import Progress
from kt.tables import schema
from kt.tables.of_analysis import ANALYSIS

BOOTSTRAP = 1_000
"""Bootstrap samples of the models, for every mean and every effect."""

EQUAL_WITHIN = 2.0
"""Percentage points within which a teacher counts as equal to its student, where nothing else is asked for."""


@dataclass(frozen=True)
class Analysis:
    """The tables by name, as ``docs/tables.md`` has them, and the summary as Markdown."""

    tables: Mapping[str, pd.DataFrame]
    summary: str

    def write(self, out: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write every table as Parquet and CSV, and ``summary.md``."""
        for name, frame in self.tables.items():
            table = as_table(name, frame)
            schema.write(out / f"{name}.parquet", name, table, metadata)
            schema.write_csv(out / f"{name}.csv", table)
        store.write_text(out / "summary.md", self.summary)


def as_table(name: str, frame: pd.DataFrame) -> pa.Table:
    """A frame as a checked table: its columns in order, those missing and what is not finite as null."""
    columns = {}
    for column in ANALYSIS[name]:
        values = frame[column.name] if column.name in frame else pd.Series([None] * len(frame), dtype=object)
        if pa.types.is_floating(column.dtype):
            numbers = pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan)
            columns[column.name] = pa.array(numbers, mask=~np.isfinite(numbers))
        else:
            columns[column.name] = values.astype(object).where(values.notna(), None).tolist()
    return schema.build(name, columns)


def analyse(
    inputs: Inputs,
    equal_within: float = EQUAL_WITHIN,
    bootstrap: int = BOOTSTRAP,
    draws: int | None = None,
    seed: int = 0,
) -> Analysis:
    """All tables of the analysis and their summary.

    Args:
        inputs: the tables.
        equal_within: percentage points; a teacher this close to its student counts as equal.
        bootstrap: bootstrap samples of the models.
        draws: permutations of the models' labels; as many as the pairs allow where None.
        seed: seed of the folds, the bootstrap and the permutations.
    """
    with threadpool_limits(1):  # the many small products of an analysis wait for their threads longer than they run
        return _analyse(inputs, equal_within, bootstrap, draws, seed)


def _analyse(inputs: Inputs, equal_within: float, bootstrap: int, draws: int | None, seed: int) -> Analysis:
    rng = np.random.default_rng(seed)
    outcomes = gather(inputs)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ANALYSIS}
    progress = Progress("analysis", len(outcomes))
    for found in outcomes:
        parts["groups"].append(breakdown.groups(found, bootstrap, equal_within, rng))
        parts["by_model"].append(breakdown.by_model(found, inputs.zoo))
        parts["variance"].append(pd.DataFrame([breakdown.variance(found)]))
        parts["effects"].append(effects(found, bootstrap, rng, draws))
        if held := prediction.hold_out(found, rng):
            scores = prediction.score(found, held)
            parts["ladder"].append(scores)
            parts["predictions"].append(_predictions(found, held, prediction.best_rung(scores)))
            parts["importances"].append(held.importances)
        progress.step(found.method)
    made = {name: _together(name, frames) for name, frames in parts.items()}
    made["spread"] = breakdown.spread(made["by_model"])
    made["expertise"] = breakdown.expertise(inputs)
    made["several"] = breakdown.several(inputs, outcomes)
    return Analysis(made, summary(made, inputs, outcomes, bootstrap))


def _together(name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=[c.name for c in ANALYSIS[name]])


def _predictions(outcomes: Outcomes, held: HeldOut, rung: str) -> pd.DataFrame:
    everything = held.predictions
    chosen = everything[(everything["rung"] == rung) & (everything["scheme"] == "students")]
    predicted = chosen.groupby("row")["predicted"].mean()
    rows, names = predicted.index.to_numpy(np.int64), np.array(outcomes.known.names, object)
    return pd.DataFrame(
        {
            "teacher": names[outcomes.teachers[rows]],
            "student": names[outcomes.students[rows]],
            "method": outcomes.method,
            "delta": outcomes.delta[rows],
            "predicted": predicted.to_numpy(np.float64),
            "rung": rung,
        }
    )


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
