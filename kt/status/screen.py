"""Text of ``kt status``: a few aligned lines, once or repeatedly."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from kt import pairs, predictions
from kt.control.study import ControlStudy
from kt.layout import Layout
from kt.status import index
from kt.status import jobs as cluster
from kt.status.jobs import Job, Record
from kt.status.survey import Survey, duration, seen, survey
from kt.study import units
from kt.study.study import Study
from kt.transfer import groups as grouping

STATES = ("done", "running", "queued", "requeued", "failed", "waiting")
EXPERIMENTS = ("amalgamate", "flow")
_LATEST = 5  # failures that are shown


def expected(study: Study | ControlStudy, layout: Layout) -> dict[str, dict[str, bool]]:
    """The workflow's larger jobs by rule and name, `rule.wildcard=value`, and whether each one's output is there."""
    if isinstance(study, ControlStudy):
        return _of_policies(study, layout)
    weights = _stems(layout.weights("x").parent)
    logits = {name for name in study.members if predictions.current(layout.predictions(name))}
    splits = ("validation", "test") if pairs.needs_scores(study.pairs) else ("test",)
    count = pairs.jobs(study.names, study.pairs, study.transfer.pairs_per_job)
    tables = {student: _stems(layout.transfer(student, 0).parent, ".parquet") for student in count}
    grouped = grouping.count(study.names, study.groups.choose) if study.groups else {}
    trials = study.transfer.trial_pairs(study.names, study.pairs)
    search = {f"search.student={name}": layout.transfer(name, "search").exists() for name in trials}
    groups = {f"groups.student={name}": layout.transfer(name, "groups").exists() for name in grouped}
    return {
        "data": {"data": (layout.data / "meta.json").exists()},
        "member": {f"member.model={name}": name in weights & logits for name in study.members},
        "complementarity": {f"complementarity.split={s}": layout.complementarity(s).exists() for s in splits},
        **({"search": search} if search else {}),
        "transfer": {
            f"transfer.chunk={chunk}.student={student}": str(chunk) in tables[student]
            for student, chunks in count.items()
            for chunk in range(chunks)
        },
        **({"groups": groups} if groups else {}),
        **{
            rule: {f"{rule}.experiment={name}": layout.details(rule, name).exists() for name in found}
            for rule, found in study.experiments.items()
            if found
        },
    }


def _of_policies(study: ControlStudy, layout: Layout) -> dict[str, dict[str, bool]]:
    """The same of a study of policies."""
    return {
        "data": {"data": layout.games.exists()},
        "member": {f"member.model={name}": layout.returns(name).exists() for name in study.members},
        "flow": {f"flow.experiment={name}": layout.detail("flow", name, "returns").exists() for name in study.flow},
    }


def _stems(folder: Path, ending: str = ".safetensors") -> set[str]:
    return {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}


def counts(wanted: Mapping[str, Mapping[str, bool]], known: Mapping[str, Job]) -> dict[str, Counter[str]]:
    """Number of jobs of every rule in each of ``STATES``.

    A job that the cluster has now counts as such, even where an older output lies there; for all others the output
    decides. Rules that only the cluster's record knows come last.
    """
    found: dict[str, Counter[str]] = {}
    for rule, names in wanted.items():
        found[rule] = Counter(_state(known.get(name), there) for name, there in names.items())
    others = {name: job for name, job in known.items() if name.split(".")[0] not in wanted}
    for name, job in others.items():
        found.setdefault(name.split(".")[0], Counter())[_state(job, job.state == "done")] += 1
    return found


def _state(job: Job | None, there: bool) -> str:
    if job and job.state in cluster.ACTIVE:
        return job.state
    if there:
        return "done"
    return "failed" if job and job.state == "failed" else "waiting"


def lines(study: Study | ControlStudy, layout: Layout, logs: Path, config: Path, now: datetime) -> list[str]:
    """The whole report."""
    state, record = survey(study, layout, index.update), cluster.read(logs, config, now)
    wanted = expected(study, layout)
    there = {name for names in wanted.values() for name, exists in names.items() if exists}
    table = _table(counts(wanted, record.jobs), wanted)
    facts = [
        ("pairs", "" if state.plays else f"{state.pairs_done:,} of {state.pairs:,} done"),
        ("trainings", _trainings(state)),
        ("spent", _spent(state, record)),
        ("left", state.estimate() if state.left else "nothing"),
        ("requeued", _causes(record, "requeued", set())),
        ("failed", _causes(record, "failed", there)),
        ("run", _run(record, now)),
    ]
    width = max(len(name) for name, _ in facts) + 2
    told = [f"{name:<{width}}{text}" for name, text in facts if text]
    title = f"{study.title}  ({now:%Y-%m-%d %H:%M:%S})"
    told += rounds(study, layout, state)
    return [title, *table, "", *told, *_failures(state, record, there, layout)]


def rounds(study: Study | ControlStudy, layout: Layout, state: Survey) -> list[str]:
    """What each round of the rule ``adaptive`` has or will cost, a line each; none of other rules."""
    if isinstance(study, ControlStudy) or not isinstance(study.pairs, pairs.Adaptive):
        return []
    rule = study.pairs
    plan, methods = units.plans(study, ""), study.transfer.methods.chosen()
    one = units.of_student(study, plan, methods, study.names[0], study.names[:1], controls=False)
    images = sum(seen(unit, study.transfer.training, state.images.get("transfer", 0)) for unit in one)
    found, jobs, told = units.rounds(study, layout, rule), pairs.rounds(study.names, rule), []
    for number, of_round in enumerate(found.pairs):
        if rule.budget is not None and number >= max(1, found.chosen):
            parts = "an equal part" if number < rule.rounds else "all"
            told.append(f"round {number}: {parts} of what is left of {rule.budget:g} hours")
            continue
        paces = [state.pace.of(student) for _, student in of_round]
        seconds = images * sum(pace[0] for pace in paces if pace)
        took = f"about {duration(seconds)}" if all(paces) and images else "time unknown"
        pairs_of_round = f"{len(of_round)} pair{'' if len(of_round) == 1 else 's'}"
        files = [layout.transfer(s, mine.index(number)) for s, mine in jobs.items() if number in mine]
        done = number < found.chosen and all(path.exists() for path in files)
        state_of_round = "done" if done else "chosen" if number < found.chosen else "not chosen yet"
        told.append(
            f"round {number}: {pairs_of_round}, {len(of_round) * len(one)} trainings, {took} ({state_of_round})"
        )
    return told


def _table(found: Mapping[str, Counter[str]], wanted: Mapping[str, Mapping[str, bool]]) -> list[str]:
    shown = [s for s in STATES if s in ("done", "waiting") or any(of[s] for of in found.values())]
    rows = [["jobs", *shown, "of"]]
    rows += [
        [rule, *(f"{of[s]:,}" for s in shown), f"{len(wanted.get(rule, ())) or of.total():,}"]
        for rule, of in found.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _trainings(state: Survey) -> str:
    failed = ", ".join(f"{n:,} {cause}" for cause, n in sorted(state.failed.items()))
    text = f"{state.done:,} of {state.units:,} done, {state.left:,} to do"
    text += f" ({len(state.again):,} again, to keep their students)" if state.again else ""
    text += f", {state.failed.total():,} failed ({failed})" if failed else ""
    return text + (f", {len(state.damaged)} damaged records to recompute" if state.damaged else "")


def _spent(state: Survey, record: Record) -> str:
    parts = [f"{duration(seconds)} on {device} in trainings" for device, seconds in sorted(state.seconds.items())]
    zoo = sum(float(facts.get("train_seconds") or 0) for facts in state.models.values())
    parts += [f"{duration(zoo)} to train the zoo"] if zoo else []
    given = [(record.gpu_seconds, "GPU"), (record.cpu_seconds, "CPU")]
    hours = [f"{seconds / 3600:,.2f} {kind}-hours" for seconds, kind in given if seconds]
    return "; ".join([*parts, *([f"{' and '.join(hours)} of the cluster"] if hours else [])])


def _causes(record: Record, state: str, there: set[str]) -> str:
    """Jobs in a state by cause; those whose output was made after all are left out."""
    causes = Counter(job.cause for name, job in record.jobs.items() if job.state == state and name not in there)
    return "jobs: " + ", ".join(f"{n} {cause}" for cause, n in causes.most_common()) if causes else ""


def _run(record: Record, now: datetime) -> str:
    """Whether a run goes on, and how far the cluster's part of the report can be trusted."""
    parts = [f"{record.alive} goes on" if record.alive else ""]
    active = sum(job.state in cluster.ACTIVE for job in record.jobs.values())
    gone = sum(job.state == "gone" for job in record.jobs.values())
    if record.asked is False and record.seen:
        minutes = (now - record.seen).total_seconds() / 60
        parts.append(f"squeue does not answer here: jobs as last seen {minutes:.0f} minutes ago")
    if active and not record.alive:
        parts.append("jobs are in the queue, but their Snakemake is not on this machine or was killed")
    if gone and not record.alive:  # else that run will look in a moment
        parts.append(f"jobs that left the queue, and nobody saw how they ended: {gone}; the next run finds out")
    return "; ".join(filter(None, parts))


