"""Figures of complementary knowledge: positive flips of pairs, and how few classes hold them. Source: FG section 3."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from kt.analysis.deltas import TINY
from kt.analysis.wording import decimals, flips_unit, lead, number, over, rights, signed, with_unit
from kt.figures import style
from kt.figures.published import FLIPS, FLIPS_LEAST, same_data
from kt.figures.style import BLUE, COLUMN, GREEN, GREY, MANY, ORANGE, PAGE, PURPLE, Drawing
from kt.figures.tables import Tables
from kt.tables.columns import SHARES
from kt.tasks.task import Words

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
        error = f"bars: ± 1 standard error over {over(tables.task)}"
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
    if data["pos_flips_se"].isna().all():
        error = style.no_error(tables.task)
    top = max(float((y + data["pos_flips_se"].fillna(0)).max()) * 1.08, reach)
    axes.fill_between([0, reach], [0, reach], color="#EFEFEF", linewidth=0, zorder=0)
    impossible = f"impossible: fewer flips than\nthe {metric.name if metric.unit else metric.short} difference"
    axes.text(reach * 0.97, top * 0.015, impossible, ha="right", va="bottom", fontsize=7, color="#555555")
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set(xlim=(-reach, reach), ylim=(-0.02 * top, top))
    axes.set(xlabel=lead(tables.task), ylabel=f"positive flips ({unit})")
    style.legend_above(figure, [axes], ncols=2)
    least = f"Published (FG): 466 ImageNet pairs, each with at least about {FLIPS_LEAST:g} %" if landmarks else ""
    style.footer(figure, style.scored(tables), error, least)
    return Drawing(figure, data)


def flips_heatmap(tables: Tables) -> Drawing:
    """Positive flips of every ordered pair as a map, the best models first; of a dense task those of pixels."""
    flips, unit, short = counted_flips(tables.task)
    data = tables.complementarity[["teacher", "student", flips, f"{flips}_se"]].copy()
    if data.empty:
        return style.nothing(NOTHING, data)
    value = tables.compared.set_index("name")["acc"]
    order = [str(name) for name in value.sort_values(ascending=False, kind="stable").index]
    grid = data.pivot_table(flips, "teacher", "student").reindex(index=order, columns=order)

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
        vmax=float(data[flips].max()) or 1.0,
        annot=models <= 12,
        fmt=f".{1 if tables.task.dense else decimals(tables.task, 1)}f",
        annot_kws={"fontsize": 7},
        linewidths=0.5 if models <= 30 else 0,
        rasterized=models > 30,
        cbar_kws={"label": f"positive flips ({unit})", "shrink": 0.8},
    )
    axes.set_facecolor("#DDDDDD")  # the diagonal, and pairs that were not scored
    axes.grid(visible=False)
    positions, names = style.thinned(order, 30)
    axes.set_yticks(
        positions + 0.5, [f"{name}  {number(value[name], decimals(tables.task, 1))}" for name in names], rotation=0
    )
    axes.set_xticks(positions + 0.5, names, rotation=90)
    axes.tick_params(length=0)
    axes.set(xlabel="student", ylabel=f"teacher, with its {with_unit(tables.task)}")
    places = 2 if tables.task.dense else decimals(tables.task)
    known = data[f"{flips}_se"].notna().any()
    largest = f"largest standard error {number(data[f'{flips}_se'].max(), places)} {short}"
    largest = largest if known else style.no_error(tables.task)
    style.footer(figure, style.scored(tables), largest)
    return Drawing(figure, data)


def counted_flips(task: Words) -> tuple[str, str, str]:
    """The column of positive flips that can be counted by class, its unit, and that of its error on axes."""
    if task.dense:
        return "pixel_flips", f"% of {rights(task)}", "pp"
    return "pos_flips", flips_unit(task), task.metric.short


def telling(scores: pd.DataFrame, flips: str = "pos_flips") -> list[tuple[str, int]]:
    """At most three distinct pairs that show how flips spread over classes, by rule.

    1. the weaker teacher with the most positive flips; then, of the pairs with at least the median number
    of flips (so that a handful of them does not decide), 2. the lowest and 3. the highest entropy over classes.

    Args:
        scores: the table ``complementarity``.
        flips: its column of positive flips.

    Returns:
        The rule in words and the row's index label.
    """
    with_flips = scores[scores[flips] > TINY]
    weaker = with_flips[with_flips["acc_difference"] < -TINY]
    many = with_flips[with_flips[flips] >= with_flips[flips].median()]
    ranked = (
        ("weaker teacher, most flips", weaker.sort_values(flips, ascending=False, kind="stable")),
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
    """Positive flips of every class, by name, for a few telling pairs."""
    scores, task = tables.complementarity, tables.task
    columns = ["rule", "teacher", "student", "class", "name", "flips", "flips_se"]
    if not task.has_classes:
        return style.nothing(NO_CLASSES, pd.DataFrame(columns=columns))
    pairs = telling(scores, counted_flips(task)[0])
    if not pairs:
        return style.nothing("no pair has positive flips", pd.DataFrame(columns=columns))
    if scores["flips_by_class"].isna().any():
        text = "the table does not list classes; set complementarity.class_lists: true"
        return style.nothing(text, pd.DataFrame(columns=columns))
    names, named = tables.names(len(scores["flips_by_class"].iloc[0])), bool(tables.class_names)
    many, below = len(names) > MOST_BARS, MOST_ACROSS < len(names) <= MOST_BARS
    letters = 0.06 * min(max(map(len, names)), LONGEST)
    height = 2.9 if many else letters + (0.7 + 1.3 * len(pairs) if below else 2.4)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    shape = (len(pairs), 1) if below else (1, len(pairs))
    panels = figure.subplots(*shape, sharex=below, sharey=True, squeeze=False).ravel()
    frames = []
    for axes, (rule, index), colour, hatch in zip(panels, pairs, (BLUE, ORANGE, GREEN), ("", "//", ".."), strict=False):
        row = scores.loc[index].to_dict()
        flips = np.asarray(row["flips_by_class"], dtype=np.int64)
        unknown = task.dense or row["n"] == 1
        error = np.full(len(flips), np.nan) if unknown else np.sqrt(flips * (1 - flips / row["n"]))
        order = np.argsort(-flips, kind="stable")
        if many:
            axes.bar(np.arange(1, len(flips) + 1), flips[order], width=1.0, color=colour)
            first = [_short(names[label]) for label in order[:MOST_NAMED] if flips[label]]
            axes.set_xlabel("\n".join(["classes, most flips first (rank)", *first]))
        else:
            place = np.arange(len(flips))
            axes.bar(place, flips, width=0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            if not task.dense:
                bars = np.minimum(error, [flips, error])
                axes.errorbar(place, flips, bars, fmt="none", ecolor="#333333", elinewidth=0.8)
            axes.set_xlabel("" if below and axes is not panels[-1] else f"class ({'name' if named else 'number'})")
            axes.set_xticks(place, [_short(name) for name in names], rotation=90 * (max(map(len, names)) > 2))
        lead = f"{task.metric.name} {signed(row['acc_difference'], decimals(task, 1))} {task.metric.short}"
        told = [rule, f"{row['teacher']} → {row['student']}", f"{lead}, entropy {number(row['class_entropy'], 2)} nats"]
        axes.set_title(("; " if below else "\n").join(told), fontsize=7)
        axes.grid(visible=False, axis="x")
        frames.append(
            pd.DataFrame({"class": np.arange(len(flips)), "name": names, "flips": flips, "flips_se": error}).assign(
                rule=rule, teacher=row["teacher"], student=row["student"]
            )[columns]
        )
    for axes in panels if below else panels[:1]:
        axes.set_ylabel(f"{'' if below else 'positive '}flips ({rights(task)})")
    if task.dense:
        panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    uniform = f"entropy of a uniform spread: {number(float(np.log(len(names))), 2)} nats"
    bars_are = "standard error about √flips" if many else "bars: ± 1 binomial standard error"
    if task.dense:
        bars_are = f"pixels of one {task.example} depend on one another, so that no errors are given"
    elif (scores["n"] == 1).all():
        bars_are = style.no_error(task)
    style.footer(figure, f"teacher → student; {len(pairs)} of {style.scored(tables)}; {bars_are}; {uniform}")
    return Drawing(figure, pd.concat(frames, ignore_index=True))


MOST_ACROSS, MOST_BARS, MOST_NAMED = 18, 30, 3
"""Classes up to which panels lie side by side, and up to which each has a bar with its name; names of more classes."""

LONGEST = 18
"""Letters of a class's name that are shown."""


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


