"""A job without torch, whose workers start within a second: for tests of the processes of a job."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kt.errors import Interrupted
from kt.progress import on_signal
from kt.stages import workers
from kt.transfer.method import registry
from kt.transfer.unit import Plan, Unit

KL, SELF = registry()["kl"](), registry()["self"]()
STUDY = SimpleNamespace(data=SimpleNamespace(task="classification"), transfer=SimpleNamespace(export="none"))


class Slow:
    """A job whose units write a file each, begin with `begun.…`, and last until a file of theirs says so."""

    def __init__(self, folder: Path, export: str = "none") -> None:
        self.folder, self.title, self.at = folder, "slow", "s"
        self.study: Any = SimpleNamespace(data=STUDY.data, transfer=SimpleNamespace(export=export))
        self.again: Any = partial(Slow, folder, export)

    def begin(self, threads: int) -> Any:
        (self.folder / f"threads.{os.getpid()}").write_text(str(threads))
        self.stop = on_signal()
        return SimpleNamespace(share=lambda processes: None)

    def unit(self, bench: Any, unit: Unit, key: str, keep: bool) -> None:
        (self.folder / f"begun.{key}").write_text(f"{os.getpid()} {time.monotonic()}")
        while not (self.folder / f"end.{key}").exists() and not (self.folder / "end").exists():
            if self.stop.is_set():
                raise Interrupted(f"stopped in {key}")
            time.sleep(0.02)
        (self.folder / f"done.{key}").write_text(str(time.monotonic()))


def units(*keys: str) -> dict[str, Unit]:
    """Units of controls, whose names begin with `c`, and of others."""
    return {key: Unit(SELF if key[0] == "c" else KL, Plan({}), "s", (), 0) for key in keys}


def job_in_a_process(folder: Path, keys: tuple[str, ...]) -> None:
    workers.run(Slow(folder), units(*keys), 4, False, 2)  # type: ignore[arg-type]
