# SPDX-License-Identifier: Apache-2.0
"""What a process uses, against what it says of itself."""

import os
import resource
import time

from hypemand.vmm.process import read_cpu_seconds, read_memory

GONE = 2**22 + 1  # above the largest pid


def test_cpu_time_is_that_of_the_process() -> None:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    found = read_cpu_seconds(os.getpid())
    assert found is not None
    assert abs(found - time.process_time()) < 0.1


def test_memory_is_that_of_the_process() -> None:
    virtual, resident = read_memory(os.getpid())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 1_000_000 < resident <= peak * 1.1
    assert resident < virtual


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert read_cpu_seconds(GONE) is None
    assert read_memory(GONE) == (0, 0)
