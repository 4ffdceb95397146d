# SPDX-License-Identifier: Apache-2.0
"""The sandbox of what the host runs on hostile data: VMMs, and the tools for images and disks.

One list of settings, in the words of unit files (systemd.exec(5)): what none of them needs. Whoever starts a
unit says what it takes away from that list, since its program needs it, and what it adds. `systemd-analyze
security` judges the results (tests/host/test_units.py and test_image_units.py).
"""

from __future__ import annotations

from collections.abc import Collection

_SANDBOX = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
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
)
OWN_ROOT = (
    # A root with nothing in it but what is bound: above all no /run. Not ProtectSystem=strict beside it: of
    # two settings for / systemd keeps one, and that is the host's root.
    "TemporaryFileSystem=/:ro",
    "BindReadOnlyPaths=/usr /bin /sbin /lib -/lib64 -/etc/ld.so.cache",
)


def derive_sandbox(*added: str, without: Collection[str] = ()) -> tuple[str, ...]:
    """The settings, in the order in which systemd is to read them: those of the list whose names are not in
    `without`, and then `added`. ValueError for a name that the list has not, and for a setting that would
    replace one of the list: that is to be taken away."""
    names = {name_of(setting) for setting in _SANDBOX}
    if unknown := set(without) - names:
        raise ValueError(f"there is no {', '.join(sorted(unknown))} to take away")
    kept = tuple(setting for setting in _SANDBOX if name_of(setting) not in without)
    again = {name_of(setting) for setting in added} & {name_of(setting) for setting in kept}
    if again - {"SystemCallFilter"}:  # which adds up
        raise ValueError(f"{', '.join(sorted(again))} is in the list already")
    return (*kept, *added)


def name_of(setting: str) -> str:
    """`UMask` of `UMask=0022`."""
    return setting.partition("=")[0]
