"""Outcomes of transfers per method, and everything the tables know about their pairs before the transfer.

Properties are read from values alone: numbers become the teacher's and the student's, names become ``same or not``
and one flag per name, tags one flag per tag. Unknown values stay unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis.deltas import PAIR, over_seeds
from kt.analysis.dyadic import Dyads
from kt.analysis.inputs import Inputs
from kt.tasks.task import Words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


NO_PROPERTY = (
    *("fingerprint", "arch", "train_seconds", "acc_validation", "train_steps"),
    *("pixel_accuracy", "mean_accuracy", "fw_iou", "iou_by_class"),
    *("sim", "nss", "kld", "auc_judd", "s_auc", "undefined"),
)
"""Of a model: names rather than properties, what the run took, and the metric a second time."""

NO_MEASURE = (*("split", "n", "acc_teacher", "acc_student", "neg_flips", "neg_pixel_flips", "pos_flips_untrained"),)
"""Of a pair: what the models' own properties hold already (flips of an untrained teacher are the student's metric
again), and negative flips: pos_flips − neg_flips is ``acc_difference`` exactly, so two of the three are enough.
"""

OF_PIXELS = ("pixel_flips",)
"""Of a pair: measures that only dense tasks have; elsewhere they are not even unknown."""

OF_PROBABILITIES = ("ece", "log_ratio", "entropy")
"""Of a model: measures that only tasks with one class per example have; elsewhere they are not even unknown."""

MOST_NAMES = 12
"""A column with more distinct names than this is only compared, not made into flags."""

ORDERS = 10.0
"""Whole numbers whose largest is this many times their smallest are taken as logarithms to base 10."""


@dataclass(frozen=True)
class Properties:
    """Properties of the models ``names``, and of their pairs.

    Attributes:
        names: the models.
        numbers: properties of one model, float [models, k]; the teacher's and the student's become columns of a pair.
        sizes: those of ``numbers`` that are logarithms: their difference is a property of the pair too.
        labels: names whose equality is a property of the pair, [models, c]; null where unknown.
        measures: measures of pairs, indexed by teacher × models + student.
    """

    names: list[str]
    numbers: pd.DataFrame
    sizes: tuple[str, ...]
    labels: pd.DataFrame
    measures: pd.DataFrame

    def of(self, teachers: Ints, students: Ints) -> pd.DataFrame:
        """All properties of n pairs, given by numbers of their models: float [n, columns]."""
        columns: dict[str, NDArray[np.float64]] = {}
        for name in self.measures:
            columns[str(name)] = self.measures[name].reindex(teachers * len(self.names) + students).to_numpy(np.float64)
        for role, of_role in (("teacher", teachers), ("student", students)):
            for name in self.numbers:
                columns[f"{role}_{name}"] = self.numbers[name].to_numpy(np.float64)[of_role]
        for name in self.sizes:
            columns[f"{name}_difference"] = columns[f"teacher_{name}"] - columns[f"student_{name}"]
        for name in self.labels:
            values = self.labels[name].to_numpy(object)
            known = self.labels[name].notna().to_numpy()
            same = (values[teachers] == values[students]).astype(np.float64)
            columns[f"same_{name}"] = np.where(known[teachers] & known[students], same, np.nan)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(teachers)))

    def number(self, names: Iterable[str]) -> Ints:
        """Numbers of models by name."""
        return pd.Index(self.names).get_indexer(pd.Index(names)).astype(np.int64)


def collect(inputs: Inputs, names: list[str]) -> Properties:
    """The properties of some of the zoo's models, and of their pairs."""
    zoo = inputs.zoo.loc[names]
    numbers: dict[str, NDArray[np.float64]] = {}
    sizes: list[str] = []
    labels: dict[str, pd.Series[str]] = {}
    for name in map(str, zoo.columns):
        column = zoo[name]
        never = name in OF_PROBABILITIES and column.isna().all() and not _one_class(inputs.task)
        if name in NO_PROPERTY or name.endswith("_se") or never:
            continue
        if column.map(_is_list).any():
            numbers |= _tags(name, column)
        elif pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(np.float64, na_value=np.nan)
            size = pd.api.types.is_integer_dtype(column) and _spans_orders(values)
            numbers[f"log10_{name}" if size else name] = np.log10(values) if size else values
            sizes += [f"log10_{name}"] if size else []
        elif column.notna().any():
            labels[name] = column.astype(object).where(column.notna(), None)
            numbers |= _flags(name, column)
    frame = pd.DataFrame(numbers, index=names)
    return Properties(names, frame, tuple(sizes), pd.DataFrame(labels, index=names), _measures(inputs, names))


