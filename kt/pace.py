"""How fast students train here, from what was measured, to say how long the rest will take.

A training's time grows with the images that it sees and with the student's multiply-accumulate operations (MACs); the
teacher does not matter, since its logits are cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BASES = (
    "measured on the same student",
    "scaled by MACs",
    "at the mean of other students",
    "scaled from the zoo's own training",
    "at an assumed speed",
)
"""What an estimate rests on, the surest first."""

ASSUMED = {"cpu": 3e-10, "cuda": 6e-13}
"""Seconds of training an image and MAC where nothing was measured: one CPU core, and a GPU of some years ago; forward
and backward are three MACs each, at a third of what such devices reach at their best."""


@dataclass(frozen=True)
class Pace:
    """Seconds that one image of training takes, forward and backward, with its share of the evaluations.

    Attributes:
        macs: MACs of one image's forward pass, of every model where it is known.
        own: seconds an image of each student that was measured.
        per_mac: seconds an image and MAC, over the measured students whose MACs are known; None without one.
        mean: seconds an image over all measured students; None without one.
        rough: seconds an image and MAC before any student was measured, and which of ``BASES`` that rests on.
    """

    macs: Mapping[str, int] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    per_mac: float | None = None
    mean: float | None = None
    rough: tuple[float, str] = (ASSUMED["cpu"], BASES[4])

    @classmethod
    def measured(
        cls,
        trainings: Iterable[tuple[str, float, int]],
        macs: Mapping[str, int],
        zoo: Iterable[tuple[str, float, int]] = (),
        device: str = "cpu",
    ) -> Pace:
        """From finished trainings.

        Args:
            trainings: student, seconds, and images that it trained on, each counted as often as it was seen.
            macs: MACs of every model where they are known.
            zoo: the same of trainings of the zoo's members, for the time before any student was measured.
            device: `cpu`, or anything else for a GPU, for the time before anything was measured.
        """
        before = [(seconds, seen * macs[name]) for name, seconds, seen in zoo if seen and macs.get(name)]
        rough = ASSUMED["cpu" if device == "cpu" else "cuda"], BASES[4]
        if before:
            rough = sum(seconds for seconds, _ in before) / sum(work for _, work in before), BASES[3]
        seconds: dict[str, float] = {}
        images: dict[str, int] = {}
        for student, spent, seen in trainings:
            if seen > 0:
                seconds[student] = seconds.get(student, 0.0) + spent
                images[student] = images.get(student, 0) + seen
        work = sum(images[name] * macs[name] for name in images if macs.get(name))
        on_work = sum(seconds[name] for name in images if macs.get(name))
        total = sum(images.values())
        return cls(
            macs,
            {name: seconds[name] / images[name] for name in images},
            on_work / work if work else None,
            sum(seconds.values()) / total if total else None,
            rough,
        )

    def of(self, student: str) -> tuple[float, str] | None:
        """Seconds an image of a student, and which of ``BASES`` that rests on; None where nothing is known."""
        macs = self.macs.get(student)
        if student in self.own:
            return self.own[student], BASES[0]
        if self.per_mac is not None and macs:
            return self.per_mac * macs, BASES[1]
        if self.mean is not None:
            return self.mean, BASES[2]
        return (self.rough[0] * macs, self.rough[1]) if macs else None
