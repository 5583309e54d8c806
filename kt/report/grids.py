"""Tables of the report as cells, those of the study and its experiments, and the experiments in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kt.analysis.deltas import clear_sign, pair_deltas, records
from kt.analysis.wording import (
    begun,
    counted,
    counted_range,
    decimals,
    examples,
    flips_unit,
    number,
    over,
    plural,
    rights,
    signed,
    value_with_error,
    with_error,
    with_unit,
)
from kt.figures import experiments as drawn
from kt.figures.tables import Tables
from kt.tasks.task import Words


class Cell(NamedTuple):
    """A printed value and the number it is sorted by (None: by its text)."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table of the report: a caption, headings with their units, and rows of cells; the first cell names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]


Show = Callable[[dict[str, Any]], Cell]


def name(column: str) -> Show:
    """A text; a dash where there is none."""
    return lambda row: Cell(row[column] if isinstance(row[column], str) else "–")


def plain(column: str, digits: int = 1, scale: float = 1.0) -> Show:
    """A number with fixed decimals, divided by ``scale`` for the eye only."""

    def show(row: dict[str, Any]) -> Cell:
        value = _float(row[column])
        return Cell(number(value / scale, digits), value)

    return show


def error(column: str, digits: int = 2) -> Show:
    """A signed number and its standard error, from the column with ``_se`` behind its name."""
    return lambda row: Cell(with_error(_float(row[column]), _float(row[f"{column}_se"]), digits), _float(row[column]))


def signed_number(column: str, digits: int = 2) -> Show:
    """A number with its sign."""
    return lambda row: Cell(signed(_float(row[column]), digits), _float(row[column]))


def count(column: str) -> Show:
    """A whole number."""
    return lambda row: Cell("–" if pd.isna(row[column]) else f"{int(row[column]):,}", _float(row[column]))


def grid(caption: str, frame: pd.DataFrame, columns: Sequence[tuple[str, Show]]) -> Grid:
    """A table from a frame, with one heading and one way to print its cells per column."""
    rows = [[show(row) for _, show in columns] for row in records(frame)]
    return Grid(caption, tuple(heading for heading, _ in columns), rows)


def _float(value: Any) -> float:
    return float("nan") if pd.isna(value) else float(value)


TOP = 10
MOST_CLASSES, MOST_MODELS = 30, 10
MOST_FAILURES = 50


def summary(tables: Tables) -> Grid:
    """The methods: all pairs, and those with a weaker and with a stronger teacher."""
    wide = tables.methods[tables.methods["group"] == "all"].set_index("method", drop=False)
    for group in ("weaker", "stronger"):
        of_group = tables.methods[tables.methods["group"] == group].set_index("method")
        for column in ("delta", "delta_se", "success", "pairs"):
            wide = wide.assign(**{f"{group}_{column}": of_group[column].reindex(wide.index)})
    wide["shown"] = [f"{m} (control)" if c else m for m, c in zip(wide["method"], wide["control"], strict=True)]

    short, digits = tables.task.metric.short, decimals(tables.task)
    columns: list[tuple[str, Show]] = [("method", name("shown"))]
    for group, prefix in (("all pairs", ""), ("weaker teacher", "weaker_"), ("stronger teacher", "stronger_")):
        pairs = wide[f"{prefix}pairs"].dropna().astype(int)
        size = f" ({counted_range(pairs, 'pair')})" if len(pairs) else ""
        columns += [
            (f"{group}{size}, {short}", error(f"{prefix}delta", digits)),
            ("success, %", plain(f"{prefix}success", 0)),
        ]
    if wide["taught_errors_beyond"].notna().any():
        columns.append((f"taught errors, {short}", error("taught_errors_beyond", 1)))
    if wide["failed"].any():
        columns.append(("failed", count("failed")))
    unit = tables.task.metric.difference
    caption = f"Transfer delta in {unit}: mean ± standard error, and the success rate of the same pairs."
    return grid(caption, wide, columns)


