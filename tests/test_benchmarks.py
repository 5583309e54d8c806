"""Every benchmark starts: what it imports is there, and it says how it is used."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

BENCHMARKS = sorted((Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_every_benchmark_starts_and_has_help(script: Path) -> None:
    command = [warm.python(), "-m", script.stem, "--help"]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {script.name}" in done.stdout


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/gpu.py` as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS[0].parent))
    return importlib.import_module("gpu")


def test_all_that_waits_for_a_gpu_runs_in_small_on_the_cpu(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--shrunk", "--steps", "agreement", "transfers", "predicting", "decoding", "forms"])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["incomplete"] == {}
    assert result["found"]["agreement"]["difference"] == 0  # the same device twice
    assert result["found"]["transfer ResNet"].keys() == {"ours", "plain", "vectorised", "published", "peak_gb"}
    assert {"predicting ResNet", "decoding", "step ResNet"} <= result["found"].keys()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(result["found"])


def test_without_a_gpu_its_benchmark_says_so_in_one_line(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^gpu\.py: torch finds no CUDA device here; [^\n]*$"):
        gpu.main([])


def test_a_stopped_benchmark_leaves_what_it_has(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        yield {}

    steps = {"decoding": (lambda *_: iter([{"decoding": 1}]), 1), "forms": (stopped, 1), "tests": (stopped, 1)}
    monkeypatch.setattr(gpu.gpu, "STEPS", steps)
    gpu.main(["--shrunk", "--steps", "decoding", "forms", "tests"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["found"], result["stopped"]) == ({"decoding": 1}, "SIGTERM")
    assert result["incomplete"] == {"forms": "was running", "tests": "not begun"}


def test_policies_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS[0].parent))
    importlib.import_module("control").main(["--games", "kt/Catch-v0", "--steps", "160", "--turns", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kt/Catch-v0: steps per second {'ours': ")
    result = json.loads(lines[-1])
    assert result.keys() == {"ratio_plain", "ratio_loop"}
    assert min(result.values()) > 0
