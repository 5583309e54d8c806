"""What the report says of a study of policies: its answer, and the table of methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from kt.analysis.answer import Answer
from kt.analysis.deltas import clear_sign, records
from kt.analysis.wording import counted, counted_range, decimals, number, plural, with_error
from kt.figures import policies as drawn
from kt.figures.policies import Difference
from kt.figures.tables import Tables
from kt.report.grids import Grid, count, error, grid, name, value

FLOW, UNTRAINED, SCRATCH = "flow", "flow_untrained", "scratch"


def answer(tables: Tables) -> Answer:
    """The answer of a study of policies: whether teachers help, at the end and on the way."""
    details = tables.details("returns")
    experiments = list(details["experiment"].unique())
    told = tuple(_of_experiment(tables, details, experiment) for experiment in experiments)
    return Answer(_headline(tables, details, experiments), (*told, *_basis(tables, details)))


def _headline(tables: Tables, details: pd.DataFrame, experiments: Sequence[str]) -> str:
    last, during = (drawn.compared(details, FLOW, SCRATCH, of) for of in ("last", "during"))
    if not last:
        return "Whether teachers help is open: `flow` or `scratch` did not finish."
    ends, ways = ([_sign(of) for of in found.values()] for found in (last, during))
    idle = [
        _sign(of) > 0
        for found in (drawn.compared(details, FLOW, UNTRAINED, of) for of in ("last", "during"))
        for of in found.values()
    ]
    where = f"in {ends.count(1)} of {counted(len(ends), 'game')}" if len(ends) > 1 else f"({_size(tables, last)})"
    if any(sign < 0 for sign in ends):
        worse = ends.count(-1)
        where = f"in {worse} of {counted(len(ends), 'game')}" if len(ends) > 1 else f"({_size(tables, last)})"
        return f"Teachers hurt: `flow` ends clearly below `scratch` {where}."
    if any(sign > 0 for sign in ends):
        owed = "" if any(idle) else "; teachers that know nothing do as well"
        return f"Teachers help: `flow` ends clearly above `scratch` {where}{owed}."
    if any(sign > 0 for sign in ways):
        where = f"in {ways.count(1)} of {counted(len(ways), 'game')}" if len(ways) > 1 else f"({_size(tables, during)})"
        owed = "" if any(idle) else "; teachers that know nothing do as well"
        return f"Teachers help on the way, not at the end: `flow` learns sooner than `scratch` {where}{owed}."
    return "Teachers gave no clear benefit: `flow` is too close to `scratch` to tell."


LEAST_SEEDS = 3
"""Fewer say nothing: two seeds that agree by chance have no error at all."""


def _sign(of: Difference) -> int:
    return clear_sign(of.mean, of.se) if of.n >= LEAST_SEEDS else 0


def _size(tables: Tables, found: dict[str, Difference]) -> str:
    (of,) = found.values()
    return f"{with_error(of.mean, of.se, decimals(tables.task))} {tables.task.metric.difference}"


def _of_experiment(tables: Tables, details: pd.DataFrame, experiment: str) -> str:
    mine = details[details["experiment"] == experiment]
    digits, game = decimals(tables.task), mine["game"].iloc[0]
    rows = {row["name"]: row for row in records(drawn.by_training(mine))}
    others = [
        f"`{name}` {number(row['last'], digits)} ({with_error(row['last_gain'], row['last_gain_se'], digits)}; "
        f"on the way {with_error(row['during_gain'], row['during_gain_se'], digits)})"
        for name, row in rows.items()
        if name != SCRATCH
    ]
    if SCRATCH not in rows:
        return f"`{experiment}` ({game}): no `scratch` to compare with."
    begun = f"`{experiment}` ({game}): `scratch` ends at {number(rows[SCRATCH]['last'], digits)}"
    return f"{begun}; {'; '.join(others)}." if others else f"{begun}."


def _basis(tables: Tables, details: pd.DataFrame) -> Iterator[str]:
    failed = tables.everything.loc[tables.everything["status"] != "ok", "key"].nunique()
    if failed:
        yield f"{counted(failed, 'training')} failed and {'is' if failed == 1 else 'are'} left out: see What failed."
    if details.empty:
        return
    seeds = counted_range(details.groupby(["experiment", "method"])["seed"].nunique(), "seed")
    yield (
        f"In brackets the difference to `scratch`, paired by seed, ± standard error over seeds: in mean test return at"
        f" the end, and in the mean over {counted(int(details['epoch'].max()), 'evaluation')} on the way (the area"
        f" under the curve). {counted(details['key'].nunique(), 'training')}, {seeds} of a method,"
        f" {counted(int(details['n'].max()), 'test episode')} of each student. Clear is more than two standard errors"
        f" over at least {LEAST_SEEDS} seeds."
    )


def methods(tables: Tables) -> Grid | None:
    """Every method's return at the end and on the way, by experiment."""
    details = tables.details("returns")
    if details.empty:
        return None
    digits = decimals(tables.task)
    return grid(
        f"{tables.task.metric.name.capitalize()} of students alone, ± standard error over seeds: on test after the last"
        f" action, and on validation, averaged over the training. Differences to `scratch` are paired by seed.",
        drawn.by_training(details),
        [
            ("experiment", name("experiment")),
            ("method", name("name")),
            ("at the end", value("last", "last_se", digits)),
            ("more than scratch", error("last_gain", digits)),
            ("on the way", value("during", "during_se", digits)),
            ("more than scratch on the way", error("during_gain", digits)),
            (f"test {plural(tables.task.example)}", count("n")),
            ("seeds", count("seeds")),
        ],
    )
