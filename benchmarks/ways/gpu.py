"""Steps of `benchmarks/gpu.py`. Each yields what it has found so far, as names and JSON values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import packing
import torch
import yaml
from PIL import Image
from torch import nn

from kt import stages
from kt.data import datasets
from kt.data.datasets import Dataset
from kt.data.inputs import Inputs
from kt.data.spec import DataSpec, SplitSizes
from kt.study.load import load
from kt.tables import schema
from kt.tasks import losses
from kt.tasks.task import named
from kt.zoo import models
from kt.zoo.inference import autocast, channels_last, kept
from ways.transfer import Bench, Settings, flat, looped, vectorised

ROOT = Path(__file__).resolve().parent.parent.parent

Found = Iterator[dict[str, Any]]


class Sizes(NamedTuple):
    """How much a step does: in full on a GPU, or shrunk so that a CPU shows in seconds that it runs.

    Attributes:
        models: architecture and arguments by name.
        side: of the images, pixels.
        classes: of the data.
        images: transfer images.
        batch: images of a step.
        teachers: of a student.
        steps: of a training whose time is taken.
        files: pictures to decode.
        packed: numbers of processes.
        trainings: with each of them.
        seeds: trainings on the CPU and on the device that are compared.
        epochs: of these and of the packed ones.
    """

    models: dict[str, tuple[str, dict[str, Any]]]
    side: int
    classes: int
    images: int
    batch: int
    teachers: int
    steps: int
    files: int
    packed: tuple[int, ...]
    trainings: int
    seeds: int
    epochs: int


FULL = Sizes(
    {"ResNet-18": ("resnet18", {}), "ViT-S/16": ("vit_small_patch16_224", {})},
    *(224, 1000, 2048, 128, 1, 20, 400),
    *((1, 2, 4, 8), 16, 5, 10),
)
SHRUNK = Sizes(
    {"ResNet": ("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8})},
    *(32, 10, 40, 10, 1, 2, 8),
    *((1,), 1, 1, 1),
)


def tests(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Numbers of the tests marked `cuda` that passed, failed or were skipped, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    chosen = [*command, "--collect-only"] if sizes is SHRUNK else command
    done = subprocess.run(chosen, cwd=ROOT, text=True, capture_output=True, check=False)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?|selected)\b", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    yield {"tests": counts | ({"names": failed} if failed else {}) | {"status": done.returncode}}


def agreement(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Accuracies of the same students trained on the CPU and on the device, and whether they agree within two errors.

    The error is that of the mean difference over seeds, and at least that of counting test images.
    """
    found = dict[str, list[float]]()
    for name in ("cpu", device.type):
        study = packing.study(folder, sizes.seeds, sizes.epochs, 1, name)
        layout, out = study.layout, folder / "rows.parquet"
        if name == "cpu":
            stages.data(study, layout, 1)
            for member in study.names:
                stages.weights(study, layout, member, 1)
                stages.predict(study, layout, member, 1)
        shutil.rmtree(layout.ledger, ignore_errors=True)
        stages.transfer(study, layout, "a", 0, None, out, 1)
        rows = schema.read(out, "transfers").to_pylist()
        found[name] = [row["delta"] for row in sorted(rows, key=lambda row: row["seed"])]
    here, there = (np.array(found[name]) for name in ("cpu", device.type))
    apart = there - here
    counted = 100 / np.sqrt(2 * 300 * len(apart))  # standard error of a share of one half, twice, percentage points
    error = max(float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0, float(counted))
    facts = {"cpu": here.mean(), device.type: there.mean(), "difference": apart.mean(), "error": error}
    rounded = {name: round(float(value), 2) for name, value in facts.items()}
    yield {"agreement": rounded | {"agree": bool(abs(apart.mean()) <= 2 * error)}}