ENOUGH = 20
"""Positive flips below which a pair says nothing about classes."""


def flips_concentration(tables: Tables) -> Drawing:
    """Entropy of positive flips over classes, the classes that hold them, and how similar those classes are."""
    scores, task = tables.complementarity, tables.task
    flips, unit, _ = counted_flips(task)
    columns = ["teacher", "student", "acc_difference", flips, "n", "class_entropy"]
    areas = [f"{name}_{share}" for name in ("expertise", "expertise_similarity") for share in SHARES]
    data = scores[[*columns, *areas, "class_similarity"]].copy()
    if not task.has_classes:
        return style.nothing(NO_CLASSES, data)
    data["flips"] = data[flips] if task.dense else (data[flips] / 100 * data["n"]).round().astype(int)
    data = data[data["flips"] > 0].reset_index(drop=True)
    if data.empty:
        return style.nothing("no pair has positive flips", data)
    lists = scores["flips_by_class"].dropna()
    classes = len(lists.iloc[0]) if len(lists) else None
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    entropy, holding, *similar = figure.subplots(1, 2 if task.dense else 3)
    enough = data if task.dense else data[data["flips"] >= ENOUGH]
    _entropy(entropy, data, classes, unit if task.dense else rights(task))
    _areas(holding, enough, classes)
    for axes in similar:
        _similarity(axes, enough)
    style.legend_above(figure, [entropy])
    spread = "bars: quartiles over pairs (their spread, no standard error)."
    even = "as many flips spread evenly at random over classes"
    if task.dense:
        notes = f"{style.scored(tables)}; {spread}", "Grey: flips spread evenly over classes."
    else:
        kept = f"middle and right: the {len(enough)} pairs with at least {ENOUGH} positive flips"
        notes = f"{style.scored(tables)}; {kept}; {spread}", f"Grey, left and middle: {even}."
    vectors = "One class has no similarity. FG takes CLIP's vectors of class names; here: key class_embeddings."
    unknown = "The number of classes is not in the table."
    style.footer(figure, notes[0], notes[1] if classes else unknown, vectors if similar else "")
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
    axes.set(xlabel=f"positive flips ({unit})", ylabel="entropy over classes (nats)")
    if data["flips"].dtype.kind == "f":  # shares of very many
        if classes:
            axes.axhline(np.log(classes), color=GREY, linewidth=1.4, zorder=0)
        axes.set_xlim(left=0)
    else:
        low, high = int(data["flips"].min()), int(data["flips"].max())
        if classes:
            grid = np.unique(np.geomspace(max(low, 1), max(high, 2), 40).round().astype(int))
            axes.plot(grid, even_entropy(grid, classes), color=GREY, linewidth=1.4, zorder=0)
        style.log_scale(axes, low / 1.3, high * 1.3)
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
        if data["flips"].dtype.kind == "i":
            chance = np.median(even_areas(data["flips"], classes), axis=0)
        else:
            chance = np.ceil(np.multiply(SHARES, classes) / 100)
        axes.plot(range(len(SHARES)), chance, "_", color=GREY, ms=16)
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
