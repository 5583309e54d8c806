"""Search of parameters: candidates of methods, the pairs and seeds that they are tried on, and the best of them.

Candidates train as any other unit does, but their outcomes are measured on the VALIDATION split, and the best of them
is chosen by its mean transfer delta there: the test split has no say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt, create_model, field_validator
from pydantic.fields import FieldInfo

from kt import pairs
from kt.errors import KtError
from kt.spec import Spec
from kt.store import digest
from kt.tables import schema
from kt.transfer.method import Method, registry
from kt.transfer.training import Seeds, Training, constrained
from kt.transfer.unit import Plans, Unit, of_pairs

if TYPE_CHECKING:
    import pandas as pd


class Grid(Spec):
    """The values to try of each parameter; every combination of them is a candidate."""

    def combinations(self) -> list[dict[str, Any]]:
        """All combinations; the last parameter changes first."""
        tried = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        options = [value.combinations() if isinstance(value, Grid) else value for value in tried.values()]
        return [dict(zip(tried, values, strict=True)) for values in product(*options)]


def _grid(name: str, about: str, fields: Mapping[str, Any]) -> type[Grid]:
    made: type[Grid] = create_model(name, __base__=Grid, __doc__=about, **fields)
    return made


def _values(field: FieldInfo) -> Any:
    each: Any = constrained(field)
    several: Any = Annotated[tuple[each, ...], Field(min_length=1)]
    return (several | None, Field(None, description=field.description))


TrainingGrid = _grid(
    "TrainingGrid",
    "Values to try of the training.",
    {name: _values(field) for name, field in Training.model_fields.items()},
)


def _of_method(method: type[Method]) -> Any:
    own = {name: _values(field) for name, field in method.model_fields.items() if name != "training"}
    training = (TrainingGrid | None, Field(None, description="values to try of how this method trains"))
    grid = _grid(f"{method.__name__}Grid", f"Values to try for `{method.name}`.", {**own, "training": training})
    return (grid | None, Field(None, description=f"values to try for `{method.name}`"))


Grids: type[Spec] = create_model(
    "Grids",
    __base__=Spec,
    __doc__="The methods whose parameters are searched, with the values to try.",
    **{name: _of_method(m) for name, m in registry().items() if m.takes != "group" and m.trains},
)


class SearchSpec(Spec):
    """A search of methods' parameters, judged by the transfer delta on the validation split."""

    methods: Grids = Field(description="values to try, a list a parameter")
    n: PositiveInt | None = Field(
        None, description="candidates of a method, drawn by a hash from all combinations; all of them when left out"
    )
    pairs: PositiveInt = Field(4, description="pairs that candidates train on, drawn by a hash of the names")
    seeds: Seeds = Field((1000,), description="one training a candidate, pair and seed; none of `transfer.seeds`")

    @field_validator("methods")
    @classmethod
    def _a_choice(cls, methods: Spec) -> Spec:
        grids = {name: grid for name in type(methods).model_fields if (grid := getattr(methods, name)) is not None}
        if not grids:
            raise ValueError("no method to search")
        for name, grid in grids.items():
            if len(grid.combinations()) < 2:
                raise ValueError(f"{name}: one combination leaves nothing to choose; give two values of a parameter")
        return methods

    def grids(self) -> dict[str, Grid]:
        """The values to try, by method."""
        fields = type(self.methods).model_fields
        return {name: grid for name in fields if (grid := getattr(self.methods, name)) is not None}


def candidates(methods: Mapping[str, Method], search: SearchSpec) -> dict[str, dict[str, Method]]:
    """The candidates of every searched method, in the order of its grid, by their values as JSON.

    Args:
        methods: as the configuration has them, by name; what is not searched stays as it is there.
        search: the values to try.
    """
    return {name: _of_grid(methods[name], grid, search.n) for name, grid in search.grids().items()}


def _of_grid(method: Method, grid: Grid, n: int | None) -> dict[str, Method]:
    tried = {json.dumps(values, sort_keys=True): values for values in grid.combinations()}
    drawn = set(sorted(tried, key=lambda text: digest([method.name, text]))[:n])
    return {text: _with(method, values) for text, values in tried.items() if text in drawn}


def _with(method: Method, values: Mapping[str, Any]) -> Method:
    own = method.model_dump()
    training = {**(own["training"] or {}), **values.get("training", {})}
    return type(method).model_validate({**own, **values, "training": training or None})


