"""How far a study is: which units are done, failed or to do, read from the ledger; torch is not imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from kt import store
from kt.costs import BASES, Pace
from kt.data.datasets import split_sizes
from kt.errors import KtError
from kt.experiments.needs import read
from kt.experiments.plan import size_hash
from kt.layout import Layout
from kt.status import experiments, index
from kt.status.index import Entry
from kt.status.wanted import Wanted, plans, wanted, work
from kt.study.study import Study
from kt.tables import schema
from kt.transfer.ledger import Ledger, Record
from kt.transfer.units import FINAL_CAUSES, Unit


@dataclass
class Survey:
    """The state of a study's units.

    Attributes:
        images: images of each split, as far as they are known.
        models: what is known of the members whose files are there, by name.
        pairs: chosen ordered pairs.
        pairs_done: those of which every unit is finished or failed.
        units: units in all.
        done: finished units.
        failed: failed units by cause.
        failures: failed units as texts with what they did and why, and their students; the latest first.
        seconds: time spent on the study's finished units so far, by device.
        waiting: units to do, by student.
        work: images that these see, each as often as it is seen, by student.
        seconds_left: estimate of what the missing units will take; None where nothing is known.
        basis: how many of the missing units rest on what, see ``kt.costs.BASES``.
        pace: what the estimate rests on.
        assumed: where trainings will run, as far as that is known before the first.
        damaged: keys of damaged records in the ledger.
        retriable: keys of failed units that another try may mend.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, Record] = field(default_factory=dict)
    pairs: int = 0
    pairs_done: int = 0
    units: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    work: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    basis: Counter[str] = field(default_factory=Counter)
    pace: Pace = field(default_factory=Pace)
    assumed: str = "device"
    damaged: list[str] = field(default_factory=list)
    retriable: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Units that are neither finished nor failed."""
        return self.units - self.done - self.failed.total()

    def line(self) -> str:
        """The state in one line."""
        failed = "".join(f", {n} failed ({cause})" for cause, n in sorted(self.failed.items()))
        damaged = f", {len(self.damaged)} damaged ledger records to recompute" if self.damaged else ""
        done = f"{self.pairs} pairs ({self.pairs_done} done)"
        text = f"{done}, {self.units} trainings: {self.done} done{failed}, {self.left} to do"
        return f"{text}{damaged}" + (f"; {self.estimate()}" if self.left else "")

    def estimate(self) -> str:
        """What is left, in device time, and how sure that is."""
        if self.seconds_left is None:
            return "time unknown until the first is done"
        shares = [f"{100 * n / self.left:.0f} % {basis}" for basis, n in self.basis.most_common() if n]
        return f"about {duration(self.seconds_left)} of {self.device} time left ({', '.join(shares)})"

    @property
    def device(self) -> str:
        """The device that most of the time was spent on; before that, the kind that is assumed."""
        return max(self.seconds, key=self.seconds.__getitem__, default=self.assumed)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says it."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def members(layout: Layout, names: Iterable[str]) -> dict[str, Record]:
    """What is known of the models whose files are there."""
    found = {}
    for name in names:
        try:
            found[name] = store.read_json(layout.member(name))
        except KtError:
            continue
    return found


def fingerprints(layout: Layout, names: list[str]) -> dict[str, str]:
    """Fingerprints of the members whose weights are there."""
    known = members(layout, names)
    return {name: str(facts["fingerprint"]) for name, facts in known.items() if layout.weights(name).exists()}


def survey(study: Study, layout: Layout, read_ledger: Callable[[Path], list[Entry]] = index.read) -> Survey:
    """Compare the units that a study asks for with its ledger; nothing on disk changes, unless ``read_ledger`` does."""
    images = split_sizes(layout.data, study.data)
    asked = wanted(study, layout, images.get("transfer", 0))
    state = Survey(images, members(layout, study.members), pairs=len(asked.pairs))
    state.waiting, state.work = Counter(asked.units), work(study, layout, asked)
    trials, seen = experiments.expected(study, asked.images)
    state.waiting, state.work = state.waiting + trials, state.work | seen
    state.units = state.waiting.total()
    known = {name: str(facts["fingerprint"]) for name, facts in state.models.items() if layout.weights(name).exists()}
    try:
        data = study.shown(str(store.read_json(layout.data / "meta.json")["hash"]))
    except KtError:
        data, known = "", {}
    entries = read_ledger(layout.ledger)
    _count(state, entries, asked, plans(study, layout, data), known)
    state.pace = _pace(study, state.models, entries, known)
    _count_experiments(state, entries, study, layout, known, asked.images)
    _estimate(state)
    if study.device != "auto" or set(state.basis) == {BASES[4]}:  # an assumed speed is a GPU's, but for `cpu`
        state.assumed = "cpu" if study.device == "cpu" else "GPU"
    return state


def _count(
    state: Survey,
    entries: list[Entry],
    asked: Wanted,
    planned: tuple[dict[str, Unit], dict[str, Unit]],
    known: Mapping[str, str],
) -> None:
    """Go through the ledger, not through the study: there are never more records than units that were once wanted."""
    names: dict[str, list[str]] = {}
    for name, fingerprint in known.items():
        names.setdefault(fingerprint, []).append(name)
    of_pair: Counter[tuple[str, str]] = Counter()
    failures = []
    for entry in entries:
        if entry.status == "damaged":
            state.damaged.append(entry.key)
        elif entry.status == "failed" and entry.cause not in FINAL_CAUSES:
            state.retriable.append(entry.key)
        units = [found for found in _units_of(entry, planned, names) if asked.asks_for(*found)]
        for unit, student, teachers in units:
            state.waiting[student] -= 1
            state.work[student] -= asked.seen(unit, student, teachers)
            if len(teachers) == 1 and unit.split == "test":
                of_pair[teachers[0], student] += 1
            if entry.status == "ok":
                state.done += 1
            else:
                state.failed[entry.cause] += 1
                what = f"{unit.method.name} to {student}" + (f" from {' and '.join(teachers)}" if teachers else "")
                failures.append((entry.changed, f"{what}, seed {unit.seed}: {entry.reason}", student))
        if units and entry.status == "ok":
            state.seconds[entry.device] = state.seconds.get(entry.device, 0) + entry.seconds
    state.failures = [(text, student) for _, text, student in sorted(failures, reverse=True)]
    state.pairs_done = sum(of_pair[pair] == asked.per_pair for pair in asked.pairs)


def _count_experiments(
    state: Survey, entries: list[Entry], study: Study, layout: Layout, known: Mapping[str, str], images: int
) -> None:
    """The same for trials of experiments, whose keys are known; two experiments may share a trial."""
    trials = experiments.by_key(study, layout, known)
    for rule, name, experiment in study.each_experiment():
        at, done = f"{rule}.{name}", []
        left = dict(trials[at]) or {str(i): trial for i, trial in enumerate(experiment.trials())}
        for entry in entries:
            trial = trials[at].get(entry.key)
            if trial is None or entry.status == "damaged":
                continue
            state.waiting[at] -= 1
            state.work[at] -= experiments.seen(experiment, trial, images)
            del left[entry.key]
            if entry.status == "ok":
                done.append((trial, entry.seconds, entry.images))
                state.done += 1
                state.seconds[entry.device] = state.seconds.get(entry.device, 0) + entry.seconds
            else:
                state.failed[entry.cause] += 1
                what = f"{trial.approach.name} of {at}, seed {trial.seed}"
                state.failures.append((f"{what}: {entry.reason}", at))
        needs = read(layout.needs(rule, name), size_hash(study, experiment))
        to_do = [(trial, experiments.seen(experiment, trial, images)) for trial in left.values()]
        state.pace = experiments.pace_of(
            state.pace, at, experiment, needs, state.images.get("validation", 0), done, to_do
        )


def _units_of(
    entry: Entry, planned: tuple[dict[str, Unit], dict[str, Unit]], names: Mapping[str, list[str]]
) -> Iterator[tuple[Unit, str, list[str]]]:
    """What a record may be: a unit, its student and its teachers, under every name that the models have."""
    models = (entry.student, *entry.teachers.split())
    unit = planned[len(models) > 2].get(entry.plan)
    if unit is None or unit.method.control != (len(models) == 1):
        return
    # trained together, each is the student in turn
    turns = [i for i, model in enumerate(models) if model not in models[:i]] if unit.method.joint else [0]
    for i in turns:
        for student, *teachers in product(
            *(names.get(model, ()) for model in (models[i], *models[:i], *models[i + 1 :]))
        ):
            yield unit, student, teachers


def _pace(study: Study, models: Mapping[str, Record], entries: list[Entry], known: Mapping[str, str]) -> Pace:
    names = {fingerprint: name for name, fingerprint in known.items()}
    trainings = [
        (names[e.student], e.seconds, e.images) for e in entries if e.status == "ok" and e.student in names and e.images
    ]
    macs = {name: int(facts["macs"]) for name, facts in models.items() if facts.get("macs")}
    members = study.zoo.models
    recipes = {name: members[name].train or members[name].finetune for name in models}
    zoo = [
        (name, float(facts["train_seconds"]), int(facts["train_images"]) * recipe.epochs)
        for name, facts in models.items()
        if (recipe := recipes[name]) and facts.get("train_seconds") and facts.get("train_images")
    ]
    return Pace.measured(trainings, macs, zoo, study.device)


def _estimate(state: Survey) -> None:
    if not state.images.get("transfer"):
        return
    seconds = images = rest = 0.0
    for student, units in state.waiting.items():
        if units > 0 and (pace := state.pace.of(student)):
            images, seconds = images + state.work[student], seconds + state.work[student] * pace[0]
            state.basis[pace[1]] += units
        elif units > 0:
            rest += state.work[student]
    if rest and images:  # of these models nothing is known yet; take them to be like the others
        seconds *= 1 + rest / images
        state.basis["a guess"] += state.left - state.basis.total()
    state.seconds_left = seconds if state.basis else None


def tables_with(layout: Layout, keys: Iterable[str]) -> list[Path]:
    """The tables of jobs that hold rows of some records; one that cannot be read may hold any."""
    sought = set(keys)
    folders = ((layout.root / "transfer", "*/*.parquet"), (layout.root / "experiments", "*/*/rows.parquet"))
    paths = sorted(path for folder, pattern in folders for path in folder.glob(pattern)) if sought else []
    return [path for path in paths if not sought.isdisjoint(_keys(path, otherwise=sought))]


def _keys(path: Path, otherwise: set[str]) -> set[str]:
    try:
        return set(schema.read(path, "trials" if path.stem == "search" else "transfers", ["key"])["key"].to_pylist())
    except KtError:
        return otherwise


def forget(layout: Layout, keys: Iterable[str]) -> list[Path]:
    """Delete records and the tables of jobs that hold rows of them, so that they are made again.

    Returns:
        The deleted tables.
    """
    keys = list(keys)
    tables = tables_with(layout, keys)
    for path in tables:
        path.unlink()
    for key in keys:
        Ledger(layout.ledger).remove(key)
    return tables