def _one_class(task: Words) -> bool:
    """Whether the truth of an example is one class."""
    return task.has_classes and not task.dense


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _spans_orders(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and known.min() > 0 and known.max() >= ORDERS * known.min()


def _tags(name: str, column: pd.Series[str]) -> dict[str, NDArray[np.float64]]:
    """One flag per tag that at least two models have and two have not."""
    tags = sorted({str(tag) for value in column if _is_list(value) for tag in value})
    flags = {
        f"{name}:{tag}": np.array([float(tag in map(str, v)) if _is_list(v) else np.nan for v in column])
        for tag in tags
    }
    return {tag: flag for tag, flag in flags.items() if 2 <= np.nansum(flag) <= np.isfinite(flag).sum() - 2}


def _flags(name: str, column: pd.Series[str]) -> dict[str, NDArray[np.float64]]:
    """One flag per name that at least two models have; of two names, one flag is enough."""
    count = column.value_counts()
    several = sorted(map(str, count.index[count > 1]))
    if len(count) > MOST_NAMES:
        return {}
    if len(count) == 2:
        several = several[:1]
    known = column.notna().to_numpy()
    return {f"{name}={level}": np.where(known, (column == level).to_numpy(float), np.nan) for level in several}


def _measures(inputs: Inputs, names: list[str]) -> pd.DataFrame:
    scores, index = inputs.scores, pd.Index(names)
    scores = scores[scores["teacher"].isin(index) & scores["student"].isin(index)]
    columns = {}
    for name in map(str, scores.columns):
        if name in (*PAIR, *NO_MEASURE) or name.endswith("_se"):
            continue
        if name in OF_PIXELS and not inputs.task.dense:
            continue
        if scores[name].isna().all() and not _one_class(inputs.task):  # most measures are of one class per example
            continue
        if name.startswith("expertise") and scores[name].map(_is_list).any():
            columns[name] = scores[name].map(lambda classes: len(classes) if _is_list(classes) else np.nan)
        elif pd.api.types.is_numeric_dtype(scores[name]):
            columns[name] = scores[name].astype(float).where(np.isfinite(scores[name].astype(float)))
    teachers, students = (index.get_indexer(pd.Index(scores[role])) for role in PAIR)
    number = teachers * len(names) + students
    return pd.DataFrame(columns, index=scores.index).set_axis(number, axis=0)


def informative(frame: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Columns that can explain anything, and for the others the reason why not."""
    kept, dropped = [], {}
    for name in map(str, frame.columns):
        values = frame[name].to_numpy(np.float64)
        known = values[np.isfinite(values)]
        if len(known) == 0:
            dropped[name] = "unknown for all pairs"
        elif np.ptp(known) <= 1e-9 * max(1.0, float(np.abs(known).max())):
            dropped[name] = "the same for all pairs" if len(known) == len(values) else "the same wherever known"
        elif len(known) < 3:
            dropped[name] = "known for fewer than 3 pairs"
        else:
            kept.append(name)
    return kept, dropped


@dataclass(frozen=True)
class Outcomes:
    """The pairs that one method finished.

    Attributes:
        method: the method.
        control: whether it has no teacher.
        trains: false for ensembles, which improve no student.
        delta: mean over seeds, in units of the metric, [n].
        teachers: number of each pair's teacher among ``known.names``, int [n].
        students: number of each pair's student, int [n].
        x: properties of the pairs, [n, columns].
        seconds: mean time of one training, NaN where unknown, [n].
        rate: mean transfer rate, percent, NaN where unknown, [n].
        seeds: finished seeds, int [n].
        noise: variance over seeds of a single training's delta, pooled over pairs; NaN without repeats.
        known: the properties that ``x`` was made from.
        metric: name of the task's metric, for names of predictors.
    """

    method: str
    control: bool
    trains: bool
    delta: Floats
    teachers: Ints
    students: Ints
    x: pd.DataFrame
    seconds: Floats
    rate: Floats
    seeds: Ints
    noise: float
    known: Properties
    metric: str

    def __len__(self) -> int:
        return len(self.delta)

    @cached_property
    def dyads(self) -> Dyads:
        """The pairs' models, for standard errors."""
        return Dyads.of(self.teachers, self.students)

    @property
    def models(self) -> int:
        """Distinct models among the pairs."""
        return len(np.union1d(self.teachers, self.students))

    @property
    def ceiling(self) -> float:
        """The highest R² that any prediction of ``delta`` can expect: what seeds change cannot be predicted."""
        spread = float(self.delta.var()) if len(self) > 1 else 0.0
        if not np.isfinite(self.noise) or spread <= 0:
            return float("nan")
        return max(0.0, 1 - float((self.noise / self.seeds).mean()) / spread)


def gather(inputs: Inputs, everyone: bool = False) -> list[Outcomes]:
    """Outcomes of every method that finished any pair; methods with most pairs first, controls last.

    Args:
        inputs: the tables.
        everyone: number all models of the zoo, also those that no transfer had.
    """
    rows = inputs.transfers
    used = set(rows["teacher"]) | set(rows["student"])
    names = [str(name) for name in inputs.zoo.index if everyone or name in used]
    known = collect(inputs, names)
    finished = rows[rows["delta"].notna()]
    if finished.empty:
        return []
    pairs = over_seeds(
        finished,
        seconds=("seconds", "mean"),
        repeats=("delta", "size"),
        variance=("delta", "var"),
        trains=("trains", "first"),
    )
    pairs = pairs.assign(t=known.number(pairs["teacher"]), s=known.number(pairs["student"]))
    shared: dict[tuple[bytes, bytes], pd.DataFrame] = {}
    made = []
    for method, of_method in pairs.groupby("method", sort=True):
        of_method = of_method.sort_values(["t", "s"])  # so that methods over the same pairs share their properties
        teachers, students = of_method["t"].to_numpy(np.int64), of_method["s"].to_numpy(np.int64)
        key = (teachers.tobytes(), students.tobytes())
        if key not in shared:
            shared[key] = known.of(teachers, students)
        made.append(_outcomes(str(method), of_method, teachers, students, shared[key], known, inputs.task.metric.name))
    return sorted(made, key=lambda found: (found.control, -len(found)))


def _outcomes(
    method: str, pairs: pd.DataFrame, teachers: Ints, students: Ints, x: pd.DataFrame, known: Properties, metric: str
) -> Outcomes:
    repeats = pairs["repeats"].to_numpy(np.int64)
    variance = pairs["variance"].to_numpy(np.float64)
    several = repeats > 1
    freedom = float((repeats[several] - 1).sum())
    noise = float(((repeats[several] - 1) * variance[several]).sum()) / freedom if freedom else float("nan")
    return Outcomes(
        method=method,
        control=bool(pairs["control"].iloc[0]),
        trains=bool(pairs["trains"].iloc[0]),
        delta=pairs["delta"].to_numpy(np.float64),
        teachers=teachers,
        students=students,
        x=x,
        seconds=pairs["seconds"].to_numpy(np.float64),
        rate=pairs["transfer_rate"].to_numpy(np.float64),
        seeds=repeats,
        noise=noise,
        known=known,
        metric=metric,
    )


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn from or to predict: their models' numbers, int [n] each, and properties, [n, columns]."""

    teachers: Ints
    students: Ints
    x: pd.DataFrame

    def rows(self, which: NDArray[np.bool_]) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.teachers[which], self.students[which], self.x[which])
