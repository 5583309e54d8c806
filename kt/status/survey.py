"""State of a study: units that are done, failed or left, looked up in the ledger. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kt import store
from kt.control.study import ControlStudy
from kt.costs import BASES, Finished, Missing, Pace, read_needs
from kt.data.datasets import split_sizes
from kt.errors import KtError
from kt.layout import Layout
from kt.status import index
from kt.status.index import Entry
from kt.study import units
from kt.study.study import Study
from kt.study.units import Disk, Job
from kt.tables import schema
from kt.transfer import export
from kt.transfer.ledger import Ledger, Record
from kt.transfer.training import Training
from kt.transfer.unit import FINAL_CAUSES, Unit

TOLD = 1e8
"""Bytes of predictions from which on they are told of."""

UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))


@dataclass
class Survey:
    """The state of a study's units.

    Attributes:
        images: images of each split, as far as they are known.
        shown: those that an epoch of a training shows.
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
        damaged: keys of requested units whose records in the ledger are damaged.
        again: keys of finished units whose students are to be kept and are not: they are trained again.
        retriable: keys of failed units that another try may mend.
        disk: what predictions take on disk; None where that is not known yet.
        plays: whether models are policies, of which there are no pairs.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    shown: Mapping[str, int] = field(default_factory=dict)
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
    again: list[str] = field(default_factory=list)
    retriable: list[str] = field(default_factory=list)
    disk: Disk | None = None
    plays: bool = False

    @property
    def left(self) -> int:
        """Units that are neither finished nor failed."""
        return self.units - self.done - self.failed.total()

    def line(self) -> str:
        """The state in one line."""
        failed = "".join(f", {n} failed ({cause})" for cause, n in sorted(self.failed.items()))
        damaged = f", {len(self.damaged)} damaged ledger records to recompute" if self.damaged else ""
        again = f" ({len(self.again)} again, to keep their students)" if self.again else ""
        done = "" if self.plays else f"{self.pairs} pairs ({self.pairs_done} done), "
        text = f"{done}{self.units} trainings: {self.done} done{failed}, {self.left} to do{again}"
        return "; ".join([f"{text}{damaged}", *([self.estimate()] if self.left else []), *self._on_disk()])

    def _on_disk(self) -> list[str]:
        if self.disk is None or self.disk.size < TOLD:
            return []
        models = f"; {self.disk.recomputed} models' answers are recomputed when needed" if self.disk.recomputed else ""
        return [f"predictions take about {in_bytes(self.disk.size)}{models}"]

    def estimate(self) -> str:
        """Device time that is left, and the basis of this estimate."""
        if self.seconds_left is None:
            return "time unknown until the first is done"
        shares = [f"{100 * n / self.left:.0f} % {basis}" for basis, n in self.basis.most_common() if n]
        return f"about {duration(self.seconds_left)} of {self.device} time left ({', '.join(shares)})"

    @property
    def device(self) -> str:
        """The device that most of the time was spent on; before that, the kind that is assumed."""
        return max(self.seconds, key=self.seconds.__getitem__, default=self.assumed)


def in_bytes(size: float) -> str:
    """A size as a person says it, with three digits."""
    return next(f"{size / unit:.3g} {name}" for name, unit in UNITS if size >= unit or unit == 1)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says it."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def members(layout: Layout, names: Iterable[str]) -> dict[str, Record]:
    """Facts about the members whose files are there."""
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


def survey(
    study: Study | ControlStudy, layout: Layout, read_ledger: Callable[[Path], list[Entry]] = index.read
) -> Survey:
    """Compare the units that a study requests with its ledger; nothing on disk changes, unless ``read_ledger`` does."""
    entries = read_ledger(layout.ledger)
    state, count, jobs = _begun(study, layout, {entry.key: entry for entry in entries})
    prints = {name: str(facts["fingerprint"]) for name, facts in state.models.items() if layout.weights(name).exists()}
    state.retriable = [e.key for e in entries if e.status == "failed" and e.cause not in FINAL_CAUSES]
    state.pace = _pace(study, state.models, entries, prints)
    count.lacks = _lacks_student(study, layout)
    for job in jobs:
        mine = {**prints, job.student: job.print} if job.experiment else prints
        done, left = count.job(job, mine if job.known else {})
        if job.experiment:
            needs = read_needs(layout.needs(*job.student.split(".", 1)), job.sizes)
            state.pace = state.pace.of_experiment(job.student, needs, state.images.get("validation", 0), done, left)
    state.failures = [(text, student) for _, text, student in sorted(count.failures, reverse=True)]
    state.damaged, state.again = sorted(count.damaged), sorted(count.again)
    state.pairs_done = state.pairs - len(count.open_pairs)
    if state.plays or state.shown.get("transfer"):
        _estimate(state)
    if study.device != "auto" or set(state.basis) == {BASES[4]}:  # an assumed speed is a GPU's, but for `cpu`
        state.assumed = "cpu" if study.device == "cpu" else "GPU"
    return state


