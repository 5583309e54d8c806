"""What `kt status` says: of the ledger, of the cluster's record, and of what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from studies import small_zoo

from kt import pairs, status, store
from kt.costs import ASSUMED, BASES, Pace
from kt.layout import Layout
from kt.status import index, jobs, screen
from kt.study import load
from kt.study.study import Study
from kt.transfer import groups
from kt.transfer.ledger import Ledger
from kt.transfer.unit import Plans, Unit, by_key, of_groups, of_pairs

MODELS = ("a", "b", "c")
STUDY: dict[str, Any] = {
    "title": "Three models",
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 70, "validation": 40, "test": 60}},
    "zoo": small_zoo(**{name: {"arch": "tiny_mixer", "train": {"epochs": 2}} for name in MODELS}),
    "pairs": {"select": "all"},
    "transfer": {
        "methods": {"kl": {}, "xekl": {}, "self": {}},
        "seeds": [0, 1],
        "training": {"epochs": 3, "batch_size": 32, "lr": 1e-3},
        "pairs_per_job": 1,
    },
}
NOW = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=1)))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Layout]:
    """The study with its models, but without a training."""
    monkeypatch.chdir(tmp_path)
    return make(tmp_path)


def make(folder: Path) -> tuple[Study, Layout]:
    (folder / "config.yaml").write_text(yaml.safe_dump({**STUDY, "results": str(folder / "results")}))
    study = load.load(folder / "config.yaml")
    layout = Layout(Path(study.results))
    for i, name in enumerate(MODELS):
        facts = {"name": name, "fingerprint": name * 8, "params": 1000, "macs": 1000 * (i + 1)}
        store.write_json(layout.member(name), facts)
        layout.weights(name).touch()
    store.write_json(layout.data / "meta.json", {"hash": "data"})
    return study, layout


def train(study: Study, layout: Layout, student: str, teacher: str | None, outcome: dict[str, Any]) -> list[str]:
    """Put the two seeds of `kl`, or of the control, into the ledger."""
    prints, keys = {name: name * 8 for name in MODELS}, []
    method = study.transfer.methods.chosen()["kl" if teacher else "self"]
    for seed in study.transfer.seeds:
        plan = Plans("data", study.transfer.training).of(method, seed)
        unit = Unit(method, plan, student, (teacher,) if teacher else (), seed)
        Ledger(layout.ledger).add(unit.describe(prints), outcome)
        keys.append(unit.key(prints))
    return keys


OK = {"status": "ok", "seconds": 12.0, "steps": 6, "device": "cpu"}


def test_the_pace_by_hand():
    pace = Pace.measured([("a", 10.0, 100), ("a", 20.0, 100), ("b", 30.0, 100)], {"a": 1000, "b": 3000, "c": 5000})
    assert pace.of("a") == (0.15, BASES[0])
    assert pace.of("b") == (0.3, BASES[0])
    # 60 s for 100 * (1000 + 1000 + 3000) images times MACs
    assert pace.of("c") == (pytest.approx(5000 * 60 / 500_000), BASES[1])
    assert pace.of("d") == (0.2, BASES[2])


def test_before_the_first_training_the_zoo_counts_and_before_that_an_assumed_speed():
    macs = {"a": 1000, "b": 3000}
    assert Pace.measured([], macs, [("a", 5.0, 50)]).of("b") == (pytest.approx(0.3), BASES[3])
    assert Pace.measured([], macs).of("b") == (3000 * ASSUMED["cpu"], BASES[4])
    assert Pace.measured([], macs, device="auto").of("b") == (3000 * ASSUMED["cuda"], BASES[4])
    assert Pace.measured([], {}).of("b") is None


def test_a_study_by_hand(made):
    study, layout = made
    train(study, layout, "a", "b", OK)
    train(study, layout, "a", None, OK)
    train(study, layout, "c", "a", {"status": "failed", "cause": "diverged", "reason": "diverged: in epoch 1"})
    state = status.survey(study, layout)
    # six pairs of two methods and two seeds, and the control of three students
    assert (state.pairs, state.units, state.done, state.failed, state.left) == (6, 30, 4, {"diverged": 2}, 24)
    assert state.waiting == {"a": 10 - 4, "b": 10, "c": 8}
    assert state.seconds == {"cpu": 48.0}
    # 0.0625 s an image (six steps of 32 in 12 s), and 192 images a training; b and c have two and three times the MACs
    assert state.seconds_left == pytest.approx(0.0625 * 192 * (6 + 2 * 10 + 3 * 8))
    assert state.basis == {BASES[0]: 6, BASES[1]: 18}
    assert state.failures[0] == ("kl to c from a, seed 1: diverged: in epoch 1", "c")
    assert state.retriable == []
    assert state.line() == (
        "6 pairs (0 done), 30 trainings: 4 done, 2 failed (diverged), 24 to do; "
        "about 10.0 minutes of cpu time left (75 % scaled by MACs, 25 % measured on the same student)"
    )


def test_records_of_other_settings_are_not_counted_but_tell_the_pace(made):
    study, layout = made
    other = load.parse({**STUDY, "results": study.results, "transfer": {**STUDY["transfer"], "seeds": [7]}}, "x")
    train(other, layout, "b", "a", OK)
    state = status.survey(study, layout)
    assert state.done == 0
    assert state.pace.of("b") == (0.0625, BASES[0])


SEVERAL = {
    **STUDY["transfer"],
    "methods": {"kl": {}, "self": {}, "bikd": {}, "ensemble_mean": {}},
}
GROUPS = {"choose": {"select": "random", "k": 2, "n": 1}, "methods": {"soup": {}, "bikd": {}}}
RULES = [{"select": "all"}, {"select": "random", "n": 3}, {"select": "top", "k": 1}]


def all_units(study: Study) -> list[str]:
    """Keys of all units, one for each student that a unit serves, enumerated one job after another."""
    prints, keys = {name: name * 8 for name in MODELS}, []
    plans, seeds = Plans("data", study.transfer.training), study.transfer.seeds
    methods = study.transfer.methods.chosen().values()
    by_student: dict[str, list[str]] = {}
    for teacher, student in pairs.candidates(study.names, study.pairs):
        by_student.setdefault(student, []).append(teacher)
    for student, teachers in by_student.items():
        units = of_pairs(methods, student, teachers[: pairs.most(study.pairs)], seeds, plans, controls=True)
        keys += by_key(units, prints)
    for student in MODELS if study.groups else ():
        sets = groups.choose(student, study.names, study.groups.choose)
        keys += by_key(of_groups(study.groups.methods.chosen().values(), student, sets, seeds, plans), prints)
    return keys


@given(st.sampled_from(RULES), st.booleans(), st.data())
def test_the_survey_agrees_with_asking_the_ledger_for_every_unit(rule, grouped, data):
    with tempfile.TemporaryDirectory() as folder:
        study, layout = make(Path(folder))
        plain = {**STUDY, "results": study.results, "pairs": rule, "transfer": SEVERAL}
        study = load.parse({**plain, "groups": GROUPS} if grouped else plain, "x")
        every = load.parse({**plain, "pairs": {"select": "all"}, "groups": GROUPS}, "x")
        ledger, described = Ledger(layout.ledger), descriptions(every)
        for key in data.draw(st.sets(st.sampled_from(sorted(described)), max_size=30)):
            failed = {"status": "failed", "cause": "error", "reason": "error: x"}
            ledger.add(described[key], OK if data.draw(st.booleans()) else failed)
        outcomes = [ledger.get(key) for key in all_units(study)]
        done = sum(outcome is not None and outcome["status"] == "ok" for outcome in outcomes)
        failures = sum(outcome is not None and outcome["status"] == "failed" for outcome in outcomes)
        for _ in range(2):  # from the records, and from the index
            state = status.survey(study, layout)
            assert (state.units, state.done, state.failed.total()) == (len(outcomes), done, failures)
            assert sum(state.waiting.values()) == state.left


def descriptions(study: Study) -> dict[str, dict[str, Any]]:
    """What determines each unit of a study, by its key."""
    prints, found = {name: name * 8 for name in MODELS}, {}
    plans, seeds = Plans("data", study.transfer.training), study.transfer.seeds
    for student in MODELS:
        others = [name for name in MODELS if name != student]
        units = of_pairs(study.transfer.methods.chosen().values(), student, others, seeds, plans, controls=True)
        units += of_groups(study.groups.methods.chosen().values(), student, [others], seeds, plans)
        found |= {key: unit.describe(prints) for key, unit in by_key(units, prints).items()}
    return found


def test_the_index_sees_new_changed_damaged_and_removed_records(made):
    study, layout = made
    first = train(study, layout, "a", "b", OK)
    index.update(layout.ledger)
    assert {e.key: e.status for e in index.read(layout.ledger)} == dict.fromkeys(first, "ok")
    second = train(study, layout, "b", "a", {"status": "failed", "cause": "error", "reason": "error: x"})
    path = Ledger(layout.ledger).path(first[0])
    path.write_bytes(path.read_bytes()[:-9])
    Ledger(layout.ledger).remove(first[1])
    found = {e.key: e.status for e in index.read(layout.ledger)}
    assert found == {first[0]: "damaged", second[0]: "failed", second[1]: "failed"}
    (layout.ledger / "index.parquet").write_bytes(b"damaged too")
    assert {e.key: e.status for e in index.read(layout.ledger)} == found


def test_the_index_is_used(made, monkeypatch):
    study, layout = made
    train(study, layout, "a", "b", OK)
    before = index.read(layout.ledger)
    assert not (layout.ledger / "index.parquet").exists(), "reading writes nothing"
    index.update(layout.ledger)
    monkeypatch.setattr(Ledger, "read", lambda *_: pytest.fail("read again"))
    assert sorted(index.read(layout.ledger)) == sorted(before)


def run_folder(logs: Path, name: str, events: list[tuple[int, str, str, str, str]], **owner: Any) -> Path:
    """A run's folder as the plugin writes it; times are minutes before noon."""
    folder = logs / name
    folder.mkdir(parents=True)
    owner = {"host": "elsewhere", "pid": 1, "cluster": "slurm", "folder": str(Path.cwd()), "configs": [], **owner}
    (folder / "owner.json").write_text(json.dumps(owner))
    lines = ["\t".join([(NOW - timedelta(minutes=m)).isoformat(), *rest]) + "\n" for m, *rest in events]
    (folder / "events.tsv").write_text("".join(lines))
    names = {(event[1], event[2]): None for event in events if event[3] == "submitted"}
    (folder / "jobs.tsv").write_text("".join(f"{i}\t{n}.log\t{n}\n" for i, n in names))
    return folder


