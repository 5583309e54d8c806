"""The figure of several teachers for one student. Source of the methods and the published values: FG section 4."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kt.analysis.deltas import records
from kt.analysis.wording import counted
from kt.figures import published, style
from kt.figures.style import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, Drawing
from kt.figures.tables import Tables


def several_teachers(tables: Tables) -> Drawing:
    """Delta of methods with several teachers beside the same students' single teachers."""
    data = tables.analysis["several"].reset_index(drop=True)
    if data.empty:
        return style.nothing(tables.why_not("several", "no transfer from a group of teachers (key `groups`)"), data)
    rows = records(data)
    figure = Figure(figsize=(PAGE, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, row in enumerate(rows):
        error = row["se"] if pd.notna(row["se"]) else 0.0
        axes.errorbar(row["delta"], y, xerr=error, fmt="o", color=BLUE, markersize=5, elinewidth=1.4, capsize=2,
                      label="together")  # fmt: skip
        axes.plot(row["single_mean"], y + 0.22, "s", color=ORANGE, markersize=4, label="one of them, mean")
        axes.plot(
            row["single_best"], y + 0.22, "^", color=GREEN, markersize=4.5, label="the best of them, known afterwards"
        )
        for value in published.SEVERAL.get(row["method"], ()):
            axes.plot(
                value, y - 0.24, "*", color=PURPLE, markerfacecolor="white", markersize=7,
                label="published (FG, 3 teachers, two students)",
            )  # fmt: skip
    labels = [f"{row['method']}, {_teachers(row)}\n{counted(row['students'], 'student')}" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("transfer delta (percentage points)")
    axes.grid(visible=False, axis="y")
    style.legend_above(figure, [axes], ("together",), ncols=2)
    single = next((row["single"] for row in rows if isinstance(row["single"], str)), None)
    taken = f" Single teachers by `{single}`, the method with the highest mean delta." if single else ""
    style.footer(
        figure,
        f"{style.of_groups(tables)}. Bars: ± 1 standard error over students.{taken}",
        "A budget of several trainings may lie behind a row: see the table `transfers`, column `budget`.",
    )
    return Drawing(figure, data)


def _teachers(row: dict[str, Any]) -> str:
    return f"{int(row['teachers'])} teachers" if pd.notna(row["teachers"]) else "teachers unknown"
