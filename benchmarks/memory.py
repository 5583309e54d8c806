"""Peak memory of the stages that read every image, at N and at 4N images; of a transfer also at C and at 4C classes.

Decoding, predicting (with features), and checking and scoring a prediction file each run in a separate process, on a
folder of JPEG files and with a small timm model with 1,000 outputs. Memory is the anonymous memory of the process (the
kernel's `RssAnon`, sampled continuously). Pages of memory-mapped files are not counted, since the kernel can reclaim
them at any time. Memory before the stage (Python, torch, timm) is reported separately.

A transfer trains a small timm model for one epoch by `kl_dp`, from predictions with random logits; like those of a
large study, its images are prepared batch by batch.

    python benchmarks/memory.py --images 10000

The last line is JSON: peak MiB of each stage at N and at 4N images, beyond the memory before it, and their ratio; of
the transfer the ratio of the largest of its four sizes to the smallest.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import nn

    from kt.data.datasets import Dataset
    from kt.data.seen import InputSpec
    from kt.predictions import Answers

SIZE, CLASSES, FILES = 48, 1000, 50
STAGES = ("decode", "predict", "check")
WIDTHS = (500, 2000)
"""Classes of the transfer."""
HELD_OUT = 100
"""Images of the transfer's validation and test splits."""


def held() -> float:
    """Return the anonymous memory of this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


@contextmanager
def peak(found: dict[str, float]) -> Iterator[None]:
    """Sample this process's memory until the end of the block."""
    found["before"] = found["peak"] = held()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            found["peak"] = max(found["peak"], held())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def make_folder(root: Path, images: int) -> None:
    """Make ``images`` JPEG files in ten class folders; most are hard links to the same few files."""
    rng = np.random.default_rng(0)
    for i in range(images):
        path = root / f"class{i % 10}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < FILES:
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80 + i, 60 + i), Image.Resampling.BICUBIC).save(path)
        else:
            os.link(root / f"class{i % FILES % 10}" / f"{i % FILES}.jpg", path)


def stage(name: str, folder: Path, images: int) -> dict[str, float]:
    """Run one stage in this process and measure it."""
    from kt import predictions
    from kt.data import datasets
    from kt.data.datasets import Dataset
    from kt.data.seen import InputSpec
    from kt.data.spec import DataSpec
    from kt.tasks.classification import calibration_error

    place, file, found = folder / f"store{images}", folder / f"model{images}.safetensors", dict[str, float]()
    splits = {"transfer": 1, "validation": 1, "test": images - 2}
    spec = DataSpec.model_validate({"source": str(folder / f"images{images}"), "size": SIZE, "splits": splits})
    if name == "decode":
        with peak(found):
            datasets.write(place, spec, threads=2)
        return found
    data = Dataset.open(place)
    if name == "check":
        with peak(found):
            predictions.verify(file)
            test = predictions.read(file, "test")
            calibration_error(test.answers, test.kept == data.labels[data.rows("test")])
        return found
    import timm
    import torch

    from kt.data.inputs import Inputs
    from kt.tasks.classification import Classification
    from kt.zoo.inference import predict

    model = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    view, device = InputSpec(size=32, mean=(0.5,) * 3, std=(0.5,) * 3), torch.device("cpu")
    torch.set_num_threads(1)
    inputs = {split: Inputs(data.images, data.rows(split), view, device, keep=False) for split in splits}
    with peak(found):
        ids, truth = ({split: of(split) for split in splits} for of in (data.ids, data.rows))
        predict(model, inputs, truth, ids, file, ("print", "data"), Classification(), features=True)
    return found


def _random_predictions(path: Path, data: Dataset, classes: int, seed: int) -> None:
    """Write predictions of a model with random logits."""
    from kt import predictions

    splits, rng = {}, np.random.default_rng(seed)
    for split in predictions.SPLITS:
        ids = data.ids(split)
        logits = np.lib.format.open_memmap(path.with_suffix(f".{split}"), "w+", np.float16, (len(ids), classes))
        for start in range(0, len(ids), 1000):
            block = logits[start : start + 1000]
            block[:] = rng.standard_normal(block.shape, np.float32)
        splits[split] = predictions.Outputs(logits, np.zeros(len(ids), np.int64), ids)
    predictions.write(path, splits, path.stem, "data")


