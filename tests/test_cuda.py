"""On a CUDA device: students, predictions, flows and dense tasks as on the CPU, real lack of memory, and stops.

Skipped where there is no device. `python benchmarks/gpu.py` runs these with all else that waits for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from studies import small_zoo

from kt import predictions, stages
from kt.errors import Interrupted
from kt.layout import Layout
from kt.stages.jobs import Pairs
from kt.study import units as requested
from kt.study.check import check
from kt.study.load import parse
from kt.study.study import Study
from kt.tables import schema
from kt.transfer import engine, session
from kt.transfer.ledger import unpack
from kt.transfer.unit import Unit, by_key

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

RECIPE = {"arch": "tiny_mixer", "train": {"epochs": 4, "batch_size": 40}}
DIGITS: dict[str, Any] = {
    "device": DEVICE,
    "data": {"source": "digits", "splits": {"zoo": 400, "transfer": 400, "validation": 100, "test": 400}},
    "zoo": small_zoo(
        a=RECIPE,
        b={**RECIPE, "args": {"num_blocks": 2}},
        big={"arch": "resnet10t", "input": {"size": 64, "mean": [0.3], "std": [0.33]}, "train": {"epochs": 1}},
        low={**RECIPE, "classes": [0, 1, 2, 3, 4]},
        high={**RECIPE, "classes": [5, 6, 7, 8, 9]},
    ),
    "transfer": {
        "methods": {"kl": {}, "kl_dp": {}},
        "seeds": [0, 1],
        "training": {"epochs": 3, "batch_size": 50, "lr": 1e-3},
    },
    "flow": {
        "x": {
            "teachers": ["low", "high"],
            "student": {"arch": "tiny_mixer"},
            "images": 100,
            "methods": {"flow": {}, "scratch": {}},
            "seeds": [0],
            "training": {"epochs": 2, "batch_size": 50, "lr": 1e-3},
        }
    },
}
UNET = {
    "arch": "smp_unet",
    "args": {
        "encoder": "resnet10t",
        "encoder_depth": 3,
        "channels": [8, 16, 16, 16],
        "stem_width": 8,
        "decoder_channels": [16, 8, 8],
    },
    "train": {"epochs": 2, "batch_size": 10, "lr": 0.01},
}
SCENES: dict[str, Any] = {
    "device": DEVICE,
    "data": {
        "source": "scenes",
        "task": "segmentation",
        "splits": {"zoo": 40, "transfer": 40, "validation": 10, "test": {"part": "test", "images": 20}},
    },
    "zoo": {
        **small_zoo(unet=UNET, dilated={"arch": "tiny_dilated", "train": UNET["train"]}),
        "input": {"size": 48, "mean": [0.4] * 3, "std": [0.25] * 3},
    },
    "transfer": {
        "methods": {"kl": {}, "kl_dp": {}},
        "seeds": [0],
        "training": {"epochs": 2, "batch_size": 10, "lr": 1e-3},
    },
}


def made(folder: Path, raw: dict[str, Any], **transfer: Any) -> Study:
    return check(parse({**raw, "results": str(folder), "transfer": {**raw["transfer"], **transfer}}, "study"))


def with_zoo(folder: Path, raw: dict[str, Any]) -> Study:
    """A study whose models have weights and predictions."""
    study = made(folder, raw)
    stages.data(study, study.layout, 1)
    for name in study.members:
        stages.weights(study, study.layout, name, 1)
        stages.predict(study, study.layout, name, 1)
    return study


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return with_zoo(tmp_path_factory.mktemp("digits"), DIGITS)


def first_unit(study: Study, method: str, student: str = "a") -> tuple[Pairs, str, Unit]:
    job = Pairs(study, study.layout, student, ["b"])
    plans, methods = requested.plans(study, job.dataset.hash), requested.methods(study, study.layout)
    units = requested.of_student(study, plans, {method: methods[method]}, student, ["b"], controls=False)
    key, unit = next(iter(by_key(units, job.prints).items()))
    return job, key, unit


def agreement(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Share of test images with the same answer."""
    return float((unpack(one["last"]) == unpack(other["last"])).mean())


def on_cpu(study: Study) -> Study:
    return study.model_copy(update={"device": "cpu"})


