"""Several processes of one job: the same records as of one, and what a killed worker or a killed job leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from slow_job import Slow, job_in_a_process, units
from studies import small_zoo

from kt import stages
from kt.errors import KtError
from kt.stages import workers
from kt.study.check import check
from kt.study.load import parse
from kt.transfer import memory
from kt.transfer.bench import Bench
from kt.transfer.ledger import Ledger


def files(folder: Path, kind: str) -> dict[str, str]:
    return {path.name.split(".")[1]: path.read_text() for path in folder.glob(f"{kind}.*")}


def wait_for(folder: Path, kind: str, count: int) -> dict[str, str]:
    limit = time.monotonic() + 60
    while len(found := {key: text for key, text in files(folder, kind).items() if text}) < count:
        assert time.monotonic() < limit, f"{found} within a minute"
        time.sleep(0.02)
    return found


def start(folder: Path, *keys: str) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=job_in_a_process, args=(folder, keys))
    process.start()
    return process


def test_each_worker_has_its_share_of_the_cores_and_takes_the_next_unit(tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    workers.run(Slow(tmp_path), units(*"abcde"), 5, False, 2)  # type: ignore[arg-type]
    assert sorted(files(tmp_path, "done")) == list("abcde")
    assert list(files(tmp_path, "threads").values()) == ["2", "2"]


def test_a_killed_worker_takes_its_unit_along_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = start(tmp_path, *"abcd")
    begun = wait_for(tmp_path, "begun", 2)
    os.kill(int(begun["a"].split()[0]), signal.SIGKILL)
    (tmp_path / "end").touch()
    process.join(60)
    assert process.exitcode == 1  # an error, after the other worker has done the rest
    assert sorted(files(tmp_path, "done")) == list("bcd")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_told_to_stop_or_killed_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, *"abcd")
    pids = [int(text.split()[0]) for text in wait_for(tmp_path, "begun", 2).values()]
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode
    for pid in pids:
        limit = time.monotonic() + 30
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < limit, "a worker outlives its job"
            time.sleep(0.05)
    assert files(tmp_path, "done") == {}


def test_students_that_are_kept_wait_for_the_controls_that_their_cards_name(tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    workers.run(Slow(tmp_path, "all"), units("c1", "a", "b"), 2, False, 2)  # type: ignore[arg-type]
    done, begun = files(tmp_path, "done"), files(tmp_path, "begun")
    assert all(float(begun[key].split()[1]) >= float(done["c1"]) for key in "ab")


def test_so_many_trainings_at_once_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10 << 30)
    bench: Any = SimpleNamespace(needed=lambda: 3 << 30, device=torch.device("cpu"), at="vit")
    Bench.share(bench, 3)
    with pytest.raises(KtError, match=r"transfer\.processes: 4 trainings of vit .* 12\.88 GB.* at most 3"):
        Bench.share(bench, 4)


def records(folder: Path) -> dict[str, Any]:
    """Outcomes by key, without what differs between two runs on one machine."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("??/*.json")}
    return {key: {**record["outcome"], "seconds": 0} for key, record in found.items()}


def test_two_processes_write_the_records_of_one(tmp_path: Path) -> None:
    recipe = {"arch": "tiny_mixer", "train": {"epochs": 1, "batch_size": 40}}
    raw: dict[str, Any] = {
        "results": str(tmp_path / "results"),
        "device": "cpu",
        "data": {"source": "digits", "splits": {"zoo": 80, "transfer": 80, "validation": 40, "test": 60}},
        "zoo": small_zoo(a=recipe, b={**recipe, "args": {"num_blocks": 2}}),
        "transfer": {
            "methods": {"kl": {}, "finetune": {}},
            "seeds": [0, 1],
            "training": {"epochs": 2, "batch_size": 40, "lr": 1e-3},
        },
    }
    study = check(parse(raw, "study"))
    layout, out = study.layout, tmp_path / "rows.parquet"
    stages.data(study, layout, 1)
    for name in study.names:
        stages.weights(study, layout, name, 1)
        stages.predict(study, layout, name, 1)
    stages.transfer(study, layout, "a", 0, None, out, 1)
    alone = records(layout.ledger)
    layout.ledger.rename(tmp_path / "alone")
    raw["transfer"]["processes"] = 2
    several = check(parse(raw, "study"))
    stages.transfer(several, layout, "a", 0, None, out, 2)
    assert len(alone) == 4
    assert records(layout.ledger) == alone
    assert Ledger(layout.ledger).get(next(iter(alone)))
