"""What came of the transfers: one outcome a method and pair, with its models as numbers, and the noise of seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kt.analysis import properties
from kt.analysis.deltas import over_seeds
from kt.analysis.dyadic import Dyads
from kt.analysis.inputs import Inputs
from kt.analysis.properties import Properties

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """The pairs that one method finished.

    Attributes:
        method: the method.
        control: whether it has no teacher.
        trains: false for ensembles, which improve no student.
        delta: mean over seeds, percentage points, [n].
        teachers: number of each pair's teacher among ``known.names``, int [n].
        students: number of each pair's student, int [n].
        x: properties of the pairs, [n, columns].
        seconds: mean time of one training, NaN where unknown, [n].
        rate: mean transfer rate, percent, NaN where unknown, [n].
        seeds: finished seeds, int [n].
        noise: variance over seeds of a single training's delta, pooled over pairs; NaN without repeats.
        known: the properties that ``x`` was made from.
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
    known = properties.collect(inputs, names)
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
        made.append(_outcomes(str(method), of_method, teachers, students, shared[key], known))
    return sorted(made, key=lambda found: (found.control, -len(found)))


def _outcomes(
    method: str, pairs: pd.DataFrame, teachers: Ints, students: Ints, x: pd.DataFrame, known: Properties
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
    )
