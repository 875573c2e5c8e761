"""kdlab.engine.device: what a process does to the machine it runs on."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from kdlab.engine import device
if sys.argv[1] == "keep" and not device.keep_memory():
    sys.exit(3)
for _ in range(3):
    torch.ones(8, 2**20)  # 32 MB; above what glibc keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16, 2**20)
    torch.ones(12, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the kernel handed out while tensors came and went."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no way to keep memory")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_tensors_are_kept_for_the_next_ones() -> None:
    assert 3 * faults("keep") < faults("give back")
