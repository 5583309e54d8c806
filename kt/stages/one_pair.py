"""Stage ``kt pair``: all that a study knows of one teacher and one student, and some of the images they differ on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kt import pairs as pairing
from kt import predictions, store
from kt.data.clips import in_turn
from kt.data.datasets import Dataset
from kt.errors import KtError, quoted, unknown
from kt.layout import Layout
from kt.stages.common import check_predictions, truth_of
from kt.study.study import Study
from kt.tables import schema
from kt.tables.columns import with_metric
from kt.tables.of_study import STUDY
from kt.tasks.task import Array, Words, standard_error

PAIR = ("teacher", "student")
FLIPS = ("pos_flips", "neg_flips")
IMAGES = 12
"""Images of each direction that are written."""
LEAST_SIDE = 128
"""Smaller images are enlarged, each pixel to a square, to a shorter side of about so many pixels."""


@dataclass(frozen=True)
class Found:
    """What is known of a pair. Shares and values of the metric are in its unit, errors over test examples or clusters.

    Attributes:
        teacher, student: the models.
        task: words of the task.
        data: name of the data set.
        n: test examples.
        acc: the metric of teacher and student, with its standard error.
        pos_flips: value and standard error; of classification percent of images that only the teacher gets right.
        neg_flips: the same of the student.
        classes: of a task with classes, each one's ``class``, ``n`` examples (of a dense task pixels), those that each
            model gets right, and flips of both directions (null where unknown); most positive flips first.
        measures: further measures of the pair, from the table ``complementarity``.
        measured: deltas by method, as ``kt.analysis.recommend.measured`` gives them.
        missing: sentences on what is not there yet.
        clusters: that the test examples belong to; 0 where these are independent.
    """

    teacher: str
    student: str
    task: Words
    data: str
    n: int
    acc: dict[str, tuple[float, float]]
    pos_flips: tuple[float, float]
    neg_flips: tuple[float, float]
    classes: pd.DataFrame | None
    measures: dict[str, float]
    measured: pd.DataFrame
    missing: list[str]
    clusters: int = 0

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        metric = self.task.metric
        tables = {name: getattr(self, name) for name in ("classes", "measured")}
        rows = {name: None if of is None else _plain(of) for name, of in tables.items()}
        flips = {name: _with_error(getattr(self, name)) for name in FLIPS}
        values = {role: _with_error(value) for role, value in self.acc.items()}
        about = {"teacher": self.teacher, "student": self.student, "data": self.data, "n": self.n}
        about |= {"clusters": self.clusters} if self.clusters else {}
        return {
            **about,
            "metric": asdict(metric),
            metric.key: values,
            **flips,
            **rows,
            "measures": self.measures,
            "missing": self.missing,
        }


def _with_error(value: tuple[float, float]) -> dict[str, float | None]:
    """A value and its standard error; None where that is unknown, as over a single cluster."""
    return {"value": value[0], "se": None if math.isnan(value[1]) else value[1]}


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in rows]


@dataclass(frozen=True)
class _Answers:
    """What both models do with the test examples: kept parts and scores, in the order teacher, student."""

    dataset: Dataset
    rows: NDArray[np.int64]
    kept: tuple[Array, Array]
    scores: tuple[Array, Array]
    clusters: NDArray[np.int64] | None

    @property
    def lead(self) -> NDArray[np.float64]:
        """Score of the teacher less that of the student, [n]."""
        return np.subtract(*self.scores, dtype=np.float64)


def pair(study: Study, layout: Layout, teacher: str, student: str) -> Found:
    """What is known of a pair: flips by class, measures, and deltas of what was transferred.

    Raises:
        KtError: a model is unknown, is a specialist, or has no predictions yet; or both are the same.
    """
    from kt.analysis.recommend import measured as deltas

    answers = _answers(study, layout, teacher, student)
    task, names = study.task, (teacher, student)
    values = [(task.value(scores), task.error(scores, answers.clusters)) for scores in answers.scores]
    missing = []
    row = _scored(layout.complementarity("test"), names, values)
    if row is None:
        missing.append("measures of the pair: none yet for these predictions; `snakemake` makes them")
    transfers = _transfers(study, layout, student)
    measured = deltas(transfers, student, teacher)
    if measured.empty:
        missing.append(f"deltas: nothing is transferred yet from {teacher} to {student}")
    return Found(
        teacher,
        student,
        task.words,
        Path(study.data.source).name,
        len(answers.rows),
        dict(zip(PAIR, values, strict=True)),
        _flips(answers.lead, task.metric.scale, answers.clusters),
        _flips(-answers.lead, task.metric.scale, answers.clusters),
        _classes(answers, task.words, row, _scored(layout.complementarity("test"), names[::-1], values[::-1])),
        _measures(row or {}, task.metric.key),
        measured,
        missing,
        0 if answers.clusters is None else len(np.unique(answers.clusters)),
    )


def _answers(study: Study, layout: Layout, teacher: str, student: str) -> _Answers:
    for name in (teacher, student):
        if name not in study.zoo.models:
            raise KtError(f"pair: {unknown('model', name, study.names)}")
        if name not in study.names:
            raise KtError(f"pair: {quoted(name)} knows some classes only, so that it is compared with no other model")
        if not predictions.current(layout.predictions(name)):
            raise KtError(f"pair: {quoted(name)} has no predictions yet; `kt predictions --model {name}` makes them")
    if teacher == student:
        raise KtError(f"pair: {quoted(teacher)} is both teacher and student; a pair has two models")
    dataset = Dataset.open(layout.data)
    rows, truth = dataset.rows("test"), truth_of(dataset, "test", study.task)
    check_predictions(study, layout, dataset, (teacher, student))
    found = predictions.read_all({name: layout.predictions(name) for name in (teacher, student)}, "test")
    if not np.array_equal(found[student].ids, dataset.ids("test")):
        raise KtError(f"{layout.predictions(student)}: predictions of other images than the data set has now")
    kept = found[teacher].kept, found[student].kept
    scores = study.task.scores(kept[0], truth), study.task.scores(kept[1], truth)
    return _Answers(dataset, rows, kept, scores, study.task.clusters(truth))


def _flips(lead: NDArray[np.float64], scale: float, clusters: NDArray[np.int64] | None) -> tuple[float, float]:
    """Positive flips and their standard error over examples or clusters, from the teacher's lead on each, [n]."""
    positive = np.maximum(lead, 0)
    return scale * float(positive.mean()), scale * float(standard_error(positive, clusters))


