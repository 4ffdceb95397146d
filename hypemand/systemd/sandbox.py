# SPDX-License-Identifier: Apache-2.0
"""The sandbox of a VMM, as properties of its transient unit.

One table of (property, D-Bus signature, value): what `systemd-analyze security` judges. A VMM needs its
own files, its console and the CPU; with KVM also /dev/kvm. It has no capability, no network, no other
process in view and no memory that is both writable and executable (TCG is run with split-wx for that).

One whose guest has a network opens the TAP device that is its own, which has to be in the network namespace
that it is in: the host's. It can still have no socket there but unix ones.
"""

from __future__ import annotations

import socket
from typing import Any

Property = tuple[str, str, Any]

_DENIED_CALLS = [
    "@privileged",
    "@resources",
    "@mount",
    "@swap",
    "@reboot",
    "@raw-io",
    "@module",
    "@debug",
    "@clock",
    "@obsolete",
    "@cpu-emulation",
]
# All kinds but one are denied, and for that one a process needs a capability that it does not have. To deny
# all (0) would be undone by the next daemon-reload: systemd 252 writes it down as an empty setting.
_CLONE_NEWUTS = 0x04000000
_ANY_ADDRESS = [(socket.AF_INET, bytes(4), 0), (socket.AF_INET6, bytes(16), 0)]


def _device(path: str) -> tuple[Property, ...]:
    return ("BindPaths", "a(ssbt)", [(path, path, False, 0)]), ("DeviceAllow", "a(ss)", [(path, "rw")])


_SANDBOX: tuple[Property, ...] = (
    ("NoNewPrivileges", "b", True),
    ("CapabilityBoundingSet", "t", 0),
    ("AmbientCapabilities", "t", 0),
    ("UMask", "u", 0o077),
    ("ProtectSystem", "s", "strict"),
    ("PrivateMounts", "b", True),
    ("PrivateIPC", "b", True),
    ("PrivateUsers", "b", True),
    ("RemoveIPC", "b", True),
    ("ProtectProc", "s", "invisible"),
    ("ProcSubset", "s", "pid"),
    # Not ProtectHome=, PrivateTmp=, ProtectKernelTunables=, -Modules= and -Logs=: in the VMM's own root
    # (rootdir.py) there is no home, nothing shared in /tmp and no /sys, and what else these take away it has
    # neither capabilities nor system calls for. systemd takes milliseconds for each.
    ("ProtectControlGroups", "b", True),
    ("ProtectClock", "b", True),
    ("ProtectHostname", "b", True),
    ("LockPersonality", "b", True),
    ("MemoryDenyWriteExecute", "b", True),
    ("RestrictRealtime", "b", True),
    ("RestrictSUIDSGID", "b", True),
    ("RestrictNamespaces", "t", _CLONE_NEWUTS),
    ("KeyringMode", "s", "private"),
    ("SystemCallArchitectures", "as", ["native"]),
    ("SystemCallErrorNumber", "i", 1),  # EPERM
    ("SystemCallFilter", "(bas)", (True, ["@system-service"])),
    ("SystemCallFilter", "(bas)", (False, _DENIED_CALLS)),
    # QEMU's own -sandbox wants to install a further filter
    ("SystemCallFilter", "(bas)", (True, ["seccomp"])),
    ("RestrictAddressFamilies", "(bas)", (True, ["AF_UNIX"])),
    ("IPAddressDeny", "a(iayu)", _ANY_ADDRESS),
    ("LimitCORE", "t", 0),
    ("LimitNOFILE", "t", 1024),
    ("LimitMEMLOCK", "t", 0),
    ("PrivateDevices", "b", True),
    ("DevicePolicy", "s", "closed"),
)

_NO_NETWORK: tuple[Property, ...] = (("PrivateNetwork", "b", True),)
_TAP = _device("/dev/net/tun")
_KVM: tuple[Property, ...] = (*_device("/dev/kvm"), ("SupplementaryGroups", "as", ["kvm"]))


def sandbox_properties(*, kvm: bool, tap: bool) -> list[Property]:
    """The sandbox; `kvm`: with access to /dev/kvm, `tap`: with access to TAP devices of its user."""
    return [*_SANDBOX, *(_KVM if kvm else ()), *(_TAP if tap else _NO_NETWORK)]