def zoo(tables: Tables) -> list[Grid]:
    """The models, the best first, and the origin of their weights; columns without any value are left out."""
    frame = tables.zoo.sort_values("acc", ascending=False, kind="stable")
    recipes = frame["recipe"].map(" ".join)
    frame = frame.assign(recipe=recipes.where(recipes != "", None))
    metric, digits = tables.task.metric, decimals(tables.task, 1)
    models: dict[str, tuple[str, Show]] = {
        "name": ("model", name("name")),
        "arch": ("architecture", name("arch")),
        "kind": ("kind", name("kind")),
        "params": ("parameters, thousand", plain("params", 1, 1e3)),
        "macs": ("MACs, million", plain("macs", 2, 1e6)),
        "input_size": ("input, pixels", count("input_size")),
        "acc": (with_unit(tables.task, comma=True), value("acc", "acc_se", digits)),
        "ece": ("calibration error, %", plain("ece")),
        "pixel_accuracy": ("right pixels, %", plain("pixel_accuracy")),
        "mean_accuracy": ("right pixels, mean over classes, %", plain("mean_accuracy")),
        "fw_iou": ("frequency-weighted IoU, %", plain("fw_iou")),
        "sim": ("SIM", plain("sim", 3)),
        "nss": ("NSS", plain("nss", 2)),
        "kld": ("KLD, nats", plain("kld", 2)),
        "auc_judd": ("AUC-Judd", plain("auc_judd", 3)),
        "s_auc": ("s-AUC", plain("s_auc", 3)),
        "undefined": ("constant maps", count("undefined")),
        "game": ("game", name("game")),
    }
    weights: dict[str, tuple[str, Show]] = {
        "name": ("model", name("name")),
        "pretraining": ("pretraining", name("pretraining")),
        "finetuning": ("fine-tuning", name("finetuning")),
        "train_images": (f"trained on, {plural(tables.task.example)}", count("train_images")),
        "train_steps": ("trained on, actions", count("train_steps")),
        "train_seconds": ("training, seconds", plain("train_seconds")),
        "recipe": ("recipe", name("recipe")),
        "licence": ("licence", name("licence")),
    }
    captions = (
        f"The models. {begun(metric.name)} on the {plural(examples(tables.task))} ± standard error"
        f"{f' over {over(tables.task)}' if tables.task.cluster else ''}.",
        "Origin of their weights, and the training by this study.",
    )
    made = [
        grid(caption, frame, [shown for key, shown in columns.items() if key in frame and frame[key].notna().any()])
        for caption, columns in zip(captions, (models, weights), strict=True)
    ]
    known = frame.dropna(subset="iou_by_class") if "iou_by_class" in frame else frame[:0]
    return [made[0], *([_classes(known, tables)] if len(known) else []), made[1]]


def _classes(models: pd.DataFrame, tables: Tables) -> Grid:
    """The IoU of every class, in the order of the classes; of many, those that the models differ on most."""
    shown, iou = models.head(MOST_MODELS), np.array([list(of) for of in models["iou_by_class"]], np.float64)
    names = tables.names(iou.shape[1])
    spread = np.nan_to_num(np.ptp(iou, axis=0), nan=-1.0)
    chosen = np.sort(np.argsort(-spread, kind="stable")[:MOST_CLASSES])
    rows = [[Cell(names[label]), *(_iou(of[label]) for of in iou[: len(shown)])] for label in chosen]
    more = f" The {MOST_CLASSES} of {len(names)} classes that the models differ on most." * (len(names) > len(chosen))
    best = f" The {MOST_MODELS} best of {len(models)} models." * (len(models) > len(shown))
    caption = f"IoU of every class on the {plural(examples(tables.task))}, %; a dash: not in their truth.{more}{best}"
    return Grid(caption, ("class", *shown["name"]), rows)


def _iou(value: float) -> Cell:
    return Cell(number(value, 1), value)


