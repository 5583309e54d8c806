"""Stages of a study of policies: its games, the members' training and returns, its experiments, the final tables."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kt import store
from kt.control import said
from kt.control import units as requested
from kt.control.study import ControlStudy
from kt.costs import write_needs
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.progress import Progress, on_signal
from kt.stages.common import MADE_FROM, metadata, note_recipe, pick_device
from kt.stages.playing import Playing, inspect, played, weights_of
from kt.stages.units import Exports, Wanted, exports, run_export
from kt.study import recipes
from kt.study.recipes import RECIPE
from kt.tables import gather as final
from kt.tables import schema
from kt.transfer import export, rows
from kt.transfer.ledger import Record, unpack
from kt.transfer.unit import Unit
from kt.zoo.spec import fingerprint

if TYPE_CHECKING:
    from torch import nn

    from kt.checkpoint import Checkpoint
    from kt.control.games import GameFacts
    from kt.control.spec import A2C, Policy

log = logging.getLogger(__name__)

__all__ = [
    "Wanted",
    "data",
    "experiment",
    "gather",
    "member",
    "plan_export",
    "predict",
    "report",
    "run_export",
    "weights",
    "zoo",
]

TABLES = ("flow", "returns")
"""Detail tables of experiments with policies."""


def data(study: ControlStudy, layout: Layout, threads: int) -> None:
    """Make every game and every network once; fail before anything is trained on what cannot be played or learnt."""
    from kt.control.games import check_repeats, facts
    from kt.zoo.models import import_modules

    import_modules(study.modules)
    pick_device("cpu", threads)
    known: dict[str, GameFacts] = {}
    games = {}
    for at, game in study.games().items():
        key = store.digest(game.plain())
        if key not in known:
            known[key] = facts(game, at)
            check_repeats(game, at)
        games[at] = known[key].plain()
        if at.startswith("zoo.models."):
            weights_of(study, at.removeprefix("zoo.models.").removesuffix(".env"), known[key])
    store.write_json(layout.recipe_of_data, {RECIPE: recipes.of_data(study)})
    store.write_json(layout.games, games)
    for rule, name, chosen in study.each_experiment():
        found = inspect(study, layout, f"{rule}.{name}", chosen, threads)
        write_needs(layout.needs(rule, name), requested.student_print(chosen, games[f"{rule}.{name}.env"]), found)
    said.tell()
    log.info("data: %d games: %s", len(known), ", ".join(sorted({game.id for game in known.values()})))


def _game(study: ControlStudy, layout: Layout, name: str) -> GameFacts:
    if name not in study.zoo.models:
        raise KtError(unknown("model", name, study.members))
    return played(layout, f"zoo.models.{name}.env", study.zoo.models[name].env)


def member(study: ControlStudy, layout: Layout, name: str, threads: int) -> None:
    """Make a policy's weights, unless those that are there were made from the same, and then its returns."""
    from kt.zoo.models import import_modules

    import_modules(study.modules)  # which may register the game
    facts = _game(study, layout, name)
    known = _read(layout.member(name))
    if known.get(MADE_FROM) == requested.made_from(study, name, facts.plain()) and _whole(layout, name, known):
        log.info("weights %s: there", name)
        layout.weights(name).touch()  # not older than what they were made from
        layout.member(name).touch()
    else:
        weights(study, layout, name, threads)
    predict(study, layout, name, threads)
    said.tell()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = store.read_json(path)
    except KtError:
        return {}
    return found


def _whole(layout: Layout, name: str, known: dict[str, Any]) -> bool:
    path = layout.weights(name)
    return path.exists() and store.digest_file(path) == known["weights"]


