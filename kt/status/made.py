"""Whether results were made from another configuration than the study has now, by what the files say. No torch here."""

from __future__ import annotations

from pathlib import Path

from kt import store
from kt.control.study import ControlStudy
from kt.errors import KtError
from kt.layout import Layout
from kt.study import recipes
from kt.study.study import Study
from kt.tables import schema


def from_other(study: Study | ControlStudy, layout: Layout, path: Path) -> bool:
    """Whether a file is of another configuration; also where it does not tell. A file that is not there is of none.

    The data set and the members have a note of their own recipe, tables the hash of the whole configuration.

    Args:
        study: the study.
        layout: where its files lie.
        path: a table, the facts of a member, or the first file of the data set.
    """
    if not path.exists():
        return False
    if path.suffix == ".parquet":
        return schema.fact(path, "config_hash") != study.hash
    if path.parent == layout.data:
        return _note(layout.recipe_of_data) != recipes.of_data(study)
    return _note(path) != recipes.of_member(study, path.stem)


def _note(path: Path) -> str:
    """The note in a file; empty where there is none."""
    try:
        return str(store.read_json(path).get(recipes.RECIPE, ""))
    except KtError:
        return ""
