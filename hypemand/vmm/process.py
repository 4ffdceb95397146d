# SPDX-License-Identifier: Apache-2.0
"""What a VMM's process uses, as the kernel counts it (proc(5)): cheaper than asking systemd for its unit, and
there whatever controllers the host has."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# fields of stat after the command's name, which ends with the last parenthesis
_UTIME, _STIME = 11, 12


def read_cpu_seconds(pid: int) -> float | None:
    """CPU time of all its threads, a guest's too; None for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS
    except (OSError, ValueError, IndexError):
        return None


def read_memory(pid: int) -> tuple[int, int]:
    """Virtual and resident size in bytes; 0 for a process that is gone."""
    try:
        virtual, resident = Path(f"/proc/{pid}/statm").read_bytes().split()[:2]
        return int(virtual) * _PAGE, int(resident) * _PAGE
    except (OSError, ValueError):
        return 0, 0