def decoding(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Pictures per second that are decoded and stored, on all cores."""
    rng = np.random.default_rng(0)
    for i in range(sizes.files):
        path = folder / "pictures" / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(rng.integers(0, 256, (50, 38, 3), np.uint8), np.ones((10, 10, 1), np.uint8))).save(path)
    few = max(1, sizes.files // 4)
    spec = DataSpec(
        source=str(folder / "pictures"),
        size=sizes.side,
        splits=SplitSizes(zoo=0, transfer=few, validation=few, test=few),
    )
    start = time.perf_counter()
    datasets.write(folder / "decoded", spec, max(1, torch.get_num_threads()))
    yield {"decoding": {"images_per_second": round(3 * few / (time.perf_counter() - start), 1)}}


def predicting(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Images per second of predicting, and of a plain timm loop on images that are on the device."""
    data, spec = _stored(sizes, folder)
    rows, task = data.rows("transfer"), named("classification")
    batches = len(rows) // sizes.batch
    for name, (arch, args) in sizes.models.items():
        model = channels_last(models.build(arch, args, sizes.classes, 3).to(device)).eval()
        inputs = Inputs(data.images, rows, spec, device, keep=False)
        ours = _seconds(partial(kept, model, inputs, data.labels[rows], task), device)
        x = inputs[slice(0, sizes.batch)].contiguous(memory_format=torch.channels_last)
        plain = _seconds(partial(_forwards, model, x, batches), device)
        rates = {"ours": round(len(rows) / ours), "plain": round(batches * sizes.batch / plain)}
        yield {f"predicting {name}": rates | {"times": round(rates["ours"] / rates["plain"], 2)}}


def _forwards(model: nn.Module, x: torch.Tensor, count: int) -> None:
    with torch.inference_mode(), autocast(x.device):
        for _ in range(count):
            model(x)


def transfers(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """The ways of `benchmarks/transfer.py`: images per second that a student trains on, by four methods."""
    _stored(sizes, folder)
    for name in sizes.models:
        settings = Settings(folder / "config.yaml", folder / "stored", _key(name), sizes.teachers, 1, device)
        bench = Bench(settings, torch.get_num_threads())
        trained = sizes.teachers * len(bench.methods) * (len(bench.labels) // sizes.batch) * sizes.batch
        ways: dict[str, Callable[[], Any]] = {
            "ours": bench.alone,
            "plain": bench.limit,  # a loop that trains the student alone, on given targets
            "vectorised": partial(bench.forwarding, vectorised),
            "published": partial(bench.forwarding, looped),
        }
        rates = dict[str, int]()
        for way, run in ways.items():
            rates[way] = round(trained / _seconds(run, device, warm=way == "ours"))
            yield {f"transfer {name}": rates | {"peak_gb": _peak(device)}}
        assert flat(bench.student).isfinite().all()


def forms(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Milliseconds of a training step: as it is, with the channels last, compiled, and as a CUDA graph."""
    for name, (arch, args) in sizes.models.items():
        found = dict[str, float | str]()
        ways: dict[str, Callable[[nn.Module], Any]] = {
            "plain": lambda model: model,
            "channels_last": channels_last,
        }
        if device.type == "cuda":
            ways["compiled"] = lambda model: torch.compile(channels_last(model))
            ways["cuda_graph"] = lambda model: torch.compile(channels_last(model), mode="reduce-overhead")
        for way, made in ways.items():
            torch.manual_seed(0)
            model = models.build(arch, args, sizes.classes, 3).to(device).train()
            try:
                found[way] = round(1e3 * _step(model, made(model), device, sizes, way != "plain"), 2)
            except Exception as error:  # a compiler may be missing, or fail; the others still count
                found[way] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
            yield {f"step {name}": dict(found)}


def packed(device: torch.device, sizes: Sizes, folder: Path) -> Found:
    """Trainings per minute of one job with several processes."""
    yield {"packing": packing.measure(list(sizes.packed), sizes.trainings, sizes.epochs, device.type)}


STEPS: dict[str, tuple[Callable[[torch.device, Sizes, Path], Found], int]] = {
    "agreement": (agreement, 60),
    "transfers": (transfers, 110),
    "predicting": (predicting, 50),
    "decoding": (decoding, 20),
    "packing": (packed, 80),
    "tests": (tests, 80),
    "forms": (forms, 70),
}
"""Steps in order, the most wanted first, and the seconds that each may take: less than eight minutes together."""


def _stored(sizes: Sizes, folder: Path) -> tuple[Dataset, Any]:
    """A stored data set of random images, a configuration about it, and the input of its models."""
    config = folder / "config.yaml"
    if not config.exists():
        rng, few = np.random.default_rng(0), max(10, sizes.batch)
        count = sizes.images + sizes.batch + 2 * few
        images = rng.integers(0, 256, (count, sizes.side, sizes.side, 3), np.uint8)
        np.savez(folder / "images.npz", images=images, labels=np.arange(count) % sizes.classes)
        recipe = {"train": {"epochs": 1}}
        raw = {
            "results": "results",
            "data": {
                "source": "images.npz",
                "splits": {"zoo": sizes.batch, "transfer": sizes.images, "validation": few, "test": few},
            },
            "zoo": {
                "input": {"size": sizes.side, "mean": [0.5] * 3, "std": [0.25] * 3},
                "models": {
                    _key(name): {"arch": arch, "args": args, **recipe}
                    for name, (arch, args) in {**sizes.models, "other": next(iter(sizes.models.values()))}.items()
                },
            },
            "transfer": {"methods": {"kl": {}}, "training": {"epochs": 1, "batch_size": sizes.batch, "lr": 1e-4}},
        }
        config.write_text(yaml.safe_dump(raw), "utf-8")
        datasets.write(folder / "stored", load(config).data, max(1, torch.get_num_threads()))
    study = load(config)
    return Dataset.open(folder / "stored"), study.zoo.input_of(study.names[0])


def _key(name: str) -> str:
    """A name as the configuration takes it."""
    return name.replace("/", "-")


def _seconds(run: Callable[[], Any], device: torch.device, warm: bool = True) -> float:
    """Seconds that ``run`` takes; the first time does not count."""
    if warm:
        run()
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _step(model: nn.Module, runs: Any, device: torch.device, sizes: Sizes, last: bool) -> float:
    """Seconds of a step of AdamW on one batch."""
    x = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=device)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = torch.arange(sizes.batch, device=device) % sizes.classes
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        with autocast(device):
            output = runs(x)
        losses.cross_entropy(output, y).mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    for _ in range(3):
        step()
    return _seconds(lambda: [step() for _ in range(sizes.steps)], device, warm=False) / sizes.steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def told(found: dict[str, Any]) -> str:
    """One line of a step's results, as `benchmarks/gpu.py` reads it."""
    return f"FOUND {json.dumps(found)}"
