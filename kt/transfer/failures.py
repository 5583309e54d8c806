"""Failures as outcomes: a unit that fails is a row with a reason, not the end of the job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import torch

from kt.errors import Interrupted, KtError
from kt.transfer.engine import Diverged
from kt.transfer.ledger import Record

log = logging.getLogger(__name__)


def attempt(run: Callable[[], Record], key: str) -> Record:
    """The record that ``run`` returns, or one of its failure: ``diverged``, ``out_of_memory`` or ``error``.

    Args:
        run: does the unit.
        key: of the unit, for the log.

    Raises:
        Interrupted: the unit was stopped; it goes on from its checkpoint next time.
    """
    try:
        return run()
    except Interrupted:
        raise
    except Diverged as error:
        return {"status": "failed", "cause": "diverged", "reason": f"diverged: {error}"}
    except torch.OutOfMemoryError as error:
        return {"status": "failed", "cause": "out_of_memory", "reason": f"out_of_memory: {_first_line(error)}"}
    except KtError as error:
        log.error("unit %s failed: %s", key[:12], error)
        return {"status": "failed", "cause": "error", "reason": f"error: {_first_line(error)}"}
    except Exception as error:
        log.exception("unit %s failed", key[:12])
        return {"status": "failed", "cause": "error", "reason": f"error: {type(error).__name__}: {_first_line(error)}"}


def attempt_in_pieces(run: Callable[[int], Record], key: str, batch: int, device: torch.device) -> Record:
    """The same of a unit whose batches are cut into 2, 4, … pieces as long as they do not fit in memory.

    A record of success also says how many ``seconds`` that took, on which ``device`` and with which ``torch``.

    Args:
        run: does the unit with its batches in so many pieces.
        key: of the unit, for the log.
        batch: images of a batch.
        device: where the unit runs.

    Raises:
        Interrupted: the unit was stopped.
    """
    pieces = 1
    while True:
        record = attempt(partial(_timed, run, pieces, device), key)
        if record.get("cause") != "out_of_memory" or pieces == most_pieces(batch):
            return record
        pieces *= 2
        log.warning("%s: unit %s goes on with %d pieces a batch", record["reason"], key[:12], pieces)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def resumes(record: Record) -> bool:
    """Whether the checkpoints of a unit with this outcome are still of use: another try begins where it ended."""
    return bool(record["status"] != "ok" and record["cause"] != "diverged")


def _timed(run: Callable[[int], Record], pieces: int, device: torch.device) -> Record:
    start = time.perf_counter()
    return run(pieces) | {
        "seconds": time.perf_counter() - start,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def most_pieces(batch: int) -> int:
    """Most pieces that a batch of at least two images is cut into: BatchNorm needs two images in each."""
    return 1 << ((batch // 2).bit_length() - 1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
