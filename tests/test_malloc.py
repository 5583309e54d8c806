"""The allocator's setting: pages that a step frees are not faulted in again by the next."""

import json
import platform

import pytest

STEPS = """
import ctypes, json, resource, sys
import torch
from kt.stages import common

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert common.keep_freed()
else:  # glibc's start values, set so that they stay: how far it moves them by itself depends on the heap's layout
    mallopt, M_MMAP_THRESHOLD = ctypes.CDLL(None).mallopt, -3
    assert mallopt(M_MMAP_THRESHOLD, 128 << 10) and mallopt(common.M_TRIM_THRESHOLD, 128 << 10)

def step(x):
    a = x.relu()
    b = a * 2 + x
    return (a + b).sum()

def faults(x, steps):
    for _ in range(steps // 2):
        step(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

at_start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
small, large = faults(torch.randn(64, 16, 32, 32), 40), faults(torch.randn(8, 21, 256, 256), 4)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"at_start": at_start, "small": small, "large": large, "peak": peak}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_steps_fault_their_pages_in_once_and_take_no_more_memory(python):
    found = {}
    for how in ("keep", "return"):
        result = python(STEPS, how)
        assert not result.returncode, result.stderr
        found[how] = json.loads(result.stdout)
    kept, returned = found["keep"], found["return"]
    if not kept["at_start"]:  # loading torch alone faults in thousands
        pytest.skip("this system does not count page faults")
    for size in (
        "small",
        "large",
    ):  # tensors of 4 MiB, and of 42 MiB: more than glibc ever takes from its heap by default
        assert kept[size] < 50 < 1000 < returned[size]
    assert kept["peak"] < 1.1 * returned["peak"]
