"""The user's own tables: one corrects what is known of models and adds columns, one holds published accuracies."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from kt.errors import KtError, listed, unknown
from kt.tables import schema
from kt.zoo.spec import Kind

OWN = ("family", "kind", "pretraining", "finetuning", "recipe", "year", "licence")
"""Columns of the table ``zoo`` that may be corrected; the others are measured."""

Rows = dict[str, dict[str, Any]]


def read(path: str, names: Sequence[str]) -> tuple[Rows, dict[str, pa.DataType]]:
    """A CSV file with a column ``name``, read to values by model and the types of columns that ``zoo`` does not have.

    An empty cell says nothing. A new column holds whole numbers, numbers, `true`/`false`, or text, whichever fits all
    of its cells. Several recipe tags are separated by spaces.

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


def published(path: str) -> dict[str, float]:
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
