"""The page to explore a study with: one HTML file that works offline, made from the tables alone.

Its data are columns: rows of models, of scored pairs, and of transfers (pair and method, mean over seeds). A column of
few different values holds these values and, per row, which of them it is: exact, and small. Another one is rounded to
float32. A page that would be too large holds fewer pairs and says so. Bokeh draws the plot; its scripts are inlined.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from kt.analysis.deltas import FINETUNE, PAIR, SELF, beside, over_seeds
from kt.analysis.wording import (
    counted,
    decimals,
    examples,
    flips_unit,
    measured_on,
    plural,
    property_words,
    rights,
    told,
)
from kt.figures.tables import Tables
from kt.tables.columns import Column, with_metric
from kt.tables.of_study import STUDY
from kt.tasks.task import Words

MOST_PAIRS = 100_000
MOST_BYTES = 25_000_000
"""Of the whole page."""

MOST_CLASSES = 12
"""Classes listed per pair: those where the teacher leads most."""

BUNDLE = ("bokeh.min.js", "bokeh-api.min.js")
OWN = ("explore.js", "explore_plot.js", "explore_page.js")

LEFT_OUT = {
    "zoo": {"name", "tag", "fingerprint"},
    "complementarity": {*PAIR, "split"},
    "transfers": {*PAIR, "method", "seed", "control", "status", "reason", "device", "key", "trains"},
}
"""Columns that name the row, are the same for all, or are hashes."""

Packed = dict[str, Any]


def render(tables: Tables, title: str, equal_within: float) -> str:
    """The whole page.

    Args:
        tables: the tables; those of the analysis are not needed.
        title: the study's title.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
    """
    environment = Environment(
        loader=PackageLoader("kt.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("explore.html")
    sources = [*(files("bokeh") / "server/static/js" / name for name in BUNDLE), *(files("kt.report") / n for n in OWN)]
    scripts = [source.read_text("utf-8").replace("</script", r"<\/script") for source in sources]
    most = MOST_PAIRS
    while True:
        page = template.render(
            title=title,
            data=Markup(_json(content(tables, equal_within, most))),  # noqa: S704 (without any "<")
            scripts=[Markup(script) for script in scripts],  # noqa: S704 (from packages)
        )
        size = len(page.encode())
        if size <= MOST_BYTES or most <= 1:
            return page
        most = int(0.9 * most * MOST_BYTES / size)


def _json(data: Any) -> str:
    """JSON that may stand in an element ``script``: no text in it can end that."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def content(tables: Tables, equal_within: float, most: int = MOST_PAIRS) -> dict[str, Any]:
    """What the page shows, as JSON takes it; of more than ``most`` scored pairs a part, those with a transfer first."""
    inputs, task = tables.inputs, tables.task
    names = pd.Index(tables.zoo["name"].astype(str))
    scores = inputs.scores.reset_index(drop=True)
    finished = inputs.transfers[inputs.transfers["status"] == "ok"]
    kept = _kept(scores, finished, most)
    pairs = scores.iloc[kept].reset_index(drop=True)
    rows = _with_controls(finished, task).merge(pairs[PAIR].assign(pair=pairs.index), on=PAIR)
    taught = rows[~rows["control"]].reset_index(drop=True)
    roles = [
        {"key": role, "label": role, "kind": "model", **_numbered(names.get_indexer(pd.Index(pairs[role])))}
        for role in PAIR
    ]
    failed = inputs.transfers.loc[inputs.transfers["status"] != "ok", "key"].nunique()
    return {
        "words": {**_words(tables), "scored": len(scores), "failed": failed, "within": equal_within},
        "models": {"rows": len(names), "columns": [_named(names), *_columns(tables.zoo, "zoo", task)]},
        "pairs": {"rows": len(pairs), "columns": [*roles, *_columns(pairs, "complementarity", task)]},
        "transfers": {
            "rows": len(taught),
            "columns": [
                {"key": "pair", "label": "pair", "kind": "pair", **_numbered(taught["pair"])},
                {"key": "method", "label": "method", "kind": "text", **packed(taught["method"])},
                *_columns(taught, "transfers", task, BESIDE),
            ],
        },
        "controls": _controls(finished, names),
        "ensembles": taught.loc[~taught["trains"].astype(bool), "method"].unique().tolist(),
        "methods": tables.methods.loc[tables.methods["group"] == "all", "method"].tolist(),
        "classes": list(tables.class_names),
        "sizes": list(tables.class_sizes),
        "leads": _leads(scores, kept),
    }


def _words(tables: Tables) -> dict[str, Any]:
    """What the page says of the study and of its task."""
    task, finished = tables.task, tables.transfers[tables.transfers["status"] == "ok"]
    seeds = int(finished.groupby(["method", *PAIR])["seed"].nunique().max()) if len(finished) else 0
    n = max((int(frame["n"].max()) for frame in (tables.complementarity, finished) if len(frame)), default=0)
    return {
        "metric": task.metric.name,
        "key": task.metric.key,
        "gap": with_metric("acc_difference", task.metric.key),
        "after": with_metric("acc_after", task.metric.key),
        "short": task.metric.short,
        "digits": decimals(task),
        "examples": plural(examples(task)),
        "counted": rights(task),
        "over": counted(tables.clusters, f"test {task.cluster}") if tables.clusters else measured_on(n, task),
        "n": n,
        "seeds": seeds,
        "models": len(tables.zoo),
    }