def _begun(
    study: Study | ControlStudy, layout: Layout, entries: Mapping[str, Entry]
) -> tuple[Survey, _Count, Iterable[Job]]:
    """A survey before anything is counted, what counts, and the jobs."""
    known = members(layout, study.members)
    if isinstance(study, ControlStudy):
        state = Survey(models=known, plays=True)
        return state, _Count(state, entries, None, 0), units.jobs_of_policies(study, layout)
    images, teachers = split_sizes(layout.data, study.data), units.teachers_of(study, layout)
    shown = split_sizes(layout.data, study.data, in_epoch=True)
    state = Survey(images, shown, known, pairs=sum(map(len, teachers.values())))
    state.disk = units.disk(study, layout, images)
    count = _Count(state, entries, study.transfer.training, shown.get("transfer", 0))
    if study.trains_together:
        count.shared = _shared(units.jobs(study, layout, teachers))
    return state, count, units.jobs(study, layout, teachers)


def _lacks_student(study: Study | ControlStudy, layout: Layout) -> Callable[[Unit, Entry], bool]:
    """Whether a finished unit's student is to be kept, and is not."""
    mode = study.transfer.export
    before = units.on_validation(layout) if mode == "improved" else {}

    def lacks(unit: Unit, entry: Entry) -> bool:
        trained = entry.status == "ok" and entry.images > 0 and unit.split == "test"
        if mode == "none" or not trained or not export.wanted(mode, entry.validation, before.get(unit.student)):
            return False
        return export.key_in(layout.students / export.name_of(unit)) != entry.key

    return lacks


Together = tuple[frozenset[str], str, int, str]
"""Models, method, seed and split of one training of several models."""


def _shared(jobs: Iterable[Job]) -> Counter[Together]:
    """Number of requested units that share one training of several models."""
    return Counter(_together(unit) for job in jobs for unit in job.units if unit.method.joint)


def _together(unit: Unit) -> Together:
    return frozenset((unit.student, *unit.teachers)), unit.method.name, unit.seed, unit.split