T = "transfer.chunk={}.student={}".format
EVENTS = [
    (90, "1_0", T(0, "a"), "submitted", "cpus=4 gpus=2 minutes=60"),
    (90, "1_1", T(0, "b"), "submitted", "cpus=4 gpus=2 minutes=60"),
    (90, "1_2", T(0, "c"), "submitted", "cpus=4 minutes=60"),
    (90, "1_3", T(1, "a"), "submitted", "cpus=4 gpus=2 minutes=60"),
    (60, "1_0", T(0, "a"), "running", ""),
    (60, "1_1", T(0, "b"), "running", ""),
    (60, "1_2", T(0, "c"), "running", ""),
    (45, "1_0", T(0, "a"), "ended", "completed"),
    (45, "1_1", T(0, "b"), "requeued", "preempted"),
    (30, "1_2", T(0, "c"), "ended", "out of memory"),
]


@pytest.fixture
def no_squeue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_the_clusters_record_by_hand(made, no_squeue):
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS)
    record = jobs.read(Path("logs"), Path("config.yaml"), NOW)
    assert {name: (job.state, job.cause) for name, job in record.jobs.items()} == {
        T(0, "a"): ("done", ""),
        T(0, "b"): ("requeued", "preempted"),
        T(0, "c"): ("failed", "out of memory"),
        T(1, "a"): ("queued", ""),
    }
    assert record.gpu_seconds == 2 * 2 * 15 * 60
    assert record.cpu_seconds == 4 * 30 * 60
    assert (record.asked, record.seen) == (False, NOW - timedelta(minutes=30))


