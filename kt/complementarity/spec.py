"""Section ``complementarity`` of the configuration: the measures that the table of all pairs has."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from kt.spec import File, Spec
from kt.tasks.task import Words

Measure = Literal[
    "agreement",
    "kappa",
    "double_fault",
    "q_statistic",
    "expertise_similarity",
    "pos_flips_top5",
    "capa",
    "js_divergence",
    "leep",
    "cka",
]
MEASURES: tuple[Measure, ...] = get_args(Measure)

OF_CLASSES = (
    *("agreement", "expertise", "pos_flips_top5", "capa", "js_divergence", "leep"),
    *("pos_flips_untrained", "class_entropy", "neg_class_entropy", "class_similarity", "flips_by_class"),
)
"""Beginnings of columns that need classes and their probabilities."""

OF_BITS = ("kappa", "double_fault", "q_statistic")
"""Columns that need to know which images, or pixels, are right or wrong."""

OF_PIXELS = ("pixel_flips", "neg_pixel_flips")
"""Beginnings of columns that count pixels: those of tasks that predict a class for each."""

OF_IMAGES = (
    *("expertise_similarity", "class_similarity", "pos_flips_untrained"),
    *("pos_flips_top5", "capa", "js_divergence", "leep", "cka"),
)
"""Beginnings of columns that need one class, or the features, of a whole image: tasks of maps lack them."""


def counts_pixels(task: Words) -> bool:
    """Whether the table counts pixels: of tasks that predict a class for each."""
    return task.dense and task.has_classes


def possible(column: str, task: Words) -> bool:
    """Whether a measure, or a column of the table, makes sense for a task; those that do not are null."""
    of_pixels = counts_pixels(task)
    if column == "agreement" and task.maps:
        return True
    if not task.has_classes and column.startswith(OF_CLASSES):
        return False
    if column.startswith(OF_IMAGES) and (of_pixels or task.maps):
        return False
    if column.startswith(OF_PIXELS) and not of_pixels:
        return False
    return of_pixels or task.metric.binary or column not in OF_BITS


class ComplementaritySpec(Spec):
    """Measures of all ordered pairs beside flips, class entropy and areas of expertise."""

    measures: tuple[Measure, ...] = Field(
        ("agreement", "kappa", "double_fault", "q_statistic", "expertise_similarity"),
        description="optional columns of the table; `docs/measures.md` has the cost of each",
    )
    class_embeddings: File | None = Field(
        None,
        description="class vectors for `expertise_similarity`: an .npz file with `vectors` [classes, width], or a "
        "Parquet file with the columns `class` and `vector`; default: mean logits of the most accurate model",
    )
    class_lists: bool | None = Field(
        None,
        description="whether the table lists the classes of every pair (`flips_by_class`, `expertise`); by default "
        "where pairs × classes are at most 20 million",
    )

    def taken(self, task: Words) -> tuple[Measure, ...]:
        """The measures that make sense for a task."""
        return tuple(measure for measure in self.measures if possible(measure, task))
