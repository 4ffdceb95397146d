# SPDX-License-Identifier: Apache-2.0
"""Which accelerator QEMU can use here, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypemand.errors import HostNotReady

_KVM_DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")


class AccelKind(StrEnum):
    """QEMU's word for an accelerator."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Accel:
    """The accelerator and, in words, why it is this one."""

    kind: AccelKind
    reason: str


def _open_kvm(path: Path) -> str | None:
    """Why the device cannot be opened, or None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def find_accel(
    choice: str = "auto",
    *,
    open_kvm: Callable[[Path], str | None] = _open_kvm,
    cpuinfo: Path = CPUINFO,
) -> Accel:
    """The accelerator to use; `choice` is `accel` of the host config.

    KVM counts only where the device opens read-write *and* the CPU shows vmx or svm: a device without them
    exists on some machines and runs no stock kernel.

    Raises HostNotReady when KVM is required and not available.
    """
    if choice == AccelKind.TCG:
        return Accel(AccelKind.TCG, "accel: tcg is set in the host configuration")
    failure = open_kvm(_KVM_DEVICE)
    if failure is None and not _has_virtualization_flag(cpuinfo):
        failure = f"{_KVM_DEVICE} is there, but the CPU shows neither vmx nor svm"
    if failure is None:
        return Accel(AccelKind.KVM, f"{_KVM_DEVICE} opens and the CPU has hardware virtualization")
    if choice == AccelKind.KVM:
        raise HostNotReady(
            f"KVM is not usable: {failure}",
            hint="set accel: auto or accel: tcg in /etc/hypemand/hypemand.yaml to run without it",
        )
    return Accel(AccelKind.TCG, f"KVM is not usable: {failure}")


def _has_virtualization_flag(cpuinfo: Path) -> bool:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", text, re.MULTILINE) is not None


def find_tsc_khz(cpuinfo: Path = CPUINFO) -> int | None:
    """Frequency of the time stamp counter in kHz; None where it is not known.

    On a CPU with a constant TSC the kernel derives bogomips from it (2 per MHz), to 0.01.
    """
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"^bogomips\s*:\s*([0-9.]+)", text, re.MULTILINE)
    return round(float(found[1]) * 500) if found and "constant_tsc" in text else None