def _kept(scores: pd.DataFrame, finished: pd.DataFrame, most: int) -> NDArray[np.intp]:
    """Positions of at most so many scored pairs, in order: those with a transfer first, then random ones."""
    if len(scores) <= most:
        return np.arange(len(scores))
    done = scores[PAIR].merge(finished[PAIR].drop_duplicates().assign(done=True), how="left", on=PAIR)["done"].notna()
    order = np.lexsort((np.random.default_rng(0).random(len(scores)), ~done.to_numpy()))
    return np.sort(order[:most])


# labels

CONTROL = Column("control_delta", pa.float64(), "percentage points", "delta of the control, the same student and seeds")
BEYOND = Column("beyond", pa.float64(), "percentage points", "delta − the control's, paired by seed", True)
BEYOND_SE = Column("beyond_se", pa.float64(), "percentage points", "its ordinary standard error over seeds", True)
SEEDS = Column("seeds", pa.int64(), "seeds", "finished seeds that the numbers are means over")
BESIDE = (SEEDS, CONTROL, BEYOND, BEYOND_SE)
"""Columns beside those of the table ``transfers``."""


OF_SALIENCY = {
    **{name: name.upper() for name in ("sim", "nss", "kld")},
    "auc_judd": "AUC-Judd",
    "s_auc": "shuffled AUC",
    "undefined": "constant maps",
}


def _label(name: str, task: Words) -> str:
    metric = task.metric.name
    own = {
        "acc_se": f"standard error of {metric}",
        "acc_teacher": f"teacher's {metric}",
        "acc_student": f"student's {metric}",
        "acc_difference": f"{metric}, teacher − student",
        "acc_before": f"student's {metric} before transfer",
        "acc_after": f"student's {metric} after transfer",
        "acc_validation": f"{metric} on the validation split",
        "acc_published": f"published {metric}",
        "acc_agrees": f"{metric} as published",
        "pos_flips_se": "standard error of positive flips",
        "neg_flips": "negative flips",
        "neg_pixel_flips": "negative flips of pixels",
        "params": "parameters",
        "macs": "multiply-adds",
        "delta": "transfer delta",
        "delta_se": "standard error of the transfer delta",
        "delta_best": "transfer delta at the best epoch",
        "control_delta": "transfer delta of the control",
        "beyond": "transfer delta beyond the control",
        "beyond_se": "standard error of that over seeds",
        "n": plural(examples(task)),
        **OF_SALIENCY,
    }
    return own.get(name) or property_words(name, task)


def _unit(column: Column, task: Words) -> str:
    """The unit of a column for a study's task; empty for names, counts and pure numbers."""
    if column.name.startswith(("pos_flips", "neg_flips", "knowledge_")):
        return task.metric.short if column.unit == "percentage points" else flips_unit(task)
    of_metric = column.name.startswith("acc") and column.unit == "percent"
    units = {
        "percent": task.metric.unit if of_metric else "%",
        task.metric.difference: task.metric.short,
        "percent of pixels": f"% of {rights(task)}",
        f"percent of {plural(task.example)}": f"% of {plural(task.example)}",
    }
    silent = {"name", "flag", "count", "tags", "year", "SPDX", "number", "hash", "seeds"}
    unit = told(column, task)[0]
    return "" if unit in silent or column.name == "n" else units.get(unit, unit)


SIGNED = {"acc_difference", "delta", "delta_best", "control_delta", "beyond"}
LOGARITHMIC = {"params", "macs", "train_images", "train_seconds"}


def _columns(frame: pd.DataFrame, table: str, task: Words, more: Iterable[Column] = ()) -> list[Packed]:
    """The columns of a table that have any value, with their labels and units."""
    made = []
    for column in (*STUDY[table], *more):
        name, text = column.name, column.dtype in (pa.string(), pa.bool_())
        if name in LEFT_OUT[table] or name not in frame or pa.types.is_list(column.dtype) or frame[name].isna().all():
            continue
        values = frame[name].map({True: "yes", False: "no"}) if column.dtype == pa.bool_() else frame[name]
        facts: Packed = {
            "key": with_metric(name, task.metric.key),
            "label": _label(name, task),
            "unit": _unit(column, task),
            "kind": "text" if text else "number",
        }
        if not text and column.unit in ("percent", "percentage points", "percent of images", "percent of pixels"):
            facts["digits"] = decimals(task) if _of_metric(column, task) else 2
        facts |= {flag: True for flag, names in (("signed", SIGNED), ("log", LOGARITHMIC)) if name in names}
        made.append(facts | packed(values))
    return made


def _of_metric(column: Column, task: Words) -> bool:
    return column.unit == "percentage points" or _unit(column, task) in (task.metric.unit, flips_unit(task))


# numbers


