"""What a cluster job should ask for, guessed from the models' sizes before it runs; every profile can say otherwise.

The guesses are meant to be on the safe side: a job that asks for too much waits longer, one that asks for too little
dies, or goes back to the queue at its time limit and continues.
"""

from __future__ import annotations

import math

PROCESS_MB = {"cpu": 1300, "cuda": 4000}
"""Memory of a Python with torch and timm, and with the libraries of a GPU."""

WEIGHTS_KEPT = {"train": 6, "predict": 2}
"""Copies of the weights: now, at the start, best, gradient, AdamW's two moments; or read and loaded."""

ACTIVATION_MB = 60.0
"""Memory that an image takes in training on the CPU, for a model of 10⁹ MACs; it grows with their square root:
ResNet-50 needs about 100 MB at 4.1 · 10⁹, ViT-B/16 about 200 MB at 17.6 · 10⁹."""

EVALUATED = 256
"""Most images in one forward pass of an evaluation; without gradients they take a third of what they do in training."""

PREPARED_MB = 512
"""Most memory that the prepared images of one split take."""

START_SECONDS = 300.0
"""Time to start on a busy shared file system, to read the data, and to write what was made."""


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
            piece by piece.
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

    process + what a training holds + what it keeps for the images of a batch; the last only on the CPU, and at least
    for a third of ``EVALUATED`` images. Twice as much at every further attempt.

    Args:
        held: bytes of weights, their copies, features and prepared images.
        image: bytes that a training keeps for an image of a batch.
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


def minutes(seconds: float, longest: int, attempt: int = 1) -> int:
    """Time limit of a job: five minutes and twice the time that it is thought to take, at most ``longest``.

    Twice as much at every further attempt.
    """
    return min(longest, math.ceil((START_SECONDS + 2 * seconds) / 60) << (attempt - 1))
