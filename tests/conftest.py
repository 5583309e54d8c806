"""Settings and small fixtures that all tests share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the processes that tests start

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from images import save_image

ROOT = Path(__file__).resolve().parent.parent
COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "print_blob": True,
}
# The same examples in every run; HYPOTHESIS_PROFILE=thorough looks for new ones.
settings.register_profile("default", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)


@pytest.fixture
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture
def python(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a piece of Python in a process of its own, in the repository's folder; its arguments follow the code."""

    def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two parts, three classes with images of all kinds; class10 comes last."""
    root = tmp_path / "pictures"
    for part, count in (("train", 6), ("val", 3)):
        for c, (name, mode, suffix) in enumerate(
            [("class1", "RGB", "png"), ("class2", "L", "jpg"), ("class10", "CMYK", "jpeg")]
        ):
            for i in range(count):
                save_image(root / part / name / f"{i}.{suffix}", (30 + 7 * i, 40 - 3 * c), mode, 10 * c + i)
    save_image(root / "train" / "class1" / "deep" / "er.webp", (50, 50), "RGBA")
    (root / "train" / "class1" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start whole studies: at the end, no process waits long for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