def pairs_of(names: Sequence[str], rule: pairs.PairRule, n: int) -> dict[str, list[str]]:
    """Teachers of every student in ``n`` pairs that candidates train on, known before anything runs."""
    chosen: dict[str, list[str]] = {}
    for teacher, student in pairs.draw(pairs.candidates(names, rule), n, 0):
        chosen.setdefault(student, []).append(teacher)
    return chosen


def units_of(
    found: Mapping[str, Mapping[str, Method]], student: str, teachers: Sequence[str], seeds: Sequence[int], plans: Plans
) -> list[Unit]:
    """The units of one student in the search: every candidate from each teacher, or without one for a control.

    Args:
        found: the candidates of every method.
        student: its name.
        teachers: of the student, in the search.
        seeds: of the search.
        plans: of the study.
    """
    methods = [method for of_method in found.values() for method in of_method.values()]
    return of_pairs(methods, student, teachers, seeds, plans, controls=True, split="validation")


UNIT = ["student", "teacher"]


def summarise(trials: pd.DataFrame, candidates: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The table ``search``: a row a candidate, with the chosen one of every method marked.

    A pair's delta is averaged over its seeds first. The best mean wins, and the first in the order of the grid among
    equals; a candidate with a failed training cannot win.

    Args:
        trials: the table ``trials``.
        candidates: of every method, as texts, in the order of its grid.

    Raises:
        KtError: every candidate of a method has failed somewhere, or one has no row.
    """
    import pandas as pd

    rows = []
    for method, texts in candidates.items():
        mine = trials[trials["method"] == method].fillna({"teacher": ""})
        by_pair = {text: _by_pair(mine[mine["parameters"] == text]) for text in texts}
        failed = {text: int((mine[mine["parameters"] == text]["status"] != "ok").sum()) for text in texts}
        if missing := [text for text in texts if text not in set(mine["parameters"])]:
            raise KtError(f"table trials: no row of {method} with {missing[0]}; `kt search` makes it")
        whole = [text for text in texts if not failed[text]]
        if not whole:
            reason = mine.loc[mine["status"] != "ok", "reason"].iloc[0]
            raise KtError(f"transfer.search.methods.{method}: every candidate failed; the first: {reason}")
        best = max(whole, key=lambda text: round(by_pair[text].mean(), 9))  # rounding errors win nothing
        for text in texts:
            behind = by_pair[text] - by_pair[best]
            rows.append(
                {
                    "method": method,
                    "parameters": text,
                    "pairs": len(by_pair[text]),
                    "trainings": int((mine["parameters"] == text).sum()),
                    "failed": failed[text],
                    "delta": by_pair[text].mean(),
                    "delta_se": by_pair[text].sem(),
                    "difference": behind.mean(),
                    "difference_se": behind.sem(),
                    "chosen": text == best,
                }
            )
    return pd.DataFrame(rows).astype(object).where(lambda table: table.notna(), None)


def _by_pair(trials: pd.DataFrame) -> pd.Series[float]:
    """Delta of every pair, averaged over the seeds that finished."""
    finished = trials[trials["status"] == "ok"]
    means: pd.Series[float] = finished.groupby(UNIT)["delta"].mean()
    return means


def resolve(
    methods: Mapping[str, Method], candidates: Mapping[str, Mapping[str, Method]], table: Path
) -> dict[str, Method]:
    """The methods with the parameters that the search chose.

    Args:
        methods: as the configuration has them, by name.
        candidates: of every searched method, by their values as text.
        table: the table ``search``.

    Raises:
        KtError: the search has not been done, or not with these candidates.
    """
    if not candidates:
        return dict(methods)
    chosen = {row["method"]: row["parameters"] for row in rows_of(table) if row["chosen"]}
    for name, found in candidates.items():
        if chosen.get(name) not in found:
            raise KtError(f"{table}: the search of transfer.search.methods.{name} is not done; `kt choose` ends it")
    return {name: candidates[name][chosen[name]] if name in candidates else m for name, m in methods.items()}


def rows_of(table: Path) -> list[dict[str, Any]]:
    """Rows of the table ``search``."""
    rows: list[dict[str, Any]] = schema.read(table, "search").to_pylist()
    return rows
