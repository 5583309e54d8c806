"""Known properties of a model beyond its weights: kind and year of its architecture, data and recipe of its training.

Kinds and years lie in ``families.csv``: the first row whose family and glob fit the architecture. The year is that of
the first paper on the architecture. Everything else is read from the words of timm's pretrained tag; a word that is
not in the tables below is ignored, and a property without a word is unknown. The user's own tables correct properties,
add columns (``read_overrides``), and list published accuracies (``read_published``).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from kt.errors import KtError, listed, unknown
from kt.tables import schema
from kt.zoo.spec import Kind

FAMILIES = Path(__file__).with_name("families.csv")

LABELLED = ("in1k", "in12k", "in21k", "in22k", "inw21k")
"""ImageNet and its supersets, which have class labels."""

DATA = (
    *LABELLED,
    *("laion2b", "laion400m", "datacomp1b", "datacompxl", "dfn2b", "dfn5b", "dfndr2b", "merged2b", "webli"),
    *("cc12m", "yfcc15m", "yfcc100m", "ig1b", "jft", "lvd142m", "lvd1689m", "sat493m", "m30m", "m38m", "sa1b"),
)

RECIPES = {
    "self-supervised": "mae fcmae mim dino dinov3 ijepa seer",
    "language-supervised": "clip openai laion2b laion400m datacomp1b datacompxl dfn2b dfn5b dfndr2b merged2b webli "
    "metaclip metaclip2 mclip mclip2 tinyclip cc12m yfcc15m",
    "weakly-supervised": "wsl swag",
    "semi-weakly-supervised": "swsl",
    "semi-supervised": "ssl ns",
    "distilled": "dist distilled ssld",
    "adversarial": "ap adv",
    "sharpness-aware": "sam",
    "soup": "soup",
    "augment=augreg": "augreg augreg2",
    "augment=autoaugment": "aa",
    "augment=randaugment": "ra ra2 ra3 ra4",
    "augment=augmix": "am",
    "recipe=rsb-a1": "a1",
    "recipe=rsb-a2": "a2",
    "recipe=rsb-a3": "a3",
}
_RECIPE = {word: name for name, words in RECIPES.items() for word in words.split()}
OTHER_SIGNALS = (
    *("self-supervised", "language-supervised", "weakly-supervised", "semi-weakly-supervised", "semi-supervised"),
    "distilled",
)
"""Recipes whose first training used more or other signals than the labels of the data set that the tag names."""

ARCHITECTURES = {
    **dict.fromkeys(("beit", "beitv2", "beit3", "dinov2", "dinov3", "eva", "eva02"), "self-supervised"),
    **dict.fromkeys(("clip", "siglip"), "language-supervised"),
    "distilled": "distilled",
}
"""Recipes of all weights of an architecture, by words of its name, where the tags do not tell."""


@dataclass(frozen=True)
class Training:
    """Training of a tag's weights, as far as its words tell.

    Attributes:
        pretraining: data sets of the first training, joined by `+`.
        finetuning: data sets of the fine-tuning, in order, joined by `+`.
        recipe: tags such as `self-supervised`, `distilled` or `augment=augreg`.
    """

    pretraining: str | None
    finetuning: str | None
    recipe: tuple[str, ...]


def training(name: str) -> Training:
    """The training of a pretrained model named ``architecture.tag``.

    >>> training("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    Training(pretraining='in21k', finetuning='in1k', recipe=('supervised', 'augment=augreg', 'finetuned'))
    """
    arch, _, tag = name.partition(".")
    words = tag.split("_")
    cut = next((i for i, word in enumerate(words) if word in ("ft", "lc")), len(words))  # fine-tuned, linear classifier
    before, after = ([word for word in part if word in DATA] for part in (words[:cut], words[cut:]))
    of_arch = [recipe for word, recipe in ARCHITECTURES.items() if word in arch.split("_")]
    recipe = list(dict.fromkeys(of_arch + [_RECIPE[word] for word in words if word in _RECIPE]))
    if before and before[0] in LABELLED and not set(recipe) & set(OTHER_SIGNALS):
        recipe.insert(0, "supervised")
    if cut < len(words):
        recipe.append("finetuned")
    return Training("+".join(before) or None, "+".join(after) or None, tuple(recipe))


def kind_of(arch: str, family: str) -> str | None:
    """`cnn`, `transformer`, `mlp` or `hybrid` (convolutions with another mixing of places); None where not known."""
    return _row(arch, family).get("kind") or None


def year_of(arch: str, family: str) -> int | None:
    """Year of the first paper on an architecture, or None where not known."""
    year = _row(arch, family).get("year")
    return int(year) if year else None


def _row(arch: str, family: str) -> dict[str, str]:
    return next((row for row in _families().get(family, []) if fnmatchcase(arch, row["arch"])), {})


@lru_cache(maxsize=1)
def _families() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with FAMILIES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["family"], []).append(row)
    return found


OWN = ("family", "kind", "pretraining", "finetuning", "recipe", "year", "licence")
"""Columns of the table ``zoo`` that may be corrected; the others are measured."""

Rows = dict[str, dict[str, Any]]


def read_overrides(path: str, names: Sequence[str]) -> tuple[Rows, dict[str, pa.DataType]]:
    """A CSV file with a column ``name``, read to values by model and the types of columns that ``zoo`` does not have.

    An empty cell changes nothing. A new column holds whole numbers, numbers, `true`/`false`, or text, whichever fits
    all of its cells. Several recipe tags are separated by spaces.

    Raises:
        KtError: the file cannot be read, has no column ``name``, corrects what is measured, or names no model.
    """
    at = f"zoo.overrides: {path}"
    rows = _rows(at, path)
    columns = list(rows[0]) if rows else []
    if "name" not in columns:
        raise KtError(f"{at}: needs a column 'name' and a row for a model; it has: {listed(map(str, columns))}")
    measured = {column.name for column in schema.TABLES["zoo"]} - {*OWN, "name"}
    for column in columns:
        if column is None or not column.isidentifier():
            raise KtError(f"{at}: {column!r} cannot name a column: letters, digits and _ only, one a cell")
        if column in measured:
            raise KtError(f"{at}: column {column!r} is measured and cannot be corrected; allowed: {listed(OWN)} or new")
    for row in rows:
        if row["name"] not in names:
            raise KtError(f"{at}: {unknown('model', row['name'], names)}")
    extra = {c: _type([row[c] for row in rows if row[c]]) for c in columns if c not in (*OWN, "name")}
    found: Rows = {}
    for row in rows:
        cells = {c: text.strip() for c, text in row.items() if c != "name" and text.strip()}
        found.setdefault(row["name"], {}).update({c: _value(at, c, text, extra) for c, text in cells.items()})
    return found, extra


def read_published(path: str) -> dict[str, float]:
    """Published top-1 accuracies in percent, by pretrained tag, from a file like timm's results-imagenet.csv.

    Raises:
        KtError: the file cannot be read, has no columns ``model`` and ``top1``, or an accuracy is no percentage.
    """
    at = f"zoo.published: {path}"
    rows = _rows(at, path)
    if not rows or not {"model", "top1"} <= rows[0].keys():
        raise KtError(f"{at}: needs the columns 'model' and 'top1', as timm's results-imagenet.csv has them")
    found = {}
    for row in rows:
        try:
            found[row["model"]] = float(row["top1"])
        except ValueError:
            found[row["model"]] = -1.0
        if not 0 <= found[row["model"]] <= 100:
            raise KtError(f"{at}: top1 of {row['model']!r} needs percent, not {row['top1']!r}")
    return found


def _rows(at: str, path: str) -> list[dict[str, str]]:
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, strict=True, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KtError(f"{at}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _value(at: str, column: str, text: str, extra: dict[str, pa.DataType]) -> Any:
    if column == "recipe":
        return text.split()
    if column == "kind" and text not in get_args(Kind):
        raise KtError(f"{at}: {unknown('kind', text, get_args(Kind))}")
    kind = extra.get(column) or {c.name: c.dtype for c in schema.TABLES["zoo"]}[column]
    try:
        return text.lower() == "true" if pa.types.is_boolean(kind) else kind.to_pandas_dtype()(text)
    except ValueError as error:
        raise KtError(f"{at}: column {column!r} needs a whole number, not {text!r}") from error


def _type(texts: Sequence[str]) -> pa.DataType:
    if all(text.lower() in ("true", "false") for text in texts):
        return pa.bool_()
    for convert, kind in ((int, pa.int64()), (float, pa.float64())):
        try:
            [convert(text) for text in texts]
        except ValueError:
            continue
        return kind
    return pa.string()
