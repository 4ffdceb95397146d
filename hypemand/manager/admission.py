# SPDX-License-Identifier: Apache-2.0
"""May a VM start, by what the host has? Pure, but for reading the host's memory."""

from __future__ import annotations

from pathlib import Path

from hypemand.config.host import MemoryPolicy
from hypemand.config.sizes import format_size
from hypemand.errors import InsufficientResources

_MIB = 1024 * 1024
_MEMINFO = Path("/proc/meminfo")


def read_total_memory(path: Path = _MEMINFO) -> int:
    """Bytes of memory that the host has."""
    for line in path.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no MemTotal")


def check_memory(name: str, wanted: int, committed: int, total: int, policy: MemoryPolicy) -> None:
    """Raise InsufficientResources, with the figures, when a VM of `wanted` bytes does not fit beside the
    `committed` bytes of the VMs that are active on a host of `total` bytes."""
    usable = int(max(total - policy.reserve, 0) * policy.overcommit)
    if committed + wanted <= usable:
        return
    free = max(usable - committed, 0)
    raise InsufficientResources(
        f"VM {name} wants {_shown(wanted)} of memory, but {_shown(free)} are left: the host has"
        f" {_shown(total)}, keeps {_shown(policy.reserve)} for itself at an overcommit of"
        f" {policy.overcommit:g}, and active VMs hold {_shown(committed)}",
        hint="lower memory: in its definition, stop another VM, or raise memory.overcommit in"
        " /etc/hypemand/hypemand.yaml",
    )


def _shown(size: int) -> str:
    return format_size(size // _MIB * _MIB)
