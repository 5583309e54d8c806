"""How far a study is: which units are done, failed or to do, read from the ledger; torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kt import pairs, schema, store
from kt.config import Study
from kt.errors import KtError
from kt.layout import Layout
from kt.transfer.ledger import Ledger, Record
from kt.transfer.units import FINAL_CAUSES, enumerate_tasks, enumerate_units


@dataclass
class Survey:
    """The state of a study's units.

    Attributes:
        pairs: chosen ordered pairs.
        pairs_done: those of which every unit is finished or finally failed.
        units: units in all.
        done: finished units.
        failed: failed units by cause.
        seconds: time spent on the study's units so far.
        seconds_left: estimate of what the missing units will take; None before the first is finished.
        damaged: keys of damaged records in the ledger.
        retriable: keys of failed units that another try may mend.
    """

    pairs: int = 0
    pairs_done: int = 0
    units: int = 0
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_left: float | None = None
    damaged: list[str] = field(default_factory=list)
    retriable: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Units that are neither finished nor failed."""
        return self.units - self.done - sum(self.failed.values())

    def line(self) -> str:
        """The state in one line."""
        failed = "".join(f", {n} failed ({cause})" for cause, n in sorted(self.failed.items()))
        damaged = f", {len(self.damaged)} damaged ledger records to recompute" if self.damaged else ""
        pairs = f"{self.pairs} pairs ({self.pairs_done} done)"
        text = f"{pairs}, {self.units} trainings: {self.done} done{failed}, {self.left} to do"
        return f"{text}{damaged}{self._estimate()}"

    def _estimate(self) -> str:
        if not self.left:
            return ""
        if self.seconds_left is None:
            return "; time unknown until the first is done"
        return f"; about {_duration(self.seconds_left)} of device time left"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def fingerprints(layout: Layout, names: list[str]) -> dict[str, str]:
    """Fingerprints of the members whose weights are there."""
    found = {}
    for name in names:
        if layout.weights(name).exists() and layout.member(name).exists():
            found[name] = str(store.read_json(layout.member(name))["fingerprint"])
    return found


def survey(study: Study, layout: Layout) -> Survey:
    """Compare the units that a study asks for with its ledger, checking every record's hash."""
    records = dict(Ledger(layout.ledger).records())
    state = Survey(damaged=[k for k, outcome in records.items() if outcome is None])
    known = fingerprints(layout, study.names)
    try:
        data = str(store.read_json(layout.data / "meta.json")["hash"])
    except KtError:
        data, known = "", {}
    methods, plan = list(study.transfer.methods.chosen().values()), study.transfer
    spent: dict[str, list[float]] = {}
    waiting: dict[str, int] = {}
    for student, teachers in _pairs(study, layout).items():
        state.pairs += len(teachers)
        for teacher in (None, *teachers):
            taught = [teacher] if teacher else []
            if {student, *taught} <= known.keys():
                tasks = enumerate_tasks(student, taught, not taught, methods, plan.seeds, plan.training, known, data)
                outcomes = [records.get(key) for key in tasks]
            else:
                outcomes = [None for _ in enumerate_units(methods, taught, plan.seeds, not taught)]
            _count(state, outcomes, spent.setdefault(student, []))
            waiting[student] = waiting.get(student, 0) + sum(outcome is None for outcome in outcomes)
            state.pairs_done += bool(taught) and None not in outcomes
    state.seconds = sum(map(sum, spent.values()))
    state.seconds_left = _left(spent, waiting)
    state.retriable = [
        k
        for k, outcome in records.items()
        if outcome and outcome["status"] == "failed" and outcome["cause"] not in FINAL_CAUSES
    ]
    return state


def _pairs(study: Study, layout: Layout) -> dict[str, list[str]]:
    """Teachers of every student: the table of pairs where it is made, else what the rule may choose."""
    by_student: dict[str, list[str]] = {}
    if isinstance(study.pairs, pairs.Top) and layout.table("pairs").exists():
        table = schema.read(layout.table("pairs"), "pairs").to_pylist()
        chosen = [(row["teacher"], row["student"]) for row in table]
    else:
        chosen = pairs.candidates(study.names, study.pairs)
    for teacher, student in chosen:
        by_student.setdefault(student, []).append(teacher)
    if isinstance(study.pairs, pairs.Top):
        by_student = {student: teachers[: study.pairs.k] for student, teachers in by_student.items()}
    return by_student


def _count(state: Survey, outcomes: list[Record | None], spent: list[float]) -> None:
    state.units += len(outcomes)
    for outcome in outcomes:
        if outcome is None:
            continue
        if outcome["status"] == "ok":
            state.done += 1
            spent.append(outcome["seconds"])
        else:
            state.failed[outcome["cause"]] = state.failed.get(outcome["cause"], 0) + 1


def _left(spent: Mapping[str, list[float]], waiting: Mapping[str, int]) -> float | None:
    """Seconds for the waiting units, at each student's mean so far, or at the mean of all where it has none."""
    everything = [seconds for of_student in spent.values() for seconds in of_student]
    if not everything:
        return None
    overall = sum(everything) / len(everything)
    return sum(n * (sum(spent[s]) / len(spent[s]) if spent[s] else overall) for s, n in waiting.items())


def forget(layout: Layout, keys: list[str], damaged: bool) -> list[str]:
    """Take records out of the ledger and delete the job tables that hold their rows, so that they are made again.

    Args:
        layout: of the results folder.
        keys: the records.
        damaged: true to set them aside, false to delete them.

    Returns:
        The deleted tables' paths.
    """
    ledger = Ledger(layout.ledger)
    tables = []
    for path in sorted((layout.root / "transfer").glob("*/*.parquet")):
        if set(keys) & set(schema.read(path, "transfers")["key"].to_pylist()):
            path.unlink()
            tables.append(str(path))
    for k in keys:
        ledger.set_aside(k) if damaged else ledger.remove(k)
    return tables
