"""Tables that figures and the report are made from: those of a study, and those of its analysis where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from kt.analysis.deltas import WITHIN, of_pairs, on_test, records
from kt.analysis.inputs import CLASSIFICATION, Inputs, prepare
from kt.tables import schema
from kt.tables.of_analysis import ANALYSIS
from kt.tables.of_experiments import OPTIONAL
from kt.tasks.task import Words

STUDY = ("zoo", "complementarity", "pairs", "transfers", "methods")
OF_PAIRS = ("complementarity", "pairs", "methods")
"""Those that a study of policies does not have."""

DATA = "data"
"""Key of a file's metadata: name of the data set."""

HEADLINE = ("kl", "kl_dp", "kl_dp_unsup")
"""Methods that a figure with room for few shows in any case."""


@dataclass(frozen=True)
class Tables:
    """The tables by name, as ``docs/tables.md`` has them.

    Attributes:
        zoo: the models.
        complementarity: scores of ordered pairs on the test split.
        pairs: the pairs chosen for a transfer.
        transfers: rows of one teacher.
        several: rows of several teachers.
        methods: the methods over groups of pairs, best mean delta first, controls last.
        analysis: the tables of ``kt analyse``, each empty where there is none.
        experiments: the detail tables of the study's experiments, and the pictures, those that there are.
        task: the words of what was learnt.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal; 0 where unknown.
        data: name of the data set; empty where unknown.
        class_names: of the data set, class 0 first; none where unknown.
        class_sizes: test images of each class, or its pixels of a dense task; none where unknown.
        everything: all rows of the table ``transfers``.
        clusters: that the test examples belong to; 0 where these are independent, or it is unknown.
    """

    zoo: pd.DataFrame
    complementarity: pd.DataFrame
    pairs: pd.DataFrame
    transfers: pd.DataFrame
    several: pd.DataFrame
    methods: pd.DataFrame
    analysis: Mapping[str, pd.DataFrame]
    experiments: Mapping[str, pd.DataFrame]
    task: Words
    equal_within: float
    data: str
    class_names: tuple[str, ...]
    class_sizes: tuple[int, ...]
    everything: pd.DataFrame
    clusters: int = 0

    @classmethod
    def of(
        cls,
        study: Mapping[str, pd.DataFrame],
        analysis: Mapping[str, pd.DataFrame] | None = None,
        equal_within: float = 0.0,
        task: Words = CLASSIFICATION,
        data: str = "",
        class_names: tuple[str, ...] = (),
        class_sizes: tuple[int, ...] = (),
        clusters: int = 0,
    ) -> Tables:
        """From frames in memory: those of ``STUDY``, any of experiments, and any of the analysis."""
        made = {name: pd.DataFrame(columns=[c.name for c in columns]) for name, columns in ANALYSIS.items()}
        transfers = study["transfers"]
        in_zoo = transfers["student"].isin(study["zoo"]["name"])  # others are students of experiments
        return cls(
            zoo=study["zoo"],
            complementarity=on_test(study["complementarity"]).reset_index(drop=True),
            pairs=study["pairs"],
            transfers=of_pairs(transfers),
            several=transfers[in_zoo & transfers["teacher"].isna()].reset_index(drop=True),
            methods=study["methods"],
            analysis={**made, **(analysis or {})},
            experiments={name: study[name] for name in OPTIONAL if name in study},
            task=task,
            equal_within=equal_within,
            data=data,
            class_names=class_names,
            class_sizes=class_sizes,
            everything=transfers,
            clusters=clusters,
        )

    @classmethod
    def read(cls, folder: Path, analysis: Path | None = None) -> Tables:
        """Read ``NAME.parquet`` for every table of the study and, where its folder is given, of the analysis.

        Detail tables of experiments are read where they are there; a study of policies has no tables of pairs.

        Raises:
            KtError: a table is missing or does not fit its schema.
        """
        there = [name for name in OPTIONAL if (folder / f"{name}.parquet").exists()]
        task, data = schema.words(folder / "transfers.parquet"), _fact(folder / "transfers.parquet", DATA)
        lacking = OF_PAIRS if task.plays else ()
        study = {name: _none(name) if name in lacking else _frame(folder, name) for name in (*STUDY, *there)}
        made = {name: schema.read_frame(analysis / f"{name}.parquet", name) for name in ANALYSIS} if analysis else None
        groups = [
            *([] if task.plays else [folder / "methods.parquet"]),
            *([analysis / "groups.parquet"] if analysis else []),
        ]
        within = next((text for path in groups if path.exists() and (text := _fact(path, WITHIN))), "0")
        zoo = folder / "zoo.parquet"
        names, sizes = schema.class_names(zoo), schema.class_sizes(zoo)
        return cls.of(study, made, float(within), task, data, names, sizes, schema.clusters(zoo))

    @cached_property
    def inputs(self) -> Inputs:
        """The same tables as the analysis takes them, with all pairs."""
        return prepare(self.everything, self.zoo, self.complementarity, self.task, self.clusters)

    @cached_property
    def drawn(self) -> Inputs:
        """The same without pairs that were chosen by results, for all that is said of pairs in general."""
        return prepare(self.everything, self.zoo, self.complementarity, self.task, self.clusters, self.pairs)

    def chosen(self, most: int) -> list[str]:
        """At most so many methods that teach a student: the headline methods, then by mean delta; in table order."""
        rows = self.methods[(self.methods["group"] == "all") & ~self.methods["control"] & self.methods["trains"]]
        names = [row["method"] for row in records(rows)]
        first = [*(name for name in HEADLINE if name in names), *(name for name in names if name not in HEADLINE)]
        return [name for name in names if name in first[:most]]

    @property
    def compared(self) -> pd.DataFrame:
        """The models that are compared and paired: those that know all classes."""
        return self.zoo[self.zoo["classes"].isna()]

    def names(self, classes: int) -> list[str]:
        """The names of so many classes; their numbers where the names are unknown."""
        known = len(self.class_names) == classes
        return list(self.class_names) if known else [str(label) for label in range(classes)]

    def details(self, name: str) -> pd.DataFrame:
        """The detail table of a kind of experiment, without rows where the study has none of it."""
        return self.experiments.get(name, pd.DataFrame(columns=[c.name for c in OPTIONAL[name]]))

    def why_not(self, table: str, otherwise: str) -> str:
        """The reason why a table of the analysis has no rows: it was not made, or ``otherwise``."""
        made = any(len(frame) for frame in self.analysis.values())
        return otherwise if made else f"no analysis: `kt analyse` makes the table {table}"


def _frame(folder: Path, name: str) -> pd.DataFrame:
    """A table of a study; of pairs with the columns that the rule `adaptive` adds."""
    found: pd.DataFrame = schema.read(folder / f"{name}.parquet", name, extra=name == "pairs").to_pandas()
    return found


def _none(name: str) -> pd.DataFrame:
    """The same without rows."""
    found: pd.DataFrame = schema.arrow_schema(name).empty_table().to_pandas()
    return found


def _fact(path: Path, name: str) -> str:
    """A text in a file's metadata, empty where it is not there."""
    metadata: Mapping[bytes, bytes] = pq.read_schema(path).metadata or {}
    return metadata.get(name.encode(), b"").decode()