class Pair:
    """A zoo of a student and a teacher with random weights, and predictions in files."""

    def __init__(self, folder: Path, classes: int, view: InputSpec) -> None:
        self.folder, self.classes, self.view = folder, classes, view

    def fingerprint(self, name: str) -> str:
        """Return the name."""
        return name

    def input_of(self, name: str) -> InputSpec:
        """Return the common input."""
        return self.view

    def load(self, name: str) -> nn.Module:
        """Build the model."""
        import timm

        return timm.create_model("test_resnet", num_classes=self.classes).eval()

    def logits(self, name: str, split: str) -> Answers:
        """Open the cached answers."""
        from kt import predictions

        return predictions.read(self.folder / f"{name}.safetensors", split).answers


def prepare(folder: Path, images: int, classes: int) -> None:
    """Decode the images of a transfer, and write its predictions."""
    from kt.data import datasets
    from kt.data.datasets import Dataset
    from kt.data.spec import DataSpec

    splits = {"transfer": images - 2 * HELD_OUT, "validation": HELD_OUT, "test": HELD_OUT}
    spec = DataSpec.model_validate({"source": str(folder / f"images{images}"), "size": SIZE, "splits": splits})
    datasets.write(folder / f"pair{images}", spec, threads=2)
    for seed, name in enumerate(("student", "teacher")):
        _random_predictions(folder / f"{name}.safetensors", Dataset.open(folder / f"pair{images}"), classes, seed)


def transfer(folder: Path, images: int, classes: int) -> dict[str, float]:
    """Train the student from the teacher in this process, and measure it."""
    import torch

    from kt.data import inputs
    from kt.data.datasets import Dataset
    from kt.data.seen import InputSpec
    from kt.stages.common import keep_freed
    from kt.tasks.task import named
    from kt.transfer.bench import Begun, Bench, Settings
    from kt.transfer.method import registry
    from kt.transfer.session import compute
    from kt.transfer.training import Training
    from kt.transfer.unit import Plans, Unit

    inputs.IN_MEMORY = 0
    keep_freed()
    torch.set_num_threads(1)
    view, method = InputSpec(size=32, mean=(0.5,) * 3, std=(0.5,) * 3), registry()["kl_dp"]()
    training = Training(epochs=1, batch_size=64, lr=1e-3)
    settings = Settings(training, folder / "checkpoints", 3600, torch.device("cpu"), threading.Event())
    begun = Begun("student", ("test_resnet", {}), view, 3, member=True)
    data, found = Dataset.open(folder / f"pair{images}"), dict[str, float]()
    bench = Bench(begun, Pair(folder, classes, view), named("classification"), data, settings)
    unit = Unit(method, Plans("data", training).of(method, 0), "student", ("teacher",), 0)
    with peak(found):
        record, _ = compute(bench, unit, "key")
    if record["status"] != "ok":
        raise SystemExit(record["reason"])
    return found


def measured(name: str, folder: str, images: int, classes: int) -> float:
    """Run a stage in a process of its own, print its peak, and return it in MiB beyond the memory before it."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--stage", name, folder, str(images), str(classes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found, seconds = json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - began
    over = found["peak"] - found["before"]
    size = f"{images} images, {classes} classes"
    print(f"{name}, {size}: {over:.0f} MiB over {found['before']:.0f} MiB, {seconds:.0f} s", flush=True)
    return round(over, 1)


def main() -> None:
    """Run every stage at all its sizes and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="the smaller number (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, "transfer"], default=[*STAGES, "transfer"])
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        logging.disable()  # most images are alike, which is worth a warning elsewhere
        name, folder, images, classes = args.stage[0], Path(args.stage[1]), int(args.stage[2]), int(args.stage[3])
        if name == "prepare":
            prepare(folder, images, classes)
            return
        print(json.dumps(transfer(folder, images, classes) if name == "transfer" else stage(name, folder, images)))
        return
    result: dict[str, float] = {"images": args.images}
    with TemporaryDirectory() as scratch:
        for images, n in ((args.images, "n"), (4 * args.images, "4n")):
            make_folder(Path(scratch) / f"images{images}", images)
            for name in STAGES:
                if name in args.stages:
                    result[f"{name}_mib_{n}"] = measured(name, scratch, images, CLASSES)
            for classes, c in zip(WIDTHS, ("c", "4c"), strict=True):
                if "transfer" in args.stages:
                    command = [sys.executable, __file__, "--stage", "prepare", scratch, str(images), str(classes)]
                    subprocess.run(command, check=True)
                    result[f"transfer_mib_{n}_{c}"] = measured("transfer", scratch, images, classes)
    for name in args.stages:
        small, large = ("n_c", "4n_4c") if name == "transfer" else ("n", "4n")
        result[f"{name}_ratio"] = round(result[f"{name}_mib_{large}"] / result[f"{name}_mib_{small}"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