def _classes(
    answers: _Answers, task: Words, row: dict[str, Any] | None, turned: dict[str, Any] | None
) -> pd.DataFrame | None:
    """Flips by class; of a dense task from the rows of the table for the pair and for the pair turned round."""
    if not task.has_classes:
        return None
    names, right = answers.dataset.class_names, {}
    if task.dense:
        n = answers.kept[0][..., 2].sum(0, dtype=np.int64)
        right = {role: kept[..., 0].sum(0, dtype=np.int64) for role, kept in zip(PAIR, answers.kept, strict=True)}
        flips = [(of or {}).get("flips_by_class") for of in (row, turned)]
        both = [np.full(len(names), np.nan) if of is None else np.asarray(of) for of in flips]
    else:
        labels, (teacher, student) = answers.dataset.labels[answers.rows], answers.scores
        count = [np.bincount(labels[which], minlength=len(names)) for which in (labels >= 0, teacher, student)]
        n, right = count[0], dict(zip(PAIR, count[1:], strict=True))
        both = [np.bincount(labels[which], minlength=len(names)) for which in (teacher & ~student, student & ~teacher)]
    columns = {"class": names, "n": n, **{f"{role}_right": of for role, of in right.items()}}
    made = pd.DataFrame({**columns, **dict(zip(FLIPS, both, strict=True))})
    return made.sort_values(FLIPS[0], ascending=False, kind="stable", ignore_index=True)


def _scored(path: Path, names: tuple[str, ...], values: list[tuple[float, float]]) -> dict[str, Any] | None:
    """The row of the table ``complementarity`` of a pair; None where there is none, or one of other predictions."""
    if not path.exists():
        return None
    found = pq.read_table(path, filters=[(role, "=", name) for role, name in zip(PAIR, names, strict=True)])
    rows = schema.from_file("complementarity", found, schema.words(path).metric.key).to_pylist()
    told = [rows[0][f"acc_{role}"] for role in PAIR] if rows else []
    return rows[0] if rows and np.allclose(told, [value for value, _ in values], rtol=0, atol=1e-9) else None


def _measures(row: dict[str, Any], key: str) -> dict[str, float]:
    """The numbers of a row by their names in a file, but for those that are told elsewhere."""
    told = {*PAIR, *FLIPS, "pos_flips_se", "split", "n", "acc_teacher", "acc_student"}
    known = {column.name for column in STUDY["complementarity"]} - told
    numbers = {name: float(v) for name, v in row.items() if name in known and isinstance(v, int | float)}
    return {with_metric(name, key): value for name, value in numbers.items()}


