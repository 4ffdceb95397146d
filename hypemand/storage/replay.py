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
from dataclasses import replace
from pathlib import Path

from hypemand.run import CommandFailed, run
from hypemand.storage.tools import escape_path, stop_units
from hypemand.unitnames import replay_unit_name

_TIMEOUT = 300.0
_DISK = "/disk"
# e2fsck(8): 1 errors corrected, 2 corrected and a reboot is advised, which means a mounted disk.
_OK = (0, 1, 2)

_SANDBOX = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    # A root with nothing in it but what is bound. Not ProtectSystem=strict: of two settings for / systemd
    # keeps one, and that is the host's root.
    "TemporaryFileSystem=/:ro",
    "BindReadOnlyPaths=/usr /bin /sbin /lib -/lib64 -/etc/ld.so.cache",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateNetwork=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "UMask=0077",
    "LimitCORE=0",
    "MemoryMax=512M",
    "TasksMax=8",
    f"RuntimeMaxSec={_TIMEOUT:g}",
)

Replay = Callable[[Path, int], None]


def replay_here(disk: Path, _uid: int) -> None:
    """With all the rights of this process: for file systems that are one's own."""
    run(_command(os.fspath(disk)), timeout=_TIMEOUT, ok=_OK)


def replay_in_unit(disk: Path, uid: int) -> None:
    """In a unit, as the user `uid`, who must own `disk` meanwhile. Raises what `hypemand.run.run` does; then
    nothing runs any more."""
    unit = replay_unit_name(secrets.token_hex(6))
    argv = ["systemd-run", "--quiet", "--wait", "--collect", "--pipe", "--no-ask-password"]
    argv += ["--service-type=exec", f"--unit={unit}", "--description=Journal replay for hypemand"]
    own = (
        f"User={uid}",
        f"Group={uid}",
        f"BindPaths={escape_path(disk)}:{_DISK}",
        f"ReadWritePaths=+{_DISK}",
    )
    for setting in (*_SANDBOX, *own):
        argv += ["-p", setting]
    command = _command(_DISK)
    try:
        run([*argv, "--", *command], timeout=_TIMEOUT, ok=_OK)
    except CommandFailed as error:
        raise CommandFailed(replace(error.result, argv=tuple(command))) from None
    except BaseException:
        stop_units(unit)
        raise


def _command(disk: str) -> list[str]:
    return ["/usr/sbin/e2fsck", "-p", "-E", "journal_only", disk]
