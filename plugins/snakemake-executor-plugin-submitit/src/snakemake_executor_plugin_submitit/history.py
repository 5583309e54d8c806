"""Earlier starts of a job, recorded by the job itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .verdict import Verdict


class History:
    """File with one JSON line per requeue of a job, and one for its completion."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, verdict: Verdict) -> int:
        """Count the endings of this kind."""
        return sum(event["ending"] == verdict.value for event in self.events())

    def events(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def add(self, verdict: Verdict) -> None:
        """Record an ending."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"ending": verdict.value, "time": time.time()}) + "\n")