def _failures(state: Survey, record: Record, there: set[str], layout: Layout) -> list[str]:
    failed = {id(j): j for name, j in record.jobs.items() if j.state == "failed" and name not in there}
    latest = sorted(failed.values(), key=lambda job: job.at, reverse=True)[:_LATEST]
    found = [f"  {job.name}: {job.cause} at {job.at:%m-%d %H:%M}, {_short(job.log)}" for job in latest]
    found += [f"  {text} [{_short(_log(layout, student))}]" for text, student in state.failures[:_LATEST]]
    return ["", "latest failures", *found] if found else []


def _log(layout: Layout, at: str) -> Path:
    """Where a job of a student of the zoo, or of an experiment as ``section.name``, says why trainings failed."""
    rule, _, name = at.partition(".")
    logs = layout.root / "logs"
    return logs / rule / f"{name}.log" if rule in EXPERIMENTS and name else logs / "transfer" / f"{at}.*.log"


def _short(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def watch(report: Callable[[], list[str]], seconds: float) -> None:
    """Show a report again and again until Ctrl-C: in place on a terminal, else one block after the other."""
    shown = 0
    while True:
        text = report()
        if sys.stdout.isatty():
            size = shutil.get_terminal_size()
            text = [line[: size.columns - 1] for line in text[: size.lines - 1]]
            # written over the last one, so that nothing flickers
            up = f"\x1b[{shown}F" if shown else ""
            sys.stdout.write(up + "".join(f"{line}\x1b[K\n" for line in text) + "\x1b[J")
            shown = len(text)
        else:
            sys.stdout.write("\n".join(text) + "\n\n")
        sys.stdout.flush()
        time.sleep(seconds)