def weights(study: ControlStudy, layout: Layout, name: str, threads: int) -> None:
    """Train a policy, or load its checkpoint; write its weights and facts."""
    import torch

    from kt.checkpoint import Checkpoint
    from kt.zoo import models
    from kt.zoo import weights as files

    models.import_modules(study.modules)
    facts = _game(study, layout, name)
    member, sources = study.zoo.models[name], requested.made_from(study, name, facts.plain())
    device = pick_device(study.device, threads)
    torch.manual_seed(member.seed)
    policy, plan = weights_of(study, name, facts).to(device), member.train
    checkpoint = Checkpoint(
        layout.checkpoints / f"weights-{name}.pt", sources, study.transfer.checkpoint_seconds, on_signal()
    )
    curve = _trained(policy, name, member, plan, checkpoint) if plan else None
    files.save(policy, layout.weights(name))
    digest = store.digest_file(layout.weights(name))
    given = {"env": member.env.plain(), "game": facts.plain()}
    found = {
        "name": name,
        **models.sizes(policy),
        "macs": models.macs(policy, facts.shape),
        "arch": member.arch,
        "game": facts.id,
        "input_size": round(math.sqrt(math.prod(facts.shape[1:]))),
        "train_steps": plan.updates * plan.batch_size if plan else None,
        "train_seconds": checkpoint.seconds if plan else None,
        "curve": curve,
        "weights": digest,
        MADE_FROM: sources,
        "fingerprint": fingerprint(member.arch, member.args, given, digest),
    }
    store.write_json(layout.member(name), found)
    checkpoint.remove()


def _trained(policy: nn.Module, name: str, member: Policy, plan: A2C, checkpoint: Checkpoint) -> list[float]:
    """Train a policy; its mean return at the end of each part."""
    from kt.control import a2c
    from kt.control.games import Games
    from kt.transfer.engine import Diverged

    progress, make, stop = Progress(f"train {name}", plan.evaluations), partial(Games, member.env), on_signal()

    def report(part: int, steps: int, value: float) -> None:
        progress.done = part - 1
        progress.step(f"{steps} actions, mean return {value:.2f}")

    validate = a2c.evaluation(policy, make, plan, member.seed, stop)
    try:
        return a2c.train(policy, make, plan, member.seed, checkpoint, validate, report=report).validation
    except Diverged as error:
        raise KtError(f"zoo.models.{name}.train: diverged: {error}; a lower `lr` may help") from error


def predict(study: ControlStudy, layout: Layout, name: str, threads: int) -> None:
    """Play a policy's validation and test episodes, and write their returns."""
    from kt.control import a2c
    from kt.control.games import Games
    from kt.control.policies import build
    from kt.zoo.models import import_modules
    from kt.zoo.weights import load

    import_modules(study.modules)
    facts, device = _game(study, layout, name), pick_device(study.device, threads)
    member, known = study.zoo.models[name], store.read_json(layout.member(name))
    policy = load(build(member.arch, member.args, facts, f"zoo.models.{name}"), layout.weights(name)).to(device)
    make, stop = partial(Games, member.env), on_signal()
    asked = {"validation": study.data.validation, "test": study.data.episodes}
    seeds = {"validation": a2c.seed_for("validation"), "test": a2c.seed_for("test")}
    returns = {split: a2c.play(policy, make, n, seeds[split], stop).tolist() for split, n in asked.items()}
    store.write_json(layout.returns(name), {"fingerprint": known["fingerprint"], **returns})
    note_recipe(study, layout, name)
    log.info("predict %s: mean return %.2f of %d episodes", name, np.mean(returns["test"]), len(returns["test"]))


def zoo(study: ControlStudy, layout: Layout, out: Path) -> None:
    """Make the table ``zoo``."""
    found = [_row(study, layout, name) for name in study.members]
    schema.write(out, "zoo", schema.build("zoo", found), metadata(study))
    values = [row["acc"] for row in found]
    log.info("zoo: %d policies, mean return %.2f to %.2f, each of its own game", len(found), min(values), max(values))


def _row(study: ControlStudy, layout: Layout, name: str) -> dict[str, Any]:
    facts, returns = store.read_json(layout.member(name)), store.read_json(layout.returns(name))
    if returns["fingerprint"] != facts["fingerprint"]:
        raise KtError(f"{layout.returns(name)}: of other weights than {name!r} has now; delete it and run again")
    test, plan = np.array(returns["test"]), study.zoo.models[name].train
    recipe = ["a2c", f"env={facts['game']}", f"steps={plan.steps}"] if plan else []
    return {
        **{key: value for key, value in facts.items() if key not in ("weights", MADE_FROM, RECIPE)},
        "recipe": recipe,
        "pretraining": facts["game"] if plan else None,
        "acc": study.task.value(test),
        "acc_se": study.task.error(test),
        "acc_validation": study.task.value(np.array(returns["validation"])),
    }


