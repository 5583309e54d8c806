"""Estimates of the memory and time that a cluster job requests, made before it runs.

Memory follows from the sizes of the models, time from the measured pace of finished trainings. The estimates are
generous; every profile can override them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kt import store
from kt.errors import KtError

PROCESS_MB = {"cpu": 1300, "cuda": 4000}
"""Memory of a Python process with torch and timm, without and with the libraries of a GPU."""

WEIGHTS_KEPT = {"train": 6, "predict": 2}
"""Copies of the weights: current, initial, best, gradient, AdamW's two moments; or read and loaded."""

ACTIVATION_MB = 60.0
"""Memory per image in training on the CPU, for a model of 10⁹ MACs; it grows with the square root of the MACs:
ResNet-50 needs about 100 MB at 4.1 · 10⁹, ViT-B/16 about 200 MB at 17.6 · 10⁹."""

EVALUATED = 256
"""Most images in one forward pass of an evaluation; without gradients they take a third of the memory of training."""

PREPARED_MB = 512
"""Most memory that the prepared images of one split take."""

DENSE_BYTES = 1 << 29
"""Bytes of the answers of a batch in an evaluation of a dense task, at the size of their truths in float32."""

ANSWERS_HELD = {"train": 8, "predict": 4, "written": 1.5}
"""Copies of a batch's answers at that size: in a training step those of teacher, frozen student and student, their
logarithms and gradients; in an evaluation those of the network, enlarged and rounded; and halves on the way to disk."""

KEPT_ANSWER = 1 << 22
"""Bytes of an answer of a dense task up to which it is kept on disk: a disk of 500 MB/s reads them in about the 8 ms in
which a GPU runs a network of 40 · 10⁹ MACs forward."""

START_SECONDS = 300.0
"""Time to start on a busy shared file system, to read the data, and to write the results."""


def memory_mb(
    params: int, macs: int, batch_size: int, image_mb: float, *, train: bool, gpu: bool, attempt: int = 1
) -> int:
    """Host memory of a job that trains a model, or runs it forward, rounded up to 100 MB.

    process + copies · 4 · params + prepared images + batch · 60 MB · √(MACs / 10⁹); the last only on the CPU, and a
    third of it without gradients. Twice as much at every further attempt.

    Args:
        params: the model's parameters.
        macs: its MACs for one image.
        batch_size: images at once.
        image_mb: all images of the splits that the job reads, prepared, in MB; beyond ``PREPARED_MB`` a split is read
            in parts.
        train: whether it trains.
        gpu: whether it does so on a GPU.
        attempt: 1, and more after it ran out of memory.
    """
    kind = "train" if train else "predict"
    weights = WEIGHTS_KEPT[kind] * 4 * params / 1e6
    activations = batch_size * ACTIVATION_MB * math.sqrt(macs / 1e9) * (1 if train else 1 / 3)
    return _host_mb(weights + image_mb, activations, gpu, attempt)


def experiment_mb(held: int, image: int, batch_size: int, *, gpu: bool, attempt: int = 1) -> int:
    """Host memory of a job that trains an experiment's students, rounded up to 100 MB.

    process + memory of a training + memory per image times batch; the last only on the CPU, and at least for a third of
    ``EVALUATED`` images. Twice as much at every further attempt.

    Args:
        held: bytes of weights, their copies, features and prepared images.
        image: bytes that a training keeps per image of a batch.
        batch_size: images at once.
        gpu: whether it trains on a GPU.
        attempt: 1, and more after it ran out of memory.
    """
    return _host_mb(held / 1e6, image * max(batch_size, EVALUATED / 3) / 1e6, gpu, attempt)


def _host_mb(held: float, activations: float, gpu: bool, attempt: int) -> int:
    total = PROCESS_MB["cuda" if gpu else "cpu"] + held + (0.0 if gpu else activations)
    return 100 * math.ceil(total / 100) << (attempt - 1)


def prepared_mb(images: float, channels: int, size: int) -> float:
    """Memory of a split's images, float32 [N, C, S, S] in MB, at most ``PREPARED_MB``."""
    return min(float(PREPARED_MB), 4 * images * channels * size**2 / 1e6)


