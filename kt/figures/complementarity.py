"""Figures of complementary knowledge: positive flips of pairs, and how few classes hold them. Source: FG section 3."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from kt.analysis.deltas import TINY
from kt.analysis.wording import decimals, examples, flips_unit, number, plural, signed
from kt.figures import style
from kt.figures.published import FLIPS, FLIPS_LEAST, same_data
from kt.figures.style import BLUE, COLUMN, GREEN, GREY, MANY, ORANGE, PAGE, PURPLE, Drawing
from kt.figures.tables import Tables
from kt.tables.of_study import SHARES

NOTHING, NO_CLASSES = "no pairs were scored", "the task has no classes"
KIND_MARKS = {
    "same kind": ("o", BLUE),
    "different kinds": ("^", ORANGE),
    "kind unknown": ("s", GREY),
}


def flips_vs_accuracy(tables: Tables) -> Drawing:
    """Positive flips of every ordered pair against the lead of its teacher."""
    columns = ["teacher", "student", "acc_difference", "pos_flips", "pos_flips_se"]
    data = tables.complementarity[columns].copy()
    kinds = tables.zoo.set_index("name")["kind"]
    teacher, student = (data[role].map(kinds) for role in ("teacher", "student"))
    known = teacher.notna() & student.notna()
    data["kinds"] = np.select([known & (teacher == student), known], ["same kind", "different kinds"], "kind unknown")
    if data.empty:
        return style.nothing(NOTHING, data)

    metric, unit = tables.task.metric, flips_unit(tables.task)
    figure = Figure(figsize=(COLUMN, 3.5), layout="constrained")
    axes: Axes = figure.add_subplot()
    x, y = data["acc_difference"], data["pos_flips"]
    if len(data) <= MANY:
        axes.errorbar(x, y, data["pos_flips_se"], fmt="none", ecolor="#BBBBBB", elinewidth=0.7, zorder=1)
        error = f"bars: ± 1 standard error over {plural(examples(tables.task))}"
    else:
        error = f"median standard error {number(data['pos_flips_se'].median(), decimals(tables.task))} {metric.short}"
    for kind, (marker, colour) in KIND_MARKS.items():
        of_kind = data[data["kinds"] == kind]
        if len(of_kind):
            axes.scatter(
                of_kind["acc_difference"],
                of_kind["pos_flips"],
                marker=marker,
                color=colour,
                label=f"{kind} ({len(of_kind):,})",
                zorder=2,
                **style.marks(len(data)),
            )
    reach = float(x.abs().max()) * 1.08 or 1.0
    landmarks = [point for point in FLIPS if point[0] <= reach] if same_data(tables) else []
    if landmarks:
        marks: Any = {"markersize": 8, "markerfacecolor": "white", "color": PURPLE, "zorder": 3}
        axes.plot(*zip(*landmarks, strict=True), "*", label="published, ImageNet", **marks)
    top = max(float((y + data["pos_flips_se"]).max()) * 1.08, reach)
    axes.fill_between([0, reach], [0, reach], color="#EFEFEF", linewidth=0, zorder=0)
    impossible = f"impossible: fewer flips than\nthe {metric.name} difference"
    axes.text(reach * 0.97, top * 0.015, impossible, ha="right", va="bottom", fontsize=7, color="#555555")
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set(xlim=(-reach, reach), ylim=(-0.02 * top, top))
    axes.set(xlabel=f"{metric.name} of teacher − student ({metric.difference})", ylabel=f"positive flips ({unit})")
    style.legend_above(figure, [axes], ncols=2)
    least = f"Published (FG): 466 ImageNet pairs, each with at least about {FLIPS_LEAST:g} %" if landmarks else ""
    style.footer(figure, style.scored(tables), error, least)
    return Drawing(figure, data)


def flips_heatmap(tables: Tables) -> Drawing:
    """Positive flips of every ordered pair as a map, the best models first."""
    data = tables.complementarity[["teacher", "student", "pos_flips", "pos_flips_se"]].copy()
    if data.empty:
        return style.nothing(NOTHING, data)
    metric, value = tables.task.metric, tables.compared.set_index("name")["acc"]
    order = [str(name) for name in value.sort_values(ascending=False, kind="stable").index]
    grid = data.pivot_table("pos_flips", "teacher", "student").reindex(index=order, columns=order)

    models = len(order)
    side = float(np.clip(1.6 + 0.42 * models, 3.2, PAGE))
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes: Axes = figure.add_subplot()
    sns.heatmap(
        grid,
        ax=axes,
        square=True,
        cmap="mako_r",
        vmin=0,
        vmax=float(data["pos_flips"].max()) or 1.0,
        annot=models <= 12,
        fmt=f".{decimals(tables.task, 1)}f",
        annot_kws={"fontsize": 7},
        linewidths=0.5 if models <= 30 else 0,
        rasterized=models > 30,
        cbar_kws={"label": f"positive flips ({flips_unit(tables.task)})", "shrink": 0.8},
    )
    axes.set_facecolor("#DDDDDD")  # the diagonal, and pairs that were not scored
    axes.grid(visible=False)
    positions, names = style.thinned(order, 30)
    axes.set_yticks(
        positions + 0.5, [f"{name}  {number(value[name], decimals(tables.task, 1))}" for name in names], rotation=0
    )
    axes.set_xticks(positions + 0.5, names, rotation=90)
    axes.tick_params(length=0)
    axes.set(xlabel="student", ylabel=f"teacher, with its {metric.name} ({metric.unit})")
    largest = f"largest standard error {number(data['pos_flips_se'].max(), decimals(tables.task))} {metric.short}"
    style.footer(figure, style.scored(tables), largest)
    return Drawing(figure, data)


def telling(scores: pd.DataFrame) -> list[tuple[str, int]]:
    """At most three distinct pairs that show how flips spread over classes, by rule.

    1. the weaker teacher with the most positive flips; then, of the pairs with at least the median number
    of flips (so that a handful of them does not decide), 2. the lowest and 3. the highest entropy over classes.

    Returns:
        The rule in words and the row's index label.
    """
    with_flips = scores[scores["pos_flips"] > TINY]
    weaker = with_flips[with_flips["acc_difference"] < -TINY]
    many = with_flips[with_flips["pos_flips"] >= with_flips["pos_flips"].median()]
    ranked = (
        ("weaker teacher, most flips", weaker.sort_values("pos_flips", ascending=False, kind="stable")),
        ("most concentrated", many.sort_values("class_entropy", kind="stable")),
        ("most uniform", many.sort_values("class_entropy", ascending=False, kind="stable")),
    )
    chosen: dict[int, str] = {}
    for rule, rows in ranked:
        first = next((int(index) for index in rows.index if index not in chosen), None)
        if first is not None:
            chosen[first] = rule
    return [(rule, index) for index, rule in chosen.items()]


def flips_by_class(tables: Tables) -> Drawing:
    """Positive flips of every class for a few telling pairs."""
    scores = tables.complementarity
    columns = ["rule", "teacher", "student", "class", "flips", "flips_se"]
    if not tables.task.has_classes:
        return style.nothing(NO_CLASSES, pd.DataFrame(columns=columns))
    pairs, metric = telling(scores), tables.task.metric
    if not pairs:
        return style.nothing("no pair has positive flips", pd.DataFrame(columns=columns))
    if scores["flips_by_class"].isna().any():
        text = "the table does not list classes; set complementarity.class_lists: true"
        return style.nothing(text, pd.DataFrame(columns=columns))
    frames = []
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, (rule, index), colour, hatch in zip(panels, pairs, (BLUE, ORANGE, GREEN), ("", "//", ".."), strict=False):
        row = scores.loc[index].to_dict()
        flips = np.asarray(row["flips_by_class"], dtype=np.int64)
        error = np.sqrt(flips * (1 - flips / row["n"]))
        many = len(flips) > 30
        order = np.argsort(-flips, kind="stable") if many else np.arange(len(flips))
        place = np.arange(1, len(flips) + 1) if many else order
        if many:
            axes.bar(place, flips[order], width=1.0, color=colour)
        else:
            axes.bar(place, flips, width=0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            axes.errorbar(place, flips, np.minimum(error, [flips, error]), fmt="none", ecolor="#333333", elinewidth=0.8)
            axes.set_xticks(*style.thinned([str(c) for c in order], 15))
        lead = f"{metric.name} {signed(row['acc_difference'], decimals(tables.task, 1))} {metric.short}"
        axes.set_title(
            f"{rule}\n{row['teacher']} → {row['student']}\n{lead}, entropy {number(row['class_entropy'], 2)} nats",
            fontsize=7,
        )
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("classes, most flips first (rank)" if many else "class (number)")
        frames.append(
            pd.DataFrame({"class": np.arange(len(flips)), "flips": flips, "flips_se": error}).assign(
                rule=rule, teacher=row["teacher"], student=row["student"]
            )[columns]
        )
    panels[0].set_ylabel(f"positive flips ({plural(examples(tables.task))})")
    uniform = f"entropy of a uniform spread: {number(float(np.log(len(frames[0]))), 2)} nats"
    bars = "bars: ± 1 binomial standard error" if len(frames[0]) <= 30 else "standard error about √flips"
    style.footer(figure, f"teacher → student; {len(pairs)} of {style.scored(tables)}; {bars}; {uniform}")
    return Drawing(figure, pd.concat(frames, ignore_index=True))


ENOUGH = 20
"""Positive flips below which a pair says nothing about classes."""


def flips_concentration(tables: Tables) -> Drawing:
    """Entropy of positive flips over classes, the classes that hold them, and how similar those classes are."""
    scores = tables.complementarity
    columns = ["teacher", "student", "acc_difference", "pos_flips", "n", "class_entropy"]
    areas = [f"{name}_{share}" for name in ("expertise", "expertise_similarity") for share in SHARES]
    data = scores[[*columns, *areas, "class_similarity"]].copy()
    if not tables.task.has_classes:
        return style.nothing(NO_CLASSES, data)
    data["flips"] = (data["pos_flips"] / 100 * data["n"]).round().astype(int)
    data = data[data["flips"] > 0].reset_index(drop=True)
    if data.empty:
        return style.nothing("no pair has positive flips", data)
    lists = scores["flips_by_class"].dropna()
    classes = len(lists.iloc[0]) if len(lists) else None
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    entropy, holding, similar = figure.subplots(1, 3)
    _entropy(entropy, data, classes, plural(examples(tables.task)))
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
    )
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


def _entropy(axes: Axes, data: pd.DataFrame, classes: int | None, unit: str) -> None:
    weaker = data["acc_difference"] < 0
    for chosen, marker, colour, label in (
        (weaker, "v", ORANGE, "weaker teacher"),
        (~weaker, "o", BLUE, "equal or stronger teacher"),
    ):
        rows = data[chosen]
        axes.scatter(
            rows["flips"], rows["class_entropy"], marker=marker, color=colour, label=label, **style.marks(len(data))
        )
    if classes:
        low, high = int(data["flips"].min()), int(data["flips"].max())
        grid = np.unique(np.geomspace(max(low, 1), max(high, 2), 40).round().astype(int))
        axes.plot(grid, even_entropy(grid, classes), color=GREY, linewidth=1.4, zorder=0)
    axes.set(xlabel=f"positive flips ({unit})", ylabel="entropy over classes (nats)")
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
                place,
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt="s",
                color=BLUE,
                markersize=5,
                markerfacecolor="white",
                elinewidth=1.4,
                capsize=3,
            )
