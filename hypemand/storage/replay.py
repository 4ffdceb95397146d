# SPDX-License-Identifier: Apache-2.0
"""The journal of a file system whose guest was killed, replayed for those who can only read it.

A guest may have written anything: what makes sense of it is e2fsck in a transient unit of its own, as the
user of the VM that is to read, which sees that one file and /usr, has no privileges and no network, and does
nothing but the replay.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from hypemand.run import run
from hypemand.sandbox import OWN_ROOT, derive_sandbox
from hypemand.storage.tools import escape_path
from hypemand.storage.unitrun import run_in_unit
from hypemand.unitnames import replay_unit_name

_TIMEOUT = 300.0
_DISK = "/disk"
# e2fsck(8): 1 errors corrected, 2 corrected and a reboot is advised, which means a mounted disk.
_OK = (0, 1, 2)

_SANDBOX = derive_sandbox(*OWN_ROOT, "MemoryMax=512M", "TasksMax=8", f"RuntimeMaxSec={_TIMEOUT:g}")

Replay = Callable[[Path, int], None]


def replay_here(disk: Path, _uid: int) -> None:
    """With all the rights of this process: for file systems that are one's own."""
    run(_command(os.fspath(disk)), timeout=_TIMEOUT, ok=_OK)


def replay_in_unit(disk: Path, uid: int) -> None:
    """In a unit, as the user `uid`, who may write to `disk` by its mode. Raises what `hypemand.run.run` does;
    then nothing runs any more."""
    unit = replay_unit_name(secrets.token_hex(6))
    own = (
        f"User={uid}",
        f"Group={uid}",
        f"BindPaths={escape_path(disk)}:{_DISK}",
        f"ReadWritePaths=+{_DISK}",
    )
    settings, command = (*_SANDBOX, *own), _command(_DISK)
    run_in_unit(unit, command, settings, description="Journal replay for hypemand", timeout=_TIMEOUT, ok=_OK)


def _command(disk: str) -> list[str]:
    return ["/usr/sbin/e2fsck", "-p", "-E", "journal_only", disk]
