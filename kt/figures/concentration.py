"""How concentrated on few classes a teacher's extra knowledge is. Source of the measures: FG section 3."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from kt.analysis.deltas import TINY
from kt.analysis.wording import number
from kt.figures import style
from kt.figures.style import BLUE, GREY, ORANGE, PAGE, Drawing
from kt.figures.tables import Tables
from kt.tables.of_study import SHARES

ENOUGH = 20
"""Positive flips below which a pair says nothing about classes."""


def flips_concentration(tables: Tables) -> Drawing:
    """Entropy of positive flips over classes, the classes that hold them, and how similar those classes are."""
    scores = tables.complementarity
    columns = ["teacher", "student", "acc_difference", "pos_flips", "n", "class_entropy"]
    areas = [f"{name}_{share}" for name in ("expertise", "expertise_similarity") for share in SHARES]
    data = scores[[*columns, *areas, "class_similarity"]].copy()
    data["flips"] = (data["pos_flips"] / 100 * data["n"]).round().astype(int)
    data = data[data["flips"] > 0].reset_index(drop=True)
    if data.empty:
        return style.nothing("no pair has positive flips", data)
    lists = scores["flips_by_class"].dropna()
    classes = len(lists.iloc[0]) if len(lists) else None
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    entropy, holding, similar = figure.subplots(1, 3)
    _entropy(entropy, data, classes)
    enough = data[data["flips"] >= ENOUGH]
    _areas(holding, enough, classes)
    _similarity(similar, enough)
    style.legend_above(figure, [entropy])
    style.footer(
        figure,
        f"{style.scored(tables)}; middle and right: the {len(enough)} pairs with at least {ENOUGH} positive flips;"
        " bars: quartiles over pairs (their spread, no standard error).",
        "Grey, left and middle: as many flips spread evenly at random over classes."
        if classes
        else "The number of classes is not in the table.",
        "One class has no similarity. FG takes CLIP's vectors of class names; here: key class_embeddings.",
    )  # fmt: skip
    return Drawing(figure, data)


def even_entropy(flips: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Expected entropy (nats) of so many flips [n] dealt at random and evenly over classes, [n].

    Entropy of few draws is too small: ln C is reached only by many.
    """
    made = []
    for n in np.atleast_1d(np.asarray(flips, np.int64)):
        k = np.arange(1, n + 1)
        share = k / n
        made.append(-classes * float((binom.pmf(k, n, 1 / classes) * share * np.log(share)).sum()))
    return np.array(made)


def even_areas(flips: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Fewest classes that hold each of ``SHARES`` of flips [n] dealt at random and evenly, [n, shares]."""
    counts = np.asarray(flips, np.int64)
    dealt = np.random.default_rng(0).multinomial(counts, np.full(classes, 1 / classes))
    held = np.cumsum(-np.sort(-dealt, axis=1), axis=1) / counts[:, None]
    return np.stack([1 + (held < share / 100 - TINY).sum(1) for share in SHARES], axis=1).astype(np.float64)


def _entropy(axes: Axes, data: pd.DataFrame, classes: int | None) -> None:
    weaker = data["acc_difference"] < 0
    for chosen, marker, colour, label in (
        (weaker, "v", ORANGE, "teacher less accurate"),
        (~weaker, "o", BLUE, "as accurate or more"),
    ):
        rows = data[chosen]
        axes.scatter(rows["flips"], rows["class_entropy"], marker=marker, color=colour, label=label,
                     **style.marks(len(data)))  # fmt: skip
    if classes:
        low, high = int(data["flips"].min()), int(data["flips"].max())
        grid = np.unique(np.geomspace(max(low, 1), max(high, 2), 40).round().astype(int))
        axes.plot(grid, even_entropy(grid, classes), color=GREY, linewidth=1.4, zorder=0)
    axes.set(xlabel="positive flips (test images)", ylabel="entropy over classes (nats)")
    style.log_scale(axes, float(data["flips"].min()) / 1.3, float(data["flips"].max()) * 1.3)
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # flips of a single class lie at 0, their marks seen whole


def _areas(axes: Axes, data: pd.DataFrame, classes: int | None) -> None:
    axes.set(xlabel="share of positive flips (%)", ylabel="fewest classes that hold it")
    axes.set_xticks(range(len(SHARES)), [str(share) for share in SHARES])
    axes.set_xlim(-0.5, len(SHARES) - 0.5)
    if data.empty:
        axes.text(0.5, 0.5, f"no pair with {ENOUGH} flips", ha="center", transform=axes.transAxes)
        return
    _quartiles(axes, [data[f"expertise_{share}"] for share in SHARES])
    if classes:
        chance = even_areas(data["flips"], classes)
        axes.plot(range(len(SHARES)), [np.median(chance[:, k]) for k in range(len(SHARES))], "_", color=GREY, ms=16)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _similarity(axes: Axes, data: pd.DataFrame) -> None:
    known = [data[f"expertise_similarity_{share}"].dropna().astype(float) for share in SHARES]
    axes.set(xlabel="share of positive flips (%)", ylabel="mean cosine of those classes")
    axes.set_xticks(range(len(SHARES)), [str(share) for share in SHARES])
    axes.set_xlim(-0.5, len(SHARES) - 0.5)
    if not any(len(values) for values in known):
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    _quartiles(axes, known)
    everywhere = float(data["class_similarity"].astype(float).mean())
    if np.isfinite(everywhere):
        axes.axhline(everywhere, color=GREY, linewidth=1.4, zorder=0)
        axes.set_title(f"grey: all classes, {number(everywhere, 2)}")


def _quartiles(axes: Axes, values: list[pd.Series[float]]) -> None:
    for place, of_share in enumerate(values):
        if len(of_share):
            low, middle, high = np.quantile(of_share, [0.25, 0.5, 0.75])
            axes.errorbar(
                place, middle, yerr=[[middle - low], [high - middle]], fmt="s", color=BLUE, markersize=5,
                markerfacecolor="white", elinewidth=1.4, capsize=3,
            )  # fmt: skip
