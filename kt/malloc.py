"""The C library's allocator, told to keep the memory that a training step frees: the next step takes it again."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h
MMAP_FROM = 32 << 20
"""Larger blocks still get a mapping of their own, and give it back: the largest number that glibc takes, in bytes."""
TRIM_FROM = 1 << 30
"""Free memory at the end of the heap from which on it is given back, in bytes."""


def keep_freed() -> bool:
    """Let this process keep freed blocks, instead of returning their pages and faulting them in again at every step.

    Without it a small model's training step on the CPU spends 7 to 12 % of its time in page faults
    (docs/performance.md). The tensors of a step are those of the step before, so the process does not grow.

    Returns:
        Whether the allocator is glibc's and took both numbers; others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_FROM) and mallopt(M_TRIM_THRESHOLD, TRIM_FROM))
