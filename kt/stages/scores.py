"""Stages that need cached predictions alone: complementary knowledge of all pairs, and the choice of pairs."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kt import pairs as pairing
from kt import predictions
from kt.complementarity import table
from kt.complementarity.sources import Files
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.pairs import select
from kt.stages.common import metadata
from kt.study.study import Study
from kt.tables import schema

log = logging.getLogger(__name__)


def complementarity(study: Study, layout: Layout, split: str, out: Path, threads: int) -> None:
    """Score every ordered pair on a split; rows of the table that ``out`` is now are kept where they still hold."""
    if split not in predictions.SPLITS:
        raise KtError(unknown("split", split, predictions.SPLITS))
    if split == "transfer" and (study.transfer.views or study.transfer.top_k):
        text = "pairs are scored on plain images and all logits; allowed splits: validation, test"
        raise KtError(f"transfer.{'views' if study.transfer.views else 'top_k'}: {text}")
    dataset = Dataset.open(layout.data)
    source = Files({name: layout.predictions(name) for name in study.names}, split)
    truth, task = dataset.truth[dataset.rows(split)], study.task
    if not task.labelled(truth).all():
        text = f"the {task.example}s of the split {split!r} have no labels; allowed: validation, test"
        raise KtError(f"complementarity: {text}")
    with ThreadPoolExecutor(threads) as pool:
        made = table.make(source, truth, dataset.classes, split, study.complementarity, out, pool, task)
        rows = schema.write_pieces(out, "complementarity", made.pieces, metadata(study) | made.facts.metadata())
    compared = f"{len(truth)} {split} {task.example}s"
    log.info("complementarity: %d of %d ordered pairs scored on %s", made.measured, rows, compared)


def pairs(study: Study, layout: Layout, scores: Path | None, models: Path | None, out: Path) -> None:
    """Choose the pairs that get a transfer."""
    columns = ["teacher", "student", pairing.score_of(study.pairs)]
    found = schema.read_frame(scores, "complementarity", columns) if scores else None
    families = None
    if models:
        zoo = schema.read(models, "zoo")
        families = dict(zip(zoo["name"].to_pylist(), zoo["family"].to_pylist(), strict=True))
    chosen = select(study.names, study.pairs, study.transfer.pairs_per_job, found, families)
    schema.write(out, "pairs", schema.build("pairs", chosen.to_dict("list")), metadata(study))
    log.info("pairs: %d chosen by the rule %r", len(chosen), study.pairs.select)