def top_pairs(tables: Tables) -> list[Grid]:
    """The most complementary pairs, and the pairs that gained and lost most."""
    flips = tables.complementarity.sort_values("pos_flips", ascending=False, kind="stable")
    weaker = flips[flips["acc_difference"] < 0]
    pair: list[tuple[str, Show]] = [("teacher", name("teacher")), ("student", name("student"))]
    short, digits, unit = tables.task.metric.short, decimals(tables.task), flips_unit(tables.task)
    scores: list[tuple[str, Show]] = [
        *pair,
        (f"teacher − student, {short}", signed_number("acc_difference", digits - 1)),
        (f"positive flips, {unit}", value("pos_flips", "pos_flips_se", digits - 1)),
        (f"negative flips, {unit}", plain("neg_flips", digits - 1)),
    ]
    if tables.task.dense and tables.task.has_classes:
        scores.append((f"pixel flips, % of {rights(tables.task)}", value("pixel_flips", "pixel_flips_se", 1)))
    if tables.task.has_classes:
        scores.append(("class entropy, nats", plain("class_entropy", 2)))
    deltas = pair_deltas(tables.transfers, tables.complementarity)
    deltas = deltas[~deltas["control"].astype(bool)].sort_values("delta", ascending=False, kind="stable")
    transfers: list[tuple[str, Show]] = [
        *pair,
        ("method", name("method")),
        (f"teacher − student, {short}", signed_number("acc_difference", digits - 1)),
        (f"transfer delta, {short}", error("delta", digits)),
        ("transfer rate, %", plain("transfer_rate", 0)),
    ]
    averaged = f"averaged over seeds, ± standard error over {over(tables.task)}"
    grids = [
        grid("Most positive flips.", flips.head(TOP), scores),
        grid("Most positive flips from a weaker teacher.", weaker.head(TOP), scores),
        grid(f"Largest gains, {averaged}.", deltas.head(TOP), transfers),
        grid(f"Lowest deltas, {averaged}.", deltas.tail(TOP).iloc[::-1], transfers),
    ]
    return [grid for grid in grids if grid.rows]


def classes_of_pairs(tables: Tables) -> list[Grid]:
    """Classes that the teacher knows better, for the pair that gained most and the most complementary pairs."""
    scores = tables.complementarity
    if not tables.task.has_classes or scores["flips_by_class"].isna().any() or scores.empty:
        return []
    flips = scores.sort_values("pos_flips", ascending=False, kind="stable")
    deltas = pair_deltas(tables.transfers, scores)
    gained = deltas[~deltas["control"].astype(bool)].sort_values("delta", ascending=False, kind="stable")
    weaker = flips[flips["acc_difference"] < 0]
    chosen: dict[tuple[str, str], str] = {}
    by_class = scores.set_index(["teacher", "student"])["flips_by_class"]
    for why, rows in (("largest gain", gained), ("most flips from a weaker teacher", weaker), ("most flips", flips)):
        pair = (str(rows.iloc[0]["teacher"]), str(rows.iloc[0]["student"])) if len(rows) else ("", "")
        if pair[::-1] in by_class.index:  # a table of one's own may have a pair in one direction only
            chosen.setdefault(pair, why)
    return [
        _of_pair(tables, pair, why, np.asarray(by_class[pair]), np.asarray(by_class[pair[::-1]]))
        for pair, why in chosen.items()
    ]


def _of_pair(tables: Tables, pair: tuple[str, str], why: str, positive: Any, negative: Any) -> Grid:
    names, of = tables.names(len(positive)), rights(tables.task)
    sizes = tables.class_sizes if len(tables.class_sizes) == len(names) else [None] * len(names)
    frame = pd.DataFrame({"class": names, "n": sizes, "positive": positive, "negative": negative})
    frame["net"] = frame["positive"] - frame["negative"]
    shown = frame.sort_values(["net", "positive"], ascending=False, kind="stable").head(TOP)
    more = f" The first {TOP} of {len(frame)} classes." * (len(frame) > TOP)
    columns: list[tuple[str, Show]] = [
        ("class", name("class")),
        *([(of, count("n"))] if tables.class_sizes else []),
        ("only the teacher right", count("positive")),
        ("only the student right", count("negative")),
        ("difference", lambda row: Cell(signed(row["net"], 0), float(row["net"]))),
    ]
    caption = f"Classes that `{pair[0]}` knows better than `{pair[1]}` ({why}), in {of}, before transfer.{more}"
    return grid(caption, shown, columns)


def failures(tables: Tables) -> Grid | None:
    """Failed trainings with their reasons; None where there is none."""
    failed = tables.everything[tables.everything["status"] != "ok"].drop_duplicates("key")
    if failed.empty:
        return None
    shown = failed.head(MOST_FAILURES).assign(
        teacher=lambda frame: [
            "none (control)" if row["control"] else ", ".join(row["teachers"]) or "none" for row in records(frame)
        ]
    )
    more = f" The first {MOST_FAILURES} are shown." if len(failed) > MOST_FAILURES else ""
    return grid(
        f"{len(failed):,} failed trainings.{more}",
        shown,
        [
            ("teacher", name("teacher")),
            ("student", name("student")),
            ("method", name("method")),
            ("seed", count("seed")),
            ("reason", name("reason")),
        ],
    )


