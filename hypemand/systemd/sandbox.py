# SPDX-License-Identifier: Apache-2.0
"""The sandbox of a VMM, as properties of its transient unit.

A VMM needs its own files, its console and the CPU; with KVM also /dev/kvm. It has no capability, no network,
no other process in view and no memory that is both writable and executable (TCG is run with split-wx for
that).

What system call filters by name cannot refuse, and what the launcher still needs and a VMM does not, the
launcher takes away before it becomes the VMM (launcher/filter.h).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

from hypemand.sandbox import derive_sandbox

Property = tuple[str, str, Any]

# Taken from @system-service beside what all go without: groups, and then what reaches other processes by the
# kernel's objects for that, or by their memory. A VMM does without, and a shorter list is made into filters
# sooner.
_DENIED_CALLS = (
    "@mount @swap @reboot @raw-io @module @debug @clock @obsolete @cpu-emulation @keyring @memlock @setuid"
    " ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget"
    " mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink"
    # what the kernel does of its work goes past all filters
    " io_uring_enter io_uring_register io_uring_setup"
    " kcmp process_madvise process_vm_readv process_vm_writev userfaultfd"
)
_SANDBOX = derive_sandbox(
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    # Not ProtectHome=yes nor PrivateTmp=: in the VMM's own root (rootdir.py) there is no home and nothing
    # shared in /tmp. (For a home that is read only below a root that is, systemd makes no mount at all.)
    "ProtectHome=read-only",
    "PrivateMounts=yes",
    "PrivateUsers=yes",
    "RemoveIPC=yes",
    # All kinds but one are denied, and for that one a process needs a capability that it does not have. To
    # deny all would be undone by the next daemon-reload: systemd 252 writes it down as an empty setting.
    "RestrictNamespaces=uts",
    f"SystemCallFilter=~{_DENIED_CALLS}",
    # QEMU's own -sandbox wants to install a further filter
    "SystemCallFilter=seccomp",
    "IPAddressDeny=any",
    "LimitNOFILE=1024",
    "LimitMEMLOCK=0",
    "DevicePolicy=closed",
    # The root has no /sys, and what else these take away the VMM has neither capabilities nor system calls
    # for. systemd takes milliseconds for each.
    without={
        *("ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
        "RestrictNamespaces",
    },
)
# A TAP device is of the host's network (PrivateNetwork=): the VMM gets a descriptor of it (launcher/tap.h).

_KVM: tuple[Property, ...] = (
    ("BindPaths", "a(ssbt)", [("/dev/kvm", "/dev/kvm", False, 0)]),
    ("DeviceAllow", "a(ss)", [("/dev/kvm", "rw")]),
    ("SupplementaryGroups", "as", ["kvm"]),
)

Converter = Callable[[str], tuple[str, Any]]


def _number(value: str) -> tuple[str, Any]:
    return ("t", int(value))


def _no_capability(value: str) -> tuple[str, Any]:
    if value:
        raise ValueError(f"{value}: a VMM has no capability")
    return ("t", 0)


def _list(value: str) -> tuple[str, Any]:
    """Of what is allowed, or after a ~ of what is denied."""
    return ("(bas)", (not value.startswith("~"), value.removeprefix("~").split()))


_ANY_ADDRESS = [(socket.AF_INET, bytes(4), 0), (socket.AF_INET6, bytes(16), 0)]
# What D-Bus has in other types than its unit files: org.freedesktop.systemd1(5)
_CONVERTERS: Mapping[str, Converter] = {
    "CapabilityBoundingSet": _no_capability,
    "AmbientCapabilities": _no_capability,
    "UMask": lambda value: ("u", int(value, 8)),
    "RestrictNamespaces": lambda value: ("t", {"uts": 0x04000000}[value]),  # CLONE_NEWUTS
    "SystemCallArchitectures": lambda value: ("as", value.split()),
    "SystemCallErrorNumber": lambda value: ("i", getattr(errno, value)),
    "SystemCallFilter": _list,
    "RestrictAddressFamilies": _list,
    "IPAddressDeny": lambda value: ("a(iayu)", {"any": _ANY_ADDRESS}[value]),
    **dict.fromkeys(("LimitCORE", "LimitNOFILE", "LimitMEMLOCK"), _number),
}


def _convert(setting: str) -> Property:
    name, _, value = setting.partition("=")
    if name in _CONVERTERS:
        return (name, *_CONVERTERS[name](value))
    return (name, "b", True) if value == "yes" else (name, "s", value)


_PROPERTIES = tuple(map(_convert, _SANDBOX))


def sandbox_properties(*, kvm: bool) -> list[Property]:
    """The sandbox; `kvm`: with access to /dev/kvm."""
    return [*_PROPERTIES, *(_KVM if kvm else ())]
