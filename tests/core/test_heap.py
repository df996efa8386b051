"""Freed columns stay with the process, so that a search does not fault the same memory in again and again."""

import subprocess
import sys

import pytest

from helix_sim.core.heap import keep_freed_columns

FAULTS = """
import resource
import numpy as np
from helix_sim.core.heap import keep_freed_columns
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        parts = [np.ones(2**17) for _ in range(20)]
        parts.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before, told = faults(), keep_freed_columns()
faults()
print(before, faults() if told else "")
"""


def test_a_freed_column_is_not_faulted_in_again():
    if not keep_freed_columns():
        pytest.skip("the C library here is not glibc")
    shown = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, shown.stdout.split())
    assert before > 10_000
    assert after < 100