IMAGES = "all"
"""Stands in place of a number of examples where all were used."""


def experiments(tables: Tables) -> str:
    """Results of the experiments, each beside its control; method names stand in backticks. Empty without any."""
    task = tables.task
    return " ".join([*_amalgamation(tables.details("amalgamation"), task), *_flow(tables.details("flow"), task)])


def _amalgamation(details: pd.DataFrame, task: Words) -> Iterator[str]:
    if details.empty:
        return
    rows = drawn.by_part(details)
    gains = rows[(rows["part"] == "all") & rows["gain"].notna()].set_index("method")
    if "cfl" in gains.index:
        told = _tally(gains, "cfl", task)
        yield f"One student of several specialists: compared with plain distillation (`kd`), `cfl` is {told}."
    if "supervised" in gains.index:
        yield f"With labels, which they do not have, `supervised` is {_tally(gains, 'supervised', task)}."


def _flow(details: pd.DataFrame, task: Words) -> Iterator[str]:
    if details.empty:
        return
    gains = drawn.by_method(details).dropna(subset="gain").set_index("name")
    if "flow" in gains.index:
        yield f"Knowledge flow: compared with training from `scratch`, `flow` is {_tally(gains, 'flow', task)}."
    if "flow_untrained" in gains.index:
        yield f"With teachers that know nothing, `flow_untrained` is {_tally(gains, 'flow_untrained', task)}."


def _tally(gains: pd.DataFrame, method: str, task: Words) -> str:
    """In how many experiments a method is clearly ahead and behind: by more than two standard errors over seeds."""
    rows = gains.loc[[method]]
    signs = [clear_sign(gain, se) for gain, se in zip(rows["gain"], rows["gain_se"], strict=True)]
    least, most = (signed(gain, decimals(task)) for gain in (rows["gain"].min(), rows["gain"].max()))
    reach = least if least == most else f"{least} to {most}"
    return (
        f"clearly better in {signs.count(1)} of {counted(len(rows), 'experiment')} and clearly worse in"
        f" {signs.count(-1)} ({reach} {task.metric.difference}; {counted_range(rows['seeds'], 'seed')})"
    )


def amalgamation(tables: Tables) -> Grid | None:
    """The metric of every method on all classes and on each teacher's; None without amalgamations."""
    details = tables.details("amalgamation")
    if details.empty:
        return None
    metric, digits = tables.task.metric, decimals(tables.task)
    return grid(
        f"Amalgamation: test {metric.name} after the last epoch, ± standard error over seeds (over examples where"
        f" nothing was trained); the difference to `{drawn.REFERENCE}` is paired by seed.",
        drawn.by_part(details),
        [
            ("experiment", name("experiment")),
            ("method", name("method")),
            ("classes of", name("part")),
            (with_unit(tables.task, comma=True), value("acc", "acc_se", digits - 1)),
            (f"more than {drawn.REFERENCE}, {metric.short}", error("gain", digits)),
            (plural(examples(tables.task)), count("n")),
            ("seeds", count("seeds")),
        ],
    )


def flow(tables: Tables) -> Grid | None:
    """The metric of every method by training examples; None without knowledge flow."""
    details = tables.details("flow")
    if details.empty:
        return None
    metric, digits = tables.task.metric, decimals(tables.task)
    return grid(
        f"Knowledge flow: test {metric.name} after the last epoch, ± standard error over seeds; the difference to"
        " `scratch` is paired by seed.",
        drawn.by_method(details),
        [
            ("experiment", name("experiment")),
            ("method", name("name")),
            (f"training {plural(tables.task.example)}", _images),
            (with_unit(tables.task, comma=True), value("acc", "se", digits - 1)),
            (f"more than scratch, {metric.short}", error("gain", digits)),
            ("seeds", count("seeds")),
        ],
    )


def value(column: str, error: str, digits: int) -> Show:
    """A value and its standard error, without a sign."""
    return lambda row: Cell(value_with_error(_float(row[column]), _float(row[error]), digits), _float(row[column]))


def _images(row: dict[str, Any]) -> Cell:
    return Cell(IMAGES, float("inf")) if pd.isna(row["images"]) else Cell(f"{int(row['images']):,}", row["images"])
