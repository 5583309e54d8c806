"""The ``complementarity`` section of the configuration: which measures the table of all pairs has."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from kt.spec import File, Spec

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


class ComplementaritySpec(Spec):
    """What is measured of all ordered pairs beside flips, class entropy and areas of expertise."""

    measures: tuple[Measure, ...] = Field(
        ("agreement", "kappa", "double_fault", "q_statistic", "expertise_similarity"),
        description="optional columns of the table; `docs/measures.md` says what each costs",
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
