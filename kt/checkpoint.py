"""Checkpoints inside one unit, so that a killed training continues where it last saved."""

from __future__ import annotations

import logging
import os
import time
import zipfile
from pathlib import Path
from threading import Event
from typing import IO, Any

import torch

from kt import store
from kt.errors import Interrupted

log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint file of one unit, written atomically at most every ``every`` seconds.

    A few bytes beside it count the steps of the training. They outlive a killed process, so that the next one
    can report how many steps are done twice.

    Args:
        path: the file.
        key: the unit's key; a file with another key is not read.
        every: seconds between two writes.
        stop: set, by a signal handler for example, to save after the next step and end the training.
    """

    def __init__(self, path: Path, key: str, every: float, stop: Event | None = None) -> None:
        self.path, self.key, self.every = path, key, every
        self._stop = stop or Event()
        self._began = self._last = time.monotonic()
        self._before = 0.0
        self._done = 0
        self._steps = path.with_suffix(".steps")
        self._counter: IO[bytes] | None = None

    @property
    def seconds(self) -> float:
        """Time that the training has taken, in this process and in those whose state it goes on from."""
        return self._before + time.monotonic() - self._began

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state on ``device``, or None where there is none, or none that can be trusted."""
        state = self._read(device)
        before = int.from_bytes(self._steps.read_bytes(), "little") if self._steps.exists() else 0
        self._done = state.pop("steps", 0) if state else 0
        self._before = state.pop("seconds", 0.0) if state else 0.0
        if state or before:
            how = "goes on from its checkpoint" if state else "begins again"
            twice = max(0, before - self._done)
            log.info("unit %s %s after step %d: %d steps are done twice", self.key[:12], how, self._done, twice)
        return state

    def _read(self, device: torch.device) -> dict[str, Any] | None:
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch does not compare the sums that it writes
                if damaged := archive.testzip():
                    raise ValueError(damaged)
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
            ours = state.get("key") == self.key
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file can fail in many ways; the unit then starts afresh
            log.warning("checkpoint %s cannot be read and is ignored (%s)", self.path, type(error).__name__)
            return None
        return state if ours else None

    def due(self) -> bool:
        """Count a step; whether ``every`` seconds have passed since the last write, or the training must stop."""
        self._done += 1
        if self._counter is None:
            self._steps.parent.mkdir(parents=True, exist_ok=True)
            self._counter = self._steps.open("wb", buffering=0)
        os.pwrite(self._counter.fileno(), self._done.to_bytes(8, "little"), 0)
        return self._stop.is_set() or time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Write the state.

        Raises:
            Interrupted: the training must stop; the state is written.
        """
        with store.atomic(self.path) as temporary:
            torch.save({**state, "key": self.key, "steps": self._done, "seconds": self.seconds}, temporary)
        self._last = time.monotonic()
        if self._stop.is_set():
            raise Interrupted(f"stopped by a signal after step {self._done}; {self.path} holds the progress")

    def remove(self) -> None:
        """Delete the state: the unit is finished."""
        self.path.unlink(missing_ok=True)
        self._steps.unlink(missing_ok=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of torch's own generators, as part of a checkpoint's state."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"random": torch.get_rng_state(), "random_device": on_device}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go back to the state of torch's own generators that a checkpoint holds."""
    torch.set_rng_state(state["random"].cpu())
    if state["random_device"] is not None:
        torch.cuda.set_rng_state(state["random_device"].cpu(), device)