def test_a_job_sent_anew_counts_once_and_keeps_why(made, no_squeue):
    sent = [(9, "2", T(0, "a"), "submitted", "cpus=1"), (8, "2", T(0, "a"), "running", "")]
    sent += [(7, "2", T(0, "a"), "retried", "node failure"), (6, "3", T(0, "a"), "submitted", "cpus=1")]
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", sent)
    (job,) = jobs.read(Path("logs"), Path("config.yaml"), NOW).jobs.values()
    assert (job.external, job.state, job.cause) == ("3", "requeued", "node failure")


def test_jobs_stop_with_their_run_and_a_later_run_has_the_last_word(made, no_squeue):
    first = run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS)
    (first / "ended").touch()
    record = jobs.read(Path("logs"), Path("config.yaml"), NOW)
    assert record.jobs[T(0, "b")].state == record.jobs[T(1, "a")].state == "stopped"
    assert record.asked is None
    run_folder(Path("logs"), "2026-01-02_00-00-00-1", [(5, "9", T(0, "c"), "submitted", "cpus=1")])
    assert jobs.read(Path("logs"), Path("config.yaml"), NOW).jobs[T(0, "c")].state == "queued"


def test_runs_of_another_study_and_half_written_lines_are_left_out(made, no_squeue):
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS, configs=["/elsewhere/config.yaml"])
    assert jobs.read(Path("logs"), Path("config.yaml"), NOW) == jobs.Record()
    ours = run_folder(Path("logs"), "2026-01-01_00-00-00-2", EVENTS[:1])
    with (ours / "events.tsv").open("a") as file:
        file.write("2026-03-01T11:59:00+01:00\t1_0\ttransf")
    assert jobs.read(Path("logs"), Path("config.yaml"), NOW).jobs[T(0, "a")].state == "queued"


