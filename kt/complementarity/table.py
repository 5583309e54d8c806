"""The table ``complementarity``, made in pieces: rows that still hold are taken from an earlier table."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kt import store
from kt.complementarity import expertise, pixels, reuse
from kt.complementarity.agreement import agreement, alike, capa, top_flips
from kt.complementarity.flips import Graded, Places, Right
from kt.complementarity.reuse import Earlier, Facts
from kt.complementarity.scores import Scoring
from kt.complementarity.similarity import cka, js_divergence, leep
from kt.complementarity.sources import Source, key_of
from kt.complementarity.spec import ComplementaritySpec, counts_pixels
from kt.errors import KtError
from kt.tasks.classification import Classification
from kt.tasks.task import Task

CLASSIFICATION = Classification()

VERSION = 1
"""Raise it when a measure changes: rows of earlier tables are then not taken over."""

ROWS = 1 << 14
"""Rows of a piece; only a few pieces of the table are held at a time."""

LISTED = 20_000_000
"""Pairs × classes up to which the table lists classes by default."""

HASHED = 256
"""Truths at a time."""

LISTED_PIXELS = 1 << 31
"""Pixels from which on it never does: their numbers by class have 32 bits."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Matrix:
    """A measure of all pairs at once.

    Attributes:
        fill: computes it, from a source, the matrix to fill, the models that changed and threads.
        whole_content: whether it needs more than what is kept of the answers.
        labelled: whether it needs the truth too, [N, …], as ``labels``.
    """

    fill: Callable[..., None]
    whole_content: bool
    labelled: bool = False


MATRICES = {
    "agreement": Matrix(agreement, False),
    "pos_flips_top5": Matrix(top_flips, True, True),
    "capa": Matrix(capa, True, True),
    "js_divergence": Matrix(js_divergence, True),
    "leep": Matrix(leep, True),
    "cka": Matrix(cka, True),
}


@dataclass(frozen=True)
class Table:
    """A table that is computed while its pieces are taken.

    Attributes:
        facts: hashes of all that it depends on, for the file's metadata.
        measured: number of pairs whose rows are measured anew.
        pieces: its rows, by teacher and then by student.
    """

    facts: Facts
    measured: int
    pieces: Iterator[pa.Table]


def make(
    source: Source,
    truth: Any,
    classes: int,
    split: str,
    spec: ComplementaritySpec,
    earlier: Path | None,
    pool: Executor,
    task: Task = CLASSIFICATION,
) -> Table:
    """The table of all ordered pairs of distinct models.

    Args:
        source: predictions of M models.
        truth: of the images, [N, …]; of classification labels int64 [N]; of a dense task only slices of it are read.
        classes: number of classes C; any number where the task has none.
        split: name of the split, for the table.
        spec: the measures; those that make no sense for the task are left out.
        earlier: a table to take rows from that still hold; None without one.
        pool: threads.
        task: what is learnt.

    Memory: one bit per image and model, or eight bytes where scores are numbers; an [M, M] matrix for each measure of
    all pairs at once, and where pixels are counted for each class; and chunks.

    Raises:
        KtError: predictions or class vectors cannot be read, or scores are not finite.
    """
    names, models, measures = source.names, len(source.names), spec.taken(task.words)
    scored, kept = _scored(source, truth, classes, task)
    vectors = None
    if "expertise_similarity" in measures and isinstance(scored, Right):
        vectors = (
            expertise.load(spec.class_embeddings, classes)
            if spec.class_embeddings
            else expertise.mean_logits(source, int(np.argmax(scored.total)), truth, classes)
        )
    of_pixels = counts_pixels(task.words)
    listed = models * (models - 1) * classes <= LISTED if spec.class_lists is None else spec.class_lists
    listed = listed and task.has_classes and not (of_pixels and math.prod(truth.shape) >= LISTED_PIXELS)
    compared = _key(truth, classes, split, task)
    known = MATRICES | ({"agreement": Matrix(partial(alike, task=task), True, True)} if task.words.maps else {})
    at_once = [name for name in measures if name in known and not of_pixels]
    in_rows = sorted(set(measures) - set(at_once))
    facts = Facts(
        rows=store.digest([VERSION, compared, in_rows, listed, vectors.digest if vectors else None]),
        measures={name: store.digest([VERSION, compared, name]) for name in at_once},
        predicted=dict(zip(names, kept, strict=True)),
        content={name: source.content(model) for model, name in enumerate(names)},
    )
    before = reuse.earlier(earlier, facts)
    matrices = {}
    for name in facts.measures:
        measure = known[name]
        into, changed = before.measure(name, measure.whole_content) if before else reuse.nothing(models)
        fill = partial(measure.fill, labels=truth) if measure.labelled else measure.fill
        fill(source, into, changed, pool)
        matrices[name] = into
    numbers = before.numbers() if before else np.full((models, models), -1)
    new = (numbers < 0) & reuse.off_diagonal(models)
    counted = None
    if of_pixels:
        counted = pixels.count(source, truth, classes, np.flatnonzero(new.sum(1) == models - 1).tolist(), pool)
    scoring = Scoring(names, split, task.words, scored, measures, matrices, vectors, listed, counted)
    return Table(facts, int(new.sum()), _pieces(scoring, before, numbers, pool))