def experiment(study: ControlStudy, layout: Layout, rule: str, name: str, threads: int) -> None:
    """Do the missing units of one experiment, and write its rows of ``transfers`` and of its detail tables."""
    section = study.experiments.get(rule, {})
    if name not in section:
        raise KtError(f"{rule}: {unknown('experiment', name, section)}")
    at, chosen = f"{rule}.{name}", section[name]
    job = Playing(study, layout, at, chosen)
    done = job.run(requested.of_experiment(study, at, chosen, job.game), threads)
    found: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for unit, (row, *_) in done:
        if row["status"] == "ok":
            outcome, shared = job.outcomes[row["key"]], rows.detail(unit, row["key"], chosen.student.arch)
            shared |= rows.measured(study.task, unpack(outcome["last"]), job.truth)
            shared["acc_best"] = study.task.value(unpack(outcome["best"]))
            found["flow"] += [{**shared, "images": None, **part} for part in _flow(unit, outcome)]
            found["returns"] += [{**shared, "game": job.game["id"], **part} for part in _curve(outcome)]
    facts = metadata(study)
    schema.write(
        layout.experiment(rule, name), "transfers", schema.build("transfers", [row for _, (row,) in done]), facts
    )
    for table, of_table in found.items():
        schema.write(layout.detail(rule, name, table), table, schema.build(table, of_table), facts)


def _curve(outcome: Record) -> list[dict[str, Any]]:
    """Rows of the table ``returns`` that a training gives, one for each evaluation."""
    over_time = zip(outcome["curve"], outcome["validation"], strict=True)
    return [
        {"epoch": epoch, "steps": steps, "acc_validation": value}
        for epoch, (steps, value) in enumerate(over_time, start=1)
    ]


def _flow(unit: Unit, outcome: Record) -> list[dict[str, Any]]:
    """Rows of the table ``flow``: for each evaluation, layer and source; one of a training without teachers inside."""
    return rows.flowing(unit, outcome) if "weights" in outcome else [{}]


def gather(study: ControlStudy, layout: Layout, out: Path) -> None:
    """Gather the final tables, as Parquet and CSV."""
    each = study.each_experiment()
    made = {"transfers": final.transfers([layout.experiment(rule, name) for rule, name, _ in each])}
    for table in TABLES:
        parts = [schema.read(layout.detail(rule, name, table), table) for rule, name, _ in each]
        made[table] = pa.concat_tables(parts)
    facts = metadata(study)
    for name, of_name in made.items():
        schema.write(out / f"{name}.parquet", name, of_name, facts)
    made["zoo"] = schema.read(layout.table("zoo"), "zoo")
    for name, of_name in made.items():
        schema.write_csv(out / f"{name}.csv", of_name, name, facts)
    if study.transfer.export != "none":
        export.write_index(layout.students)
    log.info("tables: %d rows of transfers in %s", made["transfers"].num_rows, out)


def plan_export(study: ControlStudy, layout: Layout, student: str, wanted: Wanted) -> Exports:
    """Choose students to export among the finished trainings of an experiment; trains nothing.

    Raises:
        KtError: a name is unknown, or no finished training is what is wanted.
    """
    named = {f"{rule}.{name}": chosen for rule, name, chosen in study.each_experiment()}
    if student not in named:
        raise KtError(f"export: {unknown('student', student, named)}")
    job = Playing(study, layout, student, named[student])
    units = requested.of_experiment(study, student, named[student], job.game)
    return exports(study.task.metric, job, units, student, wanted)


def report(study: ControlStudy, config: Path, source: Path, analysis: Path | None, drawn: Path, out: Path) -> None:
    """Write the HTML report from tables and figures; there is no analysis of pairs."""
    from kt.figures.tables import Tables
    from kt.report import render

    of_games = {name: of for game in requested.games(study.layout).values() for name, of in game["versions"].items()}
    versions = {**final.versions(), **of_games}
    page = render(Tables.read(source), drawn, config.read_text("utf-8"), versions, study.title, 0.0)
    store.write_text(out, page)
    log.info("report: %s", out)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise KtError(f"{name}: a study of policies (data.task: control) has no such step; it is about images")
