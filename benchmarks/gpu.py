"""All that waits for a CUDA device, in at most eight minutes: tests, agreement with the CPU, speed, memory, packing.

    PYTHONPATH=. python benchmarks/gpu.py     # in a checkout, on a machine with a GPU and the project's packages
    python benchmarks/gpu.py --steps packing  # some of the steps
    python benchmarks/gpu.py --shrunk         # all steps in small on the CPU: shows in seconds that they run

The steps, each in a process of its own and stopped after its time (`ways/gpu.py`):

- `agreement`: the same students on the CPU and on the GPU; their deltas agree within their error.
- `transfers`: the ways of `benchmarks/transfer.py`, a ResNet-18 and a ViT-S on 224 pixels and 1,000 classes.
- `predicting`, `decoding`: images per second, beside a plain timm loop.
- `packing`: trainings per minute of one job with 1, 2, 4 and 8 processes (`transfer.processes`).
- `tests`: those marked `cuda`.
- `forms`: milliseconds of a training step with channels last, `torch.compile` and CUDA graphs.

Prints a table for docs/performance.md and, as the last line, JSON with all results; stopped by a signal, those so far.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from ways import gpu

ALL = 470
"""Seconds for all steps."""


class Stopped(Exception):
    """A signal ended the benchmark."""


def in_process(name: str, device: torch.device, seconds: float) -> tuple[dict[str, Any], str]:
    """Run a step in a process of its own; what it found, and why it found no more."""
    command = [sys.executable, __file__, "--step", name, "--device", str(device)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    timer = threading.Timer(seconds, _end, [process])
    timer.start()
    found, start = dict[str, Any](), time.monotonic()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("FOUND "):
                found |= json.loads(line.removeprefix("FOUND "))
        status = process.wait()
    finally:
        timer.cancel()
        _end(process)
    late = time.monotonic() - start >= seconds
    return found, f"stopped after {seconds:.0f} seconds" if late else f"ended with status {status}" if status else ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a step, and all that it started."""
    if process.poll() is None:
        import psutil

        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()


def in_here(name: str, device: torch.device) -> tuple[dict[str, Any], str]:
    """Run a shrunk step in this process."""
    found = dict[str, Any]()
    with TemporaryDirectory(prefix="gpu") as folder:
        for more in gpu.STEPS[name][0](device, gpu.SHRUNK, Path(folder)):
            found |= more
    return found, ""


def table(result: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    lines = [f"| {result['device']}, torch {result['torch']} | measured |", "|---|---|"]
    for name, value in result["found"].items():
        facts = value.items() if isinstance(value, dict) else [("", value)]
        lines.append(f"| {name} | {', '.join(f'{key} {fact}'.strip() for key, fact in facts)} |")
    lines += [f"| {name} | {why} |" for name, why in result["incomplete"].items()]
    return "\n".join(lines)


def stop(number: int, frame: FrameType | None) -> None:
    """Leave what is measured so far."""
    raise Stopped(signal.Signals(number).name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps; print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=gpu.STEPS, default=list(gpu.STEPS), help="(default: all)")
    parser.add_argument("--shrunk", action="store_true", help="all steps in small, on the CPU")
    parser.add_argument("--device", type=torch.device, default="cuda", help="the GPU (default: %(default)s)")
    parser.add_argument("--step", choices=gpu.STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.shrunk or torch.cuda.is_available()):
        sys.exit("gpu.py: torch finds no CUDA device here; `--shrunk` shows on the CPU that all steps run")
    if args.step:
        with TemporaryDirectory(prefix="gpu") as folder:
            for found in gpu.STEPS[args.step][0](args.device, gpu.FULL, Path(folder)):
                print(gpu.told(found), flush=True)
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    name = "CPU, shrunk" if args.shrunk else torch.cuda.get_device_name(args.device)
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "seconds": 0, "found": {}, "incomplete": {}}
    start = time.monotonic()
    waiting = list(args.steps)
    try:
        while waiting:
            left, allowed = ALL - (time.monotonic() - start), gpu.STEPS[waiting[0]][1]
            result["incomplete"][waiting[0]] = "was running"
            if args.shrunk:
                found, why = in_here(waiting[0], torch.device("cpu"))
            else:
                found, why = in_process(waiting[0], args.device, max(1, min(left, allowed)))
            result["found"] |= found
            del result["incomplete"][waiting[0]]
            if why:
                result["incomplete"][waiting[0]] = why
            print(f"{waiting.pop(0)}: {json.dumps(found)} {why}".rstrip(), file=sys.stderr, flush=True)
    except Stopped as signalled:
        result["stopped"] = str(signalled)
        result["incomplete"] |= dict.fromkeys(waiting[1:], "not begun")
    for number, handler in before.items():
        signal.signal(number, handler)
    result["seconds"] = round(time.monotonic() - start)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