def _transfers(study: Study, layout: Layout, student: str) -> pd.DataFrame:
    """Rows of the student's finished transfer jobs, the newest there are."""
    jobs = pairing.jobs(study.names, study.pairs, study.transfer.pairs_per_job).get(student, 0)
    paths = [path for chunk in range(jobs) if (path := layout.transfer(student, chunk)).exists()]
    frames = [schema.read_frame(path, "transfers") for path in paths]
    return (
        pd.concat(frames, ignore_index=True) if frames else schema.arrow_schema("transfers").empty_table().to_pandas()
    )


# images


def write_images(study: Study, layout: Layout, teacher: str, student: str, folder: Path) -> int:
    """Write some test images that one model gets right and the other wrong (or does better on), and a CSV file of them.

    Of a task with one class per image, classes take turns, those with most flips first; else the largest lead comes
    first, and videos take turns. Names of all files begin with the pair. Returns the number of images.

    Raises:
        KtError: as ``pair``; or the images have neither one channel nor three.
    """
    answers, title = _answers(study, layout, teacher, student), f"{teacher}-to-{student}"
    rows = [
        {**facts, "direction": direction}
        for direction, lead in zip(FLIPS, (answers.lead, -answers.lead), strict=True)
        for facts in _written(folder, f"{title}.{direction}", lead, answers, study.task.classifies)
    ]
    with store.atomic(folder / f"{title}.csv") as temporary:
        columns = ["file", "direction", "name", "class", "teacher_says", "student_says", "lead"]
        pd.DataFrame(rows).reindex(columns=columns).to_csv(temporary, index=False)
    return len(rows)


def _written(
    folder: Path, begin: str, lead: NDArray[np.float64], answers: _Answers, classifies: bool
) -> Iterator[dict[str, Any]]:
    dataset = answers.dataset
    sources = dict(zip(dataset.splits["row"], dataset.splits["name"], strict=True))
    labels = dataset.labels[answers.rows] if classifies else np.zeros(len(lead), np.int64)
    for place, i in enumerate(chosen(lead, labels, answers.clusters), 1):
        row = int(answers.rows[i])
        facts = {"name": sources[row], "lead": float(lead[i])}
        title = f"{begin}.{place:02d}"
        if classifies:
            said = [dataset.class_names[kept[i]] for kept in answers.kept]
            facts |= {"class": dataset.class_names[labels[i]], "teacher_says": said[0], "student_says": said[1]}
            wrong = next(name for name in said if name != facts["class"])
            title += f".{_safe(str(facts['class']))}.taken_for_{_safe(wrong)}"
        _save(folder / f"{title}.png", np.asarray(dataset.images[row]))
        yield {"file": f"{title}.png", **facts}


def chosen(
    lead: NDArray[np.float64], labels: NDArray[np.int64], clusters: NDArray[np.int64] | None = None, most: int = IMAGES
) -> list[int]:
    """Places of the images to show: where one model leads, classes in turn, those with most such images first.

    Args:
        lead: of the model over the other, [n].
        labels: class of each image, int64 [n]; all equal where there are none.
        clusters: video of each, int64 [n], where images are frames; videos take turns, largest leads first.
        most: images.
    """
    ahead = np.flatnonzero(lead > 0)
    ahead = ahead[np.argsort(-lead[ahead], kind="stable")]
    if clusters is not None:
        return [int(place) for place in in_turn(ahead, clusters)[:most]]
    count = np.bincount(labels[ahead], minlength=1)
    turn = pd.Series(labels[ahead]).groupby(labels[ahead]).cumcount().to_numpy()
    order = np.lexsort((labels[ahead], -count[labels[ahead]], turn))
    found: list[int] = ahead[order][:most].tolist()
    return found


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)[:40] or "class"


def _save(path: Path, image: NDArray[np.uint8]) -> None:
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise KtError(f"--images: the images have {image.shape[-1]} channels; only those of 1 and 3 can be written")
    times = max(1, LEAST_SIDE // min(image.shape[:2]))
    large = image.repeat(times, 0).repeat(times, 1)
    with store.atomic(path) as temporary:
        Image.fromarray(large[..., 0] if image.shape[-1] == 1 else large).save(temporary, format="PNG")