def test_the_members_of_a_group_share_its_state(made, no_squeue):
    folder = run_folder(Path("logs"), "2026-01-01_00-00-00-1", [(5, "9", "pack.x.and-1-more", "submitted", "cpus=1")])
    (folder / "jobs.tsv").write_text(f"9\tpack.x.and-1-more.log\t{T(0, 'a')} {T(0, 'b')}\n")
    assert set(jobs.read(Path("logs"), Path("config.yaml"), NOW).jobs) == {T(0, "a"), T(0, "b")}


def test_the_report_by_hand(made, no_squeue):
    study, layout = made
    train(study, layout, "a", "b", OK)
    layout.transfer("a", 0).parent.mkdir(parents=True)
    layout.transfer("a", 0).touch()
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS)
    assert screen.lines(study, layout, Path("logs"), Path("config.yaml"), NOW) == [
        "Three models  (2026-03-01 12:00:00)",
        "jobs             done  queued  requeued  failed  waiting  of",
        "data                1       0         0       0        0   1",
        "member              0       0         0       0        3   3",
        "complementarity     0       0         0       0        1   1",
        "transfer            1       1         1       1        2   6",
        "",
        "pairs      0 of 6 done",
        "trainings  2 of 30 done, 28 to do",
        "spent      24 seconds on cpu in trainings; 1.00 GPU-hours and 2.00 CPU-hours of the cluster",
        "left       about 11.6 minutes of cpu time left (71 % scaled by MACs, 29 % measured on the same student)",
        "requeued   jobs: 1 preempted",
        "failed     jobs: 1 out of memory",
        "run        squeue does not answer here: jobs as last seen 30 minutes ago; "
        "jobs are in the queue, but their Snakemake is not on this machine or was killed",
        "",
        "latest failures",
        f"  {T(0, 'c')}: out of memory at 03-01 11:30, logs/2026-01-01_00-00-00-1/{T(0, 'c')}.log",
    ]


@pytest.mark.parametrize("lives", [True, False])
def test_a_job_that_left_the_queue_is_told_of_where_no_run_will_look(made, monkeypatch, lives):
    study, layout = made
    squeue = Path("bin/squeue")
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho '1_0|COMPLETED'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent.absolute()}:/bin")
    owner = {"host": socket.gethostname(), "pid": os.getpid()} if lives else {}
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS[:1], **owner)
    run = next(
        line for line in screen.lines(study, layout, Path("logs"), Path("config.yaml"), NOW) if line[:3] == "run"
    )
    assert ("nobody saw" in run) != lives
    assert ("goes on" in run) == lives


def test_jobs_with_groups_of_teachers_are_expected(made):
    study, layout = made
    study = load.parse({**STUDY, "results": study.results, "transfer": SEVERAL, "groups": GROUPS}, "x")
    layout.transfer("b", "groups").parent.mkdir(parents=True)
    layout.transfer("b", "groups").touch()
    found = screen.expected(study, layout)["groups"]
    assert found == {"groups.student=a": False, "groups.student=b": True, "groups.student=c": False}


