"""The allocator's setting: pages that a step frees are not faulted in again by the next."""

import platform

import pytest

STEPS = """
import ctypes, resource, sys
import torch
from kt.stages import common

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert common.keep_freed()
else:  # glibc's start values, set so that they stay: how far it moves them by itself depends on the heap's layout
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(common.M_MMAP_THRESHOLD, 128 << 10) and mallopt(common.M_TRIM_THRESHOLD, 128 << 10)
x = torch.randn(64, 16, 32, 32)

def step():
    a = x.relu()
    b = a * 2 + x
    return (a + b).sum()

for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(50):
    step()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt, after.ru_maxrss, before.ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_steps_fault_their_pages_in_once_and_take_no_more_memory(python):
    found = {}
    for how in ("keep", "return"):
        result = python(STEPS, how)
        assert not result.returncode, result.stderr
        found[how] = tuple(map(int, result.stdout.split()))
    (kept, peak, at_start), (returned, peak_returned, _) = found["keep"], found["return"]
    if not at_start:  # loading torch alone faults in thousands
        pytest.skip("this system does not count page faults")
    assert kept < 50 < 1000 < returned  # 50 steps with four tensors of 4 MiB each
    assert peak < 1.1 * peak_returned