def _scored(source: Source, truth: Any, classes: int, task: Task) -> tuple[Right | Graded, list[str]]:
    """Scores of every model, and a hash of what they come from; one model's answers are held at a time."""
    places = Places.of(*(truth, classes) if task.classifies else (np.zeros(len(truth), np.int64), 1))
    found, keys = [], []
    for model, name in enumerate(source.names):
        kept = source.kept(model, slice(0, source.images))
        scores = task.scores(kept, truth)
        _check_scores(scores, name, len(truth), task)
        key = key_of(kept if task.classifies else scores)  # code of a task may change, and with it the scores
        keys.append(store.digest([key, source.content(model)]) if counts_pixels(task.words) else key)
        found.append(places.pack(scores) if task.metric.binary else scores.astype(np.float64))
    if task.metric.binary:
        return Right.of(places, np.stack(found)), keys
    return Graded(np.stack(found), task.clusters(truth)), keys


def _check_scores(scores: NDArray[Any], name: str, images: int, task: Task) -> None:
    """Fail where a task gives scores of a model that are none."""
    needed = "true or false" if task.metric.binary else "a number"
    if scores.shape != (images,) or (scores.dtype == bool) < task.metric.binary:
        given = f"{scores.dtype} {list(scores.shape)}"
        raise KtError(f"the task {task.name!r} scores {images} {task.example}s by {given}; needed is {needed} for each")
    if bad := int((~np.isfinite(scores)).sum()):
        raise KtError(f"complementarity: {bad} of {images} scores of {name!r} are not finite")


def _key(truth: Any, classes: int, split: str, task: Task) -> str:
    """Hash of what predictions are compared with."""
    content = hashlib.sha256()
    for start in range(0, len(truth), HASHED):
        content.update(np.ascontiguousarray(truth[start : start + HASHED]).data)
    if task.classifies:
        return store.digest([content.hexdigest(), classes, split])
    facts = [content.hexdigest(), str(truth[:1].dtype), list(truth.shape), split, task.words.to_json()]
    return store.digest([*facts, classes] if task.has_classes else facts)


def _pieces(scoring: Scoring, before: Earlier | None, numbers: NDArray[np.int64], pool: Executor) -> Iterator[pa.Table]:
    models = len(numbers)
    teachers_each = max(1, ROWS // models)
    starts = range(0, models, teachers_each)

    def piece(start: int) -> pa.Table:
        block = np.arange(start, min(start + teachers_each, models))
        teachers, students = np.repeat(block, models), np.tile(np.arange(models), len(block))
        distinct = teachers != students
        teachers, students = teachers[distinct], students[distinct]
        old = numbers[teachers, students]
        new = old < 0
        if before is None or new.all():
            return scoring.rows(teachers, students)
        kept = scoring.renewed(before.rows(old[~new]), teachers[~new], students[~new])
        if not new.any():
            return kept
        both = pa.concat_tables([kept, scoring.rows(teachers[new], students[new])])
        place = np.empty(len(old), np.int64)
        place[np.concatenate([np.flatnonzero(~new), np.flatnonzero(new)])] = np.arange(len(old))
        return both.take(pa.array(place))

    return _in_order(pool, piece, starts, 2)


def _in_order(
    pool: Executor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Results in the order of the items; at most ``ahead`` wait, so that memory stays bounded."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
