# SPDX-License-Identifier: Apache-2.0
"""The sandbox of a VMM, as properties of its transient unit.

One table of (property, D-Bus signature, value): what `systemd-analyze security` judges. A VMM needs its
own files, its console and the CPU; with KVM also /dev/kvm. It has no capability, no network, no other
process in view and no memory that is both writable and executable (TCG is run with split-wx for that).

What system call filters by name cannot refuse, and what the launcher still needs and a VMM does not, the
launcher takes away before it becomes the VMM (launcher/filter.h).
"""

from __future__ import annotations

import socket
from typing import Any

Property = tuple[str, str, Any]

# Taken from @system-service: groups, and then what reaches other processes by the kernel's objects for that,
# or by their memory. A VMM does without, and a shorter list is made into filters sooner.
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
    "@keyring",
    "@memlock",
    "@setuid",
    *("ipc", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop"),
    *("shmat", "shmctl", "shmdt", "shmget"),
    *("mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink"),
    # what the kernel does of its work goes past all filters
    *("io_uring_enter", "io_uring_register", "io_uring_setup"),
    *("kcmp", "process_madvise", "process_vm_readv", "process_vm_writev", "userfaultfd"),
]
# All kinds but one are denied, and for that one a process needs a capability that it does not have. To deny
# all (0) would be undone by the next daemon-reload: systemd 252 writes it down as an empty setting.
_CLONE_NEWUTS = 0x04000000
_ANY_ADDRESS = [(socket.AF_INET, bytes(4), 0), (socket.AF_INET6, bytes(16), 0)]


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
    # Not ProtectHome=yes, PrivateTmp=, ProtectKernelTunables=, -Modules= and -Logs=, ProtectHostname=: in the
    # VMM's own root (rootdir.py) there is no home, nothing shared in /tmp and no /sys, and what else these
    # take away it has neither capabilities nor system calls for. systemd takes milliseconds for each.
    # (For a home that is read only below a root that is, it makes no mount at all.)
    ("ProtectHome", "s", "read-only"),
    ("ProtectControlGroups", "b", True),
    ("ProtectClock", "b", True),
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
    # a TAP device is of the host's network: the VMM gets a descriptor of it (launcher/tap.h)
    ("PrivateNetwork", "b", True),
    ("PrivateDevices", "b", True),
    ("DevicePolicy", "s", "closed"),
)

_KVM: tuple[Property, ...] = (
    ("BindPaths", "a(ssbt)", [("/dev/kvm", "/dev/kvm", False, 0)]),
    ("DeviceAllow", "a(ss)", [("/dev/kvm", "rw")]),
    ("SupplementaryGroups", "as", ["kvm"]),
)


def sandbox_properties(*, kvm: bool) -> list[Property]:
    """The sandbox; `kvm`: with access to /dev/kvm."""
    return [*_SANDBOX, *(_KVM if kvm else ())]