@pytest.mark.parametrize("method", ["kl", "kl_dp"])
def test_a_student_is_that_of_the_cpu_but_for_rounding(digits: Study, method: str) -> None:
    records = []
    for study in (digits, on_cpu(digits)):
        job, key, unit = first_unit(study, method)
        records.append(session.compute(job.begin(1), unit, key)[0])
    there, here = records
    assert (there["status"], here["device"]) == ("ok", "cpu")
    assert there["device"] != "cpu"
    assert agreement(there, here) > 0.9
    assert there["validation"][-1] == pytest.approx(here["validation"][-1], abs=8)


def test_predictions_are_those_of_the_cpu_but_for_rounding(digits: Study, tmp_path: Path) -> None:
    there = predictions.read(digits.layout.predictions("a"), "test")
    path = digits.layout.predictions("a")
    kept = path.read_bytes()
    stages.predict(on_cpu(digits), digits.layout, "a", 1)
    here = predictions.read(path, "test")
    answers = [np.asarray(found.answers, np.float32) for found in (there, here)]
    path.write_bytes(kept)
    assert np.abs(answers[0] - answers[1]).max() < 0.05 * np.abs(answers[1]).max() + 0.05
    assert (there.kept == here.kept).mean() > 0.95


@contextmanager
def at_most(held: float) -> Iterator[None]:
    """This process may hold so many bytes of the device's memory, and what it holds but does not use is returned."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, held / torch.cuda.mem_get_info()[1]))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_cut_into_pieces(digits: Study) -> None:
    study = made(Path(digits.results), DIGITS, training={"epochs": 1, "batch_size": 400, "lr": 1e-3})
    job, key, unit = first_unit(study, "kl", "big")
    bench = job.begin(1)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole, _ = session.compute(bench, unit, key)
    most = torch.cuda.max_memory_allocated()
    assert (whole["status"], whole["pieces"]) == ("ok", 1)
    with at_most(before + 0.6 * (most - before)):
        cut, _ = session.compute(bench, unit, "cut")
    assert cut["status"] == "ok"
    assert cut["pieces"] > 1


def test_no_memory_at_all_is_a_failure_with_its_cause(digits: Study) -> None:
    job, key, unit = first_unit(digits, "kl", "big")
    bench, filler = job.begin(1), list[torch.Tensor]()

    def fill() -> None:
        while True:  # what is free inside of blocks that are held
            filler.append(torch.empty(1 << 18, device=DEVICE))

    with at_most(torch.cuda.memory_allocated()):
        with pytest.raises(torch.OutOfMemoryError):
            fill()
        record, _ = session.compute(bench, unit, key)
    assert (record["status"], record["cause"]) == ("failed", "out_of_memory")


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    digits: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, key, unit = first_unit(digits, "kl_dp")
    whole, _ = session.compute(job.begin(1), unit, key)
    stop, steps, rate = Event(), [0], engine.learning_rate

    def counted(*args: Any) -> float:
        steps[0] += 1
        if steps[0] == 9:
            stop.set()
        return rate(*args)

    monkeypatch.setattr(engine, "learning_rate", counted)
    bench = job.begin(1)
    bench.settings = bench.settings._replace(stop=stop)
    with pytest.raises(Interrupted):
        session.compute(bench, unit, "stopped")
    stop.clear()
    resumed, _ = session.compute(bench, unit, "stopped")
    assert steps[0] < 9 + 24  # the first epoch is not done again
    assert agreement(resumed, whole) > 0.95


def test_processes_share_the_device(digits: Study) -> None:
    study = made(Path(digits.results), DIGITS, processes=2)
    out = study.layout.root / "rows.parquet"
    stages.transfer(study, study.layout, "a", 0, None, out, 2)
    assert set(schema.read(out, "transfers")["status"].to_pylist()) == {"ok"}


def test_a_flow_runs(digits: Study) -> None:
    stages.experiment(digits, digits.layout, "flow", "x", 1)
    rows = schema.read(digits.layout.experiment("flow", "x"), "transfers").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    needs = json.loads(digits.layout.needs("flow", "x").read_text())
    assert needs


def test_a_dense_task_runs(tmp_path: Path) -> None:
    study = with_zoo(tmp_path, SCENES)
    out = tmp_path / "rows.parquet"
    stages.transfer(study, Layout(tmp_path), "unet", 0, None, out, 1)
    rows = schema.read(out, "transfers").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