def answers_mb(values: int, batch_size: int, *, gpu: bool) -> float:
    """Host memory of the answers of a dense task to a batch, at the size of their truths, in MB.

    Args:
        values: of one answer; 0 of another task.
        batch_size: images of a training step; 0 of a job that trains nothing.
        gpu: whether the job runs on a GPU, which then holds all but what is written.
    """
    evaluated = min(EVALUATED, max(1, DENSE_BYTES // (4 * max(values, 1))))
    held = max(ANSWERS_HELD["train"] * batch_size, ANSWERS_HELD["predict"] * evaluated)
    return 4 * values * (ANSWERS_HELD["written"] * evaluated if gpu else held) / 1e6


def answer_bytes(classes: int, elements: int, top: int | None) -> int:
    """Bytes of an answer on disk: float16 logits of each element, or its ``top`` largest with their classes."""
    largest = (top or 0) * (2 + (1 if classes <= 1 << 8 else 2 if classes <= 1 << 16 else 4)) + 2
    return elements * (largest if top else 2 * classes)


def keeps_answers(rule: str, answer: int) -> bool:
    """Whether a model's answers are kept on disk, or computed when they are needed.

    Args:
        rule: `kept`, `recomputed`, or `auto`, which keeps answers of at most ``KEPT_ANSWER`` bytes.
        answer: bytes of one answer, as ``answer_bytes`` counts them.
    """
    return rule == "kept" or (rule == "auto" and answer <= KEPT_ANSWER)


def minutes(seconds: float, longest: int, attempt: int = 1) -> int:
    """Time limit of a job in minutes: five, and twice the estimated time; at most ``longest``.

    Twice as much at every further attempt.
    """
    return min(longest, math.ceil((START_SECONDS + 2 * seconds) / 60) << (attempt - 1))


BASES = (
    "measured on the same student",
    "scaled by MACs",
    "at the mean of other students",
    "scaled from the zoo's own training",
    "at an assumed speed",
)
"""Bases of an estimate, the most reliable first."""

ASSUMED = {"cpu": 3e-10, "cuda": 6e-13}
"""Seconds of training per image and MAC where nothing was measured: one CPU core, and a GPU of some years ago; forward
and backward pass are three MACs each, at a third of the peak speed of such devices."""


@dataclass(frozen=True)
class Pace:
    """Seconds of training per image, forward and backward, with its share of the evaluations.

    Attributes:
        macs: MACs of one image's forward pass, of every model where it is known.
        own: seconds per image of each student that was measured.
        per_mac: seconds per image and MAC, over the measured students whose MACs are known; None without one.
        mean: seconds per image over all measured students; None without one.
        rough: seconds per image and MAC before any student was measured, and its one of ``BASES``.
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
            trainings: student, seconds, and images that it was trained on, each counted as often as it was seen.
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
        """Seconds per image of a student, and the one of ``BASES`` behind it; None where nothing is known."""
        macs = self.macs.get(student)
        if student in self.own:
            return self.own[student], BASES[0]
        if self.per_mac is not None and macs:
            return self.per_mac * macs, BASES[1]
        if self.mean is not None:
            return self.mean, BASES[2]
        return (self.rough[0] * macs, self.rough[1]) if macs else None

    def of_experiment(
        self, at: str, needs: Mapping[str, Needs], validation: int, done: Iterable[Finished], left: Iterable[Missing]
    ) -> Pace:
        """The pace with that of one experiment's missing trainings, whose methods cost more and less.

        Args:
            at: the experiment, `section.name`.
            needs: of its methods, by name; all cost the same where they are not known.
            validation: images that every epoch ends with, each a third of one that is trained on.
            done: finished trainings.
            left: missing ones.
        """

        def work(of: Finished | Missing) -> float:
            evaluated = of.epochs * validation if of.seen else 0
            return (needs[of.method].macs if of.method in needs else 1) * (of.seen + evaluated / 3)

        left, done = list(left), list(done)
        images = sum(of.seen for of in left)
        if not images:
            return self
        mean = sum(map(work, left)) / images
        before = sum(map(work, done))
        own = {at: mean * sum(of.seconds for of in done if of.seen) / before} if before else {}
        return replace(self, own={**self.own, **own}, macs={**self.macs, **({at: round(mean)} if needs else {})})


class Missing(NamedTuple):
    """A training to do: method, epochs, and images that it will see, each as often as it is seen."""

    method: str
    epochs: int
    seen: float


class Finished(NamedTuple):
    """A finished training: method, epochs, images that it saw, and seconds."""

    method: str
    epochs: int
    seen: float
    seconds: float


class Needs(NamedTuple):
    """Memory and operations of a training by one method.

    Attributes:
        held: bytes that it holds whatever the batch, by what they are.
        image: bytes that it keeps for an image of a batch.
        batch: images of a batch.
        macs: multiply-accumulate operations of an image's forward pass; of teachers, which have no backward pass, a
            third.
    """

    held: Mapping[str, int]
    image: int
    batch: int
    macs: int

    def total(self, images: int) -> int:
        """Bytes that it takes with so many images at once."""
        return sum(self.held.values()) + self.image * images


def write_needs(path: Path, plan: str, found: Mapping[str, Needs]) -> None:
    """Keep the needs of an experiment's methods, by their names; ``plan`` is the hash of what determines them."""
    store.write_json(path, {"plan": plan, "methods": {name: needs._asdict() for name, needs in found.items()}})


def read_needs(path: Path, plan: str) -> dict[str, Needs]:
    """The needs that were kept for this plan; none where there are none."""
    try:
        kept = store.read_json(path)
    except KtError:
        return {}
    return {name: Needs(**needs) for name, needs in kept["methods"].items()} if kept["plan"] == plan else {}