def packed(values: pd.Series[Any]) -> Packed:
    """A column: its different values and, per row, which of them it is; numbers with too many of these as float32."""
    if not pd.api.types.is_numeric_dtype(values):
        codes, known = pd.factorize(values, sort=True)
        texts = [*map(str, known), *([None] if (codes < 0).any() else [])]
        return {"values": texts, **_numbered(np.where(codes < 0, len(known), codes))}
    numbers = values.to_numpy(np.float64, na_value=math.nan)
    different, codes = np.unique(numbers, return_inverse=True)
    if len(different) > max(4096, len(numbers) // 8):
        return {"floats": _text(numbers.astype("<f4"))}
    exact = [int(v) if v.is_integer() else v for v in different.tolist()] if np.isfinite(different).all() else None
    return {
        "values": exact or [None if not math.isfinite(v) else v for v in different.tolist()],
        **_numbered(codes),
    }


def _numbered(codes: Any) -> Packed:
    """Whole numbers from 0 in as few bytes each as hold the largest."""
    whole = np.asarray(codes, np.int64)
    width = next(width for width in (1, 2, 4) if whole.max(initial=0) < 256**width)
    return {"codes": _text(whole.astype(f"<u{width}")), "width": width}


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _named(names: pd.Index[str]) -> Packed:
    return {"key": "name", "label": "model", "kind": "name", "values": list(names), **_numbered(np.arange(len(names)))}


# rows

AVERAGED = {"delta", "delta_se", "transfer_rate"}
"""Columns that ``over_seeds`` averages in any case."""


def _with_controls(finished: pd.DataFrame, task: Words) -> pd.DataFrame:
    """Finished transfers averaged over seeds, each beside its control: `finetune` with labels, else `self`.

    Ensembles have none: their students are not trained.
    """
    numbers = [c.name for c in STUDY["transfers"] if c.dtype in (pa.int64(), pa.float64()) and c.name != "seed"]
    means = {name: (name, "mean") for name in numbers if name in finished and name not in AVERAGED}
    rows = over_seeds(finished, **{**means, "uses_labels": ("uses_labels", "first"), "trains": ("trains", "first")})
    parts = []
    for method, of_method in rows.groupby("method", sort=False):
        first = of_method.iloc[0]
        control = "" if not first["trains"] else FINETUNE if first["uses_labels"] else SELF
        both = beside(finished, str(method), control, "delta")
        both["difference"] = both["delta"] - both["delta_against"]
        against = both.groupby(PAIR, as_index=False).agg(
            control_delta=("delta_against", "mean"), beyond=("difference", "mean"), beyond_se=("difference", "sem")
        )
        parts.append(of_method.merge(against, how="left", on=PAIR))
    return pd.concat(parts, ignore_index=True) if parts else rows.assign(**{c.name: math.nan for c in BESIDE[1:]})


def _controls(finished: pd.DataFrame, names: pd.Index[str]) -> list[dict[str, Any]]:
    """Every control's delta and its standard error, means over seeds, of every student by number; null where none."""
    once = finished[finished["control"]].drop_duplicates(["method", "student", "seed"])
    made = []
    for method, rows in once.groupby("method"):
        means = rows.groupby("student")[["delta", "delta_se"]].mean().reindex(names)
        columns = {str(name): [None if math.isnan(value) else value for value in means[name]] for name in means}
        seeds = rows.groupby("student")["seed"].nunique().reindex(names, fill_value=0)
        made.append({"method": method, **columns, "seeds": seeds.tolist()})
    return made


def _leads(scores: pd.DataFrame, kept: NDArray[np.intp]) -> dict[str, Any] | None:
    """Per pair, classes with flips of both directions, those where the teacher leads most; None without such lists.

    At most ``MOST_CLASSES`` with a positive flip are listed; ``many`` is the number of all classes where it leads.
    """
    if "flips_by_class" not in scores or scores["flips_by_class"].isna().any() or scores.empty:
        return None
    codes, known = pd.factorize(pd.concat([scores["teacher"], scores["student"]]))
    teachers, students = np.split(codes.astype(np.int64), 2)
    order = np.argsort(teachers * len(known) + students)
    turned = (students * len(known) + teachers)[kept]
    place = np.searchsorted((teachers * len(known) + students)[order], turned).clip(max=len(order) - 1)
    back = order[place]
    if ((teachers[back] != students[kept]) | (students[back] != teachers[kept])).any():
        return None  # a table of one's own, where a pair is scored in one direction only
    flips = np.stack(scores["flips_by_class"].tolist()).astype(np.int64)
    gained, lost = flips[kept], flips[back]
    top = np.argsort(lost - gained, 1, kind="stable")[:, :MOST_CLASSES]
    shown = np.take_along_axis(gained, top, 1) > 0
    many = (gained > lost).sum(1)
    return {
        "many": _numbered(many),
        "listed": _numbered(shown.sum(1)),
        "class": _numbered(top[shown]),
        "gained": _numbered(np.take_along_axis(gained, top, 1)[shown]),
        "lost": _numbered(np.take_along_axis(lost, top, 1)[shown]),
    }