class _Count:
    """Goes through the requested units, job by job.

    Args:
        state: is brought up to date.
        entries: finished and failed units of the ledger, by key.
        training: of students of the zoo, but for what a method changes of it; None where they are policies.
        images: transfer images; 0 where their number is not known yet.
    """

    def __init__(self, state: Survey, entries: Mapping[str, Entry], training: Training | None, images: int) -> None:
        self.state, self.entries, self.training, self.images = state, entries, training, images
        self.shared: Counter[Together] = Counter()
        self.open_pairs: set[tuple[str, str]] = set()
        self.failures: list[tuple[int, str, str]] = []
        self.damaged: set[str] = set()
        self.again: set[str] = set()
        self.lacks: Callable[[Unit, Entry], bool] = lambda unit, entry: False
        self._counted: set[str] = set()
        self._seen: dict[tuple[int, int], float] = {}

    def job(self, job: Job, prints: Mapping[str, str]) -> tuple[list[Finished], list[Missing]]:
        """Count a job's units; returns those of an experiment that finished, and those that are left.

        Args:
            job: its units.
            prints: fingerprints of the models that are there; none where the units have no keys yet.
        """
        state, at = self.state, job.student
        done: list[Finished] = []
        left: list[Unit] = []
        state.units += len(job.units)
        if not (prints and self.entries):
            return done, self._left(job, job.units)
        for unit in job.units:
            entry = self._entry(unit, prints)
            if entry is None or self._to_repeat(unit, entry):
                left.append(unit)
            elif entry.status == "ok":
                state.done += 1
                if job.experiment:
                    done.append(Finished(unit.method.name, self._epochs(job, unit), entry.images, entry.seconds))
                if entry.key not in self._counted:
                    state.seconds[entry.device] = state.seconds.get(entry.device, 0) + entry.seconds
                    self._counted.add(entry.key)
            else:
                state.failed[entry.cause] += 1
                self.failures.append((entry.changed, f"{unit.title}: {entry.reason}", at))
        return done, self._left(job, left)

    def _to_repeat(self, unit: Unit, entry: Entry) -> bool:
        """Note a record that is damaged, or whose student is to be kept and is not; such a unit is left."""
        if entry.status == "damaged":
            self.damaged.add(entry.key)
            return True
        if self.lacks(unit, entry):
            self.again.add(entry.key)
            return True
        return False

    def _left(self, job: Job, units: Sequence[Unit]) -> list[Missing]:
        """Count units that are left; returns those of an experiment."""
        state, at = self.state, job.student
        seen = [self.seen(job, unit) for unit in units]
        state.waiting[at] += len(units)
        state.work[at] = sum(seen, state.work.get(at, 0.0))
        if job.experiment:
            made = zip(units, seen, strict=True)
            return [Missing(unit.method.name, self._epochs(job, unit), images) for unit, images in made]
        teachers = {unit.teachers for unit in units if unit.split == "test"}
        self.open_pairs.update((names[0], at) for names in teachers if len(names) == 1)
        return []

    def _entry(self, unit: Unit, prints: Mapping[str, str]) -> Entry | None:
        known = unit.student in prints and all(name in prints for name in unit.teachers)
        return self.entries.get(unit.key(prints)) if known else None

    def _epochs(self, job: Job, unit: Unit) -> int:
        assert job.experiment is not None
        return job.experiment.epochs(unit.method)

    def seen(self, job: Job, unit: Unit) -> float:
        """Images that a unit's trainings see, each as often as it is seen; an equal share where others share them.

        Of a policy its actions.
        """
        if job.experiment:
            return job.experiment.seen(unit.method, self.images)
        assert self.training is not None
        place = id(unit.plan), len(unit.teachers)
        if place not in self._seen:
            self._seen[place] = seen(unit, self.training, self.images)
        return self._seen[place] / (self.shared[_together(unit)] if unit.method.joint else 1)


def seen(unit: Unit, training: Training, images: int) -> float:
    """Images that the trainings of a unit of a member of the zoo see, of ``images`` transfer images."""
    training = unit.method.trained(training)
    epoch = images // training.batch_size * training.batch_size
    return float(unit.method.budget(len(unit.teachers)) * training.epochs * epoch)


def _pace(
    study: Study | ControlStudy, models: Mapping[str, Record], entries: list[Entry], known: Mapping[str, str]
) -> Pace:
    names = {fingerprint: name for name, fingerprint in known.items()}
    trainings = [
        (names[e.student], e.seconds, e.images) for e in entries if e.status == "ok" and e.student in names and e.images
    ]
    macs = {name: int(facts["macs"]) for name, facts in models.items() if facts.get("macs")}
    zoo = [
        (name, float(facts["train_seconds"]), seen)
        for name, facts in models.items()
        if facts.get("train_seconds") and (seen := _seen_by_member(study, name, facts))
    ]
    return Pace.measured(trainings, macs, zoo, study.device)


def _seen_by_member(study: Study | ControlStudy, name: str, facts: Record) -> int:
    """Images that a member's own training saw, each as often as it was seen; of a policy its actions."""
    if isinstance(study, ControlStudy):
        return int(facts.get("train_steps") or 0)
    member = study.zoo.models[name]
    recipe = member.train or member.finetune
    return int(facts.get("train_images") or 0) * recipe.epochs if recipe else 0


def _estimate(state: Survey) -> None:
    seconds = images = rest = 0.0
    for student, count in state.waiting.items():
        if count > 0 and (pace := state.pace.of(student)):
            images, seconds = images + state.work[student], seconds + state.work[student] * pace[0]
            state.basis[pace[1]] += count
        elif count > 0:
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