def test_a_failure_is_over_once_the_output_is_there(made, no_squeue):
    study, layout = made
    run_folder(Path("logs"), "2026-01-01_00-00-00-1", EVENTS)
    layout.transfer("c", 0).parent.mkdir(parents=True)
    layout.transfer("c", 0).touch()
    text = "\n".join(screen.lines(study, layout, Path("logs"), Path("config.yaml"), NOW))
    assert "out of memory" not in text


def test_the_log_folder_is_that_of_the_latest_run_or_the_profiles(tmp_path):
    layout = Layout(tmp_path / "results")
    assert jobs.log_folder(layout, tmp_path) == tmp_path / "slurm_logs"
    profile = tmp_path / "slurm/config.yaml"
    profile.parent.mkdir()
    for text, folder in [
        ("jobs: 3\nsubmitit-logdir: /scratch/logs\n", Path("/scratch/logs")),
        ("submitit-logdir: logs\n", tmp_path / "logs"),
        ("- no mapping\n", tmp_path / "slurm_logs"),
    ]:
        profile.write_text(text)
        assert jobs.log_folder(layout, tmp_path) == folder
    store.write_text(layout.cluster_logs, "/elsewhere/slurm_logs\n")
    assert jobs.log_folder(layout, tmp_path) == Path("/elsewhere/slurm_logs")


def test_watching_prints_block_after_block_and_ends_with_ctrl_c(made):
    command = [sys.executable, "-m", "kt", "status", "--watch", "0.2"]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a test run in the background of a shell inherits SIGINT as ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    seen = 0
    while seen < 2:
        seen += run.stdout.readline().startswith("Three models")
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130
    assert "\x1b" not in run.stdout.read()


def test_status_imports_no_torch(made, python):
    code = "import sys; from kt.cli import main; main(['status']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


def test_what_is_left_counts_ensembles_as_nothing_and_every_training_of_a_unit(made):
    study, layout = made
    plain = {**STUDY, "results": study.results, "pairs": {"select": "explicit", "pairs": [{"student": "b"}]}}
    plain["transfer"] = {
        **STUDY["transfer"],
        "methods": {"ensemble_mean": {}, "kl": {"training": {"epochs": 1}}, "bikd": {}, "self": {}},
        "seeds": [0],
    }
    plain["groups"] = {
        "choose": {"select": "explicit", "sets": [{"student": "a", "teachers": ["b", "c"]}]},
        "methods": {"soup": {}, "parallel": {}, "bikd": {}},
    }
    study = load.parse(plain, "x")
    state = status.survey(study, layout)
    # 64 of 70 images an epoch, three epochs. To b, from a and from c: kl for one epoch, both models by bikd; and self.
    epoch = 64
    assert state.work["b"] == 2 * (1 * epoch + 2 * 3 * epoch) + 3 * epoch
    # to a from both: two trainings of soup, one of parallel, three models by bikd
    assert state.work["a"] == (2 + 1 + 3) * 3 * epoch
    assert state.units == 2 * 3 + 1 + 3
    cpu = ASSUMED["cpu"]
    assert state.seconds_left == pytest.approx(cpu * (state.work["a"] * 1000 + state.work["b"] * 2000))

    both = load.parse({**plain, "pairs": {"select": "all"}, "groups": None}, "x")
    # all six directions: the two trainings of a pair by bikd are shared by its two students
    assert status.survey(both, layout).work["b"] == 2 * (1 * epoch + 3 * epoch) + 3 * epoch
    outcome = {**OK, "steps": 6, "models": {"a" * 8: {}, "b" * 8: {}}, "seconds": 24.0}
    prints = {name: name * 8 for name in MODELS}
    method = both.transfer.methods.chosen()["bikd"]
    unit = Unit(method, Plans("data", both.transfer.training).of(method, 0), "b", ("a",), 0)
    Ledger(layout.ledger).add(unit.describe(prints), outcome)
    state = status.survey(both, layout)
    assert state.work["b"] == 2 * 1 * epoch + 3 * epoch + 3 * epoch
    assert state.done == 2
    assert 24.0 / (2 * 6 * 32) in (state.pace.own.get("a"), state.pace.own.get("b"))
