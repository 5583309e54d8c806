"""Stages on tables and cached predictions: scores and choice of pairs, search, final tables, report."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa

from kt import pairs as pairing
from kt import predictions, store
from kt.complementarity import table
from kt.complementarity.sources import Files
from kt.complementarity.spec import counts_pixels
from kt.data.datasets import Dataset
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.pairs import select
from kt.stages.common import check_predictions, metadata, truth_of
from kt.stages.pictures import pictures
from kt.stages.rounds import gather_rounds
from kt.study.study import Study
from kt.tables import gather as final
from kt.tables import schema
from kt.tables.of_experiments import OPTIONAL
from kt.transfer import export, search
from kt.transfer import groups as grouping

log = logging.getLogger(__name__)


def gather(study: Study, layout: Layout, out: Path) -> None:
    """Make the final tables: transfers and methods, and every table as CSV too."""
    from kt.analysis import deltas
    from kt.analysis.deltas import of_pairs

    jobs = pairing.jobs(study.names, study.pairs, study.transfer.pairs_per_job)
    files = [layout.transfer(student, chunk) for student, count in jobs.items() for chunk in range(count)]
    if study.groups:
        files += [layout.transfer(student, "groups") for student in grouping.count(study.names, study.groups.choose)]
    files += [layout.experiment(rule, name) for rule, name, _ in study.each_experiment()]
    transfers = final.transfers(files)
    scores = schema.read(layout.complementarity("test"), "complementarity")
    summary = deltas.summarise(of_pairs(final.frame(transfers)), final.frame(scores), study.analysis.equal_within)
    plan = study.transfer
    ran = search.resolve(plan.methods.chosen(), plan.candidates(), layout.table("search"))
    texts = {name: json.dumps(method.parameters(), sort_keys=True) for name, method in ran.items()}
    summary["parameters"] = [texts.get(method) for method in summary["method"]]
    made = {
        "transfers": transfers,
        "complementarity": scores,
        "methods": schema.build("methods", summary.to_dict("list")),
    }
    for rule, experiments in study.experiments.items():
        for name in {experiment.table for experiment in experiments.values()}:
            made[name] = pa.concat_tables([schema.read(layout.details(rule, n), name) for n in experiments])
    if study.task.spatial:
        made["pictures"] = pictures(study, layout, final.frame(transfers))
    facts = metadata(study) | {deltas.WITHIN: repr(study.analysis.equal_within)}
    for name, of_name in made.items():
        schema.write(out / f"{name}.parquet", name, of_name, facts)
    for name in set(OPTIONAL) - set(made):  # of experiments that are no longer in the configuration
        for kind in ("parquet", "csv"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    for name in ("zoo", "pairs"):
        made[name] = schema.read(out / f"{name}.parquet", name, extra=True)
    for name, of_name in made.items():
        schema.write_csv(out / f"{name}.csv", of_name, name, facts)
    if study.transfer.export != "none":
        export.write_index(layout.students)
    log.info("tables: %d rows of transfers in %s", transfers.num_rows, out)


def choose(study: Study, layout: Layout, out: Path) -> None:
    """Choose the parameters of the searched methods, and write the table ``search``, as CSV too.

    Raises:
        KtError: the configuration has no search, or its trials are not done.
    """
    plan = study.transfer
    files = [layout.transfer(student, "search") for student in plan.trial_pairs(study.names, study.pairs)]
    if not files:
        raise KtError("choose: the configuration has no transfer.search")
    trials = pd.concat([schema.read_frame(path, "trials") for path in files], ignore_index=True)
    rows = search.summarise(trials, {name: list(found) for name, found in plan.candidates().items()})
    table, facts = schema.build("search", rows.to_dict("list")), metadata(study)
    schema.write(out, "search", table, facts)
    schema.write_csv(out.with_suffix(".csv"), table, "search", facts)
    for row in rows[rows["chosen"]].to_dict("records"):
        log.info("search: %s with %s", row["method"], row["parameters"])


def report(study: Study, config: Path, source: Path, analysis: Path | None, drawn: Path, out: Path) -> None:
    """Write the HTML report from tables, analysis and figures."""
    from kt.figures.tables import Tables
    from kt.report import render

    page = render(
        Tables.read(source, analysis),
        drawn,
        config.read_text("utf-8"),
        final.versions(),
        study.title,
        study.analysis.equal_within,
    )
    store.write_text(out, page)
    log.info("report: %s", out)


def explore(study: Study, source: Path, out: Path) -> None:
    """Write the page to explore the tables with."""
    from kt.figures.tables import Tables
    from kt.report.explore import render

    store.write_text(out, render(Tables.read(source), study.title, study.analysis.equal_within))
    log.info("explore: %s", out)


def complementarity(study: Study, layout: Layout, split: str, out: Path, threads: int) -> None:
    """Score every ordered pair on a split; rows of the table that ``out`` is now are kept where they still hold."""
    if split not in predictions.SPLITS:
        raise KtError(unknown("split", split, predictions.SPLITS))
    if split == "transfer" and counts_pixels(study.task.words):
        raise KtError("complementarity: of the split transfer no classes of pixels are kept; allowed: validation, test")
    if split == "transfer" and (study.transfer.views or study.transfer.top_k):
        text = "pairs are scored on plain images and all logits; allowed splits: validation, test"
        raise KtError(f"transfer.{'views' if study.transfer.views else 'top_k'}: {text}")
    dataset = Dataset.open(layout.data)
    check_predictions(study, layout, dataset, study.names)
    source = Files({name: layout.predictions(name) for name in study.names}, split)
    truth, task = truth_of(dataset, split, study.task), study.task
    if not task.dense and not task.labelled(truth).all():
        text = f"the {task.example}s of the split {split!r} have no labels; allowed: validation, test"
        raise KtError(f"complementarity: {text}")
    with ThreadPoolExecutor(threads) as pool:
        made = table.make(source, truth, dataset.classes, split, study.complementarity, out, pool, task)
        rows = schema.write_pieces(out, "complementarity", made.pieces, metadata(study) | made.facts.metadata())
    compared = f"{len(truth)} {split} {task.example}s"
    log.info("complementarity: %d of %d ordered pairs scored on %s", made.measured, rows, compared)


def pairs(study: Study, layout: Layout, scores: Path | None, models: Path | None, out: Path) -> None:
    """Choose the pairs that get a transfer; of the rule ``adaptive`` gather its rounds."""
    if isinstance(study.pairs, pairing.Adaptive):
        rows = gather_rounds(study, layout, study.pairs)
        schema.write(out, "pairs", rows, metadata(study))
        log.info("pairs: %d in %d rounds", len(rows), study.pairs.rounds + 1)
        return
    columns = ["teacher", "student", pairing.score_of(study.pairs)]
    found = schema.read_frame(scores, "complementarity", columns) if scores else None
    families = None
    if models:
        zoo = schema.read(models, "zoo")
        families = dict(zip(zoo["name"].to_pylist(), zoo["family"].to_pylist(), strict=True))
    chosen = select(study.names, study.pairs, study.transfer.pairs_per_job, found, families)
    schema.write(out, "pairs", schema.build("pairs", chosen.to_dict("list")), metadata(study))
    log.info("pairs: %d chosen by the rule %r", len(chosen), study.pairs.select)
