"""The figure of a study of policies: returns while students learn, and at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.wording import counted, counted_range
from kt.figures import style
from kt.figures.style import PAGE, SERIES, Drawing
from kt.figures.tables import Tables

LINES = ("-", "--", ":")
"""Lines of the first, second, … names with a colour."""

Look = tuple[str, str, str]
"""Colour, marker and line."""

NOTHING = "no training of an experiment with policies finished"


def named(details: pd.DataFrame) -> pd.DataFrame:
    """Trainings with ``name``: the method, and the teacher where each takes the student's place."""
    alone = details["method"].eq("finetune_teacher")
    names = details["method"].where(~alone, details["method"] + " " + details["teachers"].map(" ".join))
    return details.assign(name=names)


def curves(details: pd.DataFrame) -> pd.DataFrame:
    """Validation return of each training at each evaluation, a row each.

    Args:
        details: the table ``returns``.

    Returns:
        ``experiment``, ``name``, ``seed``, ``key``, ``epoch``, ``steps`` (actions so far), ``acc_validation`` (mean
        return of the student alone), ``acc`` (that on test after the last).
    """
    columns = ["experiment", "name", "seed", "key", "epoch", "steps", "acc_validation", "acc"]
    return named(details)[columns].reset_index(drop=True)


class Difference(NamedTuple):
    """Mean of paired differences over seeds, its standard error (NaN of one seed), and their number."""

    mean: float
    se: float
    n: int


def of_trainings(details: pd.DataFrame) -> pd.DataFrame:
    """A row for each training: ``last``, its test return at the end, and ``during``, its mean return on validation.

    The latter is the area under its curve over its length. With ``experiment``, ``name``, ``seed`` and ``n``.

    Args:
        details: the table ``returns``.
    """
    keys = ["experiment", "name", "seed"]
    found: pd.DataFrame = (
        named(details)
        .groupby(keys, sort=False)
        .agg(last=("acc", "first"), during=("acc_validation", "mean"), n=("n", "first"))
        .reset_index()
    )
    return found


def compared(details: pd.DataFrame, method: str, other: str, of: str) -> dict[str, Difference]:
    """What one method has beyond another, paired by seed, by experiment; only where both finished.

    Args:
        details: the table ``returns``.
        method: its name.
        other: that of the other.
        of: ``last`` or ``during``.
    """
    each = of_trainings(details).set_index(["name", "experiment", "seed"])[of]
    there = set(each.index.get_level_values("name"))
    if not {method, other} <= there:
        return {}
    differences = (each[method] - each[other]).dropna()
    return {
        str(experiment): Difference(float(rows.mean()), float(rows.sem()) if len(rows) > 1 else math.nan, len(rows))
        for experiment, rows in differences.groupby("experiment", sort=False)
    }


def by_training(details: pd.DataFrame) -> pd.DataFrame:
    """Each method's trainings: means and standard errors over seeds, and paired differences to `scratch`.

    Args:
        details: the table ``returns``.

    Returns:
        ``experiment``, ``name``, ``n``, ``seeds``, and of ``last`` and ``during`` the mean, ``…_se``, ``…_gain`` and
        ``…_gain_se`` (NaN without `scratch`, and of it).
    """
    each = of_trainings(details)
    scratch = each[each["name"] == "scratch"].set_index(["experiment", "seed"])
    own = pd.MultiIndex.from_frame(each[["experiment", "seed"]])
    for of in ("last", "during"):
        gains = each[of] - scratch[of].reindex(own).to_numpy()
        each[f"{of}_gain"] = gains.where(each["name"] != "scratch")
    columns = ["last", "during", "last_gain", "during_gain"]
    grouped = each.groupby(["experiment", "name"], sort=False)
    found = grouped[columns].mean().join(grouped[columns].sem().add_suffix("_se"))
    found = found.assign(n=grouped["n"].max(), seeds=grouped["seed"].count())
    return found.reset_index()


def returns(tables: Tables) -> Drawing:
    """Return over actions of every method with each seed, and the test return at the end; a row per experiment.

    The table beside the figure has a row for each evaluation of each training.
    """
    details = tables.details("returns")
    if details.empty:
        return style.nothing(NOTHING, details)
    data = curves(details)
    experiments, names = list(data["experiment"].unique()), list(data["name"].unique())
    looks = {name: (*SERIES[i % len(SERIES)], LINES[i // len(SERIES) % len(LINES)]) for i, name in enumerate(names)}
    height = max(2.2, 0.6 + 0.24 * len(names))
    figure = Figure(figsize=(PAGE, 1.1 + height * len(experiments)), layout="constrained")
    grid = figure.subplots(len(experiments), 2, squeeze=False, width_ratios=[1.7, 1])
    for experiment, (left, right) in zip(experiments, grid, strict=True):
        rows = data[data["experiment"] == experiment]
        of_row = [name for name in names if name in set(rows["name"])]
        _over_time(left, rows, of_row, looks)
        _at_the_end(right, rows, of_row, looks)
        left.set_title(experiment)
        right.set_title("test, after the last action")
        left.set_ylabel("mean return on validation")
    grid[-1][0].set_xlabel("actions")
    grid[-1][1].set_xlabel("mean return")
    style.legend_above(figure, list(grid[:, 0]), names, gap=0.5)
    style.footer(
        figure,
        f"Students alone, without teachers. Lines and large marks: mean over {counted_range(_seeds(data), 'seed')};"
        " bands and bars: ± 1 standard error over seeds, unknown of one; thin lines and small dots: single seeds.",
        f"{counted(int(details['n'].max()), 'test episode')} of each student, unclipped returns, actions drawn from the"
        " policy.",
    )
    return Drawing(figure, data)


def _seeds(data: pd.DataFrame) -> pd.Series[int]:
    return data.groupby(["experiment", "name"])["seed"].nunique()


def _over_time(axes: Axes, rows: pd.DataFrame, names: Sequence[str], looks: dict[str, Look]) -> None:
    for name in names:
        colour, _, line = looks[name]
        mine = rows[rows["name"] == name]
        for _, of_seed in mine.groupby("seed"):
            axes.plot(of_seed["steps"], of_seed["acc_validation"], color=colour, linewidth=0.4, alpha=0.45)
        found = mine.groupby("steps")["acc_validation"].agg(["mean", "sem"])
        few = "o" if len(found) < 3 else None
        axes.plot(found.index, found["mean"], line, marker=few, markersize=3, color=colour, linewidth=1.6, label=name)
        low, high = found["mean"] - found["sem"], found["mean"] + found["sem"]
        axes.fill_between(found.index, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))


def _short(actions: float) -> str:
    """A number of actions as axes show it."""
    if actions >= 1e6:
        return f"{actions / 1e6:g} M"
    return f"{actions / 1e3:g} k" if actions else "0"


def _at_the_end(axes: Axes, rows: pd.DataFrame, names: Sequence[str], looks: dict[str, Look]) -> None:
    last = rows.drop_duplicates("key")
    for place, name in enumerate(names):
        colour, marker, _ = looks[name]
        values = last.loc[last["name"] == name, "acc"]
        axes.plot(values, [place + 0.2] * len(values), ".", color=colour, markersize=3, alpha=0.6)
        error: Any = values.sem()
        axes.errorbar(float(values.mean()), place, xerr=error, fmt=marker, color=colour, markersize=4.5, capsize=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
