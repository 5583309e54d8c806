"""Peak memory of the stages that read every image, at N and at 4N images.

Decoding, predicting (with features), and checking and scoring a prediction file each run in a separate process, on a
folder of JPEG files and with a small timm model with 1,000 outputs. Memory is the anonymous memory of the process (the
kernel's `RssAnon`, sampled continuously). Pages of memory-mapped files are not counted, since the kernel can reclaim
them at any time. Memory before the stage (Python, torch, timm) is reported separately.

    python benchmarks/memory.py --images 10000

The last line is JSON: peak MiB of each stage at N and at 4N images, beyond the memory before it, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

SIZE, CLASSES, FILES = 48, 1000, 50
STAGES = ("decode", "predict", "check")


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
    from kt.data.spec import DataSpec, InputSpec
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


def main() -> None:
    """Run every stage at both sizes and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="the smaller number (default: %(default)s)")
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(stage(args.stage[0], Path(args.stage[1]), int(args.stage[2]))))
        return
    result: dict[str, float] = {"images": args.images}
    with TemporaryDirectory() as scratch:
        for images in (args.images, 4 * args.images):
            make_folder(Path(scratch) / f"images{images}", images)
            for name in STAGES:
                began = time.perf_counter()
                command = [sys.executable, __file__, "--stage", name, scratch, str(images)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                over = found["peak"] - found["before"]
                seconds = time.perf_counter() - began
                print(f"{name} {images}: {over:.0f} MiB over {found['before']:.0f} MiB, {seconds:.0f} s", flush=True)
                result[f"{name}_mib_{'n' if images == args.images else '4n'}"] = round(over, 1)
    for name in STAGES:
        result[f"{name}_ratio"] = round(result[f"{name}_mib_4n"] / result[f"{name}_mib_n"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
