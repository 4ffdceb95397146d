# SPDX-License-Identifier: Apache-2.0
"""Starts a wait in the kernel in advance that every start and every end of a VM needs.

To move a process into another control group the kernel waits for a grace period of RCU, 5 to 20 ms, unless
one was moved in the last few milliseconds (cgroup_threadgroup_rwsem and rcu_sync in the kernel's source;
cgroups(7) has the mount option favordynmods for it). systemd moves the first process of every command of a
unit.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from hypemand.tasks import Tasks
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_OWN = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
# for one that was begun
_DEADLINE = 5.0


class Easing:
    """Has `ease_moves` done, one at a time."""

    def __init__(self) -> None:
        self._tasks = Tasks("control groups")
        self._easing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Have the kernel's wait be over by the time that PID 1 has a process to move."""
        if self._easing is None or self._easing.done():
            self._easing = self._tasks.start("wait for moves", run_in(Pool.STARTS, ease_moves))

    async def close(self) -> None:
        """Wait for what was begun."""
        await self._tasks.close(patience=_DEADLINE)


def ease_moves() -> None:
    """Move this process to where it is: then the next one to be moved, by whomever, need not wait. Blocks.
    Where that cannot be, nothing is lost but those milliseconds."""
    for group in find_own_groups(_OWN.read_text()):
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            _log.debug("cannot be moved within %s: %s", group, error)
        else:
            return


def find_own_groups(memberships: str) -> list[Path]:
    """Folders that the group of a process may have, of its /proc/PID/cgroup (cgroups(7)): with control groups
    v2 alone, with v2 beside v1, and in systemd's own hierarchy of v1. One lock serves them all."""
    groups = {line.split(":")[1]: line.split(":", 2)[2].lstrip("/") for line in memberships.splitlines()}
    mounts = (("", _MOUNT), ("", _MOUNT / "unified"), ("name=systemd", _MOUNT / "systemd"))
    return [mount / groups[key] for key, mount in mounts if key in groups]
