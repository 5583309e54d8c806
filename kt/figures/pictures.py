"""The figure of a task of maps that shows images: truth, teacher, student before and after, and who taught where."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from kt.analysis.deltas import records
from kt.analysis.wording import decimals, examples, number, over, plural, with_error
from kt.figures import style
from kt.figures.style import ORANGE, PAGE, Drawing
from kt.figures.tables import Tables
from kt.tasks.task import Words

Row = dict[str, Any]

WITHOUT_TRUTH = 255
"""Value of pixels without a truth."""

FEW = [
    tuple(round(255 * part) for part in colour[:3])
    for name in ("Set1", "Dark2", "tab20b")
    for colour in colormaps[name].colors  # type: ignore[attr-defined]
    if max(colour[:3]) - min(colour[:3]) > 0.15  # none that is nearly grey
]
"""Colours that are easily told apart."""

COLUMNS = {
    "image": "image",
    "truth": "truth",
    "teacher_map": "teacher",
    "before_map": "student before",
    "after_map": "student after",
    "taught_map": "teacher teaches",
}
"""Columns of the table that are pictures, and what stands above them."""


SCORES = {"teacher_map": "acc_teacher", "before_map": "acc_before", "after_map": "acc_after"}
"""Columns of the metric of single images, by the pictures that it is of."""

HEAT = colormaps["inferno"]


def pictures(tables: Tables) -> Drawing:
    """One row per image: the trainings with the highest, the median and the lowest delta."""
    data = tables.details("pictures")
    if data.empty:
        return style.nothing("no training finished whose images are shown", data)
    rows, task = records(data), tables.task
    hidden = {"taught_map"} if task.maps else set()  # there the teacher teaches a whole image or none
    parts = [name for name in COLUMNS if data[name].notna().any() and name not in hidden]
    height = (PAGE - 0.9) / len(parts) * (_sides(rows[0]) if task.maps else 1) + 0.12 * task.maps
    figure = Figure(figsize=(PAGE, height * len(rows) + 1.1), layout="constrained")
    grid = figure.subplots(len(rows), len(parts), squeeze=False)
    draw = _maps if task.maps else _classes
    draw(figure, grid, rows, parts, task)
    for of_row, row in zip(grid, rows, strict=True):
        gain = f"{with_error(row['delta'], row['delta_se'], decimals(task))} {task.metric.short}"
        text = f"{row['why']}\n{row['teacher']}\n→ {row['student']}\n{gain}"
        of_row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=6.5)
    for axes, part in zip(grid[0], parts, strict=True):
        axes.set_title(COLUMNS[part] if part != "image" else task.example, fontsize=7, loc="center")
    trainings = f"{rows[0]['method']}: trainings with the highest, the median and the lowest delta (± 1 standard error"
    style.footer(figure, f"{trainings} over {over(task)}); {_chosen(task)}")
    columns = ["why", "method", "teacher", "student", "seed", "delta", "delta_se", "image_id", "key"]
    return Drawing(figure, data[[*columns, *(SCORES.values() if task.maps else ())]])


def _chosen(task: Words) -> str:
    """The images of a training that are shown, and their marks."""
    if not task.maps:
        return "of each, the test images with most pixels that only the teacher got right before. Grey: no truth."
    return (
        f"of each, the {plural(examples(task))} on which the teacher led most before. Bright: large values of a map, as"
        f" shares of its largest; crosses: fixations. Numbers: {task.metric.name} of a map with the truth. Orange"
        f" frame: the method lets the teacher teach this {task.example}."
    )


def _classes(figure: Figure, grid: Any, rows: list[Row], parts: list[str], task: Words) -> None:
    """Maps of classes, each in its colour."""
    names = list(rows[0]["names"])
    colours, seen = palette(len(names)), set[int]()
    for of_row, row in zip(grid, rows, strict=True):
        for axes, part in zip(of_row, parts, strict=True):
            _bare(axes)
            if not isinstance(row[part], str):
                continue
            pixels = as_pixels(row[part])
            if part == "image":
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            elif part == "taught_map":
                axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=510, interpolation="nearest")
            else:
                seen |= set(np.unique(pixels).tolist()) - {WITHOUT_TRUTH}
                axes.imshow(colours[pixels], interpolation="nearest")
    handles = [Patch(color=tuple(colours[label] / 255), label=names[label]) for label in sorted(seen)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 11), fontsize=6.5)


def _maps(figure: Figure, grid: Any, rows: list[Row], parts: list[str], task: Words) -> None:
    """Maps of saliency as heat over the frame, with the metric of each below."""
    for of_row, row in zip(grid, rows, strict=True):
        frame = as_pixels(row["image"])
        grey = frame.mean(-1) if frame.ndim == 3 else frame
        for axes, part in zip(of_row, parts, strict=True):
            _bare(axes)
            if not isinstance(row[part], str):
                axes.set_box_aspect(grey.shape[0] / grey.shape[1])
                axes.text(0.5, 0.5, "not kept", ha="center", va="center", fontsize=6.5, transform=axes.transAxes)
                continue
            if part == "image":
                axes.imshow(frame, cmap="gray", vmin=0, vmax=255)
                continue
            axes.imshow(_heat(as_pixels(row[part]), grey))
            if part == "truth" and row["fixations"] is not None:
                x, y = np.reshape(row["fixations"], (-1, 2)).T * np.array(grey.shape[::-1])[:, None] - 0.5
                axes.plot(x, y, "+", color="white", markersize=4, markeredgewidth=0.7)
            if part in SCORES and pd.notna(row[SCORES[part]]):
                axes.set_xlabel(
                    f"{task.metric.short} {number(row[SCORES[part]], decimals(task, 1))}", fontsize=6.5, labelpad=2
                )
            if part == "teacher_map" and isinstance(row["taught_map"], str) and as_pixels(row["taught_map"]).any():
                for spine in axes.spines.values():
                    spine.set(visible=True, color=ORANGE, linewidth=2)


def _heat(values: NDArray[np.uint8], grey: NDArray[Any]) -> NDArray[np.float64]:
    """A map [H, W] as colours from 0 to 1, [H, W, 3], laid over its grey frame."""
    share = values / max(1, int(values.max()))
    shown: NDArray[np.float64] = 0.75 * HEAT(share)[..., :3] + 0.25 * grey[..., None] / 255
    return shown


def _sides(row: Row) -> float:
    """Height of a picture over its width."""
    height, width = as_pixels(row["image"]).shape[:2]
    return float(height / width)


def as_pixels(text: str) -> NDArray[np.uint8]:
    """Pixels of a PNG in base64, uint8 [H, W] or [H, W, C]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def palette(classes: int) -> NDArray[np.uint8]:
    """A colour for each class and, at ``WITHOUT_TRUTH``, grey; uint8 [256, 3].

    The first class is dark. Few classes have colours that are easily told apart; of many, the bits of a class's number
    are spread over red, green and blue, as in the colours of PASCAL VOC.
    """
    colours = np.full((256, 3), 128, np.uint8)
    colours[0] = (35, 35, 45)
    for label in range(1, classes):
        colours[label] = FEW[label - 1] if classes <= len(FEW) + 1 else _of_bits(label)
    return colours


def _of_bits(label: int) -> NDArray[np.uint8]:
    colour = np.zeros(3, np.uint8)
    for shift in range(7, -1, -1):
        colour |= (((label >> np.arange(3)) & 1) << shift).astype(np.uint8)
        label >>= 3
    return colour if (colour != 128).any() else np.array((255, 170, 60), np.uint8)  # grey is that of no truth


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
