"""Figures of what predicts the gain: the ladder of predictors, single properties, and predictions beside outcomes."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kt.analysis.deltas import records
from kt.analysis.effects import CLEAR, GAP
from kt.analysis.wording import counted, decimals, number, predictor_words, property_words
from kt.figures import style
from kt.figures.style import BLUE, GREY, INK, ORANGE, PAGE, Drawing
from kt.figures.tables import Tables

MOST_METHODS = 3
MOST_PROPERTIES = 14
GIVEN = {"nothing": ("alone", -0.17, "o", BLUE), GAP: ("at equal {metric} difference", 0.17, "s", ORANGE)}
SCHEMES = {"students": "new students", "teachers": "new teachers", "both": "both new"}
SCORES = {"r2": "R² (share of variance)", "tau": "weighted τ (−1 to 1)"}
PANELS = (("r2", "students"), ("r2", "teachers"), ("r2", "both"), ("tau", "students"))
RANKED = "ranking, "
LEAST = -0.5
"""Where the axes of scores begin: what is worse sits there, hollow."""


TOO_FEW = "too few models to hold some out: no predictor was tried"
NO_PROPERTY = "too few models, or none whose properties differ: no property was tried"


def predictor_ladder(tables: Tables) -> Drawing:
    """Held-out R² and ranking of every predictor, for students, teachers and pairs left out, with the ceiling."""
    ladder = tables.analysis["ladder"]
    names = [name for name in tables.chosen(MOST_METHODS) if name in set(ladder["method"])]
    data = ladder[ladder["method"].isin(names)].reset_index(drop=True)
    shown = [(score, scheme) for score, scheme in PANELS if data.loc[data["scheme"] == scheme, score].notna().any()]
    if not shown:
        return style.nothing(tables.why_not("ladder", TOO_FEW), data)
    rungs = data["rung"].drop_duplicates().tolist()
    figure = Figure(figsize=(PAGE, 1.9 + 0.26 * len(rungs)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    looks, step = style.looks(names), 0.6 / max(len(names), 1)
    for (score, scheme), axes in zip(shown, panels, strict=True):
        for place, name in enumerate(names):
            colour, marker = looks[name]
            rows = data[(data["method"] == name) & (data["scheme"] == scheme) & data[score].notna()]
            y = [rungs.index(rung) + (place - (len(names) - 1) / 2) * step for rung in rows["rung"]]
            axes.scatter(
                rows[score].clip(LEAST, 1),
                y,
                marker=marker,
                s=16,
                zorder=3,
                edgecolors=colour,
                linewidths=1,
                facecolors=["white" if value < LEAST else colour for value in rows[score]],
                clip_on=False,
                label=name,
            )
            ceiling = rows["r2_ceiling"].max()
            if score == "r2" and pd.notna(ceiling):
                axes.axvline(ceiling, color=colour, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        axes.set(xlim=(LEAST - 0.05, 1.03), xlabel=SCORES[score], xticks=(-0.5, 0, 0.5, 1))
        pairs = int(data.loc[data["scheme"] == scheme, "pairs"].max())
        axes.set_title(f"{SCHEMES[scheme]}\n{RANKED * (score == 'tau')}{counted(pairs, 'pair')}")
    panels[0].set_yticks(range(len(rungs)), [predictor_words(rung, tables.task).removeprefix("the ") for rung in rungs])
    panels[0].set_ylim(len(rungs) - 0.4, -0.6)  # the simplest on top
    style.legend_above(figure, list(panels))
    worse = f" Hollow: below {number(LEAST)}." if (data[list(SCORES)] < LEAST).any(axis=None) else ""
    ceiling = (
        " Dotted: the most that chance of the seeds leaves to predict." if data["r2_ceiling"].notna().any() else ""
    )
    style.footer(
        figure,
        f"{style.transferred(tables)}; {counted(int(data['models'].max()), 'model')}. Every prediction is for models"
        f" that were held out in every role. R² 0: as good as the mean of the pairs learned from.{ceiling}{worse}",
        "One estimate each, without a standard error, over random folds: small differences may be chance.",
    )
    return Drawing(figure, data)


def property_effects(tables: Tables) -> Drawing:
    """Effect of every property on delta, alone and at an equal lead of the teacher, with robust and naive intervals."""
    effects = tables.analysis["effects"]
    names = [name for name in tables.chosen(MOST_METHODS) if name in set(effects["method"])]
    data = effects[effects["method"].isin(names) & effects["given"].isin(list(GIVEN))]
    if data.empty:
        return style.nothing(tables.why_not("effects", NO_PROPERTY), data)
    ranked = data.groupby("property", sort=False).agg(p=("p_bh", "min"), size=("effect", lambda v: v.abs().max()))
    ranked = ranked.sort_values(["p", "size"], ascending=[True, False], kind="stable")
    shown = ranked.index[:MOST_PROPERTIES].tolist()
    data = data[data["property"].isin(shown)].reset_index(drop=True)
    figure = Figure(figsize=(PAGE, 1.7 + 0.3 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)[0]
    ends = data[["low", "high"]].abs().max(axis=1)
    reach = 1.15 * max(float(data["effect"].abs().max()), float(ends.quantile(0.75)))
    for axes, name in zip(panels, names, strict=True):
        for given, (label, shift, marker, colour) in GIVEN.items():
            axes.plot([], [], marker, color=colour, markersize=4, label=label.format(metric=tables.task.metric.name))
            for row in records(data[(data["method"] == name) & (data["given"] == given)]):
                y = shown.index(row["property"]) + shift
                clear = row["p_bh"] < CLEAR
                naive = row["se_iid"] if pd.notna(row["se_iid"]) else 0.0
                axes.hlines(y, row["effect"] - 1.96 * naive, row["effect"] + 1.96 * naive, color="#C4C4C4", linewidth=5)
                if pd.notna(row["low"]):
                    axes.hlines(y, max(row["low"], -reach), min(row["high"], reach), color=colour, linewidth=1)
                axes.plot(
                    row["effect"],
                    y,
                    marker,
                    color=colour,
                    markersize=4,
                    zorder=3,
                    markerfacecolor=colour if clear else "white",
                )
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        of_method = data[data["method"] == name]
        axes.set_title(f"{name}, {counted(int(of_method['pairs'].max()), 'pair')}")
        axes.set(xlim=(-reach, reach), xlabel=f"{tables.task.metric.short} per standard deviation")
        axes.grid(visible=False, axis="y")
    words = [property_words(name, tables.task).removeprefix("the ") for name in shown]
    panels[0].set_yticks(range(len(shown)), [textwrap.shorten(name, 34, placeholder="…") for name in words])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    style.legend_above(figure, list(panels))
    tried = effects[effects["method"].isin(names)]["property"].nunique()
    models = int(data["models"].max())
    style.footer(
        figure,
        f"{style.transferred(tables)}; {counted(models, 'model')}. Properties shown: {len(shown)} of {tried} that were"
        f" tried, those with the smallest p. Effect: {tables.task.metric.difference} of delta per standard deviation.",
        "Lines: 95 % intervals from standard errors robust to pairs that share a model, cut off at the axis's ends;"
        " grey bars: the naive ones, as if pairs were independent. Filled: permutation p below 0.05 after correction"
        " (Benjamini-Hochberg).",
    )
    return Drawing(figure, data)


def predicted_vs_measured(tables: Tables) -> Drawing:
    """Measured delta of every pair against its prediction without its student, by the best predictor."""
    predictions = tables.analysis["predictions"]
    names = [name for name in tables.chosen(MOST_METHODS) if name in set(predictions["method"])]
    data = predictions[predictions["method"].isin(names)].reset_index(drop=True)
    if data.empty:
        return style.nothing(tables.why_not("predictions", TOO_FEW), data)
    figure = Figure(figsize=(PAGE * max(len(names), 1.5) / MOST_METHODS, 3.7), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    looks, short = style.looks(names), tables.task.metric.short
    for axes, name in zip(panels, names, strict=True):
        rows = data[data["method"] == name]
        colour, marker = looks[name]
        axes.scatter(rows["predicted"], rows["delta"], marker=marker, color=colour, zorder=2, **style.marks(len(rows)))
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        error = math.sqrt(float(((rows["delta"] - rows["predicted"]) ** 2).mean()))
        predictor = predictor_words(rows["rung"].iloc[0], tables.task)
        rests = f"typical error {number(error, decimals(tables.task, 1))} {short}\n{counted(len(rows), 'pair')}"
        axes.set_title(f"{name}\n{textwrap.fill(predictor.removeprefix('the '), 26)}\n{rests}")
        low, high = np.nanmin(rows[["delta"]]), np.nanmax(rows[["delta"]])
        margin = 0.06 * (high - low or 1.0)
        axes.set(ylim=(low - margin, high + margin), xlabel=f"predicted delta ({short})")
    panels[0].set_ylabel(f"measured delta ({short})")
    style.footer(
        figure,
        f"{style.transferred(tables)}. Predicted from pairs of other students and teachers only. Dashed: as predicted."
        " Typical error: root mean square; no standard error.",
    )
    return Drawing(figure, data)
