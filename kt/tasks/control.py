"""Control: policies that play a game, judged by their mean return. Policies lie in ``kt/control``."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from kt.tasks.task import Array, Metric, Scored, Words


class Control(Scored):
    """Play a game; an example is an episode, its score the undiscounted sum of all rewards, unclipped."""

    name: ClassVar[str] = "control"
    metric: ClassVar[Metric] = Metric("return", "mean return", "", "points", "points")
    example: ClassVar[str] = "episode"

    @property
    def words(self) -> Words:
        """The words that tables carry of it."""
        return Words(self.name, self.metric, self.example, has_classes=False, plays=True)

    def error(self, scores: Array, clusters: Array | None = None) -> float:
        """Standard error of the mean return: the sample's standard deviation over √n; unknown, NaN, of one episode."""
        return float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan

    def scores(self, kept: Array, truth: Array) -> Array:
        """The returns themselves, float64 [n]; ``truth`` only counts the episodes."""
        return kept.astype("float64")
