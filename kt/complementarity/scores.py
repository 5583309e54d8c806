"""Rows of the table ``complementarity`` from the scores of all models. Source of the measures: FG section 3."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kt.complementarity.expertise import Areas, ClassVectors, class_entropy
from kt.complementarity.flips import Counts, Graded, Numbers, Right, double_fault, kappa, q_statistic, untrained
from kt.complementarity.pixels import Pixels
from kt.complementarity.spec import possible
from kt.tables import schema
from kt.tables.columns import SHARES
from kt.tasks.task import Words

TILE = 64
"""Pairs at a time: their numbers stay in a core's own cache."""

Indices = NDArray[np.int64]
Columns = dict[str, NDArray[np.generic] | pa.Array]


@dataclass(frozen=True)
class Scoring:
    """All data that rows are computed from.

    Attributes:
        names: of the M models.
        split: name of the split.
        task: the words of what is learnt.
        scored: the images that the models get right, or their scores that are numbers.
        measures: the optional columns asked for.
        matrices: measures of all pairs at once, each float64 [M, M] by teacher and student.
        vectors: class vectors, for the measure ``expertise_similarity``.
        listed: whether rows list classes.
        pixels: right pixels of models and pairs, of a task that predicts a class for each.
    """

    names: Sequence[str]
    split: str
    task: Words
    scored: Right | Graded
    measures: Collection[str]
    matrices: Mapping[str, NDArray[np.float64]]
    vectors: ClassVectors | None
    listed: bool
    pixels: Pixels | None = None

    def rows(self, teachers: Indices, students: Indices) -> pa.Table:
        """Rows of P pairs, in the given order, from the indices of their models, int64 [P]."""
        if isinstance(self.scored, Graded):
            columns = self._graded(self.scored, teachers, students)
        else:
            columns = self._right(self.scored, teachers, students)
        if self.pixels:
            columns |= self._of_pixels(self.pixels, teachers, students)
        return self._table(teachers, students, columns | self._measured(teachers, students))

    def _graded(self, scored: Graded, teachers: Indices, students: Indices) -> Columns:
        """The columns that come from scores that are numbers."""
        scale, mean = self.task.metric.scale, scored.mean
        positive, error, negative = scored.flips(teachers, students)
        return {
            "n": np.full(len(students), scored.images),
            "acc_teacher": scale * mean[teachers],
            "acc_student": scale * mean[students],
            "acc_difference": scale * (mean[teachers] - mean[students]),
            "pos_flips": scale * positive,
            "pos_flips_se": scale * error,
            "neg_flips": scale * negative,
        }

    def _right(self, scored: Right, teachers: Indices, students: Indices) -> Columns:
        """The columns that come from which images are right."""
        positive, columns = self._by_class(scored, teachers, students)
        columns |= self._counted(scored, teachers, students, positive)
        if self.vectors:
            columns["class_similarity"] = np.full(len(students), self.vectors.mean())
        return {name: values for name, values in columns.items() if possible(name, self.task)}

    def _of_pixels(self, scored: Pixels, teachers: Indices, students: Indices) -> Columns:
        """The columns that come from which pixels are right."""
        n, t, s = scored.pixels, scored.total[teachers], scored.total[students]
        positive, columns = self._by_class(scored, teachers, students)
        columns |= self._faults(n, t, s, positive)
        if "agreement" in self.measures:
            columns["agreement"] = 100 * scored.same[teachers, students] / n
        return columns | {
            "pixel_flips": 100 * positive / n,
            "pixel_flips_se": 100 * scored.error[teachers, students],
            "neg_pixel_flips": 100 * (positive - (t - s)) / n,
        }

    def _by_class(self, scored: Right | Pixels, teachers: Indices, students: Indices) -> tuple[Indices, Columns]:
        """Positive flips, int64 [P], and the columns that say in which classes they lie."""
        tiles = [slice(i, i + TILE) for i in range(0, len(students), TILE)]
        parts = [self._spread(*scored.flips(teachers[tile], students[tile])) for tile in tiles]
        spread = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        positive, columns = spread.pop("positive"), Columns()
        if self.listed:
            columns["expertise"] = _lists(spread.pop("expertise"), spread["expertise_50"])
            classes = np.full(len(students), scored.by_class.shape[1])
            columns["flips_by_class"] = _lists(spread.pop("flips_by_class"), classes)
        return positive, columns | spread

    def renewed(self, rows: pa.Table, teachers: Indices, students: Indices) -> pa.Table:
        """Rows of an earlier table with the measures of all pairs as they are now."""
        for name, values in self._measured(teachers, students).items():
            place = rows.column_names.index(name)
            rows = rows.set_column(place, rows.schema.field(place), pa.array(values, from_pandas=True))
        return rows.replace_schema_metadata(None)

    def _measured(self, teachers: Indices, students: Indices) -> Columns:
        """The columns that come from measures of all pairs at once."""
        return {name: matrix[teachers, students] for name, matrix in self.matrices.items()}

    def _spread(self, flips: Counts | Numbers, negative: Counts | Numbers) -> dict[str, NDArray[np.generic]]:
        """The columns made of positive and negative flips by class, [P, C], one pair a row."""
        areas = Areas.of(flips)
        found: dict[str, NDArray[np.generic]] = {
            "positive": flips.sum(1, dtype=np.int64),
            "class_entropy": class_entropy(flips),
            "neg_class_entropy": class_entropy(negative),
            **{f"expertise_{share}": areas.sizes[:, i] for i, share in enumerate(SHARES)},
        }
        if self.vectors:
            for i, share in enumerate(SHARES):
                found[f"expertise_similarity_{share}"] = self.vectors.similarity(areas.members(i))
        if self.listed:
            found |= {"expertise": areas.classes(), "flips_by_class": flips.astype(np.int32).ravel()}
        return found

    def _counted(self, scored: Right, teachers: Indices, students: Indices, positive: NDArray[np.int64]) -> Columns:
        """The columns that follow from the numbers of images that both, one or neither gets right."""
        n, total, scale = scored.images, scored.total, self.task.metric.scale
        t, s = total[teachers], total[students]
        rate = positive / n
        columns: Columns = {
            "n": np.full(len(students), n),
            "acc_teacher": scale * t / n,
            "acc_student": scale * s / n,
            "acc_difference": scale * (t - s) / n,
            "pos_flips": scale * positive / n,
            "pos_flips_se": scale * np.sqrt(rate * (1 - rate) / (n if n > 1 else np.nan)),
            "neg_flips": scale * (positive - (t - s)) / n,
            "pos_flips_untrained": untrained(n, s, scored.by_class.shape[1]),
        }
        return columns | self._faults(n, t, s, positive)

    def _faults(self, n: int, t: Indices, s: Indices, positive: Indices) -> Columns:
        """The measures asked for that follow from the n images or pixels that both, one or neither gets right."""
        optional = {
            "kappa": kappa(n, t, s, positive),
            "double_fault": double_fault(n, s, positive),
            "q_statistic": q_statistic(n, t, s, positive),
        }
        return {name: values for name, values in optional.items() if name in self.measures}

    def _table(self, teachers: Indices, students: Indices, columns: Columns) -> pa.Table:
        """Columns in the order and with the types of the schema; those not asked for are null."""
        names = pa.array(list(self.names), pa.string())
        rows = len(students)
        given: dict[str, pa.Array] = {
            "teacher": names.take(pa.array(teachers)),
            "student": names.take(pa.array(students)),
            "split": pa.repeat(pa.scalar(self.split), rows),
        }
        arrow = schema.arrow_schema("complementarity")
        for field in arrow:
            if field.name in columns:
                nulls = field.nullable  # NaN becomes null where one may be
                given[field.name] = pa.array(columns[field.name], field.type, from_pandas=nulls)
        return pa.table({name: given.get(name, pa.nulls(rows, arrow.field(name).type)) for name in arrow.names}, arrow)


def _lists(values: NDArray[np.generic], lengths: NDArray[np.generic]) -> pa.Array:
    """A list for every row, from all rows' values behind one another and the lists' lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values))
